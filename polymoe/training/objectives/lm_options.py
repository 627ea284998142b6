"""Settings of ``lm``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polymoe.data.prompts import TemplateName
from polymoe.models.search import GenerationConfig


@dataclass(frozen=True)
class LmOptions:
    """How texts are made of examples, and what the loss is a mean of."""

    template: TemplateName = "plain"
    """How a prompt looks: the input and the separator (plain), the task's definition and the input
    (instruction), or the base's chat template (chat)."""
    separator: str = "\n"
    """Between input and output (template plain)."""
    demonstrations: int = 0
    """Examples of the task shown in every prompt, where the data have them (templates instruction and
    chat)."""
    loss_mean: Literal["token", "example"] = "token"
    """The loss is the mean over all target tokens of a step, as in transformers, or over its examples, each
    with the mean over its own."""
    max_new_tokens: int = 64
    """Tokens of a text that is written in an evaluation, at most."""
    evaluate_before: bool = False
    """Evaluate on test before training too, which means writing its texts."""
    eval_examples: int | None = None
    """Test examples of a task that training evaluates at most, the same ones in every run; None takes all.
    `polymoe evaluate` takes all."""

    def __post_init__(self) -> None:
        if self.template not in ("plain", "instruction", "chat"):
            raise ValueError(f"template: expected plain, instruction or chat, got {self.template!r}")
        if self.loss_mean not in ("token", "example"):
            raise ValueError(f"loss_mean: expected token or example, got {self.loss_mean!r}")
        if not isinstance(self.separator, str):
            raise TypeError(f"separator: expected a string, got {self.separator!r}")
        GenerationConfig(max_new_tokens=self.max_new_tokens)
        n_eval = 1 if self.eval_examples is None else self.eval_examples
        for name, value in (("demonstrations", self.demonstrations), ("eval_examples", n_eval)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an integer, got {value!r}")
        if n_eval < 1:
            raise ValueError(f"eval_examples: expected an integer from 1 on, got {n_eval}")
        if self.demonstrations < 0 or (self.template == "plain" and self.demonstrations):
            raise ValueError(
                f"demonstrations: expected 0 (template plain) or more, got {self.demonstrations}"
            )
