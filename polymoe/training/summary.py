"""What a run writes about itself: ``summary.json`` when it is done, ``recipe.yaml`` when it begins."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polymoe
from polymoe.adapters.options import AdapterOptions
from polymoe.training.metrics import Evaluation

if TYPE_CHECKING:
    from polymoe.training.trainer import Trainer


class Summary(dict[str, Any]):
    """What ``summary.json`` holds; a notebook shows the metrics of each task."""

    def _repr_html_(self) -> str:
        from polymoe.report.notebook import summary_fragment  # looks at runs, and is not needed to make them

        return summary_fragment(self)


def summarize_run(trainer: Trainer, evaluation: Evaluation | None, split: str) -> Summary:
    """The summary of a finished run; ``evaluation`` is that of ``split`` with the best weights.

    ``train_seconds`` are those of the steps alone, and ``tokens_per_second`` goes by them; tokens count no
    padding, for there is none, and include the candidates of ``match``.
    """
    state = trainer.state
    counts = [s.counts() for s in (trainer.train_split, trainer.valid_split, trainer.test_split)]
    return Summary(
        {
            "steps": state.step,
            "epochs": round(trainer.epoch, 4),
            "best_step": state.step if state.best_step is None else state.best_step,
            "stopped_early": state.step < trainer.total_steps,
            "train_seconds": state.train_seconds,
            "evaluation_seconds": state.evaluation_seconds,
            "examples": state.examples,
            "real_tokens": state.tokens,
            "tokens_per_second": state.tokens / max(state.train_seconds, 1e-9),
            "peak_rss_bytes": peak_rss_bytes(),
            "trainable_parameters": trainer.n_trainable,
            "truncated_texts": {n: sum(c[n].truncated for c in counts if n in c) for n in trainer.data},
            "empty_texts": {n: sum(c[n].empty for c in counts if n in c) for n in trainer.data},
            "dtype": trainer.model.base.weight_dtype,
            "objective": trainer.objective.name,
            "evaluated_split": split,
            "eval_examples": trainer.objective.eval_examples if split == "test" else None,
            "evaluation": evaluation,
            "evaluation_before": state.zero_shot,
            "validation": state.validation,
            "versions": versions(),
        }
    )


def default_recipe(trainer: Trainer, data: Any) -> dict[str, Any]:
    """The recipe as far as the trainer knows it; ``data`` only where it is a path."""
    recipe: dict[str, Any] = {"base": trainer.model.base.name, "dtype": trainer.model.base.weight_dtype}
    if isinstance(data, str | os.PathLike):
        recipe["data"] = os.path.abspath(data)
    recipe["tasks"] = list(trainer.data)
    recipe["method"] = trainer.model.config.method
    names = [f.name for f in fields(AdapterOptions)]
    recipe["adapter"] = {name: _plain(getattr(trainer.model.config, name)) for name in names}
    recipe["adapter"] = {name: value for name, value in recipe["adapter"].items() if value is not None}
    recipe["objective"] = trainer.objective.name
    recipe |= trainer.objective.recipe()
    recipe["training"] = trainer.config.to_dict()
    return recipe


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def peak_rss_bytes() -> int:
    """The most memory that this process has held at once; 0 where the system does not tell."""
    try:  # Linux: of this program alone, where getrusage counts what forked it too
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def versions() -> dict[str, str]:
    """Of polymoe and what it runs on."""
    found = {"python": platform.python_version()}
    for name in ("polymoe", "numpy", "tokenizers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the source tree without an installation
            found[name] = str(getattr(polymoe, "__version__", "unknown"))
    return found
