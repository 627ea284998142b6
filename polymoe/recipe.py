"""A run in one value: base, data, method, objective and settings, as a YAML file or flags say them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from polymoe.adapters import adapt
from polymoe.data import read_tasks
from polymoe.models import load_base
from polymoe.training import Trainer, TrainingConfig


@dataclass(frozen=True)
class AdapterOptions:
    """The adapter; what is not set is as the method has it."""

    target_modules: str | tuple[str, ...] = "all-linear"
    """Modules that get an adapter: names, a regular expression, or "all-linear"."""
    exclude_modules: str | tuple[str, ...] | None = None
    """Modules that get none although they match."""
    layers_to_transform: tuple[int, ...] | None = None
    """Numbers of the layers to adapt; all by default."""
    r: int | None = None
    """Rank of each pair."""
    n_skills: int | None = None
    """Experts to choose from; those that all tasks share (c-poly)."""
    n_splits: int | None = None
    """Heads (mhr)."""
    lora_alpha: float | None = None
    """The low-rank term is multiplied by lora_alpha / r."""
    lora_dropout: float | None = None
    """Dropout of what enters the low-rank term."""
    temperature: float | None = None
    """Of the noise of the gates."""
    noise: Literal["per_example", "per_task", "per_step", "off"] | None = None
    """How often the gates' noise is drawn in training."""
    gate: Literal["sigmoid", "straight_through", "softmax", "l2"] | None = None
    """What makes gates of a task's logits."""
    gate_dropout: float | None = None
    """Probability that a gate is 0 in training."""
    average_correction: bool | None = None
    """Multiply gates by sqrt(n_splits / n_skills) instead of dividing by their sum."""
    init: Literal["peft", "mttl", "tlora"] | None = None
    """Whose initial values the skills get."""
    router: str | None = None
    """Another router than the method's: constant, uniform, one_hot, given, task_table, common_specific,
    content_softmax, latent_tasks, token_softmax.
    """
    experts: str | None = None
    """Other experts than the method's: lora, shared_A, tensor."""
    mixing: Literal["factors", "outputs", "leaves"] | None = None
    """Mix the experts' factors, their outputs, or the leaves of tensors."""
    task_skills: tuple[str, ...] | None = None
    """A word of 0 and 1 for each task: its skills, said by hand (router given)."""
    n_specific: int | None = None
    """Pairs of each task's own (c-poly)."""
    specific: Literal["learned_row", "diagonal", "fixed"] | None = None
    """Which weights of the tasks' own pairs are learnt (c-poly)."""
    ibp_prior: float | None = None
    """Coefficient of the prior on the tables of logits."""
    n_latent_tasks: int | None = None
    """Tasks that the router makes up (orchmoe)."""
    pooling: Literal["mean", "attention"] | None = None
    """How the router makes one vector of an example's tokens (orchmoe)."""
    stop_router_gradient: bool | None = None
    """Nothing below the router learns from it (routers that read the tokens)."""
    top_k: int | None = None
    """Experts that a token uses (mola, mosld)."""
    balance_loss: float | None = None
    """Coefficient of the loss that keeps all experts in use (with top_k)."""
    lora_A_dropout: float | None = None
    """Dropout of the entries of a shared A (mosld)."""
    order: Literal[2, 4, 8] | None = None
    """Leaves of a row (tlora, tensorpoly-i, tensorpoly-ii)."""
    zero_start: bool | None = None
    """Start exactly as the base (methods of tensors)."""


@dataclass(frozen=True)
class Recipe:
    """What to train, on what, and how."""

    data: str | None = None
    """Folder or file with the tasks."""
    base: str = "minilm"
    """The frozen model: a folder, "minilm", or a name on the hub."""
    method: str = "mhr"
    """Who shares what: lora, private, poly, mhr, or another that `polymoe methods` lists."""
    objective: Literal["classify", "match", "regress"] = "classify"
    """What is learnt: a head per task, the nearest output text, or a number."""
    tasks: tuple[str, ...] | None = None
    """Tasks to train on; all that the data hold by default."""
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Recipe:
        """From the values of a YAML file; TypeError for a setting that does not exist."""
        known = {f.name for f in fields(cls)}
        options = {f.name for f in fields(AdapterOptions)}
        for name in settings:
            if name not in known:
                raise TypeError(f"recipe: expected settings out of {sorted(known)}, got {name!r}")
        given: dict[str, Any] = {k: _tuples(v) for k, v in settings.items()}
        adapter = dict(given.pop("adapter", None) or {})
        for name in adapter:
            if name not in options:
                raise TypeError(f"recipe: adapter: expected settings out of {sorted(options)}, got {name!r}")
        training = given.pop("training", None) or {}
        return cls(
            **given,
            adapter=AdapterOptions(**{k: _tuples(v) for k, v in adapter.items()}),
            training=TrainingConfig.from_dict(training),
        )

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Recipe:
        """From a file; ValueError naming it where it is no YAML."""
        try:
            settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected YAML, got {error}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{path}: expected settings by name, got {type(settings).__name__}")
        return cls.from_dict(settings)

    def to_dict(self) -> dict[str, Any]:
        """As YAML holds it; :meth:`from_dict` reads it back."""
        settings = asdict(self)
        settings["adapter"] = {k: v for k, v in settings["adapter"].items() if v is not None}
        return _lists(settings)  # type: ignore[no-any-return]

    def trainer(self, output: str | os.PathLike[str], **kwargs: Any) -> Trainer:
        """Load base and data, adapt, and be ready to train into ``output``. ``kwargs`` go to the trainer."""
        if self.data is None:
            raise ValueError("data: expected a folder or file with tasks, got None")
        tasks = read_tasks(self.data, self.tasks, seed=self.training.seed, require=("train",))
        options = {k: v for k, v in asdict(self.adapter).items() if v is not None}
        model = adapt(
            load_base(self.base), self.method, tasks=list(tasks), seed=self.training.seed, **options
        )
        recipe = {**self.to_dict(), "data": str(Path(self.data).resolve()), "tasks": list(tasks)}
        return Trainer(model, tasks, self.objective, self.training, output, recipe=recipe, **kwargs)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
