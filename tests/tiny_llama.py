"""Writes a small random Llama, as a Hugging Face folder or as a GGUF file, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tiny import random_state, write_base

from polymoe.models import LlamaConfig

CONFIG = {
    "model_type": "llama",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,  # fast enough to matter within a few tokens
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "vocab_size": 300,
    "eos_token_id": 2,
}
SPECIAL = ["<unk>", "<s>", "</s>"]
MERGES = ["t h", "th e", "Ġ c", "Ġc a", "Ġca t", "1 9", "Ġ 1"]


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """The object of config.json."""
    return CONFIG | overrides


def tiny_state(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by name, large enough for attention and activation to matter."""
    return random_state(LlamaConfig.from_dict(config).shapes(), seed, 0.3, 1.5)


def write_llama(
    folder: Path,
    *,
    dtype: str = "F32",
    shards: int = 1,
    seed: int = 0,
    state: dict[str, np.ndarray] | None = None,
    **config: Any,
) -> Path:
    """A whole folder; returns it. ``state`` replaces the random weights, ``config`` what config.json says."""
    full = tiny_config(**config)
    state = tiny_state(full, seed) if state is None else state
    return write_base(folder, full, state, tiny_tokenizer(), dtype, shards)


def byte_level_tokens() -> list[str]:
    """Special tokens, bytes, and what the merges make."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return SPECIAL + alphabet + [merge.replace(" ", "") for merge in MERGES]


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE that splits digits singly and begins every text with <s>."""
    tokens = byte_level_tokens()
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def numpy_llama(config: dict[str, Any], state: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Logits [L, V] of one text, written as the papers have it, in float64."""
    w = {name: t.astype(np.float64) for name, t in state.items()}
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    d = config.get("head_dim", config["hidden_size"] // heads)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * w[name + ".weight"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    def split(x: np.ndarray, n: int) -> np.ndarray:
        x = x.reshape(len(ids), n, d).transpose(1, 0, 2)
        return np.repeat(x, heads // n, axis=0)

    def turn(x: np.ndarray) -> np.ndarray:
        angle = np.arange(len(ids))[:, None] * config["rope_theta"] ** (-np.arange(0, d, 2) / d)
        turned = (x[..., : d // 2] + 1j * x[..., d // 2 :]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        n = norm(x, layer + "input_layernorm")
        q, k, v = (
            split(dense(n, f"{layer}self_attn.{p}_proj"), m) for p, m in (("q", heads), ("k", kv), ("v", kv))
        )
        scores = turn(q) @ turn(k).transpose(0, 2, 1) / np.sqrt(d)
        scores[:, np.triu(np.ones((len(ids), len(ids)), bool), 1)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        context = (p / p.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), -1)
        x = x + dense(context, layer + "self_attn.o_proj")
        n = norm(x, layer + "post_attention_layernorm")
        gate = dense(n, layer + "mlp.gate_proj")
        x = x + dense(gate / (1 + np.exp(-gate)) * dense(n, layer + "mlp.up_proj"), layer + "mlp.down_proj")
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return norm(x, "model.norm") @ w[head + ".weight"].T


def write_gguf(
    path: Path,
    config: dict[str, Any],
    state: dict[str, np.ndarray],
    *,
    quantization: str = "F32",
    fields: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """A GGUF file of a tiny Llama as llama.cpp's converter lays it out; returns it.

    ``fields`` replaces metadata (None leaves a field out), ``tensors`` are more of them, as they are.
    """
    import gguf

    arch = "qwen2" if config["model_type"] == "qwen2" else "llama"
    writer = gguf.GGUFWriter(path, arch)
    tokens = byte_level_tokens()
    sizes = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_theta"],
    }
    metadata: dict[str, Any] = {f"{arch}.{name}": value for name, value in sizes.items()} | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
    }
    for key, value in (metadata | (fields or {})).items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            add[type(value)](key, value)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in state.items():
        part, _, kind = name.rpartition(".")
        n = heads.get(part.rpartition(".")[2])
        if n is not None and arch == "llama":  # the rows of the two halves of a head in turn
            halves = tensor.reshape(n, 2, -1, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        key = names.get_name(part)
        stored = gguf.GGMLQuantizationType[quantization if tensor.ndim == 2 else "F32"]
        writer.add_tensor(f"{key}.{kind}", gguf.quants.quantize(tensor, stored), raw_dtype=stored)
    for key, tensor in (tensors or {}).items():
        writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
