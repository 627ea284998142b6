"""Does what many tasks share help with a task that is new? Two tasks held out, learnt from a few shots.

    python -m benchmarks.language_shots DATA --methods poly --held-out emotion multi

The second experiment of the Poly and MHR papers: each method trains on all tasks but those held out, as
`python -m benchmarks.language` does and into the same folder, then adapts to each of them by itself, in
every way that `polymoe adapt` has. Beside them stand the base alone, the methods without any shot (all
skills alike), and shared LoRA on the base that learns the shots of one task. Prints Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.language import BEFORE, Options, Rows, finished, scores, short, started, trained
from polymoe.adapters.extend import Tune
from polymoe.data import draw_shots, read_tasks
from polymoe.training import FewShot, TrainingConfig

TUNES: tuple[Tune, ...] = ("router", "all", "mu")


@dataclass(frozen=True)
class ShotOptions(Options):
    """ROUGE-L and exact match on tasks that are learnt from a few shots."""

    methods: tuple[str, ...] = ("poly",)
    held_out: tuple[str, ...] = ("emotion", "multi")
    """Tasks, by the second word of their names."""
    shots: int = 32
    """Training examples of a task; half as many for validation, which selects the best step."""
    shot_steps: int = 50
    shot_batch_size: int = 4

    def training(self, steps: int, seed: int) -> TrainingConfig:
        """How shots are learnt; no steps evaluate what is there."""
        return TrainingConfig(
            epochs=0,
            max_steps=steps or -1,
            batch_size=self.shot_batch_size,
            eval_steps=10,
            max_length=self.max_length,
            seed=seed,
        )


def adapt(options: ShotOptions) -> Rows:
    """Each method, way of tuning, and seed."""
    rows: Rows = {BEFORE: [options.before()]}
    ways: list[tuple[str, Tune, int]] = [("no shots", "mu", 0), *((t, t, options.shot_steps) for t in TUNES)]
    n_valid = options.shots // 2
    for seed in options.seeds:
        tasks = options.tasks(seed)
        new = [name for name in tasks if short(name) in options.held_out]
        # A task without a test part is not evaluated: these runs are there to be adapted.
        old = {name: replace(task, test=()) for name, task in tasks.items() if name not in new}
        for method in options.methods:
            source = Path(options.output) / f"{method}-{seed}-without-{'-'.join(map(short, new))}"
            trained(source, options.recipe(method, seed), old)
            for row, tune, steps in ways:
                runs = []
                for name in new:
                    training = options.training(steps, seed)
                    shot = FewShot(source, name, options.data, tune, options.shots, n_valid, training)
                    folder = source.with_name(f"{source.name}-{row.replace(' ', '-')}-{short(name)}")
                    runs.append(finished(folder) or shot.train(folder, resume=started(folder)))
                rows.setdefault(f"{method}, {row}", []).append(joined(runs))
        alone = []
        for name in new:
            recipe = replace(
                options.recipe("lora", seed), training=options.training(options.shot_steps, seed)
            )
            task = draw_shots(read_tasks(options.data, [name], seed=seed)[name], options.shots, n_valid, seed)
            folder = Path(options.output) / f"shots-{seed}-{short(name)}"
            alone.append(trained(folder, recipe, {name: task}))
        rows.setdefault("lora on the base", []).append(joined(alone))
    return rows


def joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Runs on one task each as one."""
    return {"evaluation": {"tasks": {n: v for run in runs for n, v in run["evaluation"]["tasks"].items()}}}


if __name__ == "__main__":
    print(scores(adapt(tyro.cli(ShotOptions, config=(tyro.conf.FlagCreatePairsOff,)))))
