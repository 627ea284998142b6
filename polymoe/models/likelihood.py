"""How likely a language model finds given texts after a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polymoe import functional as F
from polymoe.data import shortest_first
from polymoe.functional import PackedWeight, batch_invariant
from polymoe.models.generate import BATCH_TOKENS, next_batch, parts_of, start_batch


def likelihoods(
    model: Any,
    prompts: Sequence[Any],
    candidates: Sequence[Sequence[Any]],
    task: Any = None,
    batch_tokens: int = BATCH_TOKENS,
) -> list[np.ndarray]:
    """For each prompt, the mean log probability of a token of each of its candidates, float64.

    ``prompts``: token ids of each; ``candidates``: for each the token ids of texts to follow it, at least one
    token each. The prompt is read once, and what routers decide on it holds for all candidates, as for a text
    that the model writes. ``model`` and ``task`` as :func:`polymoe.models.generate` has them.

    ValueError for an empty prompt or candidate, and as the model.
    """
    base, attach, ids = parts_of(model, task, len(prompts))
    head = frozen_head(model)
    tokens = [np.asarray(p, np.int64) for p in prompts]
    choices = [[np.asarray(c, np.int64) for c in own] for own in candidates]
    for i, (prompt, own) in enumerate(zip(tokens, choices, strict=True)):
        if not len(prompt) or not all(len(c) for c in own):
            raise ValueError(f"prompts, candidates: expected at least one token in each, got none in {i}")
    longest = np.array([max((len(c) for c in own), default=1) for own in choices])
    results: list[np.ndarray] = [np.empty(0)] * len(tokens)
    lengths = np.array([len(p) for p in tokens]) + longest
    costs = lengths * np.array([max(len(own), 1) for own in choices])
    with model.without_noise(), batch_invariant():
        for some in shortest_first(costs, max_tokens=batch_tokens):
            task_ids = None if ids is None else ids[some]
            batch = start_batch(base, attach, [tokens[i] for i in some], task_ids, longest[some])
            last = np.asarray(base(batch))[batch.cu_seqlens[1:] - 1]
            parents = np.repeat(np.arange(len(some)), [len(choices[i]) for i in some])
            texts = [text for i in some for text in choices[i]]
            if not texts:
                continue
            offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
            later = next_batch(
                batch,
                parents,
                np.concatenate([text[:-1] for text in texts]),
                offsets - np.arange(len(offsets)),
            )
            x = np.empty((offsets[-1], last.shape[1]), last.dtype)
            x[offsets[:-1]] = last[parents]
            x[np.delete(np.arange(offsets[-1]), offsets[:-1])] = np.asarray(base(later))
            _, saved = F.lm_loss(x, head, np.concatenate(texts), gradient=False)
            sums = np.add.reduceat(saved.per_token.astype(np.float64), offsets[:-1])
            means = -sums / np.diff(offsets)
            for j, i in enumerate(some):
                results[i] = means[parents == j]
    return results


def frozen_head(model: Any) -> PackedWeight:
    """The weight of the output head [V, D], of a base or an adapted model. TypeError for a base without one,
    ValueError where it has an adapter: the loss over the vocabulary is that of the frozen head."""
    base = getattr(model, "base", model)
    if not hasattr(base, "logits"):
        raise TypeError(f"base: expected a language model, got {type(base).__name__}")
    head = base.get_submodule(base.output_head)
    if base is not model and any(module is head for module in model.adapter.slots):
        raise ValueError(
            f"target_modules: expected no adapter of {base.output_head} (its loss is made in chunks, with "
            "the frozen weight), got one"
        )
    weight: PackedWeight = head.weight
    return weight
