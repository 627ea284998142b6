"""The Llama family: Llama 2 and 3, Mistral, Qwen2 and 2.5, SmolLM2 and every other model whose config.json
says ``"model_type"`` llama, mistral or qwen2.

    x = embed[ids]                                                       [N, D], packed: no padding
    x = x + Wo attention(rope(Wq n), rope(Wk n), Wv n), n = rms_norm(x)  pre-norm, causal, per layer
    x = x + Wdown (silu(Wgate n) * Wup n), n = rms_norm(x)
    hidden states = rms_norm(x)        logits = Whead hidden states

Frozen, the modules named as in transformers' LlamaForCausalLM (model.layers.0.self_attn.q_proj ...), so
that adapters find their targets and checkpoints map by name. Equations: Touvron et al. 2023 (arXiv
2302.13971, 2307.09288), Dubey et al. 2024 (arXiv 2407.21783), Jiang et al. 2023 (arXiv 2310.06825), Yang et
al. 2024 (arXiv 2407.10671).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from polymoe import tape
from polymoe.batch import Batch
from polymoe.models.base import run_block, tokens_and_positions
from polymoe.models.build import Builder
from polymoe.models.llama_config import LlamaConfig
from polymoe.models.rope import angles
from polymoe.models.weights import check_weights, rename
from polymoe.models.writer import Writer
from polymoe.nn import Embedding, FeedForward, Linear, Module

# A model saved without its head has no `model.` in front; old checkpoints hold the positions' frequencies.
RENAMES = ((r"^(embed_tokens|layers|norm)\.", r"model.\1."),)
IGNORE = r".*rotary_emb\.inv_freq$"


class Rotation(NamedTuple):
    """The angles that a batch needs: ``cos``, ``sin`` [P, head size / 2], and the row of every token [N]."""

    cos: np.ndarray
    sin: np.ndarray
    positions: np.ndarray

    def __call__(self, x: Any) -> Any:
        """The heads of x [N, H * head size], turned."""
        return tape.rope(x, self.cos, self.sin, self.positions)


class LlamaAttention(Module):
    """[N, D] to [N, D]: each token attends to itself and to what comes before it in its text."""

    def __init__(self, config: LlamaConfig, build: Builder, name: str) -> None:
        self.q_proj = build.linear(name + ".q_proj", config.qkv_bias)
        self.k_proj = build.linear(name + ".k_proj", config.qkv_bias)
        self.v_proj = build.linear(name + ".v_proj", config.qkv_bias)
        self.o_proj = build.linear(name + ".o_proj", config.o_bias)
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads

    def __call__(self, x: Any, batch: Batch, rotate: Rotation) -> Any:
        """x [N, D] to [N, D]."""
        q, k, v = tape.together(
            x, lambda x: (self.q_proj(x, batch), self.k_proj(x, batch), self.v_proj(x, batch))
        )
        q, k = rotate(q), rotate(k)
        offsets, lengths = batch.cu_seqlens, None
        if batch.cache is not None:
            k, v, lengths = batch.cache.extend(self, k, v, offsets)
            offsets = batch.cache.cu_seqlens
        y = tape.attention(
            q, k, v, batch.cu_seqlens, self.n_heads,
            causal=True, n_kv_heads=self.n_kv_heads, cu_seqlens_k=offsets, key_lengths=lengths,
        )  # fmt: skip
        return self.o_proj(y, batch)


class LlamaMLP(FeedForward):
    """down_proj(silu(gate_proj(x)) * up_proj(x))."""

    projections = ("gate_proj", "up_proj", "down_proj")

    def __init__(self, config: LlamaConfig, build: Builder, name: str) -> None:
        self.gate_proj, self.up_proj, self.down_proj = (
            build.linear(f"{name}.{projection}", config.mlp_bias) for projection in self.projections
        )

    def compute(self, x: Any, project: Callable[[str, Any], Any]) -> Any:
        """The formula, with ``project(name, h)`` for each of ``projections``."""
        gate, up = tape.together(x, lambda x: (project("gate_proj", x), project("up_proj", x)))
        return project("down_proj", tape.Activated(gate, "silu", up))


class LlamaDecoderLayer(Module):
    """Attention, then the feed-forward, each normalised before and added to what goes in."""

    def __init__(self, config: LlamaConfig, build: Builder, name: str) -> None:
        eps = config.rms_norm_eps
        self.self_attn = LlamaAttention(config, build, name + ".self_attn")
        self.mlp = LlamaMLP(config, build, name + ".mlp")
        self.input_layernorm = build.rms_norm(name + ".input_layernorm", eps)
        self.post_attention_layernorm = build.rms_norm(name + ".post_attention_layernorm", eps)

    def __call__(self, x: Any, batch: Batch, rotate: Rotation) -> Any:
        """[N, D] to [N, D]."""
        x = tape.add(x, self.self_attn(self.input_layernorm(x), batch, rotate))
        return tape.add(x, self.mlp(self.post_attention_layernorm(x), batch))


class LlamaModel(Module):
    """All but the head: a batch's tokens to hidden states [N, D]."""

    def __init__(self, config: LlamaConfig, build: Builder) -> None:
        tied = config.tie_word_embeddings
        table = "model.embed_tokens"
        self.embed_tokens = Embedding(build.packed(table + ".weight")) if tied else build.embedding(table)
        self.layers = [
            LlamaDecoderLayer(config, build, f"model.layers.{i}") for i in range(config.num_hidden_layers)
        ]
        self.norm = build.rms_norm("model.norm", config.rms_norm_eps)
        self.frequencies, self.most, self.dtype = (
            config.inverse_frequencies(),
            config.context_length,
            build.dtype,
        )

    def __call__(self, batch: Batch) -> Any:
        """Hidden states [N, D], normalised."""
        token_ids, positions = tokens_and_positions(batch, self.most)
        which, rows = np.unique(positions, return_inverse=True)
        rotate = Rotation(*angles(self.frequencies, which, self.dtype), rows)
        x = self.embed_tokens(token_ids)
        for layer in self.layers:
            x = run_block(layer, x, batch, rotate)
        if batch.cache is not None:
            batch.cache.advance(batch.cu_seqlens)
        return self.norm(x)


