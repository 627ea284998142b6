"""Adapters into a torch model and out of it again, on disk, and the parameters for an optimiser."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from polymoe.adapters import inject as adapters
from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.inject import Adapter
from polymoe.adapters.methods import configure, learning_rates
from polymoe.adapters.targets import ALL_LINEAR
from polymoe.batch import TaskRegistry
from polymoe.interop import peft
from polymoe.interop.torch.base import TorchBase
from polymoe.interop.torch.calls import Call, Forward, Generate, auxiliary, plain
from polymoe.interop.torch.linear import InjectedLinear
from polymoe.interop.torch.passes import Passes
from polymoe.training.config import TrainingConfig


def inject(
    model: torch.nn.Module,
    method: str | AdapterConfig = "poly",
    tasks: Iterable[str] = (),
    target_modules: str | Sequence[str] | None = None,
    *,
    root: str = "",
    release_base: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    **options: Any,
) -> Any:
    """Put an adapter into a torch model, which is changed in place and returned.

    Its linear layers that match become :class:`~polymoe.interop.torch.linear.InjectedLinear`; all that it had
    is frozen (set ``requires_grad`` again for a head that is to be trained); its forward and generate take
    ``task_ids``.

    Args:
        model: any module with nn.Linear or transformers' Conv1D layers, on the CPU, of float32, bfloat16 or
            float16.
        method: a row of :data:`polymoe.adapters.METHODS` at the site "linear", or a configuration.
        tasks: their names, in the order of their ids.
        target_modules: PEFT's rules, see :mod:`polymoe.adapters.targets`; None: what is usual for the type of
            the model; "all-linear": all but the heads.
        root: a submodule, such as "bert"; names and folders then start below it, as they do for the bare
            model.
        release_base: let go of the original weights of the adapted layers, which are packed.
        dtype: of the packed weights; "bfloat16" takes half the memory and, on a CPU with avx512_bf16, about
            half the time. All else is float32 in either case.
        seed: of the initial values and of all noise.
        options: further fields of :class:`~polymoe.adapters.config.AdapterConfig` (r, n_skills ...).

    Raises:
        ValueError: an unknown method, parts that do not fit, no module that matches (the candidates are
            listed), feed-forward experts, weights that are not on the CPU, a model that has an adapter.
        TypeError: an unknown option, float64 or quantised weights.
    """
    base = _checked(model, root, dtype)
    if target_modules is not None:
        options["target_modules"] = target_modules
    config = configure(method, **options)
    if config.site != "linear":
        raise ValueError(
            f"site: expected 'linear' (the feed-forwards of torch models differ), got {config.site!r}"
        )
    if isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR:
        config = configure(config, target_modules=base.all_linear())
    return _install(model, base, adapters.inject(base, config, TaskRegistry(tasks), seed), seed, release_base)


def load_adapter(
    model: torch.nn.Module,
    folder: str | os.PathLike[str],
    *,
    root: str = "",
    release_base: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    **options: Any,
) -> Any:
    """:func:`inject` with the adapter in a folder that polymoe or PEFT (LORA, POLY) wrote. ``options`` and
    errors as :func:`polymoe.interop.peft.read_adapter` has them."""
    base = _checked(model, root, dtype)
    return _install(model, base, peft.read_adapter(base, folder, **options), seed, release_base)


def save_adapter(model: torch.nn.Module, folder: str | os.PathLike[str], **options: Any) -> None:
    """Save the adapter as :func:`polymoe.interop.peft.save_adapter` does."""
    injection = _of(model)
    peft.save_adapter(injection.base, injection.adapter, folder, **options)


def eject(model: torch.nn.Module) -> Any:
    """Take the adapter out: the model gets its layers, weights and gradients' flags back, and is returned."""
    injection = _of(model)
    _replace(model, {layer: layer.original() for layer in injection.layers})
    for call in injection.calls:
        call.remove()
    for encoder in injection.encoders:
        encoder.use_nested_tensor = True
    for parameter in injection.frozen:
        parameter.requires_grad_(True)
    return model


def get_adapter(model: torch.nn.Module) -> Adapter:
    """The adapter as polymoe has it, with the values of now, for reports and exports."""
    return _of(model).adapter


@contextmanager
def task_ids(model: torch.nn.Module, ids: Any) -> Iterator[None]:
    """Within the block the rows of the model's inputs belong to these tasks: names or ids of the examples, or
    one for all. What is given to a call itself comes first."""
    with _of(model).passes.within(ids=plain(ids), size=None):
        yield


