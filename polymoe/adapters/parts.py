"""What the parts of a method have in common: the site that they are made for, routers, experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from polymoe import random, tape
from polymoe.adapters import initial
from polymoe.batch import Batch, Routing
from polymoe.nn import Module
from polymoe.parameters import Parameter

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Site:
    """What parts are made for, a linear layer or a feed-forward: its name, which keys all randomness, its
    width D and O, how many tasks there are. Of a feed-forward also ``projections``, (name, width in, width
    out, whether there is a bias) of each. ``module`` is the layer itself, None where parameters are only
    counted."""

    name: str
    n_in: int
    n_out: int
    n_tasks: int = 0
    seed: int = 0
    dtype: Any = np.float32
    projections: tuple[tuple[str, int, int, bool], ...] = ()
    module: Any = None

    def uniform(self, part: str, shape: tuple[int, ...], bound: float, group: str) -> Parameter:
        """A parameter that starts within U(-bound, bound)."""
        start = initial.uniform(self.seed, f"{self.name}.{part}", shape, bound, self.dtype)
        return Parameter(start, group)

    def full(self, shape: tuple[int, ...], value: float, group: str) -> Parameter:
        """A parameter that starts from one value."""
        return Parameter(np.full(shape, value, self.dtype), group)


class Router(Module):
    """Who decides which experts are used, and how much of each: ``router(batch, x) -> Routing``.

    ``axis``: of its routings. ``needs_tasks``: it goes by task id; ``needs_types``: by the type that the
    configuration gives each task. ``searched``: its parameter, a row for each task, that is found by a search
    and not by gradients. ``fields``: those of the configuration that it alone reads. ``count``: how many
    experts it chooses from and ``formula``: how many parameters it has, as people write them. Made from
    ``(config, site)``.
    """

    axis: Literal["group", "example", "token"] = "group"
    needs_tasks = False
    needs_types = False
    searched: ClassVar[str | None] = None
    fields: frozenset[str] = frozenset()
    count = "S"
    formula = "0"

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        self.name = site.name

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """ValueError for a configuration that it cannot work with."""

    @staticmethod
    def n_experts(config: AdapterConfig, site: Site) -> int:
        """How many experts it chooses from."""
        return config.skills(site.name)

    @staticmethod
    def shapes(config: AdapterConfig, site: Site) -> Shapes:
        """Shapes of its parameters."""
        return {}

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """The routing of a batch with these activations x [N, D]; x is not looked at where the axis is
        "group"."""
        raise NotImplementedError

    def start(self, experts: Experts) -> None:
        """See the experts as they start, which were trained before; most routers need not."""

    def gates(self) -> np.ndarray | None:
        """[., Q, S] in (0, 1): the sigmoids that its weights are made of in evaluation, before they are
        normalised, a row a task (or a latent one); None where it has none. For statistics: a row of weights
        does not determine them."""
        return None

    def uniform(self, stream: str, batch: Batch, ids: np.ndarray, shape: tuple[int, ...], dtype: Any) -> Any:
        """Noise in (0, 1), ``shape`` for each of ``ids``: [len(ids), *shape]."""
        u = random.uniform(batch.seed, stream, batch.step, self.name, ids, int(np.prod(shape)))
        return u.reshape(-1, *shape).astype(dtype, copy=False)


class Experts(Module):
    """What is mixed, and how: ``experts(x, module, routing, batch) -> y``, what the frozen ``module`` makes
    of x with them; what they add alone where ``module`` is None.

    ``site``: what kind of module they are made for; ``usual_targets``: which modules a recipe adapts when it
    does not say, None for the base's own default. ``defaults``: fields of the configuration that are the
    base's to say where they are None, and its attribute that says each. ``fields`` and ``formula`` as
    :class:`Router` has them; in the formula S stands for the number of experts, and ``gate_formula`` is what
    the mixing "gated" adds. Made from ``(config, n_experts, site)``.
    """

    site: ClassVar[str] = "linear"
    usual_targets: ClassVar[str | None] = None
    defaults: ClassVar[Mapping[str, str]] = {"target_modules": "default_target_modules"}
    fields: frozenset[str] = frozenset()
    formula = "0"
    gate_formula = "0"

    def __init__(self, config: AdapterConfig, n_experts: int, site: Site) -> None:
        self.name, self.n_experts = site.name, n_experts

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """ValueError for a configuration that they cannot work with."""

    @staticmethod
    def shapes(config: AdapterConfig, n_experts: int, site: Site) -> Shapes:
        """Shapes of their parameters."""
        raise NotImplementedError

    def __call__(self, x: Any, module: Any, routing: Routing, batch: Batch) -> Any:
        """y [N, O] of x [N, D]."""
        raise NotImplementedError

    def frozen(self, x: Any, module: Any) -> Any:
        """y [N, O] of the ``module`` alone, to which what they add is added."""
        return tape.linear(x, module.weight, module.bias)


def expect(config: AdapterConfig, field: str, allowed: Any, why: str) -> None:
    """ValueError unless a field has the value (or one of a tuple of values) that a part can work with."""
    values = allowed if isinstance(allowed, tuple) else (allowed,)
    if (value := getattr(config, field)) not in values:
        raise ValueError(f"{field}: expected {' or '.join(map(repr, values))} ({why}), got {value!r}")


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)) in float64, for statistics."""
    return np.asarray(np.exp(-np.logaddexp(0, -z.astype(np.float64))))
