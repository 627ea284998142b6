"""Fine-tune one frozen model on many tasks at once with mixtures of adapters, on ordinary CPUs.

    base = polymoe.load_base("minilm")
    model = polymoe.adapt(base, "mhr", tasks=["sentiment", "topic"])
    summary = polymoe.Trainer(model, "data", "classify", output="runs/mine").train()

Operations on plain arrays are in :mod:`polymoe.functional`, their mathematics in :mod:`polymoe.reference`.
"""

__version__ = "0.1.0"

from polymoe._core import get_isa, get_num_threads, isas, openmp, release_memory, set_isa, set_num_threads
from polymoe.adapters import AdaptedModel, AdapterConfig, adapt, adapt_linear
from polymoe.batch import Batch, Routing, TaskRegistry
from polymoe.data import read_tasks
from polymoe.functional import batch_invariant, get_batch_invariant, set_batch_invariant
from polymoe.interop.peft import load_adapter
from polymoe.models import generate, load_base
from polymoe.report import routing_statistics
from polymoe.threads import num_threads
from polymoe.training import Trainer, TrainingConfig, adapt_run, load_run

__all__ = [
    "AdaptedModel",
    "AdapterConfig",
    "Batch",
    "Routing",
    "TaskRegistry",
    "Trainer",
    "TrainingConfig",
    "adapt",
    "adapt_linear",
    "adapt_run",
    "batch_invariant",
    "generate",
    "get_batch_invariant",
    "get_isa",
    "get_num_threads",
    "isas",
    "load_adapter",
    "load_base",
    "load_run",
    "openmp",
    "read_tasks",
    "num_threads",
    "release_memory",
    "routing_statistics",
    "set_batch_invariant",
    "set_isa",
    "set_num_threads",
]
