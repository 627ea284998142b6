"""Which tokens come next: one prompt's continuations, grown by greedy choice, sampling or beam search.

A search is told the logits of its texts, a row each (at first one row, the prompt's), and says which of them
go on with which token, until none does. The texts that have ended are its :attr:`found`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polymoe import random

BLOCK = 64
"""Values of which :func:`largest` looks at the maximum first."""


@dataclass(frozen=True)
class GenerationConfig:
    """How texts go on, with Hugging Face's names.

    ``temperature`` 0 takes the likeliest token each time; above, tokens are drawn: of the ``top_k`` likeliest
    (0: of all), and of those the fewest that hold ``top_p`` of the probability. ``num_beams`` above 1 is beam
    search, which keeps that many texts and returns the best by ``log probability / length **
    length_penalty``; ``early_stopping`` ends it as soon as there are ``num_beams`` of them, else it goes on
    while the best text that is not at its end could still be among them. ``num_return_sequences``: texts for
    each prompt. ``stop``: strings that end a text, and are no part of it. ``max_new_tokens``: tokens of a
    text at most. ``seed``: of the draws; with it, a prompt gets the same text in any batch.

    Raises TypeError or ValueError, naming the field.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    num_return_sequences: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {
            "max_new_tokens": 1, "top_k": 0, "num_beams": 1, "num_return_sequences": 1, "seed": 0,
        }.items():  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name}: expected an integer from {least} on, got {value}")
        for name in ("temperature", "top_p", "length_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name}: expected a number, got {value!r}")
            if not np.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value}")
        if self.temperature < 0:
            raise ValueError(f"temperature: expected 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, got {self.top_p}")
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            raise TypeError(f"stop: expected a tuple of non-empty strings, got {self.stop!r}")
        if self.num_beams > 1 and self.temperature:
            raise ValueError(
                f"temperature: expected 0 with num_beams (beams are not drawn), got {self.temperature}"
            )
        most = self.num_beams if not self.temperature else self.num_return_sequences
        if self.num_return_sequences > most:
            why = "greedy: all would be the same" if self.num_beams == 1 else f"num_beams={self.num_beams}"
            raise ValueError(
                f"num_return_sequences: expected at most {most} ({why}), got {self.num_return_sequences}"
            )


@dataclass(frozen=True)
class Found:
    """A text that has ended: its tokens, why ("eos", "stop" or "length"), and its score, ``log probability /
    length ** length_penalty``."""

    tokens: list[int]
    finish: str
    score: float


Ends = Callable[[Sequence[int]], "str | None"]
"""Why the tokens of a text are its last, or None while they are not."""


class Samples:
    """``num_return_sequences`` texts, each going its own way: the likeliest token or a drawn one.

    ``key`` is the prompt's, for the draws; ``tell`` is called with the tokens of the first text whenever it
    has grown, and whether that was the end.
    """

    def __init__(
        self,
        config: GenerationConfig,
        ends: Ends,
        key: int,
        tell: Callable[[Sequence[int], str | None], None] | None = None,
    ) -> None:
        self.config, self.ends, self.key, self.tell = config, ends, key, tell
        self.found: list[Found] = []
        self._ended: dict[int, Found] = {}
        self._texts: list[list[int]] = [[] for _ in range(config.num_return_sequences)]
        self._scores = [0.0] * config.num_return_sequences
        self._rows = list(range(config.num_return_sequences))  # the texts that go on, in order
        self.n_rows = 1

    def advance(self, logits: np.ndarray) -> tuple[list[int], list[int]]:
        """Rows of ``logits`` [n_rows, V] that go on, and their new tokens."""
        parents, tokens, rows = [], [], []
        first = not self._texts[0]
        for row, which in enumerate(self._rows):
            parent = 0 if first else row
            log_p = log_softmax(logits[parent])
            token = self._choose(log_p, len(self._texts[which]), which)
            text = self._texts[which]
            text.append(token)
            self._scores[which] += float(log_p[token])
            finish = self.ends(text)
            if self.tell is not None and which == 0:
                self.tell(text, finish)
            if finish is None:
                parents.append(parent)
                tokens.append(token)
                rows.append(which)
            else:
                score = self._scores[which] / len(text) ** self.config.length_penalty
                self._ended[which] = Found(text, finish, score)
        self._rows, self.n_rows = rows, len(rows)
        self.found = [self._ended[which] for which in sorted(self._ended)]
        return parents, tokens

    def _choose(self, log_p: np.ndarray, place: int, which: int) -> int:
        c = self.config
        if c.temperature == 0:
            return int(log_p.argmax())
        order = np.argsort(-log_p, kind="stable")[: c.top_k or None]
        p = np.exp((log_p[order] - log_p[order[0]]) / c.temperature)
        before = np.cumsum(p) - p
        p = p[before < c.top_p * p.sum()]
        ids = np.array([self.key], np.int64)
        u = float(random.uniform(c.seed, "generate", place, f"text {which}", ids, 1)[0, 0])
        return int(order[min(int(np.searchsorted(np.cumsum(p), u * p.sum(), side="right")), len(p) - 1)])


