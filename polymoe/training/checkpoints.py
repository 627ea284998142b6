"""A checkpoint: the adapter as anyone loads it, and beside it all that the next step depends on, bit for bit.

step-N/adapter/              PEFT's layout, with the objective's files
step-N/training.safetensors  the flat buffers: data, exp_avg, exp_avg_sq, and grad amid an accumulation
step-N/state.json            counters, settings, tasks, layout of the buffers, fingerprint of the data

All randomness is a function of the seed and these counters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from polymoe.files import read_json, read_safetensors, write_json, write_safetensors
from polymoe.nn import FlatParameters
from polymoe.training.metrics import Evaluation
from polymoe.training.optim import AdamW

FORMAT = 1


@dataclass
class State:
    """Where a run stands. ``step`` counts optimiser steps, ``micro_step`` batches; ``batch`` is the next
    one of ``epoch``.

    ``window`` is the accumulation under way: batches, examples, sum of losses, and by task the sum and the
    number of examples; ``window_auxiliary`` its auxiliary losses times the examples, None where there are
    none.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    micro_step: int = 0
    tokens: int = 0
    examples: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    window: dict[str, list[float]] = field(default_factory=dict)
    window_batches: int = 0
    window_auxiliary: float | None = None
    best_step: int | None = None
    best_value: float | None = None
    evaluations_since_best: int = 0
    validation: Evaluation | None = None
    zero_shot: Evaluation | None = None

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return f"step-{self.step}" + (f".{self.window_batches}" if self.window_batches else "")


def save_training(
    folder: Path, state: State, parameters: FlatParameters, optimizer: AdamW, identity: Mapping[str, Any]
) -> None:
    """Write ``training.safetensors`` and ``state.json``; ``identity`` is what a run must share to go on
    from here.
    """
    buffers = {"data": parameters.data, "exp_avg": optimizer.m, "exp_avg_sq": optimizer.v}
    if state.window_batches:
        buffers["grad"] = parameters.grad
    write_safetensors(folder / "training.safetensors", buffers)
    write_json(
        folder / "state.json",
        {"format": FORMAT, "state": asdict(state), "layout": _layout(parameters), "identity": dict(identity)},
    )


def load_training(
    folder: Path, parameters: FlatParameters, optimizer: AdamW, identity: Mapping[str, Any]
) -> State:
    """Put the buffers back and return the state; nothing changes when that fails.

    Raises ValueError for broken files and where the run is another one (settings, tasks, data, parameters),
    with what differs.
    """
    content = read_json(folder / "state.json")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{folder / 'state.json'}: expected a checkpoint of format {FORMAT}")
    for name, value in identity.items():
        saved = content["identity"].get(name)
        if saved != value:
            raise ValueError(f"resume: expected the {name} of {folder}, {_difference(saved, value)}")
    if content["layout"] != _layout(parameters):
        raise ValueError(f"resume: expected the parameters of {folder}, got other names or shapes")
    buffers = read_safetensors(folder / "training.safetensors")
    state = State(**{f.name: content["state"][f.name] for f in fields(State)})
    targets = {"data": parameters.data, "exp_avg": optimizer.m, "exp_avg_sq": optimizer.v}
    if state.window_batches:
        targets["grad"] = parameters.grad
    if buffers.keys() != targets.keys() or any(buffers[k].shape != t.shape for k, t in targets.items()):
        raise ValueError(
            f"{folder / 'training.safetensors'}: expected {sorted(targets)} of shape {parameters.data.shape}"
        )
    parameters.zero_grad()
    for name, target in targets.items():
        target[:] = buffers[name]
    optimizer.step = state.step
    return state


def load_parameters(folder: Path, parameters: FlatParameters) -> None:
    """Put the values of all parameters back as they were in a checkpoint of the same run."""
    data: np.ndarray = read_safetensors(folder / "training.safetensors")["data"]
    parameters.data[:] = data


def _layout(parameters: FlatParameters) -> list[list[Any]]:
    return [[s.name, s.group, s.offset, list(s.shape), s.trainable] for s in parameters.segments]


def _difference(saved: Any, given: Any) -> str:
    if isinstance(saved, dict) and isinstance(given, dict):
        for name in given:
            if saved.get(name) != given[name]:
                return f"{name} = {saved.get(name)!r}, got {given[name]!r}"
    return f"{saved!r}, got {given!r}"
