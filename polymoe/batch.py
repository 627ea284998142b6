"""What travels with the data: a packed batch, the names of the tasks, the routing that adapters decide on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import Any, Literal, NamedTuple

import numpy as np

from polymoe.tape import Node, current_tape, data_of


class Source(NamedTuple):
    """What an encoder reads of each example: ``token_ids`` [M] int64, those of example b from
    ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``, [B+1] int64."""

    token_ids: np.ndarray
    cu_seqlens: np.ndarray


@dataclass(frozen=True)
class Batch:
    """B examples packed end to end, N tokens in all; no padding.

    ``cu_seqlens`` [B+1] int64: example b owns tokens ``cu_seqlens[b]:cu_seqlens[b+1]``. ``token_ids`` [N]
    int64, absent where a layer gets activations instead. ``task_ids`` [B] int64, needed by routers that go by
    task. ``example_ids`` [B] int64: position in the data set, which keys the randomness (the order in the
    batch when absent). ``targets``: whatever the objective compares with. ``seed`` and ``step`` (micro-step)
    key the randomness of a training step. ``adapters``: which adapter each module uses (None: the base
    alone); they travel with the batch, so that a base is never changed, two adapted models can share one, and
    a recomputed forward meets the same adapters. ``routings``: what routers have decided so far, see
    :class:`Routings`. ``prompt_lengths`` [B] int64: how many of an example's first tokens were given, where a
    model learns to write the rest; routers that read an example read these alone, as they will when the rest
    is not written yet (None: all). ``cache``: a :class:`~polymoe.models.cache.KeyValueCache` of the tokens
    before these, when a text is written token by token. ``source``: where a model has an encoder beside its
    decoder, what the encoder reads; all else here is the decoder's (None: there is no encoder, or it has
    read, and the cache knows). ``gradient_checkpointing``: blocks keep nothing for backward, but their input,
    and are run again then.
    """

    cu_seqlens: np.ndarray
    token_ids: np.ndarray | None = None
    task_ids: np.ndarray | None = None
    example_ids: np.ndarray | None = None
    targets: Any = None
    seed: int = 0
    step: int = 0
    adapters: Mapping[Any, Any] | None = None
    routings: Routings | None = None
    prompt_lengths: np.ndarray | None = None
    cache: Any = None
    source: Source | None = None
    gradient_checkpointing: bool = False

    @property
    def n_examples(self) -> int:
        """B."""
        return len(self.cu_seqlens) - 1

    @property
    def n_tokens(self) -> int:
        """N."""
        return int(self.cu_seqlens[-1])

    @property
    def n_read(self) -> int:
        """N and the tokens of the source."""
        return self.n_tokens + (0 if self.source is None else len(self.source.token_ids))

    @cached_property
    def source_batch(self) -> Batch | None:
        """The same examples as the encoder has them: its tokens are the source's."""
        if self.source is None:
            return None
        return replace(
            self,
            token_ids=self.source.token_ids,
            cu_seqlens=self.source.cu_seqlens,
            targets=None,
            prompt_lengths=None,
            cache=None,
            source=None,
        )

    @property
    def random_ids(self) -> np.ndarray:
        """[B] int64, what keys each example's randomness."""
        return np.arange(self.n_examples, dtype=np.int64) if self.example_ids is None else self.example_ids

    @cached_property
    def prompt(self) -> tuple[np.ndarray | None, np.ndarray]:
        """The tokens that routers may read, as rows of the batch (None: all), and where those of each example
        start, [B+1]."""
        if self.prompt_lengths is None:
            return None, self.cu_seqlens
        cu_seqlens = np.concatenate([[0], np.cumsum(self.prompt_lengths)]).astype(np.int64)
        shift = np.repeat(self.cu_seqlens[:-1] - cu_seqlens[:-1], self.prompt_lengths)
        return np.arange(cu_seqlens[-1]) + shift, cu_seqlens

    @cached_property
    def task_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct tasks [G] of the batch in rising order, and which of them each example has [B]."""
        if self.task_ids is None:
            raise ValueError("task_ids: expected one per example, got None")
        tasks, adapter_ids = np.unique(self.task_ids, return_inverse=True)
        return tasks, adapter_ids.astype(np.int64, copy=False)


class TaskRegistry:
    """Names of the tasks; a task's id is its position. Saved with every adapter and checked on every use."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names: tuple[str, ...] = tuple(names)
        self._ids = {name: i for i, name in enumerate(self.names)}
        for name in self.names:
            if not isinstance(name, str) or not name:
                raise TypeError(f"tasks: expected non-empty strings, got {name!r}")
        if len(self._ids) != len(self.names):
            raise ValueError(f"tasks: expected distinct names, got {list(self.names)}")

    def id(self, name: str) -> int:
        """Id of a task; KeyError that lists the known ones."""
        try:
            return self._ids[name]
        except KeyError:
            raise KeyError(f"task: expected one of {list(self.names)}, got {name!r}") from None

    def ids(self, names: Sequence[str]) -> np.ndarray:
        """[B] int64 ids of names."""
        return np.array([self.id(name) for name in names], dtype=np.int64)

    def check(self, task_ids: Any, n_examples: int) -> np.ndarray:
        """``task_ids`` as [B] int64: a name or an id for all examples, or one each. Never a silent default.

        Raises ValueError without ids or with a wrong number of them, KeyError for an unknown name, IndexError
        for an id out of range (negative ones included), TypeError for anything that is no integer.
        """
        if task_ids is None:
            raise ValueError(f"task_ids: expected one of {list(self.names)} per example, got None")
        if isinstance(task_ids, str):
            task_ids = self.id(task_ids)
        elif (
            not isinstance(task_ids, np.ndarray)
            and np.ndim(task_ids)
            and any(isinstance(t, str) for t in task_ids)
        ):
            task_ids = self.ids(task_ids)
        ids = np.asarray(task_ids)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"task_ids: expected integers or task names, got dtype {ids.dtype}")
        if ids.ndim == 0:
            ids = np.full(n_examples, ids)
        if ids.shape != (n_examples,):
            raise ValueError(f"task_ids: expected shape ({n_examples},), got {ids.shape}")
        wrong = (ids < 0) | (ids >= len(self.names))
        if wrong.any():
            known = ", ".join(f"{i} = {name}" for i, name in enumerate(self.names))
            raise IndexError(f"task_ids: expected ids of known tasks ({known}), got {int(ids[wrong][0])}")
        return ids.astype(np.int64, copy=False)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskRegistry) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{i}</td><td>{escape(name)}</td></tr>" for i, name in enumerate(self.names))
        return f"<table><thead><tr><th>id</th><th>task</th></tr></thead><tbody>{rows}</tbody></table>"

    def __repr__(self) -> str:
        return f"TaskRegistry({list(self.names)})"


