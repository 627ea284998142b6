"""What is trained for: ``classify``, ``match``, ``regress``, ``lm``."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from polymoe.training.objectives.base import Loss, Objective, Prediction, read_objective_files
from polymoe.training.objectives.classify import Classify
from polymoe.training.objectives.lm import Lm
from polymoe.training.objectives.lm_options import LmOptions
from polymoe.training.objectives.match import Match
from polymoe.training.objectives.regress import Regress

OBJECTIVES: dict[str, type[Objective]] = {cls.name: cls for cls in (Classify, Match, Regress, Lm)}


def make_objective(objective: str | Objective) -> Objective:
    """The objective of that name, or the one that is given; ValueError for an unknown name."""
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {list(OBJECTIVES)}, got {objective!r}")
    return OBJECTIVES[objective]()


def load_objective(model: Any, folder: str | PathLike[str]) -> Objective:
    """The objective that was saved in an adapter's folder, for the model with that adapter.

    FileNotFoundError without its files, ValueError for broken or unfitting ones, KeyError for tasks that
    the model does not know.
    """
    settings, parameters = read_objective_files(Path(folder))
    objective = make_objective(settings["name"])
    objective.restore(model, settings, parameters)
    return objective


__all__ = [
    "OBJECTIVES",
    "Classify",
    "Lm",
    "LmOptions",
    "Loss",
    "Match",
    "Objective",
    "Prediction",
    "Regress",
    "load_objective",
    "make_objective",
]
