"""What a folder says about turning hidden states into one vector per text: the files that
sentence-transformers writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POOLINGS = {"mean": "mean", "cls": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def read_json(path: Path, kind: type = dict) -> Any:
    """The object (or list) in a JSON file. FileNotFoundError without the file, ValueError that names it when
    it holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file, got none")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, nested without end
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value


@dataclass(frozen=True)
class SentenceSettings:
    """``transformer``: the folder with config.json, tokenizer.json and the weights. ``pooling``: "mean" or
    "cls" (the first token). ``normalize``: embeddings get length 1. ``max_length``: tokens per text, None
    when the folder does not say. ``lower_case``: texts are lowered before they are tokenized. ``prompts``:
    texts to put before an input, by name.
    """

    transformer: Path
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """Settings out of modules.json, 1_Pooling/config.json, sentence_bert_config.json and
    config_sentence_transformers.json, each of which may be absent (mean pooling, no normalization).

    Raises ValueError for another pooling or a further module (a dense layer, ...), by name, and for broken
    files.
    """
    paths: dict[str, str] = {}
    if (folder / "modules.json").is_file():
        for module in read_json(folder / "modules.json", list):
            try:
                paths[module["type"].rsplit(".", 1)[-1]] = module["path"]
            except (TypeError, KeyError, AttributeError):
                raise ValueError(
                    f"{folder / 'modules.json'}: expected entries with type and path, got {module!r}"
                ) from None
        if outside := [path for path in paths.values() if not _is_inside(path)]:
            raise ValueError(f"{folder / 'modules.json'}: expected paths in this folder, got {outside}")
        if other := sorted(paths.keys() - {"Transformer", "Pooling", "Normalize"}):
            raise ValueError(
                f"{folder / 'modules.json'}: expected Transformer, Pooling, Normalize, got {', '.join(other)}"
            )
    transformer = folder / paths.get("Transformer", "")
    pooling = folder / paths.get("Pooling", "1_Pooling") / "config.json"
    limits = _read_if_there(transformer / "sentence_bert_config.json")
    prompts = _read_if_there(folder / "config_sentence_transformers.json").get("prompts") or {}
    max_length = limits.get("max_seq_length")
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise ValueError(f"max_seq_length: expected a positive integer, got {max_length!r}")
    return SentenceSettings(
        transformer,
        _read_pooling(pooling) if "Pooling" in paths or pooling.is_file() else "mean",
        "Normalize" in paths,
        max_length,
        bool(limits.get("do_lower_case")),
        {str(name): str(prompt) for name, prompt in prompts.items()},
    )


def _is_inside(path: Any) -> bool:
    return isinstance(path, str) and not Path(path).is_absolute() and ".." not in Path(path).parts


def _read_pooling(path: Path) -> str:
    config = read_json(path)
    modes = [mode for mode, on in config.items() if mode.startswith("pooling_mode_") and on is True]
    if not modes and isinstance(config.get("pooling_mode"), str):
        modes = [config["pooling_mode"]]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(f"{path}: expected one pooling, mean or cls, got {' and '.join(modes) or 'none'}")
    return POOLINGS[modes[0]]


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
