"""What the evaluations of a run take where texts are written: tried on a base without weights, as a step of
training is (:mod:`polymoe.training.plan`). Some prompts are read, and a token is written after them.

How long texts will be is not known: they are taken to be as long as they may. Weights that lie there once for
all blocks are read faster than they will be; only a batch of very few texts is so quick that it would show.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from polymoe import _core
from polymoe.data import shortest_first
from polymoe.functional import batch_invariant
from polymoe.models.generate import BATCH_TOKENS, next_batch, parts_of, start_batch
from polymoe.models.search import GenerationConfig, Samples
from polymoe.training.evaluator import metric_for_best_model
from polymoe.training.objectives import Lm
from polymoe.training.objectives.lm_texts import LmSplit
from polymoe.training.trainer import Trainer

ROWS = 16
"""Texts that are written at once in the trial, at most: the time of a token grows evenly from one to many."""
STEPS = 3
"""Tokens of each of them; the first one's time is not counted, for it copies the caches."""


class Writing(NamedTuple):
    """Of a run: bytes of the largest batch's ``caches`` and of the ``blocks`` beside them; ``seconds`` of all
    evaluations, with texts as long as they may be."""

    caches: int
    blocks: int
    seconds: float


class Tried(NamedTuple):
    """Some prompts: tokens that are read, and that their texts may come to; bytes; seconds of reading, and of
    a token for one text and for ``rows`` of them."""

    tokens: int
    room: int
    caches: int
    blocks: int
    read: float
    one: float
    rows: int
    many: float

    def step(self, n: int) -> float:
        """Seconds of a token for n texts."""
        slope = (self.many - self.one) / (self.rows - 1) if self.rows > 1 else 0.0
        return self.one + max(0.0, slope) * (n - 1)


def evaluations(trainer: Trainer) -> Iterator[tuple[LmSplit, bool]]:
    """The splits that a run evaluates, one after the other, and whether texts are written then."""
    valid, test, c = trainer.valid_split, trainer.test_split, trainer.config
    assert isinstance(valid, LmSplit) and isinstance(test, LmSplit)
    if len(valid):
        metric = metric_for_best_model(trainer.objective, c.metric_for_best_model)
        epoch = -(-len(trainer.plan(0)) // c.gradient_accumulation_steps)
        for _ in range(-(-trainer.total_steps // (c.eval_steps or epoch))):
            yield valid, metric not in trainer.objective.lower_is_better
    for _ in range(len(test) and 1 + trainer.zero_shot):
        yield test, True


def plan_writing(trainer: Trainer, model: Any, seconds: float) -> Writing | None:
    """What it takes ``model``; None where no text is written. ``seconds``: of the trial, about."""
    objective = trainer.objective
    if not isinstance(objective, Lm):
        return None
    n_new, n_read = objective.options.max_new_tokens, 0
    batches: list[tuple[LmSplit, np.ndarray]] = []
    for split, writes in evaluations(trainer):
        n_read += len(split.tokens.ids)  # for the loss
        if writes:
            ranked = [objective.labels[example.task] is not None for example in split.examples]
            n_read += int(split.prompt_lengths @ (1 + np.array(ranked)))
            rooms = split.prompt_lengths + n_new
            batches += [(split, batch) for batch in shortest_first(rooms, max_tokens=BATCH_TOKENS)]
    if not batches:
        return None

    def read(batch: tuple[LmSplit, np.ndarray]) -> int:
        return int(batch[0].prompt_lengths[batch[1]].sum())

    largest = max(batches, key=lambda batch: read(batch) + n_new * len(batch[1]))
    n = len(largest[1])
    one = _try(model, *largest, n_new, 1, n)
    some = _try(model, *largest, n_new, min(n, max(2, int(seconds / one.read))), n)
    more = some.tokens - one.tokens
    beyond = (read(largest) - some.tokens) / more if more else 0.0
    return Writing(
        round(some.caches / some.room * (read(largest) + n_new * n)),
        round(some.blocks + max(0, some.blocks - one.blocks) * beyond),
        some.read / some.tokens * n_read + n_new * sum(some.step(len(batch)) for _, batch in batches),
    )


def _try(model: Any, split: LmSplit, batch: np.ndarray, n_new: int, n: int, rows: int) -> Tried:
    """With the last n texts of a batch, which are the longest; tokens for as many as ``rows`` asks, which go
    on from these."""
    batch, rows, room = batch[-n:], min(rows, ROWS), n_new + 2 * STEPS
    base, attach, task_ids = parts_of(model, split.task_ids[batch], n)
    most = max(1, base.prompt_room(base.max_length, room))
    prompts = [prompt[-most:] for prompt in split.prompts()]
    with model.without_noise(), batch_invariant():
        before, _ = _core.memory_used(True)
        started = time.perf_counter()
        first = start_batch(base, attach, [prompts[i] for i in batch], task_ids, [room] * n)
        _choose(base, first)
        read = time.perf_counter() - started
        times = []
        for parents in (np.zeros(1, np.int64), np.sort(np.arange(rows) % n)):
            texts, seconds = first, []
            for _ in range(STEPS):
                started = time.perf_counter()
                texts = next_batch(texts, parents, np.zeros(len(parents), np.int64))
                _choose(base, texts)
                seconds.append(time.perf_counter() - started)
                parents = np.arange(len(parents))
            times.append(min(seconds[1:]))
        _, peak = _core.memory_used(False)
    tokens = sum(len(prompts[i]) for i in batch)
    return Tried(
        tokens, tokens + room * n, first.cache.nbytes, peak - before, read, times[0], rows, times[1]
    )  # fmt: skip


def _choose(base: Any, batch: Any) -> None:
    """The next token of every text."""
    for row in np.asarray(base.logits(base(batch)[batch.cu_seqlens[1:] - 1])):
        Samples(GenerationConfig(), lambda tokens: None, 0).advance(row[None])
