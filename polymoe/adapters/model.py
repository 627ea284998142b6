"""A base with adapters: add, switch, disable, remove, save. The base is shared and never changed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.extend import Tune, add_task
from polymoe.adapters.inject import Adapter, inject
from polymoe.adapters.methods import configure
from polymoe.adapters.start import start_from, succeed
from polymoe.batch import Batch, Routings, TaskRegistry
from polymoe.functional import PackedWeight
from polymoe.nn import Module
from polymoe.parameters import Parameter


class AdaptedModel(Module):
    """A frozen ``base`` and its ``adapters`` by name, one of which is active. Made by :func:`adapt`.

    Called as the base is, with a :class:`~polymoe.batch.Batch`, to which it adds the active adapter. Task
    ids are checked here, once per batch: ValueError without them where the adapter goes by task, IndexError
    for an unknown id. Switching and disabling are not for several threads at once; calling is.
    """

    def __init__(self, base: Any) -> None:
        self.base = base
        self.adapters: dict[str, Adapter] = {}
        self._active: str | None = None
        self._disabled = 0

    # ---- adapters

    @property
    def active_adapter(self) -> str:
        """Name of the adapter in use. RuntimeError when the last one in use was deleted."""
        if self._active is None:
            raise RuntimeError(
                f"adapter: expected an active one of {self.adapter_names}, got none; call set_adapter"
            )
        return self._active

    @property
    def adapter_names(self) -> list[str]:
        """Names of all adapters."""
        return list(self.adapters)

    @property
    def adapter(self) -> Adapter:
        """The active adapter."""
        return self.adapters[self.active_adapter]

    @property
    def config(self) -> AdapterConfig:
        """Configuration of the active adapter, with its targets resolved."""
        return self.adapter.config

    @property
    def tasks(self) -> TaskRegistry:
        """Tasks of the active adapter."""
        return self.adapter.tasks

    def _named(self, name: str) -> Adapter:
        try:
            return self.adapters[name]
        except KeyError:
            raise KeyError(f"adapter_name: expected one of {self.adapter_names}, got {name!r}") from None

    def add_adapter(
        self,
        adapter_name: str,
        method: str | AdapterConfig = "poly",
        tasks: Iterable[str] = (),
        *,
        init_from: Sequence[str] = (),
        seed: int = 0,
        **overrides: Any,
    ) -> None:
        """Add an adapter beside the others; it becomes active when it is the first.

        ``method``: a row of :data:`~polymoe.adapters.methods.METHODS`, with ``overrides`` of its
        configuration, or a configuration. ``init_from``: names of adapters of this model whose values it
        starts from (:func:`~polymoe.adapters.start.start_from`); their experts stand side by side, and its
        sizes and places are theirs. ValueError for a name that is taken, for targets that match nothing, for
        sizes that do not fit; KeyError for an unknown name in ``init_from``.
        """
        self._check_new(adapter_name)
        sources = [self._named(name) for name in init_from]
        config = succeed(method, sources, overrides) if sources else configure(method, **overrides)
        adapter = inject(self.base, config, TaskRegistry(tasks), seed)
        if sources:
            start_from(adapter, sources)
        self.hold(adapter, adapter_name)

    def add_task(self, task: str, tune: Tune = "router", *, seed: int = 0) -> None:
        """Teach the active adapter one more task, the last of its registry, as
        :func:`polymoe.adapters.extend.add_task` says. Parameters are new arrays: a trainer or an optimiser
        of before does not know them."""
        name = self.active_adapter
        self.adapters[name] = add_task(self.base, self.adapter, task, tune, seed)
        self.train(self.training)

    def train(self, mode: bool = True) -> AdaptedModel:
        """Switch noise and dropout on (or off); they stay off in an adapter of which nothing is trained."""
        super().train(mode)
        for adapter in self.adapters.values():
            if not any(p.n_trainable for _, p in adapter.parameters()):
                adapter.eval()
        return self

    def _check_new(self, adapter_name: str) -> None:
        if not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name:
            raise ValueError(f"adapter_name: expected a name without dots, got {adapter_name!r}")
        if adapter_name in self.adapters:
            raise ValueError(f"adapter_name: expected one besides {self.adapter_names}, got {adapter_name!r}")

    def hold(self, adapter: Adapter, adapter_name: str = "default") -> None:
        """Add an adapter that was made for this base; active when it is the first."""
        self._check_new(adapter_name)
        self.adapters[adapter_name] = adapter
        self.train(self.training)
        if len(self.adapters) == 1:
            self._active = adapter_name

    def set_adapter(self, adapter_name: str) -> None:
        """Make an adapter the active one. KeyError for an unknown name."""
        self._named(adapter_name)
        self._active = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter. When it was the active one, none is: another must be set first. KeyError
        for an unknown name."""
        self._named(adapter_name)
        del self.adapters[adapter_name]
        if self._active == adapter_name:
            self._active = None

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within the block the model is its base; blocks may be nested."""
        self._disabled += 1
        try:
            yield
        finally:
            self._disabled -= 1

    # ---- forward

    def attach(self, batch: Batch) -> Batch:
        """The batch with checked task ids and the active adapter; the batch itself while adapters are
        disabled."""
        if self._disabled:
            return batch
        adapter, ids = self.adapter, batch.task_ids
        if adapter.needs_tasks or (ids is not None and len(adapter.tasks)):
            ids = adapter.tasks.check(ids, batch.n_examples)
        routings = Routings() if batch.routings is None else batch.routings
        return replace(batch, task_ids=ids, adapters=adapter.slots, routings=routings)

    def task_ids(self, task: Any, n_examples: int) -> np.ndarray | None:
        """[B] ids of ``task`` (a name or id, or those of each example); None where none is given and the
        adapter needs none. Raises as :meth:`polymoe.batch.TaskRegistry.check`."""
        if self._disabled or not (self.adapter.needs_tasks or task is not None):
            return None
        return self.tasks.check(task, n_examples)

    def __call__(self, batch: Batch) -> Any:
        """Hidden states of the base [N, D]."""
        return self.base(self.attach(batch))

    def embed(self, batch: Batch) -> Any:
        """One vector per example [B, D], pooled as the base does."""
        return self.base.embed(self.attach(batch))

    def encode(
        self,
        texts: Sequence[str],
        task: str | int | Sequence[str | int] | None = None,
        batch_tokens: int = 8192,
    ) -> np.ndarray:
        """One vector per text [B, D], in the order given. ``task``: a name or id, or those of each text.

        KeyError or IndexError for an unknown task, ValueError without one where the adapter goes by task.
        """
        ids = self.task_ids(task, len(texts))

        def embed(batch: Batch) -> Any:
            return self.embed(batch if ids is None else replace(batch, task_ids=ids[batch.example_ids]))

        return np.asarray(self.base.encode(texts, batch_tokens, embed))

    # ---- parameters

    def adapter_parameters(self) -> list[tuple[str, Parameter]]:
        """The parameters of the active adapter by name
        (``encoder.layer.0.attention.self.query.experts.lora_A``)."""
        return self.adapter.parameters()

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable parameters: those of the active adapter, all parameters: of the base and every
        adapter)."""
        trainable = sum(p.n_trainable for _, p in self.adapter_parameters())
        adapters = sum(p.data.size for a in self.adapters.values() for _, p in a.parameters())
        return trainable, count_parameters(self.base) + adapters

    def print_trainable_parameters(self) -> None:
        """Print how much of the model is trained."""
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || "
            f"trainable%: {100 * trainable / total:.4f}"
        )

    # ---- files: in PEFT's layout, see polymoe.interop.peft

    def save_adapter(
        self, folder: str | os.PathLike[str], adapter_name: str | None = None, **options: Any
    ) -> None:
        """Save an adapter (the active one) as :func:`polymoe.interop.peft.save_adapter` does."""
        from polymoe.interop.peft import save_adapter

        name = self.active_adapter if adapter_name is None else adapter_name
        save_adapter(self.base, self._named(name), folder, **options)

    def load_adapter(
        self, folder: str | os.PathLike[str], adapter_name: str = "default", **options: Any
    ) -> None:
        """Add an adapter from a folder, as :func:`polymoe.interop.peft.read_adapter` reads it; active
        when it is the first."""
        from polymoe.interop.peft import read_adapter

        self._check_new(adapter_name)
        self.hold(read_adapter(self.base, folder, **options), adapter_name)

    def _repr_html_(self) -> str:
        from polymoe.report.notebook import model_fragment  # looks at models, and is not needed to use them

        return model_fragment(self)

    def extra_repr(self) -> str:
        """The adapter in use."""
        return f"active_adapter={self._active!r}" + (", disabled" if self._disabled else "")


