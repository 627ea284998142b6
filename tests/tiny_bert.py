"""Writes a small random BERT folder, laid out as Hugging Face and sentence-transformers do, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tiny import random_state, write_base, write_json

from polymoe.models import BertConfig

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sees",
    "sleeps",
    "red",
    "blue",
    "small",
    "big",
    "house",
    "##s",
    "##ing",
    "walk",
] + list(".,?!")
CONFIG = {
    "model_type": "bert",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """The object of config.json."""
    return CONFIG | {"vocab_size": len(WORDS) + 5} | overrides


def tiny_state(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by name, large enough for attention and activation to matter."""
    return random_state(BertConfig.from_dict(config).shapes(), seed, 0.5, 2)


def write_bert(
    folder: Path,
    *,
    dtype: str = "F32",
    shards: int = 1,
    seed: int = 0,
    pooling: str | None = None,
    normalize: bool = False,
    max_seq_length: int | None = None,
    state: dict[str, np.ndarray] | None = None,
    **config: Any,
) -> Path:
    """A whole folder; returns it. ``state`` replaces the random weights, ``config`` what config.json says."""
    full = tiny_config(**config)
    state = tiny_state(full, seed) if state is None else state
    write_base(folder, full, state, tiny_tokenizer(), dtype, shards)
    if max_seq_length is not None:
        write_json(
            folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False}
        )
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * normalize
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        modes = {
            f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens")
        }
        write_json(
            folder / "1_Pooling/config.json", {"word_embedding_dimension": full["hidden_size"]} | modes
        )
        types = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
        write_json(folder / "modules.json", types)
    return folder


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """WordPiece that lowers letters and asks for padding and truncation, as many do."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return tokenizer
