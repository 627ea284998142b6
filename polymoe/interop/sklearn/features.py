"""The frozen base of plain numbers: standardised features beside a random layer that adapters shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polymoe import tape
from polymoe.adapters.initial import uniform
from polymoe.batch import Batch
from polymoe.data import Tokens
from polymoe.nn import Linear, Module


class Features(Module):
    """z = (x - mean) / scale, and its embedding [z, gelu(z W^T + b)]: x [B, D] -> [B, D + H].

    W [H, D] and b [H] are random and never trained; the linear layer, ``dense``, is what adapters go into. A
    linear head on z is always possible, whatever the random layer makes of it. A row of features stands for a
    text of one token, and travels as that token: ``batch.token_ids`` are rows [B, D] float32.
    """

    name = "features"
    model_type = "features"
    weight_dtype = "float32"
    default_target_modules = ("dense",)

    def __init__(self, mean: np.ndarray, scale: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
        self.mean, self.scale = mean, scale
        self.dense = Linear(weight, bias)
        self.tokenizer: Table | None = None

    @classmethod
    def of(cls, x: np.ndarray, hidden_size: int, seed: int) -> Features:
        """For features like x [n, D]: their mean and standard deviation (1 for a constant one), W of
        variance 1 / D, b in (-1, 1). ValueError for a ``hidden_size`` below 1."""
        if hidden_size < 1:
            raise ValueError(f"hidden_size: expected at least 1, got {hidden_size}")
        wide = x.astype(np.float64)
        scale = wide.std(axis=0)
        scale[scale <= 1e-7 * np.abs(wide).max(axis=0)] = 1.0  # nothing but rounding
        n_features = x.shape[1]
        weight = uniform(
            seed, "features.weight", (hidden_size, n_features), (3 / n_features) ** 0.5, np.float32
        )
        bias = uniform(seed, "features.bias", (hidden_size,), 1.0, np.float32)
        return cls(wide.mean(axis=0), scale, weight, bias)

    @property
    def hidden_size(self) -> int:
        """D + H."""
        return self.dense.in_features + self.dense.out_features

    def __call__(self, batch: Batch) -> Any:
        """[B, D + H]."""
        rows = np.asarray(batch.token_ids)
        z = ((rows - self.mean) / self.scale).astype(np.float32)
        h = tape.gelu(self.dense(z, batch))
        both = tape.concat(tape.reshape(h, (len(z), 1, self.dense.out_features)), z)
        return tape.reshape(both, (len(z), self.hidden_size))

    def embed(self, batch: Batch) -> Any:
        """The same: an example is one row."""
        return self(batch)

    def __reduce__(self) -> Any:
        return Features, (self.mean, self.scale, self.dense.weight.unpack(), self.dense.bias)


@dataclass(frozen=True, eq=False)
class Rows(Tokens):
    """n examples of one token each, ``ids`` [n, D] float32 the rows of features."""

    @classmethod
    def of(cls, x: np.ndarray) -> Rows:
        """The rows of x."""
        none = np.zeros(len(x), dtype=bool)
        return cls(x, np.arange(len(x) + 1), none, none)

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some of the rows, and where each of them starts."""
        return self.ids[indices], np.arange(len(indices) + 1)


class Table:
    """Stands where texts have their tokenizer: the text of an example is the number of its row in x."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def encode(self, texts: Sequence[str]) -> Rows:
        """The rows of these numbers."""
        return Rows.of(self.x[np.array([int(text) for text in texts], dtype=np.int64)])
