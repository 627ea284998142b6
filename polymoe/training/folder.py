"""The RUN folder: what lies where, who may write there, and checkpoints that are there whole or not at all.

RUN/recipe.yaml  summary.json  metrics.jsonl  adapter/
RUN/tracking/                        (event files of TensorBoard, ids of runs: trackers.py)
RUN/checkpoints/step-N/  latest  best              (the last two are text files that name a checkpoint)
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from polymoe.files import replace_folder, write_bytes, write_json


class RunFolder:
    """Paths of a run and the few ways in which they change."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.summary = self.path / "summary.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.tracking = self.path / "tracking"

    def holds_run(self) -> bool:
        """Whether a run has left anything here."""
        return any(path.exists() for path in self._parts())

    def find_adapter(self) -> Path:
        """The folder of the run's adapter, or of its best or latest checkpoint while it is not finished;
        FileNotFoundError before there is one."""
        if self.adapter.is_dir():
            return self.adapter
        checkpoint = self.pointed("best") or self.pointed("latest")
        if checkpoint is None:
            raise FileNotFoundError(f"run: expected an adapter or a checkpoint in {self.path}, got none yet")
        return checkpoint / "adapter"

    def claim(self, resume: bool = False, overwrite: bool = False) -> None:
        """Make sure that a run may write here; nothing that is here changes.

        Raises FileExistsError if there is a run already (neither ``resume`` nor ``overwrite``) or a file in
        the way, FileNotFoundError if there is none to resume, PermissionError if the folder cannot be
        written.
        """
        if resume and overwrite:
            raise ValueError("resume, overwrite: expected at most one of them, got both")
        if resume and not self.holds_run():
            raise FileNotFoundError(f"output: expected a run to resume in {self.path}, got none")
        if self.holds_run() and not (resume or overwrite):
            raise FileExistsError(
                f"output: expected a folder without a run, got {self.path} "
                "(--resume goes on with it, --overwrite replaces it)"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except FileExistsError:
            raise FileExistsError(f"output: expected a folder, got the file {self.path}") from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise PermissionError(
                    error.errno, f"output: expected a folder that can be written, got {self.path}"
                ) from error
            raise

    def clear(self) -> None:
        """Remove the run that is here, and nothing else."""
        for path in self._parts():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def write_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Write ``recipe.yaml``."""
        write_bytes(self.recipe, yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).encode())

    def read_recipe(self) -> dict[str, Any]:
        """The recipe; FileNotFoundError without one, ValueError if it is broken."""
        try:
            recipe = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.recipe}: expected YAML, got {error}") from error
        if not isinstance(recipe, dict):
            raise ValueError(f"{self.recipe}: expected settings by name, got {type(recipe).__name__}")
        return recipe

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        write_json(self.summary, summary)

    def keep_metrics(self, step: int) -> None:
        """Drop from ``metrics.jsonl`` what will come again: steps after ``step``, a search, and the final
        evaluation."""
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            write_bytes(self.metrics, "".join(line for line in lines if _stays(line, step)).encode())

    def save_checkpoint(
        self, name: str, write: Callable[[Path], None], *, best: bool = False, keep: int | None = None
    ) -> Path:
        """Let ``write`` fill a new folder and call it ``checkpoints/NAME``, the latest and perhaps the best.

        Of the others, the last ``keep`` and the best stay. When ``write`` fails, everything is as it was.
        """
        self.checkpoints.mkdir(exist_ok=True)
        target = self.checkpoints / name
        replace_folder(target, write)
        if best:
            write_bytes(self.checkpoints / "best", f"{name}\n".encode())
        write_bytes(self.checkpoints / "latest", f"{name}\n".encode())
        if keep is not None:
            others = sorted((p for p in self.checkpoints.glob("step-*") if p.is_dir()), key=_order)
            kept = {*others[-keep:], target, self.pointed("best")}
            for path in others:
                if path not in kept:
                    shutil.rmtree(path)
        return target

    def pointed(self, name: str) -> Path | None:
        """The checkpoint that "latest" or "best" names, or None. ValueError where it names another
        place."""
        try:
            found = (self.checkpoints / name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        if not re.fullmatch(r"step-[\d.]+", found):
            raise ValueError(f"{self.checkpoints / name}: expected the name of a checkpoint, got {found!r}")
        path = self.checkpoints / found
        return path if path.is_dir() else None

    def _parts(self) -> tuple[Path, ...]:
        return self.recipe, self.summary, self.metrics, self.checkpoints, self.adapter, self.tracking


def _order(checkpoint: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in checkpoint.name.removeprefix("step-").split("."))


def _stays(line: str, step: int) -> bool:
    try:
        record = json.loads(line)
        final = "search" in record or (record.get("split") == "test" and record["step"] > 0)
        return bool(record["step"] <= step and not final)
    except (ValueError, KeyError, TypeError, AttributeError):  # cut short when the machine went down
        return False
