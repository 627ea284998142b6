"""From an example to what a language model reads and what it should write, by a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from polymoe.data.chat import ChatTemplate
from polymoe.data.examples import TaskData
from polymoe.data.tokenization import CHUNK, Tokenizer

TemplateName = Literal["plain", "instruction", "chat"]


class Context(NamedTuple):
    """What all prompts of a task share: its definition, and examples that are shown, (input, output) each."""

    definition: str = ""
    demonstrations: tuple[tuple[str, str], ...] = ()


class Prompt(NamedTuple):
    """The text that is read; its characters ``start`` to ``end`` are the example's input."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Template:
    """How prompts look.

        plain        INPUT, then the separator
        instruction  Definition: ... / Example 1 / Input: ... / Output: ... / Input: INPUT / Output:
        chat         the base's own template; the definition stands before the first input, and
                     demonstrations are earlier turns

    ``demonstrations``: how many examples are shown first (not plain). An instruction's output begins with the
    space that its prompt does not end with, as tokenizers have it.
    """

    name: TemplateName = "plain"
    separator: str = "\n"
    demonstrations: int = 0
    chat: ChatTemplate | None = None

    def context(self, task: TaskData) -> Context:
        """What the prompts of a task share; ValueError for a task that has no definition ("instruction") or
        too few demonstrations."""
        if self.name == "instruction" and not task.definition:
            raise ValueError(
                f"template: expected tasks with a definition ('instruction'), got {task.name} without one"
            )
        if len(task.demonstrations) < self.demonstrations:
            raise ValueError(
                f"demonstrations: expected at most the {len(task.demonstrations)} that {task.name} has, "
                f"got {self.demonstrations}"
            )
        definition = "" if self.name == "plain" else task.definition
        return Context(definition, task.demonstrations[: self.demonstrations])

    def prompt(self, text: str, context: Context) -> Prompt:
        """What is read for an input."""
        if self.name == "plain":
            return Prompt(text + self.separator, 0, len(text))
        if self.name == "chat":
            return self._chat(text, context)
        head = f"Definition: {context.definition.strip()}\n\n"
        for i, (shown, output) in enumerate(context.demonstrations, 1):
            head += f"Example {i}\nInput: {shown.strip()}\nOutput: {output.strip()}\n\n"
        head += "Input: "
        return Prompt(f"{head}{text}\nOutput:", len(head), len(head) + len(text))

    def output(self, text: str) -> str:
        """What is written for an output."""
        return f" {text}" if self.name == "instruction" else text

    def _chat(self, text: str, context: Context) -> Prompt:
        assert self.chat is not None
        turns = [*context.demonstrations, (text, "")]
        definition = f"{context.definition.strip()}\n\n" if context.definition else ""
        messages = []
        for i, (shown, output) in enumerate(turns):
            messages.append({"role": "user", "content": shown if i else definition + shown})
            messages.append({"role": "assistant", "content": output})
        rendered = self.chat(messages[:-1])
        content = text.strip()  # templates may strip it
        start = max(rendered.rfind(content), 0)
        return Prompt(rendered, start, start + len(content))


class Encoded(NamedTuple):
    """The tokens of a prompt, and how many were left out."""

    ids: np.ndarray
    cut: int


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    rooms: Sequence[int],
    begin: bool = True,
    end: bool = False,
) -> list[Encoded]:
    """The tokens of each prompt, at most ``rooms[i]`` of them.

    Where they are more, the input loses its last tokens, so that what stands around it stays; where that is
    not enough, the prompt loses its first. ``begin``, ``end``: with the tokens that begin, or end, every
    text, which stay.
    """
    before = tokenizer.before.tolist() if begin else []
    after = tokenizer.after.tolist() if end else []
    result = []
    for first in range(0, len(prompts), CHUNK):
        chunk = prompts[first : first + CHUNK]
        encodings: list[Any] = tokenizer.tokenizer.encode_batch(
            [tokenizer.prefix + p.text for p in chunk], add_special_tokens=False
        )
        for prompt, encoding, room in zip(chunk, encodings, rooms[first : first + CHUNK], strict=True):
            room -= len(before) + len(after)
            ids, over = encoding.ids, len(encoding.ids) - room
            if over > 0:
                low, high = (x + len(tokenizer.prefix) for x in prompt[1:])
                inside = [i for i, (a, b) in enumerate(encoding.offsets) if low <= a < b <= high]
                dropped = set(inside[max(len(inside) - over, 0) :])
                ids = [token for i, token in enumerate(ids) if i not in dropped]
                ids = ids[max(len(ids) - room, 0) :]
            result.append(Encoded(np.array(before + ids + after, np.int32), max(over, 0)))
    return result


def end_of_answer(chat: ChatTemplate | None, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> list[int]:
    """The token that ends what a model writes, as a list: in a conversation, that which the template puts
    behind an answer; empty where the base has none."""
    if chat is not None:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        behind = chat(turns, answer=False).rpartition("y")[2]
        ids = tokenizer.tokenizer.encode(behind, add_special_tokens=False).ids
        found = [i for i in ids if i in eos_token_ids]
        if found:
            return found[:1]
    return list(eos_token_ids[:1])
