"""What every frozen base offers beside its hidden states: pooled vectors, its tokenizer, its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from polymoe import tape
from polymoe.batch import Batch
from polymoe.data import Tokenizer, shortest_first
from polymoe.functional import PackedWeight
from polymoe.models.build import Builder, digest_of
from polymoe.nn import Linear, Module
from polymoe.tape import Node


def tokens_and_positions(batch: Batch, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a batch [N] and the place of each in its example [N] int64, behind those in the cache.

    ValueError without token ids and for an example of more than ``most`` tokens.
    """
    if batch.token_ids is None:
        raise ValueError("token_ids: expected the [N] tokens of the batch, got None")
    new = np.diff(batch.cu_seqlens)
    before = 0 if batch.cache is None else batch.cache.lengths
    if new.size and (before + new).max() > most:
        raise ValueError(
            f"cu_seqlens: expected at most {most} tokens per example, got {(before + new).max()}"
        )
    starts = np.repeat(batch.cu_seqlens[:-1] - before, new)
    return batch.token_ids, np.arange(len(starts), dtype=np.int64) - starts


def run_block(block: Callable[..., Any], x: Any, batch: Batch, *meets: Any) -> Any:
    """``block(x, batch, *meets)``, run again in backward where the batch asks for it."""
    if batch.gradient_checkpointing:
        return tape.checkpoint(block, x, batch, *meets)
    return block(x, batch, *meets)


class Base(Module):
    """A frozen model: hidden states by a call, one vector per text, and the tokenizer that belongs to it.

    ``pooling``: "mean" over the tokens of a text, "cls", its first, or "last", its last token (a family says
    which it has); ``normalize``: pooled vectors get length 1. ``tokenizer`` may be None, then only batches of
    token ids go in. ``prompts``: texts to put before an input, by name; none is put there unasked.
    """

    model_type: str
    default_target_modules: ClassVar[tuple[str, ...]]
    ia3_target_modules: ClassVar[tuple[str, ...]]
    ia3_feedforward_modules: ClassVar[tuple[str, ...]]
    poolings: ClassVar[tuple[str, ...]] = ("mean", "cls")

    def __init__(
        self,
        config: Any,
        build: Builder,
        *,
        pooling: str,
        normalize: bool = False,
        tokenizer: Tokenizer | None = None,
        prompts: Mapping[str, str] | None = None,
        name: str,
    ) -> None:
        if pooling not in self.poolings:
            raise ValueError(f"pooling: expected {' or '.join(map(repr, self.poolings))}, got {pooling!r}")
        self.config, self.dtype, self.name = config, build.dtype, name
        self.digests = build.digests
        self.pooling, self.normalize = pooling, normalize
        self.tokenizer, self.prompts = tokenizer, dict(prompts or {})

    @property
    def weight_dtype(self) -> str:
        """Of the frozen weights that products read: "float32", or "bfloat16", in half the memory."""
        return next(str(m.weight.dtype) for _, m in self.named_modules() if isinstance(m, Linear))

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.config.hidden_size)

    @property
    def max_length(self) -> int:
        """Tokens per text, special tokens included; longer texts are cut."""
        return int(self.config.context_length) if self.tokenizer is None else self.tokenizer.max_length

    def __call__(self, batch: Batch) -> Any:
        """Hidden states [N, D] of a batch's tokens (a Node when an adapter below has trainable parameters).

        Raises ValueError without token ids or with an example longer than the model takes, IndexError for an
        id outside of the vocabulary.
        """
        raise NotImplementedError

    def pool(self, hidden_states: np.ndarray | Node, batch: Batch) -> Any:
        """One vector per example, [B, D], of hidden states [N, D]."""
        if self.pooling == "mean":
            pooled = tape.mean_pool(hidden_states, batch.cu_seqlens)
        elif (np.diff(batch.cu_seqlens) > 0).all():
            rows = batch.cu_seqlens[:-1] if self.pooling == "cls" else batch.cu_seqlens[1:] - 1
            pooled = tape.embedding(rows, hidden_states)
        else:
            which = "first" if self.pooling == "cls" else "last"
            raise ValueError(
                f"cu_seqlens: expected a token in every example to pool the {which}, got an empty example"
            )
        return tape.l2_normalize(pooled) if self.normalize else pooled

    def embed(self, batch: Batch) -> Any:
        """``pool(base(batch), batch)``, [B, D]."""
        return self.pool(self(batch), batch)

    def encode(
        self,
        texts: Sequence[str],
        batch_tokens: int = 8192,
        embed: Callable[[Batch], Any] | None = None,
    ) -> np.ndarray:
        """One vector per text, [B, D], in the order given; texts of similar length run together.

        ``batch_tokens``: tokens per batch. ``embed``: what makes vectors of a batch, :meth:`embed` when None;
        the ``example_ids`` of the batch say which texts are in it. Raises TypeError for anything but strings,
        ValueError when the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("tokenizer: expected one to encode texts, got None")
        tokens, embed = self.tokenizer.encode(texts), embed or self.embed
        vectors = np.empty((len(tokens), self.hidden_size), self.dtype)
        for indices in shortest_first(tokens.lengths, max_tokens=batch_tokens):
            token_ids, cu_seqlens = tokens.take(indices)
            vectors[indices] = tape.data_of(embed(Batch(cu_seqlens, token_ids, example_ids=indices)))
        return vectors

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and values of the frozen weights, whatever dtype or shards they were stored
        in, and whatever dtype they are held in.
        """
        digest = hashlib.sha256()
        modules = dict(self.named_modules())
        for name in sorted(self.config.shapes()):
            module, _, attribute = name.rpartition(".")
            weight = getattr(modules[module], attribute)
            array = weight.unpack() if isinstance(weight, PackedWeight) else weight
            digest.update(name.encode() + b"\0")
            digest.update(self.digests.get(name) or digest_of(array))
        return digest.hexdigest()

    def extra_repr(self) -> str:
        """Name, pooling, sizes."""
        settings = f"pooling={self.pooling!r}, normalize={self.normalize}, max_length={self.max_length}"
        return f"{self.name!r}, {settings}"
