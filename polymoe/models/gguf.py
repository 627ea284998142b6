"""GGUF files: sizes, weights and tokenizer of a Llama out of one file, through the library `gguf`.

Weights are decoded to float32 one at a time, when a model packs them. Of the architecture "llama" (Llama,
Mistral, SmolLM2) the rows of q and k lie in pairs there, 0 and d/2, 1 and d/2 + 1 ...; that is undone.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polymoe.data import Tokenizer
from polymoe.models.gguf_tokenizer import build_tokenizer
from polymoe.models.llama_config import LlamaConfig

ARCHITECTURES = ("llama", "qwen2")
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
FREQUENCIES = "rope_freqs.weight"  # what divides the frequencies of the rotary positions, [head size / 2]


class GgufModel(NamedTuple):
    """What :func:`read_gguf` finds in a file."""

    config: LlamaConfig
    state: dict[str, GgufTensor]
    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...]


class GgufTensor:
    """A tensor as it lies in the file; it is decoded, to float32, each time an array is asked of it."""

    dtype = np.dtype(np.float32)

    def __init__(self, tensor: Any, heads: int | None) -> None:
        self.shape: tuple[int, ...] = tuple(int(n) for n in reversed(tensor.shape))
        self._data, self._kind, self._heads = tensor.data, tensor.tensor_type, heads

    def rows(self, n: int | None = None) -> np.ndarray:
        """The first ``n`` rows (all when None), decoded, as the file has them. NotImplementedError for a
        quantization that the library does not decode."""
        from gguf import dequantize

        array: np.ndarray = dequantize(self._data if self._data.ndim == 1 else self._data[:n], self._kind)
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.rows().reshape(self.shape)
        if self._heads is not None:
            pairs = array.reshape(self._heads, -1, 2, *self.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)


def read_gguf(path: Path) -> GgufModel:
    """The Llama in a GGUF file.

    Raises ModuleNotFoundError without the library (extra `gguf`), ValueError that names the file when it is
    broken, and for an architecture, a quantization, a tokenizer or a scaling of positions that polymoe does
    not read.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            "gguf: expected the library that reads GGUF files, got none: run `pip install 'polymoe[gguf]'`",
            name="gguf",
        )
    from gguf import GGUFReader

    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file, got none")
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # whatever its arithmetic on the bytes of a broken file runs into
        kind = type(error).__name__
        raise ValueError(f"{path}: expected a whole GGUF file, got {kind}: {error}") from error
    try:
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        metadata = Metadata(fields)
        config = _config(metadata, tensors)
        tokenizer = build_tokenizer(fields, config.context_length)
        return GgufModel(config, dict(_state(config, tensors)), tokenizer, _ends(metadata))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


class Metadata:
    """The fields of a file by name, those of its architecture without their prefix."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        architecture = fields.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"general.architecture: expected one of {list(ARCHITECTURES)}, got {architecture!r}"
            )
        self.architecture: str = architecture

    def __call__(self, name: str, default: Any = None) -> Any:
        """``llama.<name>``; ValueError where it is missing and has no default."""
        key = f"{self.architecture}.{name}"
        value = self.fields.get(key, default)
        if value is None:
            raise ValueError(f"{key}: expected a value, got none")
        return value


def _config(of: Metadata, tensors: Mapping[str, Any]) -> LlamaConfig:
    if "token_embd.weight" not in tensors:
        raise ValueError("token_embd.weight: expected this tensor, got none")
    if of("expert_count", 0):
        raise ValueError(f"expert_count: expected 0, got {of('expert_count')}")
    heads, size = of("attention.head_count"), of("embedding_length")
    head_dim = of("attention.key_length", size // heads if heads else 0)
    for name in ("rope.dimension_count", "attention.value_length"):
        if (other := of(name, head_dim)) != head_dim:
            raise ValueError(f"{name}: expected the size of a head, {head_dim}, got {other}")
    return LlamaConfig(
        model_type=of.architecture,
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=size,
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=of("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=of("context_length"),
        rms_norm_eps=of("attention.layer_norm_rms_epsilon"),
        rope_theta=of("rope.freq_base", 10000.0),
        rope_scaling=_scaling(of, tensors),
        sliding_window=of("attention.sliding_window", 0) or None,
        tie_word_embeddings="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
    )


def _scaling(of: Metadata, tensors: Mapping[str, Any]) -> dict[str, Any]:
    kind = of("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": of("rope.scaling.factor")}
    if kind != "none":
        raise ValueError(f"rope.scaling.type: expected 'none' or 'linear', got {kind!r}")
    if FREQUENCIES in tensors:
        return {
            "rope_type": "divisors",
            "divisors": np.asarray(GgufTensor(tensors[FREQUENCIES], None)).tolist(),
        }
    return {}


def _state(config: LlamaConfig, tensors: Mapping[str, Any]) -> Iterator[tuple[str, GgufTensor]]:
    """The weights under the model's names. One row of each is decoded here, to know that it can be."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(blk\.\d+\.)?(\w+)(\.\w+)", name)
        if name == FREQUENCIES or match is None or match[2] not in NAMES:
            if name != FREQUENCIES:
                raise ValueError(f"tensors: expected those of a {config.model_type}, got {name}")
            continue
        weight = GgufTensor(tensor, heads.get(match[2]) if config.model_type == "llama" else None)
        try:
            weight.rows(1)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ValueError(f"{name}: expected a quantization that gguf decodes, got {kind}") from error
        yield (match[1] or "").replace("blk.", "model.layers.") + NAMES[match[2]] + match[3], weight


def _ends(of: Metadata) -> tuple[int, ...]:
    """The tokens that end a text: of a whole text, and of a turn of a conversation."""
    names = ("eos_token_id", "eot_token_id")
    found = (of.fields.get(f"tokenizer.ggml.{name}") for name in names)
    return tuple(dict.fromkeys(token for token in found if token is not None))
