"""Who is told what happens in a run: a protocol of nine calls, the metrics file and the progress display."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polymoe.batch import Batch
from polymoe.training.metrics import Evaluation

if TYPE_CHECKING:
    from polymoe.training.trainer import Trainer


class Callback:
    """Override what you need. Nothing that a callback returns is used; what it raises stops the run."""

    def on_train_begin(self, trainer: Trainer) -> None:
        """The first (or, when resumed, the next) step is about to run."""

    def on_step_end(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """An optimiser step is done; ``record`` is its line of ``metrics.jsonl``."""

    def on_search(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """A search for weights (:mod:`polymoe.training.search`) has evaluated some; ``record`` is its line of
        ``metrics.jsonl``."""

    def on_evaluation_batch(self, trainer: Trainer, split: str, batch: Batch) -> None:
        """A batch of the split that is being evaluated has been embedded; ``batch.routings`` is what the
        routers decided."""

    def on_evaluate(self, trainer: Trainer, split: str, evaluation: Evaluation) -> None:
        """The "valid" or "test" split has been evaluated."""

    def on_routing(self, trainer: Trainer, split: str, measures: Mapping[str, float]) -> None:
        """The routing at an evaluation has been measured; ``measures`` are means over the routers."""

    def on_save(self, trainer: Trainer, folder: Path) -> None:
        """A checkpoint is complete in ``folder``."""

    def on_train_end(self, trainer: Trainer, summary: Mapping[str, Any]) -> None:
        """The run is finished and its summary written."""

    def close(self) -> None:
        """The run is over, by its end or by an error: let go of files and displays."""


class MetricsFile(Callback):
    """Appends to ``metrics.jsonl`` a line for each logged step and each evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """A line of every ``logging_steps``-th step."""
        if record["step"] % trainer.config.logging_steps == 0:
            append_line(self.path, record)

    def on_search(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """A line of every evaluation."""
        append_line(self.path, record)

    def on_evaluate(self, trainer: Trainer, split: str, evaluation: Evaluation) -> None:
        """A line with the evaluation."""
        record = {"step": trainer.step, "epoch": trainer.epoch, "split": split, "evaluation": evaluation}
        append_line(self.path, record)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """A line of ``metrics.jsonl``."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


class Progress(Callback):
    """A bar in a terminal or a notebook, plain lines elsewhere (at most one in ``seconds``)."""

    def __init__(self, kind: Literal["auto", "bar", "lines"] = "auto", seconds: float = 5.0) -> None:
        if kind not in ("auto", "bar", "lines"):
            raise ValueError(f"progress: expected auto, bar or lines, got {kind!r}")
        self.bars = kind == "bar" or (kind == "auto" and (sys.stderr.isatty() or "ipykernel" in sys.modules))
        self.seconds = seconds
        self.bar: Any = None
        self.last = 0.0

    def on_train_begin(self, trainer: Trainer) -> None:
        """Open the bar."""
        if self.bars:
            from tqdm.auto import tqdm  # warns in a notebook without widgets, where no bar may be wanted

            self.bar = tqdm(
                total=trainer.total_steps,
                initial=trainer.step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
            )
        else:
            self._say(f"training: {trainer.total_steps} steps, {trainer.n_trainable:,} trainable parameters")

    def on_step_end(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Move it."""
        if self.bar is not None:
            self.bar.update(record["step"] - self.bar.n)
            self.bar.set_postfix(epoch=record["epoch"], loss=f"{record['loss']:.4f}", refresh=False)
        elif time.monotonic() - self.last >= self.seconds or record["step"] == trainer.total_steps:
            self._say(
                f"step {record['step']}/{trainer.total_steps}  epoch {record['epoch']:.2f}  "
                f"loss {record['loss']:.4f}  "
                f"{record['tokens'] / max(record['seconds'], 1e-9):,.0f} tokens/s"
            )

    def on_search(self, trainer: Trainer, record: Mapping[str, Any]) -> None:
        """Say how far it is, at the start of a task and every few seconds."""
        found = record["search"]
        if found["evaluation"] == 1 or time.monotonic() - self.last >= self.seconds:
            count = f"{found['evaluation']}/{trainer.config.search_steps}"
            self._say(f"search: {found['task']} {count}  best {found['best']:.4f}")

    def on_evaluate(self, trainer: Trainer, split: str, evaluation: Evaluation) -> None:
        """Say the means."""
        means = "  ".join(f"{name} {value:.4f}" for name, value in evaluation["mean"].items())
        self._say(f"step {trainer.step}: {split}  {means}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _say(self, line: str) -> None:
        self.last = time.monotonic()
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)
