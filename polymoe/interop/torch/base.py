"""A torch model as adapters see a base: its linear layers, by name, as frozen layers of ours."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from polymoe.functional import PackedWeight
from polymoe.models.bert import Bert
from polymoe.models.bert_config import BertConfig
from polymoe.models.build import digest_of
from polymoe.models.llama import Llama
from polymoe.models.llama_config import MODEL_TYPES, LlamaConfig
from polymoe.models.loading import DTYPES
from polymoe.nn import Linear

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What frozen weights and activations may be; all is computed in the first."""

TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("roberta", "xlm-roberta", "electra"), Bert.default_target_modules),
    "distilbert": ("q_lin", "v_lin"),
    "gpt2": ("c_attn",),
    **dict.fromkeys(("t5", "mt5"), ("q", "v")),
    **dict.fromkeys(("bart", "opt", "gemma", "gemma2", "qwen3", "phi3"), Llama.default_target_modules),
}
"""Default targets of model types that polymoe has no model of."""


def array_of(tensor: torch.Tensor, name: str) -> np.ndarray:
    """A tensor of the CPU as a float32 array, its own memory where it is float32."""
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name}: expected dtype float32, bfloat16 or float16, got {dtype_name(tensor)}")
    return np.asarray(tensor.detach().float().numpy())


def dtype_name(tensor: torch.Tensor) -> str:
    """ "float32" and not "torch.float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def is_conv1d(module: torch.nn.Module) -> bool:
    """Whether this is transformers' linear layer of GPT-2, whose weight is [D, O]."""
    known = sys.modules.get("transformers.pytorch_utils")
    return known is not None and isinstance(module, known.Conv1D)


def is_linear(module: torch.nn.Module) -> bool:
    """Whether a module computes x W^T + b by its forward, and with nothing else. (The output projection of
    nn.MultiheadAttention is one whose forward is never called.)"""
    kind = type(module)
    if kind is torch.nn.modules.linear.NonDynamicallyQuantizableLinear:
        return False
    return is_conv1d(module) or (
        isinstance(module, torch.nn.Linear) and kind.forward is torch.nn.Linear.forward
    )


class FrozenLinear(Linear):
    """A linear layer of torch as one of ours.

    Its weight is packed when it is first asked for, and again when torch has written to it or put another in
    its place. ``source`` holds weight and bias; where its weight is None, what was packed stays.
    ``dtype``: of what is packed.
    """

    def __init__(self, name: str, source: torch.nn.Module, dtype: np.dtype[Any]) -> None:
        self.name, self.source, self.transposed, self.dtype = name, source, is_conv1d(source), dtype
        self._packed: PackedWeight | None = None
        self._stamp: tuple[int, int] | None = None

    @property
    def weight(self) -> PackedWeight:  # type: ignore[override]
        """[O, D]."""
        weight: torch.Tensor | None = self.source.weight
        if weight is not None:
            stamp = (weight.data_ptr(), weight._version)
            if stamp != self._stamp or self._packed is None:
                array = array_of(weight, f"{self.name}.weight")
                self._packed, self._stamp = (
                    PackedWeight(array.T if self.transposed else array, self.dtype),
                    stamp,
                )
        assert self._packed is not None
        return self._packed

    @property
    def bias(self) -> np.ndarray | None:  # type: ignore[override]
        """[O]."""
        bias: torch.Tensor | None = self.source.bias
        return None if bias is None else array_of(bias, f"{self.name}.bias")

    def restored(self, dtype: torch.dtype, requires_grad: bool) -> torch.nn.Parameter:
        """The weight as torch had it."""
        array = self.weight.unpack().astype(np.float32)
        weight = torch.from_numpy(np.ascontiguousarray(array.T if self.transposed else array))
        return torch.nn.Parameter(weight.to(dtype), requires_grad)


class TorchBase:
    """What :func:`polymoe.adapters.inject.inject` asks of a base, answered by a torch ``model``. Names start
    below its submodule ``root``; ``dtype``, "float32" or "bfloat16", is that of packed weights."""

    def __init__(self, model: torch.nn.Module, root: str = "", dtype: str = "float32") -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {dtype!r}")
        self.root, self.dtype = model.get_submodule(root), np.dtype(DTYPES[dtype])
        self.settings = getattr(self.root, "config", None)
        self.model_type: str = getattr(self.settings, "model_type", "")
        self.name = getattr(self.settings, "name_or_path", None) or type(self.root).__name__
        family = {"bert": Bert, **dict.fromkeys(MODEL_TYPES, Llama)}.get(self.model_type)
        self.default_target_modules = getattr(family, "default_target_modules", TARGETS.get(self.model_type))
        self.ia3_target_modules = getattr(family, "ia3_target_modules", None)
        self.ia3_feedforward_modules = getattr(family, "ia3_feedforward_modules", None)

    def named_modules(self) -> Iterator[tuple[str, Any]]:
        """All modules; linear layers as :class:`FrozenLinear`."""
        for name, module in self.root.named_modules():
            yield name, FrozenLinear(name, module, self.dtype) if is_linear(module) else module

    def all_linear(self) -> tuple[str, ...]:
        """What "all-linear" stands for: every linear layer but the heads, which are what a model of
        transformers has outside of its base model."""
        inner = getattr(self.root, getattr(self.root, "base_model_prefix", "") or "", None)
        heads = set()
        if isinstance(inner, torch.nn.Module):
            heads = set(self.root.modules()) - set(inner.modules())
        elif hasattr(self.root, "get_output_embeddings"):
            heads = {self.root.get_output_embeddings()}
        return tuple(n for n, m in self.root.named_modules() if is_linear(m) and m not in heads)

    @property
    def fingerprint(self) -> str | None:
        """That of polymoe's model with the same weights (:attr:`polymoe.models.base.Base.fingerprint`); None
        where polymoe has no such model."""
        families: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
            "bert": BertConfig.from_dict, **dict.fromkeys(MODEL_TYPES, LlamaConfig.from_dict)
        }  # fmt: skip
        if self.model_type not in families or self.settings is None:
            return None
        try:
            shapes = families[self.model_type](self.settings.to_dict()).shapes()
        except ValueError:
            return None
        state, digest = dict(self.root.named_parameters(remove_duplicate=False)), hashlib.sha256()
        for name in sorted(shapes):
            if (array := self._array(name, state)) is None:
                return None
            digest.update(name.encode() + b"\0")
            digest.update(digest_of(array))
        return digest.hexdigest()

    def _array(self, name: str, state: Mapping[str, torch.Tensor]) -> np.ndarray | None:
        if name in state:
            return array_of(state[name], name)
        try:
            module = self.root.get_submodule(name.removesuffix(".weight"))
        except AttributeError:
            return None
        frozen = getattr(module, "frozen", None)  # an adapted layer whose weight was released
        return frozen.weight.unpack() if isinstance(frozen, FrozenLinear) else None