class Beams:
    """Beam search: of all ways to go on with the texts there are, the likeliest ``num_beams`` stay.

    A way that ends counts only while it is among the first ``num_beams``; ``n_ends`` tokens end a text, so
    that (1 + n_ends) * num_beams ways always hold num_beams that go on.
    """

    def __init__(self, config: GenerationConfig, ends: Ends, n_ends: int) -> None:
        self.config, self.ends = config, ends
        self.width = max(2, 1 + n_ends) * config.num_beams
        self.found: list[Found] = []
        self._texts: list[list[int]] = [[]]
        self._scores = np.zeros(1)
        self.n_rows = 1

    def advance(self, logits: np.ndarray) -> tuple[list[int], list[int]]:
        """Rows of ``logits`` [n_rows, V] that go on, and their new tokens."""
        beams, n = self.config.num_beams, len(self._texts[0]) + 1
        total = (np.stack([log_softmax(row) for row in logits]) + self._scores[:, None]).ravel()
        best = largest(total, self.width)
        parents: list[int] = []
        tokens: list[int] = []
        scores: list[float] = []
        texts: list[list[int]] = []
        for place, way in enumerate(best.tolist()):
            parent, token = divmod(way, logits.shape[1])
            text = [*self._texts[parent], token]
            finish = self.ends(text)
            if finish is None and len(texts) < beams:
                parents.append(parent)
                tokens.append(token)
                scores.append(float(total[way]))
                texts.append(text)
            elif finish is not None and place < beams:
                self.found.append(Found(text, finish, float(total[way]) / n**self.config.length_penalty))
        self.found = sorted(self.found, key=lambda found: -found.score)[:beams]
        if not texts or (len(self.found) == beams and self._is_settled(scores[0], n)):
            parents, tokens, texts = [], [], []
            del self.found[self.config.num_return_sequences :]
        self._texts, self._scores, self.n_rows = texts, np.array(scores[: len(texts)]), len(texts)
        return parents, tokens

    def _is_settled(self, best: float, n: int) -> bool:
        """Whether no text that goes on could come among those found, judged by its score at this length."""
        hope = best / n**self.config.length_penalty
        return self.config.early_stopping or hope <= self.found[-1].score


def largest(x: np.ndarray, n: int) -> np.ndarray:
    """Places of the n largest values of x, the largest first, of equal ones the first.

    The n-th largest of the maxima of blocks is no more than the n-th largest value: few are left to sort.
    """
    maxima = x[: x.size // BLOCK * BLOCK].reshape(-1, BLOCK).max(axis=1)
    least = np.partition(maxima, -n)[-n] if n <= len(maxima) else -np.inf
    places = np.flatnonzero(x >= least)
    found: np.ndarray = places[np.lexsort((places, -x[places]))][:n]
    return found


def log_softmax(logits: Any) -> np.ndarray:
    """Log probabilities [V] float64."""
    x = np.asarray(logits, np.float64)
    x = x - x.max()
    log_p: np.ndarray = x - np.log(np.exp(x).sum())
    return log_p
