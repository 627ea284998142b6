"""Texts to token ids, over the ``tokenizers`` library: packed, truncated by us, with what was cut counted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import tokenizers

from polymoe.data.order import integers

CHUNK = 1024
"""Texts that are encoded together: bounds the memory that the library's results take."""

PROBE = "The cat's 1984 naïve   houses: UNLIKELY, don't you think?\n\tx_1 = (a+b)/2 -- 你好, a@b.example 🙂"
"""What tokenizers of the same tokens cut in different ways."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The ids of n texts, end to end.

    ``ids`` [N] int32; text i owns ``ids[cu_seqlens[i]:cu_seqlens[i+1]]``, ``cu_seqlens`` [n+1] int64.
    ``truncated`` [n] bool: longer than allowed and cut. ``empty`` [n] bool: nothing but white space or
    characters that the tokenizer drops.
    """

    ids: np.ndarray
    cu_seqlens: np.ndarray
    truncated: np.ndarray
    empty: np.ndarray

    def __len__(self) -> int:
        return len(self.truncated)

    @property
    def lengths(self) -> np.ndarray:
        """[n] int64, tokens of each text."""
        return np.diff(self.cu_seqlens)

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``token_ids`` [N'] int64 and ``cu_seqlens`` [B+1] int64 of some of the texts, in that order.

        IndexError for an index outside 0 .. n-1 (negative ones too).
        """
        indices = integers("indices", indices)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(
                f"indices: expected 0 .. {len(self) - 1}, got {indices.min()} .. {indices.max()}"
            )
        lengths = self.lengths[indices]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.cu_seqlens[indices] - cu_seqlens[:-1], lengths)
        return self.ids[np.arange(cu_seqlens[-1]) + shift].astype(np.int64), cu_seqlens


class Tokenizer:
    """Encodes single texts: ``prefix`` + text, cut to ``max_length`` tokens with the special tokens kept.

    Padding and truncation that a tokenizer.json asks for are switched off: batches here have no padding, and
    a cut is counted. ``chat_template``: how a conversation becomes a text, in Jinja, as the model's files
    give it; kept, not used here.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        max_length: int,
        prefix: str = "",
        chat_template: str | None = None,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer, self.max_length, self.prefix = tokenizer, max_length, prefix
        self.chat_template = chat_template
        probe = tokenizer.encode("a")
        ids, content = (
            np.array(probe.ids, dtype=np.int32),
            np.flatnonzero(np.array(probe.special_tokens_mask) == 0),
        )
        if not content.size:
            raise ValueError("tokenizer: expected one that turns the text 'a' into tokens")
        self.before, self.after = ids[: content[0]], ids[content[-1] + 1 :]
        n_special = len(self.before) + len(self.after)
        if max_length <= n_special:
            raise ValueError(
                f"max_length: expected more than the {n_special} special tokens, got {max_length}"
            )

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        max_length: int,
        prefix: str = "",
        chat_template: str | None = None,
    ) -> Tokenizer:
        """Read ``folder/tokenizer.json``; FileNotFoundError if it is absent, ValueError if it is none."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected the tokenizer's file, got nothing there")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: expected a tokenizer's file: {error}") from error
        return cls(tokenizer, max_length, prefix, chat_template)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def digest(self) -> str:
        """The same for tokenizers with the same tokens that cut a text of all sorts alike."""
        tokens = sorted(self.tokenizer.get_vocab(with_added_tokens=True).items())
        return blake2b(repr((tokens, self.tokenizer.encode(PROBE).ids)).encode(), digest_size=16).hexdigest()

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Ids of n texts; an empty text is its special tokens. TypeError for anything that is no string."""
        if isinstance(texts, str):
            raise TypeError("texts: expected a sequence of strings, got a string")
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"texts: expected strings, got {type(text).__name__}")
        room = self.max_length - len(self.before) - len(self.after)
        n_prefix = len(self._content([""])[0])
        lengths, empty, pieces = np.empty(len(texts), dtype=np.int64), np.empty(len(texts), dtype=bool), []
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            for i, (text, content) in enumerate(zip(chunk, self._content(chunk), strict=True), start):
                lengths[i], empty[i] = len(content), len(content) <= n_prefix or not text.strip()
                pieces += [self.before, np.array(content[:room], dtype=np.int32), self.after]
        ids = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
        kept = np.minimum(lengths, room) + len(self.before) + len(self.after)
        return Tokens(ids, np.concatenate([[0], np.cumsum(kept)]), lengths > room, empty)

    def prompts(self, texts: Sequence[str], whole: bool = False) -> list[list[int]]:
        """Ids of texts that something will follow, uncut: with the tokens that begin a text, and with those
        that end one where they are ``whole``, texts of their own."""
        before, after = self.before.tolist(), self.after.tolist() if whole else []
        return [before + content + after for content in self._content(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _content(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of prefix + text, without special tokens."""
        prefixed = [self.prefix + text for text in texts]
        return [
            encoding.ids for encoding in self.tokenizer.encode_batch_fast(prefixed, add_special_tokens=False)
        ]

    def __repr__(self) -> str:
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, max_length={self.max_length}, prefix={self.prefix!r})"
        )