@dataclass(frozen=True)
class Routing:
    """Who is used, and how much: the one thing that routers give to mixing, reports, caches and exports.

    ``axis`` says what a row is: a group of examples (``adapter_ids`` [B] says which group an example belongs
    to), an example, or a token. ``weights``: [rows, Q, S] dense, or [rows, K] beside the ``ids`` [rows, K] of
    the experts that are used; None with axis "group" means that group g is expert g itself. ``aux`` is the
    router's auxiliary loss. ``cu_seqlens`` [B+1]: where the tokens of each example start, with axis "token".
    """

    axis: Literal["group", "example", "token"]
    weights: np.ndarray | Node | None
    ids: np.ndarray | None = None
    adapter_ids: np.ndarray | None = None
    aux: Node | None = None
    cu_seqlens: np.ndarray | None = None

    def take(self, examples: np.ndarray, adapter_ids: np.ndarray | None = None) -> Routing:
        """That of some of the examples, in that order; an example may come several times. The rows stay:
        those of examples become groups, so that what is made of a row is made once. ``adapter_ids``: theirs,
        where they are known."""
        if self.axis == "example":
            return replace(self, axis="group", weights=data_of(self.weights), adapter_ids=examples)
        ids = self.adapter_ids
        if ids is None:
            return self
        return replace(self, adapter_ids=ids[examples] if adapter_ids is None else adapter_ids)


class Routings(Mapping[str, Routing]):
    """What the routers have decided, by their names, in the order in which they were asked.

    A router that several layers share decides once. Generation passes the routings of the prompt on with the
    batches of later tokens (:meth:`take`), so that a text keeps its routing; those of single tokens are
    decided anew. ``stand``: they stay for later tokens, and so does what is made of them. Reports read them
    after a forward: ``model(replace(batch, routings=Routings()))``.
    """

    def __init__(self, stand: bool = False) -> None:
        self.stand = stand
        self._decided: dict[str, tuple[Any, str, Routing]] = {}
        self._taken: dict[str, Routing] = {}  # of the prompt
        self._made: dict[str, Any] = {}
        self._n_taken = 0

    def take(self, examples: np.ndarray) -> Routings:
        """Those of some of the examples, in that order, for the tokens that follow; what :meth:`once`
        made of them is kept.
        """
        before = {id(r.adapter_ids): r.adapter_ids for r in self.values() if r.adapter_ids is not None}
        after = {array: ids[examples] for array, ids in before.items()}  # most routers have the same array
        same = all(np.array_equal(ids, after[array]) for array, ids in before.items())
        if self.stand and self._n_taken == len(examples) and same:
            return self
        taken = Routings(stand=True)
        taken._n_taken = len(examples)
        taken._made = self._made if self.stand else taken._made
        for name, (_, layer, routing) in self._decided.items():
            if routing.axis != "token":
                ids = after.get(id(routing.adapter_ids))
                taken._taken[name] = routing.take(examples, ids)
                taken._decided[name] = None, layer, taken._taken[name]
        return taken

    def once(self, layer: str, make: Callable[..., Any], *args: Any) -> Any:
        """What ``make(*args)`` gives for a layer, made once for all later tokens; only where routings
        :attr:`stand`, and of what the examples in the batch do not change."""
        made = self._made.get(layer)
        if made is None:
            made = self._made[layer] = make(*args)
        return made

    def decide(self, name: str, layer: str, decide: Callable[[], Routing]) -> Routing:
        """The routing that was decided under this name, or what ``decide()`` says now, for a layer.

        Where a part of the forward is recomputed (:func:`polymoe.tape.checkpoint`), the layer that decided
        decides again, and its weights start with the gradient that those of the first time have from parts
        behind; the other layers find what was decided.
        """
        if (taken := self._taken.get(name)) is not None:  # with the tokens before
            return taken
        tape = current_tape()
        made_under, decider, routing = self._decided.get(name, (None, layer, None))
        if routing is None or routing.axis == "token" or (made_under is not tape and decider == layer):
            earlier = None if routing is None else routing.weights
            routing = decide()
            if self.stand and routing.axis == "example":
                routing = routing.take(np.arange(len(data_of(routing.weights))))
            if isinstance(earlier, Node) and isinstance(routing.weights, Node):
                routing.weights.grad, earlier.grad = earlier.grad, None
            self._decided[name] = tape, layer, routing
        return routing

    def __getitem__(self, name: str) -> Routing:
        return self._decided[name][2]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decided)

    def __len__(self) -> int:
        return len(self._decided)
