"""The texts of a training step: random tokens, or real texts of mixed lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polymoe.batch import TaskRegistry
from polymoe.data import Tokenizer, draw_shots, read_tasks
from polymoe.data.prompts import Template
from polymoe.training.objectives.lm_texts import LmTexts

TASKS = 8


class Texts(NamedTuple):
    """Token ids of texts, end to end, where each starts, its task, and how many tokens of it are a prompt."""

    ids: np.ndarray
    cu_seqlens: np.ndarray
    task_ids: np.ndarray
    prompts: np.ndarray | None = None  # None: the first token alone

    @property
    def lengths(self) -> np.ndarray:
        """[B]"""
        return np.diff(self.cu_seqlens)

    @property
    def targets(self) -> np.ndarray:
        """Which tokens a language model learns to write after those before them: bool [N]."""
        first = self.cu_seqlens[:-1] + (1 if self.prompts is None else self.prompts)
        found: np.ndarray = np.arange(len(self.ids)) >= np.repeat(first, self.lengths)
        return found


def drawn(B: int, L: int, seed: int = 0) -> Texts:
    """B texts of L random tokens."""
    ids = np.random.default_rng(seed).integers(1000, 20000, B * L)
    return Texts(ids, np.arange(B + 1) * L, np.arange(B) % TASKS)


def inputs(base: Any, files: Sequence[Any], batch_size: int, n_batches: int, most: int) -> list[Texts]:
    """Batches of real inputs of several files, one task each, in a random order, cut to ``most`` tokens."""
    tokenizer = _cut(base, most)
    per_file = -(-batch_size * n_batches // len(files))
    texts, tasks = [], []
    for task, path in enumerate(files):
        lines = path.read_text(encoding="utf-8").splitlines()[:per_file]
        texts += [json.loads(line)["input"] for line in lines]
        tasks += [task % TASKS] * len(lines)
    tokens, task_ids = tokenizer.encode(texts), np.array(tasks)
    batches = _shuffled(len(texts), batch_size, n_batches)
    return [Texts(*tokens.take(rows), task_ids[rows]) for rows in batches]


def instructions(base: Any, folder: Path, batch_size: int, n_batches: int, most: int) -> list[Texts]:
    """Batches of real instructions with their answers, which are the targets, cut to ``most`` tokens.

    Of every Natural Instructions task in the folder equally many training examples are drawn, by its name;
    batches take them in a random order.
    """
    tasks = read_tasks(folder, require=("train",))
    tasks = {n: draw_shots(task, -(-batch_size * n_batches // len(tasks))) for n, task in tasks.items()}
    template = Template("instruction")
    contexts = {name: template.context(task) for name, task in tasks.items()}
    made = LmTexts(base, _cut(base, most), template, contexts)
    split = made.encode(tasks, "train", TaskRegistry(tasks))
    batches = _shuffled(len(split), batch_size, n_batches)
    return [
        Texts(*split.tokens.take(rows), split.task_ids[rows] % TASKS, split.prompt_lengths[rows])
        for rows in batches
    ]


def _cut(base: Any, most: int) -> Tokenizer:
    own: Tokenizer = base.tokenizer
    return Tokenizer(own.tokenizer, most, own.prefix)


def _shuffled(n: int, batch_size: int, n_batches: int) -> list[np.ndarray]:
    order = np.random.default_rng(0).permutation(n)
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(n_batches)]
