"""What the configurations of all families check alike."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any


def check_sizes(config: Any, names: Iterable[str]) -> None:
    """ValueError for a field that is no positive integer."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def check_numbers(config: Any, names: Iterable[str]) -> None:
    """ValueError for a field that is no positive number."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, float | int) or not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")


def check_kind(config: Mapping[str, Any], model_types: Collection[str]) -> None:
    """ValueError for a config.json of another family, or of quantized weights."""
    kind = config.get("model_type")
    if kind not in model_types:
        raise ValueError(f"model_type: expected one of {list(model_types)}, got {kind!r}")
    if config.get("quantization_config") is not None:
        raise ValueError("quantization_config: expected weights in floats, got quantized ones")


def given_fields(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the fields of a configuration; null is as if it were not there."""
    return {f.name: config[f.name] for f in fields(kind) if config.get(f.name) is not None}
