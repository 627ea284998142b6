"""The runs of the table of methods: which there are, how large their adapters, and one folder for each.

OUTPUT/settings.json             what all runs share; another OUTPUT is needed for other settings
OUTPUT/data/seed-N/              train and validation, the only texts that a trainer is given
OUTPUT/test/                     the test parts, read only after a setting was chosen
OUTPUT/runs/NAME/                a run: recipe, adapter, summary.json, then test.json; or failure.json
OUTPUT/locks/NAME                held by the process that is at it, so that several can share the work
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.sizes import Size, nearest, stages
from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.experts import EXPERTS
from polymoe.adapters.inject import sites
from polymoe.adapters.layers import n_parameters
from polymoe.adapters.methods import configure, find_method, learning_rates
from polymoe.adapters.routers import ROUTERS
from polymoe.data import Example, has_labels, read_tasks
from polymoe.data.order import shuffled
from polymoe.files import read_json, write_bytes, write_json
from polymoe.models import load_base
from polymoe.recipe import Recipe
from polymoe.training import load_run

LEFT_OUT = {
    "copa": "nobody is above chance",
    "task073_commonsenseqa_answer_generation": "nobody is above chance",
    "multirc": "nearly all texts are cut before the question",
    "boolq": "half the texts are cut, and it would take half the time",
}
"""Tasks that are left out unless named (docs/results.md has them)."""

KINDS = {"boolq": "qa", "cb": "nli", "rte": "nli", "wic": "wsd"}
KINDS |= {"task363_sst2_polarity_classification": "sentiment", "task875_emotion_classification": "sentiment"}
"""Types of the tasks, for the methods that go by them."""


@dataclass(frozen=True)
class Settings:
    """What all runs of a table share."""

    data: tuple[str, ...]
    tasks: tuple[str, ...]
    base: str
    train_examples: int
    valid_examples: int
    epochs: int
    batch_size: int
    max_length: int


@dataclass(frozen=True)
class Job:
    """One run. ``multiple``: of the default learning rate; ``test``: whether its setting was chosen."""

    method: str
    size: Size
    multiple: float
    seed: int
    test: bool = False

    @property
    def name(self) -> str:
        """Of its folder; it says all that tells two runs apart."""
        skills = "" if self.size.n_skills is None else f"-s{self.size.n_skills}"
        return f"{self.method}-r{self.size.r}{skills}-x{self.multiple:.3g}-seed{self.seed}"


class Ladder:
    """The runs in a folder. ValueError where it holds those of other settings."""

    def __init__(self, output: str | Path, settings: Settings) -> None:
        self.path, self.settings = Path(output), settings
        self._sizes: dict[tuple[str, int, int | None], Size] = {}
        shared = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(settings).items()}
        file = self.path / "settings.json"
        (self.path / "locks").mkdir(parents=True, exist_ok=True)
        if file.exists() and (found := read_json(file)) != shared:
            other = {k: v for k, v in found.items() if shared.get(k) != v}
            raise ValueError(f"output: expected a folder for these settings, got {self.path} with {other}")
        write_json(file, shared)

    @cached_property
    def base(self) -> Any:
        """The frozen model, to count parameters on; trainers load their own."""
        return load_base(self.settings.base)

    def folder(self, job: Job) -> Path:
        """Where a run is."""
        return self.path / "runs" / job.name

    def size(self, method: str, r: int, budget: int | None = None) -> Size:
        """The adapter of rank ``r``, or the one nearest to a budget."""
        key = method, r, budget
        if key not in self._sizes:
            self._sizes[key] = self._size(*key)
        return self._sizes[key]

    def _size(self, method: str, r: int, budget: int | None) -> Size:
        def count(r: int, n_skills: int | None) -> int | None:
            try:
                configs = [self.config(name, r, n_skills) for name in stages(method)]
                return max(n_parameters(c, sites(self.base, c, len(self.settings.tasks))) for c in configs)
            except ValueError:
                return None

        n_skills = None
        if budget is not None and count(r, None) is not None:
            r, n_skills = nearest(count, budget, self.config(method, r).n_skills, r)
        return Size(r, n_skills, count(r, n_skills) or 0)  # of one that cannot be, the run says why

    def config(self, method: str, r: int, n_skills: int | None = None) -> AdapterConfig:
        """The adapter where a recipe puts it; its other settings are the method's."""
        skills = {} if n_skills is None else {"n_skills": n_skills}
        config = configure(method, **self.needs(method), r=r, **skills)
        return configure(config, target_modules=EXPERTS[config.experts].usual_targets)

    def needs(self, method: str) -> dict[str, Any]:
        """The settings that a method cannot do without."""
        if not ROUTERS[find_method(method).preset["router"]].needs_types:
            return {}
        return {"task_types": [KINDS.get(task, task) for task in self.settings.tasks]}

    def rate(self, job: Job) -> tuple[float, float]:
        """The learning rate of the experts, and the adapter's scale."""
        config = self.config(job.method, job.size.r, job.size.n_skills)
        return job.multiple * learning_rates(config)["skills"], config.scale("")

    def recipe(self, job: Job) -> Recipe:
        """The run as `polymoe train` would be told it; its data hold no test part."""
        s = self.settings
        skills = {} if job.size.n_skills is None else {"n_skills": job.size.n_skills}
        training = {
            "seed": job.seed,
            "epochs": s.epochs,
            "batch_size": s.batch_size,
            "max_length": s.max_length,
            "learning_rate": self.rate(job)[0],
            "eval_steps": 10
            ** 9,  # at the end alone: no epoch is chosen, the rates have come down to 0 by then
            "save_total_limit": 1,
        }
        return Recipe.from_dict(
            {
                "data": str(self.texts(job.seed)),
                "base": s.base,
                "method": job.method,
                "tasks": list(s.tasks),
                "adapter": {**self.needs(job.method), "r": job.size.r, **skills},
                "training": training,
            }
        )

    def texts(self, seed: int) -> Path:
        """The folder of a seed's training and validation texts, drawn from those that are not for test."""
        folder = self.path / "data" / f"seed-{seed}"
        with self.claim("data", wait=True):
            if not folder.exists():
                s, parts = self.settings, {}
                for name, task in read_tasks(list(s.data), s.tasks).items():
                    known = [*task.train, *task.valid]
                    order = shuffled(len(known), seed, "ladder", name)[: s.valid_examples + s.train_examples]
                    rows = [known[i] for i in order]
                    parts[f"{name}.valid.jsonl"] = rows[: s.valid_examples]
                    parts[f"{name}.train.jsonl"] = rows[s.valid_examples :]
                _write(folder, parts)
        return folder

    def test_texts(self) -> Path:
        """The folder of the test parts, whole."""
        folder = self.path / "test"
        with self.claim("data", wait=True):
            if not folder.exists():
                tasks = read_tasks(list(self.settings.data), self.settings.tasks, require=("test",))
                _write(folder, {f"{name}.test.jsonl": task.test for name, task in tasks.items()})
        return folder

    @contextmanager
    def claim(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Whether this process alone has the name until the block ends; the system frees it if it dies."""
        with open(self.path / "locks" / name, "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def read(self, job: Job, name: str) -> Any:
        """A JSON file of a run, or None."""
        path = self.folder(job) / f"{name}.json"
        return read_json(path) if path.exists() else None

    def failed(self, job: Job) -> str | None:
        """Why a run failed, or None."""
        failure = self.read(job, "failure")
        return None if failure is None else str(failure["error"])

    def done(self, job: Job) -> bool:
        """Whether there is nothing left to do for a run, be it that it failed."""
        wanted = "test.json" if job.test else "summary.json"
        return any((self.folder(job) / file).exists() for file in (wanted, "failure.json"))

    def run(self, job: Job, say: Callable[[str], None]) -> bool:
        """Do what is missing of a run; False where another process is at it."""
        with self.claim(job.name) as mine:
            if mine and not self.done(job):
                try:
                    say(self._run(job))
                except Exception as error:  # the other methods go on; the table says what happened
                    self.folder(job).mkdir(parents=True, exist_ok=True)
                    write_json(
                        self.folder(job) / "failure.json", {"error": f"{type(error).__name__}: {error}"}
                    )
                    say(f"{job.name}: FAILED: {error}")
        return mine

    def _run(self, job: Job) -> str:
        folder = self.folder(job)
        if not (folder / "summary.json").exists():
            resume = (folder / "recipe.yaml").exists()
            self.recipe(job).train(folder, resume=resume, progress=None)
            for checkpoints in list(folder.rglob("checkpoints")):
                shutil.rmtree(checkpoints)
        summary = self.read(job, "summary")
        line = (
            f"{job.name}: validation {100 * summary['evaluation']['mean']['accuracy']:.1f}, "
            f"{summary['train_seconds']:.0f} s, {summary['tokens_per_second']:,.0f} tokens/s"
        )
        if job.test:
            evaluation = load_run(folder).evaluate(self.test_texts(), "test", self.settings.tasks)
            write_json(folder / "test.json", evaluation)
            line += f", test {100 * evaluation['mean']['accuracy']:.1f}"
        return line

    def validation(self, job: Job) -> float | None:
        """Mean validation accuracy of a finished run, or None."""
        summary = self.read(job, "summary")
        return None if summary is None else float(summary["evaluation"]["mean"]["accuracy"])


def labelled_tasks(data: Sequence[str]) -> tuple[str, ...]:
    """The tasks in these folders whose outputs are labels, without those left out."""
    tasks = read_tasks(list(data))
    return tuple(name for name, task in tasks.items() if name not in LEFT_OUT and has_labels(task))


def _write(folder: Path, parts: Mapping[str, Sequence[Example]]) -> None:
    """Files of tasks; the folder is there when all of them are."""
    beside = folder.with_name(f".{folder.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, examples in parts.items():
        lines = [json.dumps({"input": e.input, "output": list(e.outputs)}) + "\n" for e in examples]
        write_bytes(beside / name, "".join(lines).encode())
    beside.rename(folder)
