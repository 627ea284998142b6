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

from collections.abc import Mapping
from typing import Any

import numpy as np

from polymoe import tape
from polymoe.batch import Batch
from polymoe.models.base import Base, run_block, tokens_and_positions
from polymoe.models.bert_config import ACTIVATIONS, BertConfig
from polymoe.models.build import Builder
from polymoe.models.weights import check_weights, rename
from polymoe.nn import FeedForward, Module

# Old checkpoints say gamma and beta; a model for masked words or sentence pairs holds the encoder as `bert`.
RENAMES = (
    (r"^0\.auto_model\.", ""),
    (r"^bert\.", ""),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)
IGNORE = r"pooler\.|cls\.|embeddings\.position_ids$"


class BertEmbeddings(Module):
    """Token ids [N] to [N, D]; every text is of type 0 and starts at position 0."""

    def __init__(self, config: BertConfig, build: Builder) -> None:
        self.word_embeddings = build.embedding("embeddings.word_embeddings")
        self.position_embeddings = build.embedding("embeddings.position_embeddings")
        self.token_type_embeddings = build.embedding("embeddings.token_type_embeddings")
        self.LayerNorm = build.layer_norm("embeddings.LayerNorm", config.layer_norm_eps)

    def __call__(self, batch: Batch) -> Any:
        """LN(word + type + position) of the batch's tokens, [N, D]."""
        token_ids, positions = tokens_and_positions(batch, self.position_embeddings.weight.shape[0])
        types = self.token_type_embeddings(np.zeros(len(token_ids), np.int64))
        return self.LayerNorm(
            tape.add(self.word_embeddings(token_ids), types), self.position_embeddings(positions)
        )


class BertSelfAttention(Module):
    """[N, D] to [N, D]: each text attends to itself alone, in both directions."""

    def __init__(self, config: BertConfig, build: Builder, name: str) -> None:
        self.query = build.linear(name + ".query")
        self.key = build.linear(name + ".key")
        self.value = build.linear(name + ".value")
        self.n_heads = config.num_attention_heads

    def __call__(self, x: Any, batch: Batch) -> Any:
        """x [N, D] to the heads' outputs side by side, [N, D]."""
        q, k, v = tape.together(x, lambda x: (self.query(x, batch), self.key(x, batch), self.value(x, batch)))
        return tape.attention(q, k, v, batch.cu_seqlens, self.n_heads)


class BertOutput(Module):
    """LN(residual + dense(x)): ends both halves of a layer. That of the feed-forward is called by parts."""

    def __init__(self, config: BertConfig, build: Builder, name: str) -> None:
        self.dense = build.linear(name + ".dense")
        self.LayerNorm = build.layer_norm(name + ".LayerNorm", config.layer_norm_eps)

    def __call__(self, x: Any, residual: Any, batch: Batch) -> Any:
        """x [N, F or D] and residual [N, D] to [N, D]."""
        return self.LayerNorm(self.dense(x, batch), residual)


class BertAttention(Module):
    """Self-attention and its output projection."""

    def __init__(self, config: BertConfig, build: Builder, name: str) -> None:
        self.self = BertSelfAttention(config, build, name + ".self")
        self.output = BertOutput(config, build, name + ".output")

    def __call__(self, x: Any, batch: Batch) -> Any:
        """[N, D] to [N, D]."""
        return self.output(self.self(x, batch), x, batch)


class BertIntermediate(Module):
    """The first half of the feed-forward; its activation is formed as the second half reads it."""

    def __init__(self, config: BertConfig, build: Builder, name: str) -> None:
        self.dense = build.linear(name + ".dense")
        self.activation = ACTIVATIONS[config.hidden_act]


class BertLayer(Module):
    """Attention, then the feed-forward."""

    def __init__(self, config: BertConfig, build: Builder, name: str) -> None:
        self.attention = BertAttention(config, build, name + ".attention")
        self.intermediate = BertIntermediate(config, build, name + ".intermediate")
        self.output = BertOutput(config, build, name + ".output")
        self.feed_forward = FeedForward(
            self.intermediate.dense, self.output.dense, self.intermediate.activation
        )

    def __call__(self, x: Any, batch: Batch) -> Any:
        """[N, D] to [N, D]."""
        x = self.attention(x, batch)
        return self.output.LayerNorm(self.feed_forward(x, batch), x)


class BertEncoder(Module):
    """All layers."""

    def __init__(self, config: BertConfig, build: Builder) -> None:
        self.layer = [BertLayer(config, build, f"encoder.layer.{i}") for i in range(config.num_hidden_layers)]

    def __call__(self, x: Any, batch: Batch) -> Any:
        """[N, D] to [N, D]."""
        for layer in self.layer:
            x = run_block(layer, x, batch)
        return x


class Bert(Base):
    """A frozen encoder: hidden states, one vector per text, and the tokenizer that belongs to it.

    Pools by "mean" or "cls", as the folder says. Prompts are those of the folder.
    """

    model_type = "bert"
    default_target_modules = ("query", "value")
    ia3_target_modules = ("key", "value", "output.dense")
    ia3_feedforward_modules = ("output.dense",)

    def __init__(
        self, config: BertConfig, build: Builder, pooling: str = "mean", name: str = "bert", **options: Any
    ) -> None:
        super().__init__(config, build, pooling=pooling, name=name, **options)
        self.embeddings = BertEmbeddings(config, build)
        self.encoder = BertEncoder(config, build)

    @classmethod
    def from_state(
        cls, config: BertConfig, state: Mapping[str, np.ndarray], dtype: Any = np.float32, **options: Any
    ) -> Bert:
        """From weights by name (of BertModel, or of a model that holds one as `bert`), float of any width,
        converted to ``dtype``.

        ``options`` are those of :class:`~polymoe.models.base.Base`. Raises ValueError that lists missing and
        unexpected weights, for a wrong shape, and for NaN or infinity; TypeError for weights that are no
        floats. A pooler and heads (`cls.`) are left out.
        """
        state = rename(state, RENAMES, IGNORE)
        check_weights(state, config.shapes())
        return cls(config, Builder(state, np.dtype(dtype)), **options)

    def __call__(self, batch: Batch) -> Any:
        """Hidden states [N, D], as :class:`~polymoe.models.base.Base` says."""
        return self.encoder(self.embeddings(batch), batch)
