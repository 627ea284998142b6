"""The BERT family: BERT, MiniLM, BGE, E5, GTE and every other folder whose config.json says ``"model_type":
"bert"``.

    x = LN(word[ids] + type[0] + position[0..L-1])                       [N, D], packed: no padding
    x = LN(x + Wo attention(Wq x, Wk x, Wv x))                           post-norm, per layer
    x = LN(x + W2 act(W1 x))

Frozen, dropout off, the modules named as in transformers' BertModel (encoder.layer.0.attention.self.query
...), so that adapters find their targets and checkpoints map by name. Equations: Devlin et al. 2019 (BERT),
Reimers and Gurevych 2019 (pooling).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from polymoe import tape
from polymoe.batch import Batch
from polymoe.data import Tokenizer, cut_batches
from polymoe.functional import PackedWeight
from polymoe.models.bert_config import ACTIVATIONS, BertConfig
from polymoe.models.weights import check_weights, rename
from polymoe.nn import Embedding, FeedForward, LayerNorm, Linear, Module
from polymoe.tape import Node

# Old checkpoints say gamma and beta; a model for masked words or sentence pairs holds the encoder as `bert`.
RENAMES = (
    (r"^0\.auto_model\.", ""),
    (r"^bert\.", ""),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)
IGNORE = r"pooler\.|cls\.|embeddings\.position_ids$"


class _Builder:
    """Makes frozen modules out of a state, each tensor converted when its module is made."""

    def __init__(self, config: BertConfig, state: Mapping[str, np.ndarray], dtype: np.dtype[Any]) -> None:
        self.config, self.state, self.dtype = config, state, dtype

    def array(self, name: str, copy: bool = True) -> np.ndarray:
        """A weight in the model's dtype, in memory of its own unless it is only read to be packed."""
        with np.errstate(all="ignore"):  # what overflows here is refused below
            array = np.require(
                self.state[name], self.dtype, ["C", "ALIGNED"]
            )  # mapped files need not be aligned
        if copy and np.may_share_memory(array, self.state[name]):
            array = array.copy()
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite weights, got NaN or infinity")
        return array

    def linear(self, name: str) -> Linear:
        return Linear(self.array(name + ".weight", copy=False), self.array(name + ".bias"))

    def layer_norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.array(name + ".weight"), self.array(name + ".bias"), self.config.layer_norm_eps)

    def embedding(self, name: str) -> Embedding:
        return Embedding(self.array(name + ".weight"))


class BertEmbeddings(Module):
    """Token ids [N] to [N, D]; every text is of type 0 and starts at position 0."""

    def __init__(self, build: _Builder) -> None:
        self.word_embeddings = build.embedding("embeddings.word_embeddings")
        self.position_embeddings = build.embedding("embeddings.position_embeddings")
        self.token_type_embeddings = build.embedding("embeddings.token_type_embeddings")
        self.LayerNorm = build.layer_norm("embeddings.LayerNorm")

    def __call__(self, batch: Batch) -> Any:
        """LN(word + type + position) of the batch's tokens, [N, D]."""
        if batch.token_ids is None:
            raise ValueError("token_ids: expected the [N] tokens of the batch, got None")
        lengths = np.diff(batch.cu_seqlens)
        longest = self.position_embeddings.weight.shape[0]
        if lengths.size and lengths.max() > longest:
            raise ValueError(
                f"cu_seqlens: expected at most {longest} tokens per example, got {lengths.max()}"
            )
        positions = np.arange(batch.n_tokens, dtype=np.int64) - np.repeat(batch.cu_seqlens[:-1], lengths)
        types = self.token_type_embeddings(np.zeros(batch.n_tokens, np.int64))
        return self.LayerNorm(
            tape.add(self.word_embeddings(batch.token_ids), types), self.position_embeddings(positions)
        )


class BertSelfAttention(Module):
    """[N, D] to [N, D]: each text attends to itself alone, in both directions."""

    def __init__(self, build: _Builder, name: str) -> None:
        self.query = build.linear(name + ".query")
        self.key = build.linear(name + ".key")
        self.value = build.linear(name + ".value")
        self.n_heads = build.config.num_attention_heads

    def __call__(self, x: Any, batch: Batch) -> Any:
        """x [N, D] to the heads' outputs side by side, [N, D]."""
        q, k, v = self.query(x, batch), self.key(x, batch), self.value(x, batch)
        return tape.attention(q, k, v, batch.cu_seqlens, self.n_heads)


class BertOutput(Module):
    """LN(residual + dense(x)): ends both halves of a layer. That of the feed-forward is called by parts."""

    def __init__(self, build: _Builder, name: str) -> None:
        self.dense = build.linear(name + ".dense")
        self.LayerNorm = build.layer_norm(name + ".LayerNorm")

    def __call__(self, x: Any, residual: Any, batch: Batch) -> Any:
        """x [N, F or D] and residual [N, D] to [N, D]."""
        return self.LayerNorm(self.dense(x, batch), residual)


class BertAttention(Module):
    """Self-attention and its output projection."""

    def __init__(self, build: _Builder, name: str) -> None:
        self.self = BertSelfAttention(build, name + ".self")
        self.output = BertOutput(build, name + ".output")

    def __call__(self, x: Any, batch: Batch) -> Any:
        """[N, D] to [N, D]."""
        return self.output(self.self(x, batch), x, batch)


