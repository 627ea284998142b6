"""The training loop: batches in, a run folder out. What happens and when stands here; what a step is made of
stands in the other files.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from polymoe.adapters.faults import learns_routing
from polymoe.adapters.methods import learning_rates
from polymoe.data import draw_test
from polymoe.files import replace_folder
from polymoe.functional import batch_invariant
from polymoe.parameters import FlatParameters
from polymoe.tape import Tape, data_of
from polymoe.training.callbacks import Callback, MetricsFile, Progress
from polymoe.training.checkpoints import Checkpoints, run_identity
from polymoe.training.config import TrainingConfig
from polymoe.training.evaluator import Evaluator, metric_for_best_model
from polymoe.training.folder import RunFolder
from polymoe.training.interrupt import Interrupt, TrainingInterrupted
from polymoe.training.objectives import Objective, make_objective
from polymoe.training.optim import AdamW
from polymoe.training.routing import RoutingWatch
from polymoe.training.search import load_minimize, search, searched_tables
from polymoe.training.state import State
from polymoe.training.summary import default_recipe, summarize_run
from polymoe.training.tasks import as_tasks
from polymoe.training.trackers import make_trackers


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
        metric = metric_for_best_model(self.objective, self.config.metric_for_best_model)
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
        self._evaluator = Evaluator(
            model, self.objective, {"valid": self.valid_split, "test": self.test_split}, metric, self.tell
        )
        self._checkpoints = Checkpoints(
            self.folder,
            model,
            self.objective,
            self.parameters,
            self.optimizer,
            run_identity(model, self.objective, self.config, self.train_split, self.valid_split),
            self.config.save_total_limit,
            self.tell,
        )

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
                    self.state.zero_shot = self._evaluator.evaluate("test", self.state)
                self.tell("on_train_begin")
                self.model.train()
                while self.state.step < self.total_steps and not self._patience_is_lost():
                    self._run_batch(self.plan(self.state.epoch)[self.state.batch])
                    if interrupt.asked:
                        raise self._interrupted()
                self._checkpoints.load_best(self.state)
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
        state.add_batch(names, loss.per_example, weights, auxiliary if tape.losses else None, batch.n_read)
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
        state = self.state
        n = state.window_weight
        try:
            update = self.optimizer.update(n)
        except FloatingPointError:
            raise self._not_finite("gradient", self.optimizer.grad_norm(n), list(state.window)) from None
        self.objective.constrain()
        self.parameters.zero_grad()
        window = state.end_step()
        return {
            "step": state.step,
            "epoch": round(self.epoch, 4),
            "loss": window.loss,
            **({} if window.auxiliary is None else {"auxiliary_loss": window.auxiliary}),
            "tasks": window.tasks,
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
        best = evaluates and self._evaluator.select(state)
        saves = evaluates if c.save_steps is None else state.step % c.save_steps == 0
        if best or last or saves:
            self._checkpoints.save(state, best)

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
            raise self._interrupted()
        self.state.train_seconds += time.perf_counter() - started
        if len(self.valid_split) and not len(self.test_split):
            self.state.validation = self._evaluator.evaluate("valid", self.state)

    def _finish(self) -> dict[str, Any]:
        """Test, adapter, summary."""
        split, evaluation = self._evaluator.finish(self.state)
        replace_folder(self.folder.adapter, self._checkpoints.save_adapter)
        summary = summarize_run(self, evaluation, split)
        self.folder.write_summary(summary)
        self.tell("on_train_end", summary)
        return summary

    def _resume(self) -> None:
        state = self._checkpoints.load_latest()
        if state is not None:
            self.state = state
            self.folder.keep_metrics(state.step)
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

    def _interrupted(self) -> TrainingInterrupted:
        return TrainingInterrupted(self._checkpoints.save(self.state), self.state.step)

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