class Llama(Writer):
    """A frozen causal language model: hidden states, logits over the vocabulary, and its tokenizer.

    One vector per text is the hidden state of its "last" token, or the "mean" of all.
    """

    poolings = ("last", "mean")
    default_target_modules = ("q_proj", "v_proj")
    ia3_target_modules = ("k_proj", "v_proj", "down_proj")
    ia3_feedforward_modules = ("down_proj",)

    def __init__(
        self, config: LlamaConfig, build: Builder, pooling: str = "last", name: str = "llama", **options: Any
    ) -> None:
        super().__init__(config, build, pooling=pooling, name=name, **options)
        self.model = LlamaModel(config, build)
        tied = self.model.embed_tokens.weight if config.tie_word_embeddings else None
        self.lm_head = build.linear("lm_head", bias=False) if tied is None else Linear(tied)

    @classmethod
    def from_state(
        cls, config: LlamaConfig, state: Mapping[str, Any], dtype: Any = np.float32, **options: Any
    ) -> Llama:
        """From weights by name (of LlamaForCausalLM and its kin, or of the model without its head where that
        is tied), float of any width, converted to ``dtype``.

        ``options`` are those of :class:`~polymoe.models.writer.Writer`. Raises ValueError that lists missing
        and unexpected weights, for a wrong shape, and for NaN or infinity; TypeError for weights that are no
        floats. A second copy of a tied head is left out.
        """
        state = rename(state, RENAMES, IGNORE + (r"|lm_head\.weight$" if config.tie_word_embeddings else ""))
        check_weights(state, config.shapes())
        return cls(config, Builder(state, np.dtype(dtype)), **options)

    def __call__(self, batch: Batch) -> Any:
        """Hidden states [N, D] behind the last norm, as :class:`~polymoe.models.base.Base` says."""
        return self.model(batch)