def count_parameters(module: Module) -> int:
    """Number of weights in a module tree, frozen and trainable; one that two modules share counts once,
    what is made of others (attributes that begin with an underscore) does not."""
    total, seen = 0, set[int]()
    for _, m in module.named_modules():
        for name, value in vars(m).items():
            if name.startswith("_") or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, PackedWeight):
                total += value.shape[0] * value.shape[1]
            elif isinstance(value, Parameter):
                total += value.data.size
            elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
                total += value.size
    return total


def adapt(
    base: Any,
    method: str | AdapterConfig = "poly",
    tasks: Iterable[str] = (),
    *,
    target_modules: str | Sequence[str] | None = None,
    adapter_name: str = "default",
    seed: int = 0,
    **overrides: Any,
) -> AdaptedModel:
    """An adapted model on a frozen base.

    Args:
        base: a module tree, for instance of :func:`polymoe.load_base`. It is shared, not copied, and never
        changed. method: a row of :data:`polymoe.adapters.METHODS`, or a configuration. tasks: names of
        the tasks, in the order of their ids. target_modules: PEFT's rules, see
        :mod:`polymoe.adapters.targets`; None: the base's default; "all-linear". adapter_name: of this first
        adapter. seed: of the initial values. overrides: further fields of
        :class:`~polymoe.adapters.config.AdapterConfig` (r, n_skills, n_splits, lora_alpha ...).

    Raises:
        ValueError: unknown method (near names are suggested), parts that do not fit each other, no module
        that matches
            (the candidates are listed), heads that do not divide a layer's width (it is named), no tasks
            where they are needed.
        TypeError: an unknown field, a value of the wrong type.
    """
    model = AdaptedModel(base)
    if target_modules is not None:
        overrides["target_modules"] = target_modules
    model.add_adapter(adapter_name, method, tasks, seed=seed, **overrides)
    return model
