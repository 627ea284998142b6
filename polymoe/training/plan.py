"""What a run will take, before it begins: bytes, seconds, and what to set.

There are no formulas here. The trainer of the run is made on a base without weights
(:mod:`polymoe.models.outline`), and a step is tried on texts of its largest batch, on as many as take a few
tenths of a second. Seconds grow with the tokens; bytes by the line through that step and one of half its
texts, for what is made of weights does not grow. Where an evaluation writes texts, that is tried too
(:mod:`polymoe.training.plan_writing`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from polymoe import _core
from polymoe.functional import PackedWeight, batch_invariant
from polymoe.nn import Module
from polymoe.tape import Node, Tape
from polymoe.training.plan_writing import plan_writing
from polymoe.training.summary import peak_rss_bytes
from polymoe.training.trainer import Trainer

SECONDS = 0.4
"""What the longest of the tried steps may take, about."""
BATCHES = 16
"""Batches of an epoch that are looked at for what a batch reads on the mean."""
ROOM = 0.9
"""Of the free memory, what a run should take at most."""
GAIN = 1.1
"""How much faster a step must be in bfloat16, to be recommended for that."""
GIB = 2**30
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Cost:
    """Of a run in one setting. Bytes: of the frozen ``weights``; of the ``adapter`` and heads with gradients
    and moments; of the ``activations`` that wait for backward in the largest batch; of what a step needs at
    once beside them (``temporary``); of the texts that an evaluation writes, beside what training leaves
    (``writing``); of the ``process`` with its data; their sum (``bytes``). ``evaluation_seconds``: of all
    evaluations together, at most. Where none writes texts these two are 0."""

    dtype: str
    gradient_checkpointing: bool
    weights: int
    adapter: int
    activations: int
    temporary: int
    writing: int
    process: int
    bytes: int
    step_seconds: float
    epoch_seconds: float
    evaluation_seconds: float


@dataclass(frozen=True)
class Plan:
    """What :func:`make_plan` finds. ``batch_tokens``: those that the largest batch reads; ``steps``: of the
    run; ``free_bytes``: of memory, None where the system does not tell; ``recommended``: settings of a
    recipe, as flags have them; ``reason``: why."""

    base: str
    method: str
    trainable_parameters: int
    threads: int
    batch_tokens: int
    steps: int
    steps_per_epoch: int
    free_bytes: int | None
    costs: tuple[Cost, ...]
    recommended: dict[str, Any]
    reason: str


class Step(NamedTuple):
    """One that was tried: tokens, bytes kept for backward and at most, seconds."""

    tokens: int
    kept: int
    most: int
    seconds: float


def make_plan(trainer: Trainer, other: Callable[[Dtype], Any]) -> Plan:
    """The plan of a run.

    ``trainer``: that of the run, on a base without weights; its parameters are not what they were
    afterwards. ``other``: gives the same model with frozen weights of another dtype.
    """
    split, batches, c = trainer.train_split, trainer.plan(0), trainer.config
    held = frozen_bytes(trainer.model.base, own=False) + 2 * trainer.parameters.data.nbytes
    process = resident_bytes() - held
    lengths = [int(split.tokens.lengths[indices].sum()) for indices in batches]
    largest = batches[int(np.argmax(lengths))]
    most = _batch(trainer, trainer.model, largest, False).n_read
    looked = [batches[i] for i in np.unique(np.linspace(0, len(batches) - 1, BATCHES).astype(int))]
    mean = float(np.mean([_batch(trainer, trainer.model, indices, False).n_read for indices in looked]))
    adapter = 4 * trainer.parameters.data.nbytes
    n_updates = -(-len(batches) // c.gradient_accumulation_steps)
    costs = []
    with batch_invariant(c.batch_invariant or None):
        for dtype in get_args(Dtype):
            model = trainer.model if dtype == trainer.model.base.weight_dtype else other(dtype)
            writing = plan_writing(trainer, model, SECONDS)
            model.train()
            for again in (False, True):
                half, step = _tried(trainer, model, largest, again)
                kept, peak = _line(half, step, most)
                weights, update = frozen_bytes(model.base), _update_seconds(trainer)
                epoch = step.seconds / step.tokens * mean * len(batches) + update * n_updates
                # training's blocks of memory are kept for what comes next, but caches are not made of them.
                # Two caches: where texts end, those of the others are copied before they go.
                more = 0 if writing is None else 2 * writing.caches + max(0, writing.blocks - peak)
                parts = (weights, adapter, kept, peak - kept, more, process)
                seconds = 0.0 if writing is None else writing.seconds
                costs.append(Cost(dtype, again, *parts, sum(parts), epoch / n_updates, epoch, seconds))
    free = free_bytes()
    recommended, reason = recommend(costs, most, free)
    return Plan(
        trainer.model.base.name, trainer.model.config.method, trainer.n_trainable, _core.get_num_threads(),
        most, trainer.total_steps, n_updates, free, tuple(costs), recommended, reason,
    )  # fmt: skip


def recommend(costs: Sequence[Cost], batch_tokens: int, free: int | None) -> tuple[dict[str, Any], str]:
    """Settings for ``free`` bytes of memory, and why: the fastest that fits, in bfloat16 only where that is
    clearly faster; smaller batches where nothing fits."""
    room = float("inf") if free is None else ROOM * free
    fitting = [cost for cost in costs if cost.bytes <= room]
    plain = {cost.dtype: cost for cost in costs if not cost.gradient_checkpointing}
    if not fitting:
        return _smaller(min(costs, key=lambda cost: cost.bytes), batch_tokens, room)
    best = min(fitting, key=lambda cost: cost.step_seconds * (GAIN if cost.dtype == "bfloat16" else 1))
    reasons = [f"{best.bytes / GIB:.2f} GiB" + ("" if free is None else f" of {free / GIB:.1f} GiB free")]
    gain = plain["float32"].step_seconds / plain["bfloat16"].step_seconds
    if best.dtype == "float32":
        reasons.append(f"bfloat16 would be {gain:.1f} times as fast")
    elif plain["float32"] in fitting or gain >= GAIN:
        reasons.append(f"bfloat16 is {gain:.1f} times as fast as float32")
    else:
        reasons.append(f"float32 would take {plain['float32'].bytes / GIB:.2f} GiB")
    if best.gradient_checkpointing:
        reasons.append(f"without recomputation it would be {plain[best.dtype].bytes / GIB:.2f} GiB")
    settings = {"dtype": best.dtype, "gradient_checkpointing": best.gradient_checkpointing}
    return settings, "; ".join(reasons)


def _smaller(cost: Cost, batch_tokens: int, room: float) -> tuple[dict[str, Any], str]:
    grows = cost.activations + cost.temporary
    fixed = cost.bytes - grows
    tokens = int((room - fixed) / max(grows, 1) * batch_tokens)
    why = f"nothing fits in {room / GIB:.2f} GiB with batches of {batch_tokens:,} tokens"
    if tokens < 1:
        return {}, f"{why}, nor with smaller ones: {fixed / GIB:.2f} GiB are taken before the first"
    settings = {
        "dtype": cost.dtype,
        "gradient_checkpointing": cost.gradient_checkpointing,
        "batch_tokens": tokens,
    }
    return settings, f"{why}; --gradient-accumulation-steps makes up for smaller ones"


def frozen_bytes(base: Module, own: bool = True) -> int:
    """Bytes of the frozen weights in a module tree. Not ``own``: those that an outline really holds, where
    blocks share them."""
    found: dict[int, int] = {}
    for _, module in base.named_modules():
        for value in vars(module).values():
            if isinstance(value, PackedWeight):
                found[id(value if own else value.panels)] = value.nbytes
            elif isinstance(value, np.ndarray):
                found[id(value)] = value.nbytes
    return sum(found.values())


def free_bytes() -> int | None:
    """Bytes of memory that a process may have now; None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def resident_bytes() -> int:
    """Bytes of memory that this process holds now; where the system does not tell, the most it has held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_rss_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _batch(trainer: Trainer, model: Any, indices: np.ndarray, again: bool) -> Any:
    batch = trainer.objective.batch(model, trainer.train_split, indices, trainer.config.seed, 0)
    return replace(batch, gradient_checkpointing=again)


def _tried(trainer: Trainer, model: Any, indices: np.ndarray, again: bool) -> tuple[Step, Step]:
    """A step on as many of the texts as :data:`SECONDS` allow, at least two, behind one on half of them."""
    n = min(2, len(indices))
    _try(trainer, model, indices[:1], again)  # what is made once
    step = _try(trainer, model, indices[:n], again)
    while n < len(indices) and step.seconds < SECONDS / 2:
        n = min(len(indices), max(n + 1, int(n * min(8.0, SECONDS / step.seconds))))
        step = _try(trainer, model, indices[:n], again)
    half, *more = (_try(trainer, model, indices[:m], again) for m in (max(1, n // 2), n, n))
    return half, more[-1]._replace(seconds=min(tried.seconds for tried in (step, *more)))


def _line(half: Step, step: Step, tokens: int) -> tuple[int, int]:
    """Bytes kept for backward and at most, of a step of so many tokens."""
    beyond = (tokens - step.tokens) / max(1, step.tokens - half.tokens)
    kept, most = (
        round(b + max(0, b - a) * beyond) for a, b in ((half.kept, step.kept), (half.most, step.most))
    )
    return kept, max(kept, most)


def _try(trainer: Trainer, model: Any, indices: np.ndarray, again: bool) -> Step:
    batch = _batch(trainer, model, indices, again)
    before, _ = _core.memory_used(True)
    started = time.perf_counter()
    with Tape() as tape:
        loss = trainer.objective.loss(model, batch)
    kept, _ = _core.memory_used(False)
    if isinstance(loss.mean, Node):
        tape.backward(loss.mean)
    seconds = time.perf_counter() - started
    _, most = _core.memory_used(False)
    return Step(batch.n_read, kept - before, most - before, seconds)


def _update_seconds(trainer: Trainer) -> float:
    started = time.perf_counter()
    trainer.optimizer.update()
    trainer.parameters.zero_grad()
    return time.perf_counter() - started
