"""Writes a small random T5, as a Hugging Face folder, for the tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tiny import random_state, write_base

from polymoe.models import T5Config

CONFIG = {
    "model_type": "t5",
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "is_encoder_decoder": True,
    "n_positions": 64,
    "vocab_size": 300,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
SPECIAL = ["<pad>", "</s>", "<unk>"]
MERGES = ["t h", "th e", "c a", "ca t", "▁ ca", "▁ca t"]


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """The object of config.json."""
    return CONFIG | overrides


def tiny_state(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by name, large enough for attention, biases and activation to matter."""
    state = random_state(T5Config.from_dict(config).shapes(), seed, 0.3, 1.0)
    for name in state:
        if name.endswith("relative_attention_bias.weight"):
            state[name] *= 2 * config["num_heads"] ** 0.5
    return state


def write_t5(
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


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """Pieces of words as T5 has them: white space becomes the mark of a word, </s> ends every text."""
    letters = [*map(chr, range(33, 127)), "▁"]
    tokens = SPECIAL + letters + [merge.replace(" ", "") for merge in MERGES]
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def numpy_t5(
    config: dict[str, Any], state: dict[str, np.ndarray], source: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """Logits [L, V] of what the decoder reads after one source, written as the paper has it, in float64."""
    w = {name: t.astype(np.float64) for name, t in state.items()}
    heads = config["num_heads"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["layer_norm_epsilon"]) * w[name]

    def bucket(distance: int, both_ways: bool) -> int:
        number, behind = config["relative_attention_num_buckets"], 0
        if both_ways:
            number //= 2
            behind, distance = number * (distance > 0), abs(distance)
        else:
            distance = max(-distance, 0)
        if distance < number // 2:
            return behind + distance
        most, single = config["relative_attention_max_distance"], number // 2
        far = single + int(math.log(distance / single) / math.log(most / single) * (number - single))
        return behind + min(far, number - 1)

    def attend(x: np.ndarray, y: np.ndarray, name: str, stack: str, bias: bool) -> np.ndarray:
        q, k, v = (
            (a @ w[f"{name}.{part}.weight"].T).reshape(len(a), heads, -1).transpose(1, 0, 2)
            for part, a in (("q", x), ("k", y), ("v", y))
        )
        scores = q @ k.transpose(0, 2, 1)
        if bias:
            table = w[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
            which = [[bucket(j - i, stack == "encoder") for j in range(len(y))] for i in range(len(x))]
            scores = scores + table[np.array(which)].transpose(2, 0, 1)
            if stack == "decoder":
                scores[:, np.triu(np.ones((len(x), len(x)), bool), 1)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        context = (p / p.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(x), -1)
        return context @ w[f"{name}.o.weight"].T

    def act(x: np.ndarray) -> np.ndarray:
        if config["feed_forward_proj"].endswith("relu"):
            return np.maximum(x, 0)
        if config["feed_forward_proj"].endswith("silu"):
            return x / (1 + np.exp(-x))
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def stack(name: str, ids: np.ndarray, states: np.ndarray | None, layers: int) -> np.ndarray:
        x = w["shared.weight"][ids]
        for i in range(layers):
            layer = f"{name}.block.{i}.layer."
            n = norm(x, layer + "0.layer_norm.weight")
            x = x + attend(n, n, layer + "0.SelfAttention", name, True)
            if states is not None:
                n = norm(x, layer + "1.layer_norm.weight")
                x = x + attend(n, states, layer + "1.EncDecAttention", name, False)
            last = f"{layer}{1 if states is None else 2}."
            n, dense = norm(x, last + "layer_norm.weight"), last + "DenseReluDense."
            if config["feed_forward_proj"].startswith("gated"):
                h = act(n @ w[dense + "wi_0.weight"].T) * (n @ w[dense + "wi_1.weight"].T)
            else:
                h = act(n @ w[dense + "wi.weight"].T)
            x = x + h @ w[dense + "wo.weight"].T
        return norm(x, name + ".final_layer_norm.weight")

    states = stack("encoder", source, None, config["num_layers"])
    x = stack("decoder", ids, states, config["num_decoder_layers"])
    if config["tie_word_embeddings"]:
        return x * config["d_model"] ** -0.5 @ w["shared.weight"].T
    return x @ w["lm_head.weight"].T