@contextmanager
def disable_adapter(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model is what it was before."""
    with _of(model).passes.within(disabled=True):
        yield


def auxiliary_loss(model: torch.nn.Module) -> torch.Tensor:
    """The auxiliary losses of the last forward in training (balance_loss, ibp_prior), to be added to the
    loss; 0 where there are none, and where the model's output had a ``loss``, to which they were added."""
    passes = _of(model).passes
    return torch.zeros(()) if passes.last is None else auxiliary(passes.last)


def parameter_groups(model: torch.nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """Parameters for an optimiser of torch, in groups with the rates of the method: routers that go by task
    learn faster than experts.

    ``settings``: learning_rate, router_learning_rate, content_learning_rate, head_learning_rate (all that is
    trained beside the adapter) and weight_decay, as :class:`polymoe.TrainingConfig` has them.
    """
    injection = _of(model)
    config = TrainingConfig(**settings)
    rates = config.learning_rates(learning_rates(injection.adapter.config))
    groups = {id(one.tensor()): one.leaf.group for layer in injection.layers for one in layer.held}
    found: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            group = groups.get(id(parameter), "heads")
            decays = group in ("skills", "heads") and parameter.dim() > 1
            found.setdefault((group, decays), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[group], "weight_decay": config.weight_decay if decays else 0.0,
         "name": group}
        for (group, decays), parameters in found.items()
    ]  # fmt: skip


# ---- what the functions above work on


class Injection:
    """What was done to a model. ``frozen``: its parameters that were trainable before; ``encoders``: torch's,
    that are kept from nested tensors."""

    def __init__(
        self,
        base: TorchBase,
        passes: Passes,
        layers: list[InjectedLinear],
        calls: list[Call],
        frozen: list[torch.nn.Parameter],
        encoders: list[torch.nn.TransformerEncoder],
    ) -> None:
        self.base, self.passes, self.layers, self.calls = base, passes, layers, calls
        self.frozen, self.encoders = frozen, encoders

    @property
    def adapter(self) -> Adapter:
        """With torch's memory of now as its parameters."""
        for layer in self.layers:
            for one in layer.held:
                one.tensor()
        return self.passes.adapter


def _checked(model: torch.nn.Module, root: str, dtype: str) -> TorchBase:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, InjectedLinear) for module in model.modules()):
        raise ValueError("model: expected one without an adapter (eject takes it out), got one that has one")
    return TorchBase(model, root, dtype)


def _install(model: torch.nn.Module, base: TorchBase, adapter: Adapter, seed: int, release: bool) -> Any:
    frozen = {name: layer for name, layer in base.named_modules() if name in adapter.layers}
    passes = Passes(adapter, seed)
    layers: dict[str, InjectedLinear] = {}
    first: dict[int, InjectedLinear] = {}
    replaced = {}
    for name, layer in adapter.layers.items():
        _ = frozen[name].weight, frozen[name].bias  # whatever is wrong with them is said before any change
        if release and base.dtype != np.float32 and frozen[name].source.weight.dtype != torch.bfloat16:
            raise ValueError(
                f"release_base: expected False ({base.dtype} rounds {name}, which could not come back), "
                "got True"
            )
        original = frozen[name].source
        layers[name] = InjectedLinear(frozen[name], layer, passes)
        layers[name].hold(first.get(id(layer.router)))
        first.setdefault(id(layer.router), layers[name])
        replaced[original] = layers[name]
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    _replace(model, replaced)
    adapter.slots = {}
    calls: list[Call] = [Forward(model, passes)]
    if callable(getattr(model, "generate", None)):
        calls.append(Generate(model, passes))
    for call in calls:
        call.install()
    injection = Injection(base, passes, list(layers.values()), calls, trainable, _use_forwards(model))
    for injected in layers.values():
        injected.injection = injection
        if release:
            injected.release()
    return model


def _replace(model: torch.nn.Module, others: dict[Any, Any]) -> None:
    """Put other modules into the places of some, wherever they stand."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in others:
                module._modules[name] = others[child]


def _use_forwards(model: torch.nn.Module) -> list[torch.nn.TransformerEncoder]:
    """Keep layers of torch that take a shortcut past their linear layers, whose weights alone they read, from
    it: hooks are what makes them call those. Returns the encoders that padded texts took a form for it in."""
    encoders = []
    for module in model.modules():
        if isinstance(module, torch.nn.TransformerEncoder) and module.use_nested_tensor:
            module.use_nested_tensor = False
            encoders.append(module)
        if isinstance(module, torch.nn.TransformerEncoderLayer):
            for part in module.modules():
                if isinstance(part, InjectedLinear):
                    part.register_forward_pre_hook(_do_nothing)
    return encoders


def _do_nothing(module: torch.nn.Module, args: Any) -> None:
    pass


def _of(model: torch.nn.Module) -> Injection:
    for module in model.modules():
        if isinstance(module, InjectedLinear):
            injection: Injection = module.injection
            return injection
    raise ValueError("model: expected one with an adapter (inject puts it in), got one without")
