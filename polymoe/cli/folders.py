"""What a verb is pointed at: a run, or the folder of an adapter."""

from __future__ import annotations

from pathlib import Path

from polymoe.adapters import AdaptedModel
from polymoe.interop.convert import format_of
from polymoe.interop.peft import load_adapter, read_detached
from polymoe.interop.peft_folder import CONFIG, adapters_in, open_folder
from polymoe.models import load_base
from polymoe.models.loading import is_here
from polymoe.training import Run, RunFolder, load_run


def load_folder(path: str, base: str | None) -> tuple[AdaptedModel, Run | None]:
    """The adapted model of a run and the run, or that of an adapter's folder and None."""
    if _is_run(path):
        run = load_run(path, base)
        return run.model, run
    name = _base_name(path) if base is None else base
    if name is None:
        raise ValueError(f"base: expected the name of the base ({path} does not say it), got None")
    return load_adapter(load_base(name), path), None


def look_into(path: str, base: str | None) -> tuple[AdaptedModel, Run | None, str]:
    """The same, and "". Where no ``base`` is named and the one that an adapter names is not here, or is none
    that polymoe runs: the adapter without it, and the reason."""
    if base is not None or _is_run(path):
        return *load_folder(path, base), ""
    name, why = _base_name(path), "the folder does not name it"
    if name is not None and not is_here(name):  # nothing is downloaded unasked
        why = f"there is no {name!r}; --base {name} has it downloaded, if it is one of the hub"
    elif name is not None:
        try:
            found = load_base(name)
        except (OSError, ValueError, ImportError) as error:
            why = str(error)
        else:
            return load_adapter(found, path), None, ""
    return read_detached(path), None, why


def _is_run(path: str) -> bool:
    """ValueError or FileNotFoundError for what is neither a run nor an adapter in PEFT's layout."""
    if (Path(path) / CONFIG).is_file() and format_of(path) == "peft":
        return False
    if RunFolder(path).holds_run() or not Path(path).exists():
        return True
    if inside := adapters_in(path):
        raise FileNotFoundError(f"{path}: expected a run or an adapter; adapters lie in {', '.join(inside)}")
    try:
        kind = format_of(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a run or an adapter, got neither") from None
    raise ValueError(
        f"{path}: expected a run or an adapter in PEFT's layout, got one in that of {kind}: polymoe convert "
        "writes PEFT's"
    )


def _base_name(path: str) -> str | None:
    name: str | None = open_folder(path).base["name"]
    return name
