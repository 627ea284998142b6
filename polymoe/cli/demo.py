"""The verb ``demo``: a run on small tasks that come with polymoe, by the recipe for the kind of base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polymoe
from polymoe.cli.flags import parse_flags
from polymoe.cli.runs import usage_of
from polymoe.cli.show import print_json, say, show_summary
from polymoe.data import Example
from polymoe.models.loading import writes_text
from polymoe.recipe import Recipe
from polymoe.training import Callback, Trainer
from polymoe.training.objectives import Lm

DEMO = Path(polymoe.__file__).parent / "demo"
TRY = {"match": ("intent", '"Wake me at six, please"'), "lm": ("question", '"The bus stops here."')}
"""A task and a text to go on with, by objective."""
BFLOAT16 = "avx512bf16"
"""The instruction set that multiplies in bfloat16."""


@dataclass(frozen=True)
class Demo:
    """Train one model on the small tasks that come with polymoe, and show what it learnt: eight tasks of
    labels or, for a base that writes, four of writing."""

    base: str = "minilm"
    """The frozen model: "minilm", "smollm2", a folder, a GGUF file, or a name on the hub."""
    output: str = "runs/demo"
    """Folder of the run; replaced if it holds an earlier demo."""
    method: str | None = None
    """Any that `polymoe methods` lists; mhr by default, poly for a base that writes."""
    seed: int = 0
    """Of order, noise and initial values."""
    json: bool = False
    """Print the summary as JSON."""


def demo(argv: Sequence[str]) -> None:
    """Train on the shipped tasks."""
    options = parse_flags(Demo, argv, "demo")
    recipe = demo_recipe(options.base, options.method, options.seed)
    earlier = Path(options.output) / "recipe.yaml"
    is_demo = earlier.exists() and Path(str(Recipe.from_yaml(earlier).data)).parent == DEMO.resolve()
    samples = Samples()
    summary = recipe.train(options.output, overwrite=is_demo, callbacks=[samples])
    if options.json:
        print_json(summary)
        return
    samples.show()
    show_summary(summary, options.output)
    use = usage_of(summary, options.output, *TRY[recipe.objective])
    say(
        f"\nnext:\n  {use}\n"
        f"  polymoe evaluate {options.output}\n"
        "  polymoe train --data YOUR_FOLDER --output runs/mine"
    )


def demo_recipe(base: str, method: str | None = None, seed: int = 0) -> Recipe:
    """The recipe for a base: of the two files, the one for its kind. Weights are in bfloat16 only where this
    machine multiplies in it: elsewhere that would save nothing but memory."""
    recipe = Recipe.from_yaml(DEMO / ("writing.yaml" if writes_text(base) else "recipe.yaml"))
    if polymoe.get_isa() != BFLOAT16:
        recipe = replace(recipe, dtype="float32")
    return replace(
        recipe,
        base=base,
        data=str(DEMO / str(recipe.data)),
        method=method or recipe.method,
        training=replace(recipe.training, seed=seed),
    )


class Samples(Callback):
    """What a model that writes makes of the first test texts of each task, before training and after."""

    def __init__(self, per_task: int = 2) -> None:
        self.per_task = per_task
        self.examples: list[Example] = []
        self.before: list[str] = []
        self.after: list[str] = []

    def on_train_begin(self, trainer: Trainer) -> None:
        """Write, before the first stage where there are two."""
        if isinstance(trainer.objective, Lm):
            self.examples = [e for task in trainer.data.values() for e in task.test[: self.per_task]]
        self.before = self.before or self._write(trainer)

    def on_train_end(self, trainer: Trainer, summary: Mapping[str, Any]) -> None:
        """Write again."""
        self.after = self._write(trainer)

    def show(self) -> None:
        """Task by task: the text, what was written before and after."""
        for example, before, after in zip(self.examples, self.before, self.after, strict=True):
            say(f"{example.task}: {example.input}\n  before: {_line(before)}\n  after:  {_line(after)}")

    def _write(self, trainer: Trainer) -> list[str]:
        if not self.examples:
            return []
        assert isinstance(trainer.objective, Lm)
        texts, tasks = [e.input for e in self.examples], [e.task for e in self.examples]
        return [own[0].text for own in trainer.objective.write(trainer.model, texts, tasks)]


def _line(text: str, most: int = 80) -> str:
    """A text on one line, its end cut off where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most].rstrip() + " ..."
