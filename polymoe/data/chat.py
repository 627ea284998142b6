"""Conversations as texts, the way a model's own template has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from polymoe.data.tokenization import Tokenizer


class ChatTemplate:
    """A model's chat template (Jinja, run in a sandbox, with what Hugging Face's templates expect there).

    ``source``: the template; ``bos`` and ``eos``: the tokens that begin and end a text, as text. Raises
    ModuleNotFoundError without jinja2, ValueError for a template that is none.
    """

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        try:
            from jinja2 import TemplateError
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "chat_template: expected jinja2, got none: run `pip install jinja2`", name="jinja2"
            ) from error
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        self._error, self._tokens = TemplateError, {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"chat_template: expected a Jinja template, got {error}") from error

    @classmethod
    def of(cls, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> ChatTemplate:
        """That of a base's tokenizer; ValueError where the base has none."""
        if tokenizer.chat_template is None:
            raise ValueError("template: expected a base with a chat template ('chat'), got one without")
        token = tokenizer.tokenizer.id_to_token
        begin = "".join(token(int(i)) or "" for i in tokenizer.before)
        return cls(tokenizer.chat_template, begin, "".join(token(i) or "" for i in eos_token_ids[:1]))

    def __call__(self, messages: Sequence[Mapping[str, str]], answer: bool = True) -> str:
        """The text of ``messages``, each with ``role`` and ``content``; with ``answer``, the beginning of the
        assistant's next one after them. ValueError for a conversation that the template refuses."""
        try:
            return self._template.render(
                messages=[dict(m) for m in messages], add_generation_prompt=answer, **self._tokens
            )
        except (self._error, TypeError) as error:
            raise ValueError(f"chat_template: expected a conversation that it takes, got {error}") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
