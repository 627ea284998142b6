"""Sizes of a BERT, read from config.json, and what polymoe refuses there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from polymoe.functional.linear import Activation
from polymoe.models.checks import check_numbers, check_sizes

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""By ``hidden_act``."""


@dataclass(frozen=True)
class BertConfig:
    """Sizes, under the names and with the defaults of config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"

    def __post_init__(self) -> None:
        check_sizes(self, (f.name for f in fields(self)[:7]))
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise ValueError(
                f"hidden_size: expected a multiple of num_attention_heads = {heads}, got {self.hidden_size}"
            )
        check_numbers(self, ("layer_norm_eps",))
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act: expected one of {list(ACTIVATIONS)}, got {self.hidden_act!r}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BertConfig:
        """Out of the object in config.json; ValueError that names what polymoe does not compute."""
        supported = {
            "model_type": "bert",
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
        }
        for name, value in supported.items():
            given = config.get(name) if name == "model_type" else config.get(name) or value
            if given != value:
                raise ValueError(f"{name}: expected {value!r} (BERT, MiniLM, BGE, E5, GTE), got {given!r}")
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})

    @property
    def context_length(self) -> int:
        """Tokens of a text at most: the rows of the position table."""
        return self.max_position_embeddings

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight."""
        D, F = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, D),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, D),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, D),
            "embeddings.LayerNorm.weight": (D,),
            "embeddings.LayerNorm.bias": (D,),
        }
        linears = dict.fromkeys(
            ["attention.self." + n for n in ("query", "key", "value")] + ["attention.output.dense"], (D, D)
        )
        linears |= {"intermediate.dense": (F, D), "output.dense": (D, F)}
        for i in range(self.num_hidden_layers):
            layer = f"encoder.layer.{i}."
            for name, shape in linears.items():
                shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
            for name in ("attention.output.LayerNorm", "output.LayerNorm"):
                shapes |= {f"{layer}{name}.weight": (D,), f"{layer}{name}.bias": (D,)}
        return shapes
