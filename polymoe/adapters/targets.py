"""Which modules of a base an adapter goes into: PEFT's matching rules, case by case.

    exclude_modules      text: the whole name matches this pattern; list: the name equals an entry or ends in
                         "." + entry. Comes before everything else.
    target_modules       the same two forms. "all-linear": every linear layer but the output head. None: what
                         the base has by default.
    layers_to_transform  of the modules that a list finds by their ending, those in these layers. The layer is
                         the first number between two dots (with a name of two parts before it), or the one
                         after a name in layers_pattern.
    rank_pattern         {pattern: value}: the first pattern that matches the whole name, or its end after a
                         dot; alpha_pattern likewise.

Two habits of PEFT are kept on purpose: a name that a list gives in full is taken whatever its layer, and
entries of layers_pattern and rank_pattern are regular expressions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Protocol, TypeVar

V = TypeVar("V")

ALL_LINEAR = "all-linear"


class Targets(Protocol):
    """What the rules read of a configuration."""

    @property
    def target_modules(self) -> str | Collection[str] | None: ...  # noqa: D102
    @property
    def exclude_modules(self) -> str | Collection[str] | None: ...  # noqa: D102
    @property
    def layers_to_transform(self) -> int | Sequence[int] | None: ...  # noqa: D102
    @property
    def layers_pattern(self) -> str | Sequence[str] | None: ...  # noqa: D102


def _named(name: str, names: Iterable[str]) -> bool:
    return any(name == entry or name.endswith(f".{entry}") for entry in names)


def is_excluded(config: Targets, name: str) -> bool:
    """Whether ``exclude_modules`` takes this module out."""
    return is_named(name, config.exclude_modules)


def is_named(name: str, modules: str | Collection[str] | None) -> bool:
    """Whether a module is one of these: its whole name matches the text as a pattern, or equals an entry of
    a list or ends in "." + entry."""
    if not modules:
        return False
    return re.fullmatch(modules, name) is not None if isinstance(modules, str) else _named(name, modules)


def _layer(name: str, pattern: str | Sequence[str] | None) -> int | None:
    """The number of the layer that a module lies in, None when its name gives none."""
    if not pattern:
        places = [r".*?\.[^.]*"]
    else:
        places = [rf"(?:^|.*?\.){p}" for p in ([pattern] if isinstance(pattern, str) else pattern)]
    for place in places:
        if match := re.match(rf"{place}\.(?P<layer>\d+)\.", name):
            return int(match["layer"])
    return None


def is_target(config: Targets, name: str) -> bool:
    """Whether a module is adapted. ``target_modules`` must be a pattern or a list: see :func:`resolve`
    for the other forms."""
    targets = config.target_modules
    if targets is None:
        raise ValueError("target_modules: expected a pattern or a list of names, got None")
    if is_excluded(config, name):
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    if name in targets:
        return True
    if not _named(name, targets):
        return False
    layers = config.layers_to_transform
    if layers is None or layers in ([], ()):
        return True
    layer = _layer(name, config.layers_pattern)
    return layer is not None and (layer == layers if isinstance(layers, int) else layer in layers)


def resolve(
    target_modules: str | Collection[str] | None,
    linear: Collection[str],
    default: str | Collection[str] | None = None,
    head: str | None = None,
) -> str | tuple[str, ...]:
    """``target_modules`` as a pattern or as names: None is the base's ``default``, "all-linear" all of
    ``linear`` but the ``head``."""
    targets = default if target_modules is None else target_modules
    if targets is None:
        raise ValueError("target_modules: expected names or a pattern (this base has no default), got None")
    if isinstance(targets, str):
        return tuple(n for n in linear if n != head) if targets.lower() == ALL_LINEAR else targets
    return tuple(targets)


def select(
    config: Targets, names: Collection[str], candidates: Collection[str], site: str = "linear"
) -> list[str]:
    """The modules of a base that are adapted, out of all its ``names``; ``candidates`` are those that can be,
    by the kind of ``site``.

    ValueError that lists the candidates when there is none, and when a module of another kind is found.
    """
    kind = {"linear": "linear layers", "feed_forward": "feed-forwards"}[site]
    found = [name for name in names if name and is_target(config, name)]
    if wrong := [name for name in found if name not in set(candidates)]:
        raise ValueError(f"target_modules: expected {kind}, got {', '.join(wrong)}{_candidates(candidates)}")
    if not found:
        asked = config.target_modules
        near = [] if isinstance(asked, str) or asked is None else _near(asked, candidates)
        hint = f" (near: {', '.join(near)})" if near else ""
        limits = [f"{field}={getattr(config, field)!r}" for field in LIMITS if getattr(config, field)]
        raise ValueError(
            f"target_modules: expected the names of {kind}, got {asked!r}{hint}"
            + "".join(f" with {limit}" for limit in limits)
            + ", which match none"
            + _candidates(candidates)
        )
    return found


LIMITS = ("exclude_modules", "layers_to_transform", "layers_pattern")


def _near(asked: Iterable[str], candidates: Iterable[str]) -> list[str]:
    endings = sorted({name.rpartition(".")[2] for name in candidates})
    return sorted({near for name in asked for near in get_close_matches(name, endings, n=2)})


def _candidates(names: Iterable[str]) -> str:
    """The candidates with the layers' numbers written as *, one line each, for there can be hundreds."""
    patterns = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    return "; candidates:" + "".join(f"\n  {pattern}" for pattern in patterns)


def block_of(name: str) -> str | None:
    """The numbered layer that a module lies in, by name ("encoder.layer.3"); None when it lies in none."""
    match = re.match(r".*?\.\d+(?=\.)", name)
    return match[0] if match else None


def pattern_key(pattern: Mapping[str, V], name: str) -> str | None:
    """The key of a rank_pattern or alpha_pattern that holds for a module: the first that matches, or None."""
    return next((key for key in pattern if re.match(rf"(.*\.)?({key})$", name)), None)


def pattern_value(pattern: Mapping[str, V], name: str, default: V) -> V:
    """What a rank_pattern or alpha_pattern says of a module, or the default."""
    key = pattern_key(pattern, name)
    return default if key is None else pattern[key]
