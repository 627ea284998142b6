"""Embeddings of many texts, as objectives compare and score them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polymoe.batch import Batch, Routings
from polymoe.data import Tokens, shortest_first

BATCH_TOKENS = 2048
"""Tokens of a packed batch where nothing is trained."""

Observe = Callable[[Batch], None] | None
"""Who is told of each batch of an evaluation after its forward, when its ``routings`` are those of the
batch."""


def embed(
    model: Any,
    tokens: Tokens,
    task_ids: np.ndarray,
    batch_tokens: int = BATCH_TOKENS,
    observe: Observe = None,
) -> np.ndarray:
    """Embeddings [n, D] of n tokenized texts, without noise; the model goes back to the mode it was in.

    ``observe`` is told of each batch after its forward, when its ``routings`` are those of the batch.
    """
    with model.without_noise():
        result: np.ndarray | None = None
        for indices in shortest_first(tokens.lengths, max_tokens=batch_tokens):
            token_ids, cu_seqlens = tokens.take(indices)
            batch = Batch(cu_seqlens, token_ids, task_ids[indices], routings=Routings())
            rows = model.embed(batch)
            if observe is not None:
                observe(batch)
            if result is None:
                result = np.empty((len(tokens), rows.shape[1]), dtype=rows.dtype)
            result[indices] = rows
    if result is None:
        raise ValueError("texts: expected at least one, got none")
    return result
