"""What a verb is pointed at: a run, or the folder of an adapter."""

from __future__ import annotations

from pathlib import Path

from polymoe.adapters import AdaptedModel
from polymoe.interop.convert import format_of
from polymoe.interop.peft import load_adapter
from polymoe.interop.peft_folder import CONFIG, open_folder
from polymoe.models import load_base
from polymoe.training import Run, load_run


def load_folder(path: str, base: str | None) -> tuple[AdaptedModel, Run | None]:
    """The adapted model of a run and the run, or that of an adapter's folder and None."""
    if not (Path(path) / CONFIG).is_file():
        run = load_run(path, base)
        return run.model, run
    if format_of(path) != "peft":
        raise ValueError(f"{path}: expected a run or an adapter, got another format: polymoe convert")
    if base is None and (base := open_folder(path).base["name"]) is None:
        raise ValueError(f"base: expected the name of the base ({path} does not say it), got None")
    return load_adapter(load_base(base), path), None
