"""A checkpoint: the adapter as anyone loads it, and beside it all that the next step depends on, bit for bit.

step-N/adapter/              PEFT's layout, with the objective's files
step-N/training.safetensors  the flat buffers: data, exp_avg, exp_avg_sq, and grad amid an accumulation
step-N/state.json            counters, settings, tasks, layout of the buffers, fingerprint of the data

All randomness is a function of the seed and these counters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from polymoe.data import EncodedSplit
from polymoe.files import read_json, read_safetensors, write_json, write_safetensors
from polymoe.parameters import FlatParameters
from polymoe.training.config import TrainingConfig
from polymoe.training.folder import RunFolder
from polymoe.training.objectives import Objective
from polymoe.training.optim import AdamW
from polymoe.training.state import State
from polymoe.training.tasks import fingerprint

FORMAT = 1

BOOKKEEPING = (
    "gradient_checkpointing",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "routing_statistics",
    "report_to",
)
"""Settings that change no bit of what is learnt, so that a resumed run may have others."""


class Checkpoints:
    """Those of one run: saved into its ``folder`` and put back from there.

    ``identity`` is what a run must share to go on from them; the last ``keep`` of them and the best stay
    (None: all); ``tell`` tells the callbacks of an event, by name.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: Any,
        objective: Objective,
        parameters: FlatParameters,
        optimizer: AdamW,
        identity: Mapping[str, Any],
        keep: int | None,
        tell: Callable[..., None],
    ) -> None:
        self.folder, self.model, self.objective = folder, model, objective
        self.parameters, self.optimizer = parameters, optimizer
        self.identity, self.keep, self.tell = dict(identity), keep, tell

    def save(self, state: State, best: bool = False) -> Path:
        """A checkpoint of this very moment, unless it is there already."""
        latest = self.folder.pointed("latest")
        if latest is not None and latest.name == state.name:
            return latest

        def write(folder: Path) -> None:
            self.save_adapter(folder / "adapter")
            self._save_training(folder, state)

        path = self.folder.save_checkpoint(state.name, write, best=best, keep=self.keep)
        self.tell("on_save", path)
        return path

    def save_adapter(self, folder: Path) -> None:
        """The adapter and the objective as they stand."""
        self.model.save_adapter(folder)
        self.objective.save(folder)

    def load_latest(self) -> State | None:
        """Put parameters and moments back and return the state, or None where there is no checkpoint yet;
        nothing changes when that fails.

        Raises ValueError for broken files and where the run is another one (settings, tasks, data,
        parameters), with what differs.
        """
        folder = self.folder.pointed("latest")
        return None if folder is None else self._load_training(folder)

    def load_best(self, state: State) -> None:
        """Put the values that all parameters had after the best step back."""
        if state.best_step is not None and state.best_step != state.step:
            path = self.folder.checkpoints / f"step-{state.best_step}" / "training.safetensors"
            data: np.ndarray = read_safetensors(path)["data"]
            self.parameters.data[:] = data

    def _save_training(self, folder: Path, state: State) -> None:
        write_safetensors(folder / "training.safetensors", self._buffers(state))
        content = {"state": asdict(state), "layout": self._layout(), "identity": self.identity}
        write_json(folder / "state.json", {"format": FORMAT, **content})

    def _load_training(self, folder: Path) -> State:
        content = read_json(folder / "state.json")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{folder / 'state.json'}: expected a checkpoint of format {FORMAT}")
        for name, value in self.identity.items():
            saved = content["identity"].get(name)
            if saved != value:
                raise ValueError(f"resume: expected the {name} of {folder}, {_difference(saved, value)}")
        if content["layout"] != self._layout():
            raise ValueError(f"resume: expected the parameters of {folder}, got other names or shapes")
        path = folder / "training.safetensors"
        saved = read_safetensors(path)
        state = State(**{f.name: content["state"][f.name] for f in fields(State)})
        buffers = self._buffers(state)
        if saved.keys() != buffers.keys() or any(saved[k].shape != b.shape for k, b in buffers.items()):
            shape = self.parameters.data.shape
            raise ValueError(f"{path}: expected {sorted(buffers)} of shape {shape}")
        self.parameters.zero_grad()
        for name, buffer in buffers.items():
            buffer[:] = saved[name]
        self.optimizer.step = state.step
        return state

    def _buffers(self, state: State) -> dict[str, np.ndarray]:
        """What a checkpoint of ``state`` holds: gradients only amid an accumulation."""
        p, moments = self.parameters, {"exp_avg": self.optimizer.m, "exp_avg_sq": self.optimizer.v}
        return {"data": p.data, **moments, **({"grad": p.grad} if state.window_batches else {})}

    def _layout(self) -> list[list[Any]]:
        return [[s.name, s.group, s.offset, list(s.shape), s.trainable] for s in self.parameters.segments]


def run_identity(
    model: Any, objective: Objective, config: TrainingConfig, *splits: EncodedSplit
) -> dict[str, Any]:
    """What two runs must share for one to go on where the other stopped."""
    return {
        "training": {k: v for k, v in config.to_dict().items() if k not in BOOKKEEPING},
        "tasks": list(model.tasks.names),
        "objective": objective.name,
        "data": fingerprint(*splits),
    }


def _difference(saved: Any, given: Any) -> str:
    if isinstance(saved, dict) and isinstance(given, dict):
        for name in given:
            if saved.get(name) != given[name]:
                return f"{name} = {saved.get(name)!r}, got {given[name]!r}"
    return f"{saved!r}, got {given!r}"
