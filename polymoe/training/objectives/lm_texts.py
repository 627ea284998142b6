"""What ``lm`` makes of examples: the tokens of prompts and of the outputs that follow them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polymoe.batch import TaskRegistry
from polymoe.data import EncodedSplit, TaskData, Tokenizer, Tokens
from polymoe.data.encoded import split_examples
from polymoe.data.prompts import Context, Encoded, Template, encode_prompts, end_of_answer


@dataclass(frozen=True, eq=False)
class LmSplit(EncodedSplit):
    """``tokens`` are those of prompt and target; ``prompt_lengths`` [n] says how many belong to the
    prompt."""

    prompt_lengths: np.ndarray

    @property
    def inputs(self) -> Tokens:
        """The tokens of the prompts."""
        offsets = np.concatenate([[0], np.cumsum(self.prompt_lengths)]).astype(np.int64)
        ids = np.concatenate([*self.prompts(), np.empty(0, np.int32)])
        return replace(self.tokens, ids=ids, cu_seqlens=offsets)

    def prompts(self) -> list[np.ndarray]:
        """The tokens of each prompt."""
        starts, ids = self.tokens.cu_seqlens, self.tokens.ids
        return [ids[a : a + n] for a, n in zip(starts, self.prompt_lengths, strict=False)]


@dataclass(frozen=True)
class LmTexts:
    """Texts as tokens of ``base``, cut by its ``tokenizer``. ``contexts``: what the prompts of each task
    share."""

    base: Any
    tokenizer: Tokenizer
    template: Template
    contexts: Mapping[str, Context]

    def encode(self, tasks: Mapping[str, TaskData], split: str, registry: TaskRegistry) -> LmSplit:
        """Prompts and targets of one split."""
        examples, sizes = split_examples(tasks, split)
        targets = self.targets([e.output for e in examples])
        most = self.tokenizer.max_length
        room = self.base.target_room(most)
        cut = np.array([len(target) > room for target in targets], bool)
        targets = [target[:room] for target in targets]
        for example, target in zip(examples, targets, strict=True):
            if not target:
                raise ValueError(f"{example.where}: output: expected text (the base ends no text), got none")
        rooms = [self.base.prompt_room(most, len(target)) for target in targets]
        prompts = self.prompts([e.input for e in examples], [e.task for e in examples], rooms)
        pieces = [piece for p, t in zip(prompts, targets, strict=True) for piece in (p.ids, t)]
        lengths = np.array([len(piece) for piece in pieces], np.int64).reshape(-1, 2)
        tokens = Tokens(
            np.concatenate(pieces).astype(np.int32) if pieces else np.empty(0, np.int32),
            np.concatenate([[0], np.cumsum(lengths.sum(axis=1))]),
            cut | np.array([p.cut > 0 for p in prompts], bool),
            np.array([not e.input.strip() for e in examples], bool),
        )
        return LmSplit(
            examples,
            tokens,
            registry.ids([e.task for e in examples]),
            np.array([e.example_id for e in examples], np.int64),
            sizes,
            lengths[:, 0],
        )

    def prompts(self, texts: Sequence[str], names: Sequence[str], rooms: Sequence[int]) -> list[Encoded]:
        """Prompts for inputs, each of a task, of at most ``rooms[i]`` tokens."""
        template = self.template
        made = [template.prompt(t, self.contexts[name]) for t, name in zip(texts, names, strict=True)]
        begin, end = template.chat is None, self.base.encoder_decoder
        encoded = encode_prompts(made, self.tokenizer, rooms, begin, end)
        for text, prompt in zip(texts, encoded, strict=True):
            if not len(prompt.ids):
                raise ValueError(f"input: expected at least one token in a prompt, got {text!r}")
        return encoded

    def targets(self, outputs: Sequence[str]) -> list[list[int]]:
        """Tokens of outputs, each with the one that ends a text."""
        end = end_of_answer(self.template.chat, self.tokenizer, self.base.eos_token_ids)
        encodings = self.tokenizer.tokenizer.encode_batch_fast(
            [self.template.output(text) for text in outputs], add_special_tokens=False
        )
        return [encoding.ids + end for encoding in encodings]
