"""Training: objectives, the trainer, metrics, and runs on disk.

model = polymoe.adapt(polymoe.load_base("minilm"), method="mhr", tasks=["sentiment", "topic"])
summary = Trainer(model, "data", "match", TrainingConfig(epochs=2), output="run").train()
load_run("run").predict(["What a film!"], task="sentiment")
"""

from polymoe.training.callbacks import Callback, MetricsFile, Progress
from polymoe.training.config import TrainingConfig
from polymoe.training.few_shot import FewShot, adapt_run
from polymoe.training.folder import RunFolder
from polymoe.training.interrupt import TrainingInterrupted
from polymoe.training.metrics import Evaluation
from polymoe.training.objectives import (
    OBJECTIVES,
    Classify,
    Match,
    Objective,
    Prediction,
    Regress,
    load_objective,
    make_objective,
)
from polymoe.training.optim import AdamW
from polymoe.training.routing import RoutingWarning
from polymoe.training.run import Run, load_run
from polymoe.training.trainer import Trainer

__all__ = [
    "OBJECTIVES",
    "AdamW",
    "Callback",
    "Classify",
    "Evaluation",
    "FewShot",
    "Match",
    "MetricsFile",
    "Objective",
    "Prediction",
    "Progress",
    "Regress",
    "RoutingWarning",
    "Run",
    "RunFolder",
    "Trainer",
    "TrainingConfig",
    "TrainingInterrupted",
    "adapt_run",
    "load_objective",
    "load_run",
    "make_objective",
]
