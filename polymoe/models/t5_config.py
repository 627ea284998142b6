"""Sizes of a T5, read from config.json, and what polymoe refuses there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polymoe.functional.linear import Activation
from polymoe.models.checks import check_kind, check_numbers, check_sizes, given_fields

MODEL_TYPES = ("t5", "mt5")
ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
}
"""By the name in ``feed_forward_proj``."""
SIZES = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "n_positions",
)


@dataclass(frozen=True)
class T5Config:
    """Sizes, under the names and with the defaults of config.json.

    ``feed_forward_proj``: the activation, "gated-" in front where a second projection multiplies it
    ("gated-gelu" is gelu_new). ``tie_word_embeddings``: the head is the table of the tokens.
    ``scale_decoder_outputs``: what the head reads is multiplied by d_model^-0.5; where config.json does not
    say, as those are tied (t5), never (mt5).
    ``n_positions``: tokens of a text, source or target, at most. ``decoder_start_token_id``: what stands
    before every text that is written.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    model_type: str = "t5"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    n_positions: int = 512
    decoder_start_token_id: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, SIZES)
        start = self.decoder_start_token_id
        if type(start) is not int or not 0 <= start < self.vocab_size:
            raise ValueError(
                f"decoder_start_token_id: expected 0 to {self.vocab_size - 1} (vocab_size), got {start!r}"
            )
        check_numbers(self, ("layer_norm_epsilon",))
        buckets, most = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if type(buckets) is not int or buckets < 4 or buckets % 2:
            raise ValueError(
                f"relative_attention_num_buckets: expected an even number from 4 on, got {buckets!r}"
            )
        if type(most) is not int or most <= buckets // 2:
            raise ValueError(
                f"relative_attention_max_distance: expected more than {buckets // 2} (half the buckets), "
                f"got {most!r}"
            )
        if self.activation not in ACTIVATIONS:
            known = [*ACTIVATIONS, "gated-gelu", "gated-silu"]
            raise ValueError(f"feed_forward_proj: expected one of {known}, got {self.feed_forward_proj!r}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> T5Config:
        """Out of the object in config.json; ValueError that names what is missing and what polymoe does not
        compute.
        """
        check_kind(config, MODEL_TYPES)
        if config.get("is_encoder_decoder") is False:
            raise ValueError("is_encoder_decoder: expected true (encoder and decoder), got false")
        kind, given = config["model_type"], given_fields(cls, config)
        given.setdefault("num_decoder_layers", given.get("num_layers"))
        given.setdefault("scale_decoder_outputs", kind == "t5" and given.get("tie_word_embeddings", True))
        if "decoder_start_token_id" not in given and config.get("pad_token_id") is not None:
            given["decoder_start_token_id"] = config["pad_token_id"]
        if missing := [name for name in SIZES[:-1] if given.get(name) is None]:
            raise ValueError(f"config: expected {', '.join(missing)}, got none")
        return cls(**given)

    @property
    def hidden_size(self) -> int:
        """d_model."""
        return self.d_model

    @property
    def context_length(self) -> int:
        """n_positions."""
        return self.n_positions

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a gate."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """Of the feed-forward, one of ``ACTIVATIONS``."""
        name = self.feed_forward_proj.removeprefix("gated-")
        return "gelu_new" if self.gated and name == "gelu" else name

    def buckets(self, both_ways: bool) -> np.ndarray:
        """The bucket [2 W + 1] of every distance of a key from its query, -W to W, the largest that is told
        apart: near ones have a bucket each, far ones share them by their logarithm. ``both_ways``: half the
        buckets are of keys behind the query; else those are in the bucket of the query's own place.
        """
        number, most = self.relative_attention_num_buckets, self.relative_attention_max_distance
        distance = np.arange(-most, most + 1)
        behind = np.zeros_like(distance)
        if both_ways:
            number //= 2
            behind = np.where(distance > 0, number, 0)
            distance = np.abs(distance)
        else:
            distance = np.maximum(-distance, 0)
        single = number // 2
        ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(single))  # float32: it is cut
        shared = ratio / np.float32(math.log(most / single)) * np.float32(number - single)
        far = np.minimum(single + shared.astype(np.int64), number - 1)
        result: np.ndarray = behind + np.where(distance < single, distance, far)
        return result

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight."""
        D, F, V, inner = self.d_model, self.d_ff, self.vocab_size, self.num_heads * self.d_kv
        attention = {"q": (inner, D), "k": (inner, D), "v": (inner, D), "o": (D, inner)}
        up = dict.fromkeys(("wi_0", "wi_1") if self.gated else ("wi",), (F, D))
        shapes: dict[str, tuple[int, ...]] = {"shared.weight": (V, D)}
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (V, D)
        for stack, n in (("encoder", self.num_layers), ("decoder", self.num_decoder_layers)):
            parts = {"SelfAttention": attention}
            parts |= {"EncDecAttention": attention} if stack == "decoder" else {}
            parts["DenseReluDense"] = {**up, "wo": (D, F)}
            for i in range(n):
                for j, (part, linears) in enumerate(parts.items()):
                    layer = f"{stack}.block.{i}.layer.{j}."
                    shapes |= {f"{layer}{part}.{name}.weight": shape for name, shape in linears.items()}
                    shapes[layer + "layer_norm.weight"] = (D,)
            table = (self.relative_attention_num_buckets, self.num_heads)
            shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = table
            shapes[f"{stack}.final_layer_norm.weight"] = (D,)
        return shapes
