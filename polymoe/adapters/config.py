"""The configuration of an adapter: the four parts and their sizes, with PEFT's names where PEFT has the
field."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from polymoe.adapters.experts import EXPERTS
from polymoe.adapters.parts import Experts, Router
from polymoe.adapters.routers import ROUTERS
from polymoe.adapters.targets import block_of, pattern_value

Bias = Literal["none", "lora_only"]
Noise = Literal["per_example", "per_task", "per_step", "off"]
Init = Literal["peft", "mttl", "tlora"]
Pooling = Literal["mean", "attention"]
Specific = Literal["learned_row", "diagonal", "fixed"]
Granularity = Literal["linear", "block", "model"]
Mixing = Literal["factors", "outputs", "leaves", "gated"]
SiteName = Literal["linear", "feed_forward"]
Gate = Literal["sigmoid", "straight_through", "softmax", "l2"]

FLAGS = (
    "use_rslora", "average_correction", "stop_router_gradient", "zero_start", "train_experts", "renormalize",
    "lora_bias",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is made of. Made by :func:`polymoe.adapters.methods.configure`, from a row of the
    table of methods.

    Parts: ``router``, ``experts``, ``mixing``, ``site``. Sizes: rank ``r``, ``n_skills`` S, ``n_splits`` Q
    (heads). The low-rank term is multiplied by ``lora_alpha / r``, by 1/r when ``lora_alpha`` is None
    (with ``use_rslora`` sqrt(r) in the place of r, Kalajdzievski 2023, arXiv 2312.03732).
    ``rank_pattern``, ``alpha_pattern``: other values for some modules. ``lora_dropout``: of the low-rank
    branch's input, in training. ``bias``, ``lora_bias``: see :class:`~polymoe.adapters.low_rank.LoraExperts`.
    ``target_modules`` ... ``layers_pattern``: see
    :mod:`polymoe.adapters.targets`. ``gate``, ``temperature``, ``noise``, ``gate_dropout``,
    ``average_correction``: see :class:`~polymoe.adapters.routers.TaskTable`. ``init_weights`` False: B is
    random too, so that the adapted model does not start as the base. ``train_experts`` False: they stay as
    they start, which is with what another adapter learnt. ``router_granularity``: a router for each layer
    ("linear"), or one that the layers of a numbered block ("block") or all ("model") share; one that reads
    tokens reads those of the first of its layers. ``init``: bound of the random A, "peft" sqrt(Q/D), "mttl"
    1/sqrt(3D). ``n_skills_pattern``: other numbers of skills for some modules. The other
    fields belong to one router or kind of experts, which says what they are, and are refused elsewhere.

    A combination that does not work is a ValueError here, with the reason; a value of the wrong type is a
    TypeError.
    """

    method: str = "poly"
    router: str = "task_table"
    experts: str = "lora"
    mixing: Mixing = "factors"
    site: SiteName = "linear"
    r: int = 8
    n_skills: int = 4
    n_splits: int = 1
    lora_alpha: float | None = None
    use_rslora: bool = False
    lora_dropout: float = 0.0
    bias: Bias = "none"
    lora_bias: bool = False
    target_modules: str | tuple[str, ...] | None = None
    feedforward_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    modules_to_save: tuple[str, ...] | None = None
    init_weights: bool = True
    train_experts: bool = True
    init: Init = "peft"
    router_granularity: Granularity = "linear"
    gate: Gate = "sigmoid"
    temperature: float = 1.0
    noise: Noise = "per_example"
    gate_dropout: float = 0.0
    average_correction: bool = False
    n_skills_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    task_skills: tuple[str, ...] | None = None
    task_types: tuple[str, ...] | None = None
    boost: float = 0.1
    renormalize: bool = False
    n_shared: int = 0
    n_specific: int = 1
    specific: Specific = "learned_row"
    ibp_prior: float = 0.0
    n_latent_tasks: int = 4
    pooling: Pooling = "attention"
    stop_router_gradient: bool = False
    top_k: int | None = None
    balance_loss: float = 0.0
    lora_A_dropout: float = 0.0
    order: int = 2
    zero_start: bool = False

    def __post_init__(self) -> None:
        for name in (
            "target_modules",
            "feedforward_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "task_skills",
            "task_types",
        ):
            if isinstance(value := getattr(self, name), list | set | frozenset):
                object.__setattr__(self, name, tuple(sorted(value) if not isinstance(value, list) else value))
        self._check_forms()
        self._check_parts()
        self._check_numbers()
        self._check_targets()
        self._check_unused()
        if self.mixing == "outputs" and self.n_splits > 1:
            raise ValueError(f"n_splits: expected 1 (outputs are not cut in blocks), got {self.n_splits}")
        if self.site != (site := EXPERTS[self.experts].site):
            raise ValueError(f"site: expected {site!r} (the experts {self.experts!r}), got {self.site!r}")
        if self.router_granularity != "linear" and ROUTERS[self.router].axis == "token":
            raise ValueError(
                f"router_granularity: expected 'linear' (the router {self.router!r} reads each layer's own "
                f"tokens), got {self.router_granularity!r}"
            )
        ROUTERS[self.router].check(self)
        EXPERTS[self.experts].check(self)

    def _check_forms(self) -> None:
        """What names or patterns of modules may look like."""
        for name in ("target_modules", "feedforward_modules", "exclude_modules", "layers_pattern"):
            value = getattr(self, name)
            names = value if isinstance(value, tuple) else () if value is None else (value,)
            if not all(isinstance(entry, str) for entry in names):
                raise TypeError(f"{name}: expected text or texts, got {value!r}")
            if isinstance(value, str) or name == "layers_pattern":
                _check_patterns(name, names)
        layers = self.layers_to_transform
        for layer in layers if isinstance(layers, tuple) else () if layers is None else (layers,):
            if not isinstance(layer, int) or isinstance(layer, bool):
                raise TypeError(
                    f"layers_to_transform: expected a number or numbers of layers, got {layers!r}"
                )
        for name in ("rank_pattern", "alpha_pattern", "n_skills_pattern"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise TypeError(f"{name}: expected values by pattern, got {value!r}")
            _check_patterns(name, tuple(value))

    def _check_parts(self) -> None:
        hints = get_type_hints(type(self)).items()
        choices: dict[str, tuple[str, ...]] = {"router": tuple(ROUTERS), "experts": tuple(EXPERTS)}
        choices |= {name: get_args(hint) for name, hint in hints if get_origin(hint) is Literal}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                expected = " or ".join(map(repr, allowed))
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def _check_numbers(self) -> None:
        for name in ("r", "n_skills", "n_splits", "n_specific", "n_latent_tasks", "order"):
            _positive_int(name, getattr(self, name))
        for name in ("rank_pattern", "n_skills_pattern"):
            for key, value in getattr(self, name).items():
                _positive_int(f"{name}[{key!r}]", value)
        _positive_number("temperature", self.temperature)
        if self.lora_alpha is not None:
            _positive_number("lora_alpha", self.lora_alpha)
        for key, alpha in self.alpha_pattern.items():
            _positive_number(f"alpha_pattern[{key!r}]", alpha)
        if self.top_k is not None:
            _positive_int("top_k", self.top_k)
        if self.n_shared != 0:
            _positive_int("n_shared", self.n_shared)
        for name in ("lora_dropout", "gate_dropout", "lora_A_dropout"):
            if not _is_number(p := getattr(self, name)):
                raise TypeError(f"{name}: expected a number, got {p!r}")
            if not 0 <= p < 1:
                raise ValueError(f"{name}: expected 0 <= p < 1, got {p}")
        for name in ("ibp_prior", "balance_loss", "boost"):
            if getattr(self, name) != 0:
                _positive_number(name, getattr(self, name))
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected a bool, got {getattr(self, name)!r}")

    def _check_unused(self) -> None:
        """A field that only some parts read must be left alone with the others."""
        parts: list[type[Router] | type[Experts]] = [*ROUTERS.values(), *EXPERTS.values()]
        used = ROUTERS[self.router].fields | EXPERTS[self.experts].fields
        defaults = {f.name: f.default for f in fields(self)}
        for name in sorted(set().union(*(part.fields for part in parts)) - used):
            if (value := getattr(self, name)) != defaults[name]:
                raise ValueError(
                    f"{name}: expected {defaults[name]!r} (neither router {self.router!r} nor experts "
                    f"{self.experts!r} has it), got {value!r}"
                )

    def _check_targets(self) -> None:
        if self.modules_to_save:
            raise ValueError(
                "modules_to_save: expected None (the base is never trained; heads belong to the objective), "
                f"got {self.modules_to_save!r}"
            )
        if isinstance(self.target_modules, str):
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}: expected None (target_modules is text), got {getattr(self, name)!r}"
                    )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_to_transform: expected numbers (layers_pattern is given), got None")

    @property
    def n_heads(self) -> int:
        """Rows of weights that a group gets: a row for each head, or each order where leaves are mixed."""
        return self.order if self.mixing == "leaves" else self.n_splits

    def skills(self, name: str) -> int:
        """Number of skills of a module."""
        return pattern_value(self.n_skills_pattern, name, self.n_skills)

    def router_name(self, name: str) -> str:
        """Name of the router that decides for a module. ValueError for one that lies in no numbered block
        where blocks share."""
        if self.router_granularity == "model":
            return "model"
        if self.router_granularity == "linear":
            return name
        if (block := block_of(name)) is None:
            raise ValueError(
                f"router_granularity: expected 'linear' or 'model' ({name} lies in no numbered block), "
                f"got 'block'"
            )
        return block

    def rank(self, name: str) -> int:
        """Rank of the adapter of a module."""
        return pattern_value(self.rank_pattern, name, self.r)

    def scale(self, name: str) -> float:
        """What the low-rank term of a module is multiplied by."""
        alpha = pattern_value(self.alpha_pattern, name, 1.0 if self.lora_alpha is None else self.lora_alpha)
        r = self.rank(name)
        return alpha / (math.sqrt(r) if self.use_rslora else r)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; ``AdapterConfig(**values)`` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _check_patterns(name: str, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}: expected a regular expression, got {pattern!r} ({error})") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive_int(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def _positive_number(name: str, value: Any) -> None:
    if not _is_number(value):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a positive number, got {value}")
