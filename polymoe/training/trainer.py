"""The training loop: batches in, a run folder out. What a step does stands here; what it is made of stands
in the other files.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polymoe.adapters.faults import learns_routing
from polymoe.adapters.methods import learning_rates
from polymoe.data import draw_test
from polymoe.files import replace_folder
from polymoe.functional import batch_invariant
from polymoe.nn import FlatParameters
from polymoe.tape import Tape, data_of
from polymoe.training.callbacks import Callback, MetricsFile, Progress
from polymoe.training.checkpoints import State, load_parameters, load_training, save_training
from polymoe.training.config import TrainingConfig
from polymoe.training.folder import RunFolder
from polymoe.training.interrupt import Interrupt, TrainingInterrupted
from polymoe.training.objectives import Objective, make_objective
from polymoe.training.optim import AdamW
from polymoe.training.routing import RoutingWatch
from polymoe.training.search import load_minimize, search, searched_tables
from polymoe.training.summary import default_recipe, summarize_run
from polymoe.training.tasks import as_tasks, fingerprint
from polymoe.training.trackers import make_trackers

BOOKKEEPING = (
    "gradient_checkpointing",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "routing_statistics",
    "report_to",
)
"""Settings that change no bit of what is learnt, so that a resumed run may have others."""


class Trainer:
    """Trains the active adapter of ``model`` (and the objective's head) on ``data``, and leaves a run in
    ``output``.

    ``data``: tasks by name as :func:`polymoe.data.read_tasks` gives them, or anything that it reads.
    ``objective``: "classify", "match", "regress", "lm", or an :class:`Objective`. ``progress``: "auto",
    "bar", "lines", or None for silence. ``recipe``: what is written to ``recipe.yaml`` in place of what the
    trainer knows itself. ``zero_shot``: evaluate on test before training too, where the objective can.

    Raises KeyError for tasks that the model does not know, ValueError for data that the objective cannot
    learn from, ImportError for a service of ``report_to`` whose library is not there.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        objective: str | Objective = "classify",
        config: TrainingConfig | None = None,
        output: str | os.PathLike[str] = "run",
        *,
        callbacks: Sequence[Callback] = (),
        progress: Literal["auto", "bar", "lines"] | None = "auto",
        recipe: Mapping[str, Any] | None = None,
        zero_shot: bool = True,
    ) -> None:
        self.model, self.config = model, config or TrainingConfig()
        self.data = as_tasks(data, seed=self.config.seed)
        self.objective = make_objective(objective)
        self.metric = self.config.metric_for_best_model or self.objective.metrics[0]
        if self.metric not in self.objective.metrics:
            raise ValueError(
                f"metric_for_best_model: expected one of {list(self.objective.metrics)}, got {self.metric!r}"
            )
        if not self.objective.prepared:
            self.objective.prepare(model, self.data, self.config.max_length)
        self.objective.check_tasks(list(self.data))
        n_test = self.objective.eval_examples
        self.data = {name: draw_test(task, n_test) for name, task in self.data.items()}
        self.train_split, self.valid_split, self.test_split = (
            self.objective.encode(model, self.data, split) for split in ("train", "valid", "test")
        )
        if not len(self.train_split):
            raise ValueError("data: expected training examples, got none")
        objective_parameters = [(f"objective.{name}", p) for name, p in self.objective.named_parameters()]
        self.parameters = FlatParameters([*model.adapter_parameters(), *objective_parameters])
        self.plan = lru_cache(maxsize=2)(self._plan)
        self.total_steps = self._count_steps()
        self.optimizer = AdamW(self.parameters, self.config, self.total_steps, learning_rates(model.config))
        if searched_tables(model.adapter):
            load_minimize()  # told before anything is trained
        self.folder = RunFolder(output)
        self.recipe = dict(recipe) if recipe is not None else default_recipe(self, data)
        self.zero_shot = zero_shot and self.objective.zero_shot and len(self.test_split) > 0
        self.callbacks: list[Callback] = [MetricsFile(self.folder.metrics), *callbacks]
        if self.config.routing_statistics and learns_routing(model.adapter):
            self.callbacks.append(RoutingWatch(self.folder.metrics, model.adapter))
        self.callbacks += make_trackers(self.config.report_to, self.folder.tracking)
        if progress is not None:
            self.callbacks.append(Progress(progress))
        self.state = State()
        self._saved: tuple[int, int] | None = None

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.state.step

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.state.epoch + self.state.batch / len(self.plan(self.state.epoch))

    @property
    def n_trainable(self) -> int:
        """Numbers that are trained."""
        return sum(s.length for s in self.parameters.segments if s.trainable)

    def train(self, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
        """Train, put the best weights back, evaluate them on test, write everything, and return the summary.

        Raises FileExistsError for an output that holds a run already (unless ``resume`` or ``overwrite``),
        PermissionError for one that cannot be written, FloatingPointError when the loss or the gradient is
        no finite number (parameters are then those of the step before), TrainingInterrupted (a
        KeyboardInterrupt) after Ctrl-C.
        """
        if self.state.micro_step and not resume:
            raise RuntimeError(
                "train: expected a new Trainer for a new run, got one that has trained already"
            )
        self.folder.claim(resume, overwrite)
        if resume:
            self._resume()
        else:
            if overwrite:
                self.folder.clear()
            self.folder.write_recipe(self.recipe)
        try:
            with Interrupt() as interrupt, batch_invariant(self.config.batch_invariant or None):
                if self.zero_shot and self.state.zero_shot is None:
                    self.state.zero_shot = self._evaluate("test")
                self.tell("on_train_begin")
                self.model.train()
                while self.state.step < self.total_steps and not self._patience_is_lost():
                    self._run_batch(self.plan(self.state.epoch)[self.state.batch])
                    if interrupt.asked:
                        raise TrainingInterrupted(self._save(), self.state.step)
                self._take_best()
                self._search(interrupt)
                return self._finish()
        finally:
            self.model.eval()
            for callback in self.callbacks:
                callback.close()

    def _run_batch(self, indices: np.ndarray) -> None:
        """One batch: its gradients, and the optimiser step when it completes a window of accumulation."""
        state, c, started = self.state, self.config, time.perf_counter()
        batch = self.objective.batch(self.model, self.train_split, indices, c.seed, state.micro_step)
        batch = replace(batch, gradient_checkpointing=c.gradient_checkpointing)
        with Tape() as tape:
            loss = self.objective.loss(self.model, batch)
        auxiliary = tape.auxiliary_loss()
        value = float(data_of(loss.mean)) + auxiliary
        names = [self.train_split.examples[i].task for i in indices]
        if not math.isfinite(value):
            bad = [n for n, x in zip(names, loss.per_example, strict=True) if not math.isfinite(x)]
            raise self._not_finite("loss", value, bad or names)
        weights = np.ones(len(indices)) if loss.weights is None else loss.weights
        n = float(weights.sum())
        # n times the gradient of the mean and of the auxiliary losses: windows sum over examples (or over
        # whatever the mean counts), and the update divides by their number
        tape.backward(loss.mean, np.asarray(n, dtype=data_of(loss.mean).dtype))
        for name, x, w in zip(names, loss.per_example.tolist(), weights.tolist(), strict=True):
            entry = state.window.setdefault(name, [0.0, 0.0])
            entry[0] += w * x
            entry[1] += w
        if tape.losses:
            state.window_auxiliary = (state.window_auxiliary or 0.0) + n * auxiliary
        state.tokens += batch.n_read
        state.examples += len(indices)
        state.micro_step += 1
        state.window_batches += 1
        state.batch += 1
        epoch_ends = state.batch == len(self.plan(state.epoch))
        if epoch_ends:
            state.epoch, state.batch = state.epoch + 1, 0
        if epoch_ends or state.window_batches == c.gradient_accumulation_steps:
            record = self._update()
            state.train_seconds += time.perf_counter() - started
            self._after_step({**record, "seconds": state.train_seconds}, epoch_ends)
        else:
            state.train_seconds += time.perf_counter() - started

    def _update(self) -> dict[str, Any]:
        """The optimiser step; its line of ``metrics.jsonl``."""
        state, window = self.state, self.state.window
        n = sum(entry[1] for entry in window.values())
        try:
            update = self.optimizer.update(n)
        except FloatingPointError:
            raise self._not_finite("gradient", self.optimizer.grad_norm(n), list(window)) from None
        self.objective.constrain()
        self.parameters.zero_grad()
        state.step += 1
        auxiliary = state.window_auxiliary
        state.window, state.window_batches, state.window_auxiliary = {}, 0, None
        return {
            "step": state.step,
            "epoch": round(self.epoch, 4),
            "loss": sum(entry[0] for entry in window.values()) / n,
            **({} if auxiliary is None else {"auxiliary_loss": auxiliary / n}),
            "tasks": {name: total / count for name, (total, count) in sorted(window.items())},
            "lr": update.learning_rates,
            "grad_norm": update.grad_norm,
            "examples": state.examples,
            "tokens": state.tokens,
        }

    def _after_step(self, record: dict[str, Any], epoch_ends: bool) -> None:
        """Tell, evaluate, save: whatever is due after an optimiser step."""
        state, c = self.state, self.config
        self.tell("on_step_end", record)
        last = state.step == self.total_steps
        evaluates = last or (epoch_ends if c.eval_steps is None else state.step % c.eval_steps == 0)
        best = evaluates and len(self.valid_split) > 0 and self._select()
        saves = evaluates if c.save_steps is None else state.step % c.save_steps == 0
        if best or last or saves:
            self._save(best)

    def _select(self) -> bool:
        """Evaluate on validation; whether that is the best so far."""
        state = self.state
        evaluation = self._evaluate("valid", selects=True)
        if self.metric not in evaluation["mean"]:
            raise ValueError(
                f"metric_for_best_model: expected one of {list(evaluation['mean'])} (what these tasks have), "
                f"got {self.metric!r}"
            )
        value, old = evaluation["mean"][self.metric], state.best_value
        lower = self.metric in self.objective.lower_is_better
        best = old is None or (value < old if lower else value > old)
        if best:
            state.best_step, state.best_value, state.validation = state.step, value, evaluation
        state.evaluations_since_best = 0 if best else state.evaluations_since_best + 1
        return best

    def _evaluate(self, split: Literal["valid", "test"], selects: bool = False) -> Any:
        started = time.perf_counter()
        encoded = self.valid_split if split == "valid" else self.test_split
        observe = partial(self.tell, "on_evaluation_batch", split)
        if selects:
            evaluation = self.objective.validate(self.model, encoded, self.metric, observe)
        else:
            evaluation = self.objective.evaluate(self.model, encoded, observe=observe)
        self.state.evaluation_seconds += time.perf_counter() - started
        self.tell("on_evaluate", split, evaluation)
        return evaluation

    def _take_best(self) -> None:
        """Put the best weights back."""
        if self.state.best_step not in (None, self.state.step):
            load_parameters(self.folder.checkpoints / f"step-{self.state.best_step}", self.parameters)

    def _search(self, interrupt: Interrupt) -> None:
        """Find what gradients do not, where the adapter has such weights; a run that is stopped here begins
        its search again."""
        if not searched_tables(self.model.adapter):
            return

        def told(record: Mapping[str, Any]) -> bool:
            self.tell("on_search", {"step": self.state.step, "epoch": self.epoch, "search": record})
            return interrupt.asked

        started = time.perf_counter()
        if not search(self.model, self.objective, self.train_split, self.config, told):
            raise TrainingInterrupted(self._save(), self.state.step)
        self.state.train_seconds += time.perf_counter() - started
        if len(self.valid_split) and not len(self.test_split):
            self.state.validation = self._evaluate("valid")

    def _finish(self) -> dict[str, Any]:
        """Test, adapter, summary."""
        state = self.state
        split: Literal["valid", "test"] = "test" if len(self.test_split) else "valid"
        evaluation = None if len(self.test_split) else state.validation  # with these very weights
        if evaluation is None and len(self.test_split) + len(self.valid_split):
            evaluation = self._evaluate(split)
        replace_folder(self.folder.adapter, self._save_adapter)
        summary = summarize_run(self, evaluation, split)
        self.folder.write_summary(summary)
        self.tell("on_train_end", summary)
        return summary

    def _save(self, best: bool = False) -> Path:
        """A checkpoint of this very moment."""
        latest = self.folder.pointed("latest")
        if self._saved == (self.state.step, self.state.micro_step) and latest is not None:
            return latest

        def write(folder: Path) -> None:
            self._save_adapter(folder / "adapter")
            save_training(folder, self.state, self.parameters, self.optimizer, self._identity())

        keep = self.config.save_total_limit
        path = self.folder.save_checkpoint(self.state.name, write, best=best, keep=keep)
        self._saved = (self.state.step, self.state.micro_step)
        self.tell("on_save", path)
        return path

    def _save_adapter(self, folder: Path) -> None:
        self.model.save_adapter(folder)
        self.objective.save(folder)

    def _resume(self) -> None:
        latest = self.folder.pointed("latest")
        if latest is not None:
            self.state = load_training(latest, self.parameters, self.optimizer, self._identity())
            self._saved = (self.state.step, self.state.micro_step)
            self.folder.keep_metrics(self.state.step)
        else:  # stopped before the first checkpoint
            self.folder.clear()
            self.folder.write_recipe(self.recipe)

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, as indices into the training split."""
        c = self.config
        return self.train_split.epoch(
            epoch,
            seed=c.seed,
            max_tokens=c.batch_tokens,
            batch_size=c.batch_size,
            sampling=c.sampling,
            temperature=c.sampling_temperature,
        )

    def _count_steps(self) -> int:
        c = self.config
        if c.max_steps > 0:
            return c.max_steps
        return sum(-(-len(self._plan(epoch)) // c.gradient_accumulation_steps) for epoch in range(c.epochs))

    def _patience_is_lost(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.state.evaluations_since_best >= patience

    def _identity(self) -> dict[str, Any]:
        """What two runs must share for one to go on where the other stopped."""
        return {
            "training": {k: v for k, v in self.config.to_dict().items() if k not in BOOKKEEPING},
            "tasks": list(self.model.tasks.names),
            "objective": self.objective.name,
            "data": fingerprint(self.train_split, self.valid_split),
        }

    def _not_finite(self, what: str, value: float, tasks: Sequence[str]) -> FloatingPointError:
        latest = self.folder.pointed("latest")
        return FloatingPointError(
            f"{what}: expected a finite number, got {value} at step {self.state.step + 1} "
            f"(tasks: {', '.join(dict.fromkeys(tasks))}); "
            f"parameters are those of step {self.state.step}; last good checkpoint: {latest or 'none yet'}"
        )

    def tell(self, event: str, *args: Any) -> None:
        """Call a method of every callback, by name."""
        for callback in self.callbacks:
            getattr(callback, event)(self, *args)
