"""One split of several tasks, tokenized once: the trainer and the evaluation take their batches from here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polymoe.batch import Batch, TaskRegistry
from polymoe.data.examples import Example, TaskData
from polymoe.data.packing import POOL, pack, shortest_first
from polymoe.data.sampling import Sampling, epoch_order
from polymoe.data.tokenization import Tokenizer, Tokens


@dataclass(frozen=True)
class TextCounts:
    """What tokenizing a task's texts met: how many, their tokens, how many were cut, how many were empty."""

    texts: int
    tokens: int
    truncated: int
    empty: int


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """n examples, task after task.

    ``tokens`` belong to the inputs; ``task_ids`` and ``example_ids`` are [n] int64. ``sizes`` says how many
    examples each task has, by name, in their order.
    """

    examples: tuple[Example, ...]
    tokens: Tokens
    task_ids: np.ndarray
    example_ids: np.ndarray
    sizes: dict[str, int]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def inputs(self) -> Tokens:
        """The tokens of the inputs alone."""
        return self.tokens

    def epoch(
        self,
        epoch: int,
        *,
        seed: int,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        sampling: Sampling = "proportional",
        temperature: float = 2.0,
        pool: int = POOL,
    ) -> list[np.ndarray]:
        """The batches of a training epoch, as indices.

        A pure function of the arguments: to resume, go on at batch k. See
        :func:`~polymoe.data.sampling.epoch_order` for the order and :func:`~polymoe.data.packing.pack` for
        the batches.
        """
        sizes = list(self.sizes.values())
        order = epoch_order(sizes, seed=seed, epoch=epoch, sampling=sampling, temperature=temperature)
        return pack(
            order,
            self.tokens.lengths,
            max_tokens=max_tokens,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            pool=pool,
        )

    def in_order(self, *, max_tokens: int | None = None, batch_size: int | None = None) -> list[np.ndarray]:
        """Batches for evaluation: every example once, from the shortest to the longest, as indices."""
        return shortest_first(self.tokens.lengths, max_tokens=max_tokens, batch_size=batch_size)

    def batch(self, indices: np.ndarray, *, targets: Any = None, seed: int = 0, step: int = 0) -> Batch:
        """The batch of these examples."""
        token_ids, cu_seqlens = self.tokens.take(indices)
        return Batch(
            cu_seqlens,
            token_ids,
            self.task_ids[indices],
            self.example_ids[indices],
            targets,
            seed=seed,
            step=step,
        )

    def counts(self) -> dict[str, TextCounts]:
        """The accounting, per task."""
        result = {}
        for name, part in self.parts():
            tokens = int(self.tokens.cu_seqlens[part.stop] - self.tokens.cu_seqlens[part.start])
            truncated, empty = int(self.tokens.truncated[part].sum()), int(self.tokens.empty[part].sum())
            result[name] = TextCounts(self.sizes[name], tokens, truncated, empty)
        return result

    def parts(self) -> Iterator[tuple[str, slice]]:
        """The name of each task and which examples are its own."""
        start = 0
        for name, size in self.sizes.items():
            yield name, slice(start, start + size)
            start += size


def encode_split(
    tasks: Mapping[str, TaskData], split: str, tokenizer: Tokenizer, registry: TaskRegistry
) -> EncodedSplit:
    """Tokenize one split ("train", "valid" or "test") of tasks.

    All of them must be in ``registry`` (else KeyError). Tasks without examples in that split are left out.
    """
    examples, sizes = split_examples(tasks, split)
    return EncodedSplit(
        examples,
        tokenizer.encode([example.input for example in examples]),
        registry.ids([example.task for example in examples]),
        np.array([example.example_id for example in examples], dtype=np.int64),
        sizes,
    )


def split_examples(tasks: Mapping[str, TaskData], split: str) -> tuple[tuple[Example, ...], dict[str, int]]:
    """The examples of one split, task after task, and how many each task has, those without any left out."""
    parts = {name: task.split(split) for name, task in tasks.items()}
    examples = tuple(example for part in parts.values() for example in part)
    return examples, {name: len(part) for name, part in parts.items() if part}
