"""Sizes of a Llama, read from config.json, and what polymoe refuses there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polymoe.models.checks import check_kind, check_numbers, check_sizes, given_fields
from polymoe.models.rope import inverse_frequencies

MODEL_TYPES = ("llama", "mistral", "qwen2")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes, under the names of config.json.

    ``rope_scaling``: see :mod:`polymoe.models.rope`. ``sliding_window``: how far back attention reaches
    in the layers that are limited, None where no layer is. ``qkv_bias``, ``o_bias``, ``mlp_bias``: which
    projections have one.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    model_type: str = "llama"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, SIZES + (("sliding_window",) if self.sliding_window is not None else ()))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                "num_key_value_heads: expected a divisor of num_attention_heads = "
                f"{self.num_attention_heads}, got {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim: expected an even number, got {self.head_dim}")
        check_numbers(self, ("rms_norm_eps", "rope_theta"))
        self.inverse_frequencies()

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Out of the object in config.json; ValueError that names what is missing and what polymoe does not
        compute.
        """
        check_kind(config, MODEL_TYPES)
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act: expected 'silu', got {config['hidden_act']!r}")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise ValueError(f"rope_scaling: expected an object, got {rope!r}")
        if (part := rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))) not in (None, 1):
            raise ValueError(f"partial_rotary_factor: expected 1, got {part!r}")
        kind, given = config["model_type"], given_fields(cls, config)
        heads = given.get("num_attention_heads")
        given.setdefault("num_key_value_heads", 8 if kind == "mistral" else heads)
        if missing := [name for name in SIZES if name not in given and name != "head_dim"]:
            raise ValueError(f"config: expected {', '.join(missing)}, got none")
        if "head_dim" not in given:
            given["head_dim"] = _head_dim(given["hidden_size"], heads)
        original = rope.get("original_max_position_embeddings", given["max_position_embeddings"])
        attention_bias = kind == "llama" and config.get("attention_bias") is True
        return cls(
            **given
            | {
                "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
                "rope_scaling": {**rope, "original_max_position_embeddings": original},
                "sliding_window": _window(config),
                "qkv_bias": kind == "qwen2" or attention_bias,
                "o_bias": attention_bias,
                "mlp_bias": kind == "llama" and config.get("mlp_bias") is True,
            }
        )

    @property
    def context_length(self) -> int:
        """Tokens of a text at most: those that the model was made for, within the window of every layer."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    def inverse_frequencies(self) -> np.ndarray:
        """Of the rotary positions, [head_dim / 2] float32."""
        return inverse_frequencies(self.head_dim, self.rope_theta, self.rope_scaling)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight."""
        D, F, V = self.hidden_size, self.intermediate_size, self.vocab_size
        wide, narrow = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        linears = {
            "self_attn.q_proj": ((wide, D), self.qkv_bias),
            "self_attn.k_proj": ((narrow, D), self.qkv_bias),
            "self_attn.v_proj": ((narrow, D), self.qkv_bias),
            "self_attn.o_proj": ((D, wide), self.o_bias),
            "mlp.gate_proj": ((F, D), self.mlp_bias),
            "mlp.up_proj": ((F, D), self.mlp_bias),
            "mlp.down_proj": ((D, F), self.mlp_bias),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (V, D)
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}."
            for name, (shape, bias) in linears.items():
                shapes[f"{layer}{name}.weight"] = shape
                if bias:
                    shapes[f"{layer}{name}.bias"] = shape[:1]
            for name in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{layer}{name}.weight"] = (D,)
        return shapes


def _head_dim(hidden_size: Any, heads: Any) -> Any:
    if isinstance(hidden_size, int) and isinstance(heads, int) and heads > 0 and hidden_size % heads:
        raise ValueError(
            f"hidden_size: expected a multiple of num_attention_heads = {heads}, got {hidden_size}"
        )
    return hidden_size // heads if isinstance(heads, int) and heads > 0 else heads


def _window(config: Mapping[str, Any]) -> Any:
    """The sliding window where a layer has one: Mistral says a number or null, Qwen2 switches it on."""
    types = config.get("layer_types")
    if config["model_type"] == "mistral":
        window = config.get("sliding_window", 4096)
    elif config["model_type"] == "qwen2" and config.get("use_sliding_window") is True:
        window = config.get("sliding_window", 4096)
        if not types and config.get("max_window_layers", 28) >= config["num_hidden_layers"]:
            return None  # the layers below max_window_layers see everything
    else:
        return None
    return window if not types or "sliding_attention" in types else None