class BertIntermediate(Module):
    """The first half of the feed-forward: dense and act."""

    def __init__(self, build: _Builder, name: str) -> None:
        self.dense = build.linear(name + ".dense")
        self.approximate = ACTIVATIONS[build.config.hidden_act]

    def activation(self, x: Any) -> Any:
        """act(x) [N, F]."""
        return tape.gelu(x, self.approximate)


class BertLayer(Module):
    """Attention, then the feed-forward."""

    def __init__(self, build: _Builder, name: str) -> None:
        self.attention = BertAttention(build, name + ".attention")
        self.intermediate = BertIntermediate(build, name + ".intermediate")
        self.output = BertOutput(build, name + ".output")
        self.feed_forward = FeedForward(
            self.intermediate.dense, self.output.dense, self.intermediate.activation
        )

    def __call__(self, x: Any, batch: Batch) -> Any:
        """[N, D] to [N, D]."""
        x = self.attention(x, batch)
        return self.output.LayerNorm(self.feed_forward(x, batch), x)


class BertEncoder(Module):
    """All layers."""

    def __init__(self, build: _Builder) -> None:
        self.layer = [BertLayer(build, f"encoder.layer.{i}") for i in range(build.config.num_hidden_layers)]

    def __call__(self, x: Any, batch: Batch) -> Any:
        """[N, D] to [N, D]."""
        for layer in self.layer:
            x = layer(x, batch)
        return x


class Bert(Module):
    """A frozen encoder: hidden states, one vector per text, and the tokenizer that belongs to it.

    ``pooling``: "mean" over the tokens of a text, or "cls", its first token; ``normalize``: pooled vectors
    get length 1. ``tokenizer`` may be None, then only batches of token ids go in. ``prompts``: texts to put
    before an input, by name, as the folder gives them; none is put there unasked.
    """

    model_type = "bert"
    default_target_modules = ("query", "value")

    def __init__(
        self,
        config: BertConfig,
        build: _Builder,
        *,
        pooling: str = "mean",
        normalize: bool = False,
        tokenizer: Tokenizer | None = None,
        prompts: Mapping[str, str] | None = None,
        name: str = "bert",
    ) -> None:
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling: expected 'mean' or 'cls', got {pooling!r}")
        self.config, self.dtype, self.name = config, build.dtype, name
        self.pooling, self.normalize = pooling, normalize
        self.tokenizer, self.prompts = tokenizer, dict(prompts or {})
        self.embeddings = BertEmbeddings(build)
        self.encoder = BertEncoder(build)

    @classmethod
    def from_state(
        cls, config: BertConfig, state: Mapping[str, np.ndarray], dtype: Any = np.float32, **options: Any
    ) -> Bert:
        """From weights by name (of BertModel, or of a model that holds one as `bert`), float of any width,
        converted to ``dtype``.

        ``options`` are those of the class. Raises ValueError that lists missing and unexpected weights, for a
        wrong shape, and for NaN or infinity; TypeError for weights that are no floats. A pooler and heads
        (`cls.`) are left out.
        """
        state = rename(state, RENAMES, IGNORE)
        check_weights(state, config.shapes())
        return cls(config, _Builder(config, state, np.dtype(dtype)), **options)

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.config.hidden_size

    @property
    def max_length(self) -> int:
        """Tokens per text, special tokens included; longer texts are cut."""
        return self.config.max_position_embeddings if self.tokenizer is None else self.tokenizer.max_length

    def __call__(self, batch: Batch) -> Any:
        """Hidden states [N, D] of a batch's tokens (a Node when an adapter below has trainable parameters).

        Raises ValueError without token ids or with an example longer than the position table, IndexError for
        an id outside of the vocabulary.
        """
        return self.encoder(self.embeddings(batch), batch)

    def pool(self, hidden_states: np.ndarray | Node, batch: Batch) -> Any:
        """One vector per example, [B, D], of hidden states [N, D]."""
        if self.pooling == "mean":
            pooled = tape.mean_pool(hidden_states, batch.cu_seqlens)
        elif (np.diff(batch.cu_seqlens) > 0).all():
            pooled = tape.embedding(batch.cu_seqlens[:-1], hidden_states)  # rows: each example's first
        else:
            raise ValueError(
                "cu_seqlens: expected a token in every example to pool the first, got an empty example"
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
        lengths = tokens.lengths
        vectors = np.empty((len(tokens), self.hidden_size), self.dtype)
        for indices in cut_batches(np.argsort(lengths, kind="stable"), lengths, max_tokens=batch_tokens):
            token_ids, cu_seqlens = tokens.take(indices)
            vectors[indices] = tape.data_of(embed(Batch(cu_seqlens, token_ids, example_ids=indices)))
        return vectors

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and values of the frozen weights, whatever dtype or shards they were stored
        in.
        """
        digest = hashlib.sha256()
        modules = dict(self.named_modules())
        for name in sorted(self.config.shapes()):
            module, _, attribute = name.rpartition(".")
            weight = getattr(modules[module], attribute)
            array = weight.unpack() if isinstance(weight, PackedWeight) else weight
            digest.update(name.encode() + b"\0")
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def extra_repr(self) -> str:
        """Name, pooling, sizes."""
        settings = f"pooling={self.pooling!r}, normalize={self.normalize}, max_length={self.max_length}"
        return f"{self.name!r}, {settings}"
