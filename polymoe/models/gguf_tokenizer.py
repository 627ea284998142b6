"""The tokenizer in the metadata of a GGUF file, made of the parts of the library `tokenizers`.

Two kinds: "gpt2", pairs of byte-level pieces merged in the order of a list, after a text was cut by the rule
that ``tokenizer.ggml.pre`` names; and "llama", pieces with scores, where the pair whose union scores best is
merged first (SentencePiece's BPE, with bytes for what it does not know).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from polymoe.data import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # tokenizer.ggml.token_type

# Words, numbers of so many digits, signs and white space, as the two model families cut them.
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool = True) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


def _cut(digits: str) -> Any:
    split = pre_tokenizers.Split(Regex(CUT.format(digits=digits)), "isolated")
    return pre_tokenizers.Sequence([split, _byte_level(use_regex=False)])


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": _byte_level,
    "smollm": _single_digits,
    "starcoder": _single_digits,
    "llama-bpe": lambda: _cut("{1,3}"),
    "qwen2": lambda: _cut(""),
}


def build_tokenizer(fields: Mapping[str, Any], max_length: int) -> Tokenizer:
    """The tokenizer that the fields of a file describe; its chat template comes along as text.

    Raises ValueError for a kind or a rule that is not known here, and for fields that are missing or do not
    fit.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"tokenizer.ggml.model: expected 'gpt2' or 'llama', got {kind!r}")
    tokens, types = _field(fields, "tokens"), fields.get("tokenizer.ggml.token_type")
    types = [NORMAL] * len(tokens) if types is None else types
    if len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type: expected {len(tokens)} entries, got {len(types)}")
    tokenizer = _gpt2(fields, tokens) if kind == "gpt2" else _llama(fields, tokens, types)
    for wanted, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [t for t, is_type in zip(tokens, types, strict=True) if is_type == wanted]
        tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in added])
    _add_ends(tokenizer, fields, tokens, begins=kind == "llama" or _rule(fields) == "llama-bpe")
    template = fields.get("tokenizer.chat_template")
    return Tokenizer(tokenizer, max_length, chat_template=template)


def _field(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(f"tokenizer.ggml.{name}")
    if value is None:
        raise ValueError(f"tokenizer.ggml.{name}: expected a value, got none")
    return value


def _rule(fields: Mapping[str, Any]) -> Any:
    return fields.get("tokenizer.ggml.pre")


def _gpt2(fields: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
    rule = _rule(fields)
    if rule not in PRE_TOKENIZERS:
        raise ValueError(f"tokenizer.ggml.pre: expected one of {list(PRE_TOKENIZERS)}, got {rule!r}")
    merges = [tuple(merge.split(" ", 1)) for merge in _field(fields, "merges")]
    tokenizer = _bpe(tokens, merges, ignore_merges=rule == "llama-bpe")
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[rule]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _llama(fields: Mapping[str, Any], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    scores = _field(fields, "scores")
    if len(scores) != len(tokens):
        raise ValueError(f"tokenizer.ggml.scores: expected {len(tokens)} entries, got {len(scores)}")
    unknown = _token(tokens, fields.get("tokenizer.ggml.unknown_token_id", 0), "unknown_token_id")
    space, prefix = [normalizers.Replace(" ", "▁")], fields.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer = _bpe(
        tokens, _merges(tokens, types, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁")] * bool(prefix) + space)
    strip = [decoders.Strip(" ", 1, 0)] * bool(prefix)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(tokens: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of pieces whose union is a piece, the best score first."""
    ids = {t: i for i, t in enumerate(tokens) if types[i] in (NORMAL, USER_DEFINED)}
    ranked = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[i], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _bpe(tokens: list[str], merges: list[Any], **options: Any) -> tokenizers.Tokenizer:
    try:
        model = models.BPE({token: i for i, token in enumerate(tokens)}, merges, **options)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"tokenizer.ggml.merges: expected pairs of tokens: {error}") from error
    return tokenizers.Tokenizer(model)


def _add_ends(
    tokenizer: tokenizers.Tokenizer, fields: Mapping[str, Any], tokens: list[str], begins: bool
) -> None:
    """What is put before and after every text; ``begins``: what holds where the file does not say."""
    single, special = ["$A"], []
    for name, put, default in (("bos", 0, begins), ("eos", 1, False)):
        if fields.get(f"tokenizer.ggml.add_{name}_token", default):
            token_id = _field(fields, f"{name}_token_id")
            token = _token(tokens, token_id, f"{name}_token_id")
            single.insert(put * len(single), f"{token}")
            special.append((token, token_id))
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)


def _token(tokens: list[str], token_id: Any, name: str) -> str:
    if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
        raise ValueError(f"tokenizer.ggml.{name}: expected 0 .. {len(tokens) - 1}, got {token_id!r}")
    return tokens[token_id]
