"""Routers that read the example: its tokens are pooled to one vector, which decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from polymoe import tape
from polymoe.adapters.parts import Router, Shapes, Site, expect, sigmoid
from polymoe.batch import Batch, Routing

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig

NORM_EPS = 1e-5


class ContentSoftmax(Router):
    """One softmax for each example: SMEAR.

        w = softmax(LN(mean of the tokens) . LN'(row s))        LN' starts with the scale 1e-2

    ``weight`` [S, D], group "content". Both LayerNorms have a scale that is learnt, the tokens' also a shift;
    one of the rows would move all logits alike. That the rows' scale is the one with 1e-2 is our reading.
    Muqeeth et al. 2023, arXiv 2306.03745.
    """

    axis = "example"
    fields = frozenset({"stop_router_gradient"})
    formula = "S D + 3 D"

    @staticmethod
    def shapes(config: AdapterConfig, site: Site) -> Shapes:
        """Rows, and what the LayerNorms learn."""
        names = ("input_scale", "input_shift", "row_scale")
        return {"weight": (config.skills(site.name), site.n_in)} | dict.fromkeys(names, (site.n_in,))

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        self.stop_gradient = config.stop_router_gradient
        rows = self.shapes(config, site)["weight"]
        self.weight = site.uniform("router.weight", rows, 1 / np.sqrt(site.n_in), "content")
        self.input_scale = site.full((site.n_in,), 1, "content")
        self.input_shift = site.full((site.n_in,), 0, "content")
        self.row_scale = site.full((site.n_in,), 1e-2, "content")
        self.no_shift = np.zeros(site.n_in, site.dtype)

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Weights [B, 1, S]."""
        x, cu_seqlens = _prompt(tape.data_of(x) if self.stop_gradient else x, batch)
        pooled = tape.mean_pool(x, cu_seqlens)
        pooled = tape.layer_norm(pooled, self.input_scale, self.input_shift, NORM_EPS)
        rows = tape.layer_norm(self.weight, self.row_scale, self.no_shift, NORM_EPS)
        weights = tape.softmax_router(tape.dense(pooled, rows, None))
        return Routing("example", tape.reshape(weights, (batch.n_examples, 1, len(self.weight.data))))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{len(self.weight.data)} skills"


class LatentTasks(Router):
    """Each example is a mixture of I latent tasks, each of which is a mixture of skills: OrchMoE.

        p = softmax(W pooled + b)  [I],    s = sigmoid((z + log u - log(1-u)) / temperature)  [I, S]
        w = sum_i p_i s_i / sum(s_i)       the double sum over latent tasks and skills, collapsed

    ``pooling``: "attention", ``softmax(q . x / sqrt(D))`` over the tokens of the example, or "mean".
    ``noise`` u: one draw for all examples of a step ("per_step"), one for each ("per_example"), or none;
    evaluation has none. ``stop_router_gradient``: x gets no gradient from here. ``weight`` [I, D], ``bias``
    [I], ``query`` [D] (starts as 0: the mean) in group "content"; ``logits`` [I, S] in group "router". The
    published text leaves open the softmax, the pooling, the normaliser and the noise's extent: these are
    choices. Wang et al. 2024, arXiv 2401.10559.
    """

    axis = "example"
    fields = frozenset({"stop_router_gradient", "n_latent_tasks", "pooling"})
    formula = "I D + I + D + I S"

    @staticmethod
    def check(config: AdapterConfig) -> None:
        """Gates are sigmoids, without dropout; no noise by task."""
        why = f"the router {config.router!r}"
        expect(config, "noise", ("per_step", "per_example", "off"), why)
        expect(config, "gate", "sigmoid", why)
        expect(config, "gate_dropout", 0, why)
        expect(config, "average_correction", False, why)

    @staticmethod
    def shapes(config: AdapterConfig, site: Site) -> Shapes:
        """Of the latent tasks' rows, of the allocation, and of the query."""
        n = config.n_latent_tasks
        shapes: Shapes = {"weight": (n, site.n_in), "bias": (n,), "logits": (n, 1, config.skills(site.name))}
        return shapes | ({"query": (site.n_in,)} if config.pooling == "attention" else {})

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        shapes = self.shapes(config, site)
        self.noise, self.temperature = config.noise, config.temperature
        self.stop_gradient, self.pooling = config.stop_router_gradient, config.pooling
        self.weight = site.uniform("router.weight", shapes["weight"], 0.02 * np.sqrt(3), "content")
        self.bias = site.full(shapes["bias"], 0, "content")
        self.logits = site.uniform("logits", shapes["logits"], 1e-3, "router")
        if self.pooling == "attention":
            self.query = site.full(shapes["query"], 0, "content")

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Weights [B, 1, S]."""
        n_tasks, _, n_skills = self.logits.shape
        n, dtype = batch.n_examples, self.logits.data.dtype
        tasks = self._tasks(batch, tape.data_of(x) if self.stop_gradient else x)
        ids, u = np.zeros(1, np.int64), None  # one draw
        if self.training and self.noise == "per_example":
            ids = batch.random_ids
        if self.training and self.noise != "off":
            u = self.uniform("router", batch, ids, (n_tasks, 1, n_skills), dtype)
            u = u.reshape(-1, 1, n_skills)
        rows = np.tile(np.arange(n_tasks), len(ids))
        skills = tape.task_router(self.logits, rows, u, self.temperature)
        skills = tape.reshape(skills, (len(ids), n_tasks, n_skills))
        # p [1, I] times the allocation [I, S], the examples' own or one for all: a low-rank term with A = 1.
        ones = np.broadcast_to(np.eye(n_tasks, dtype=dtype), (len(ids), n_tasks, n_tasks))
        groups = np.arange(n) if len(ids) == n else np.zeros(n, np.int64)
        weights = tape.linear(tasks, None, None, ones, skills, None, groups, np.arange(n + 1))
        return Routing("example", tape.reshape(weights, (n, 1, n_skills)))

    def gates(self) -> np.ndarray | None:
        """Sigmoids of the allocation [I, 1, S]."""
        return sigmoid(self.logits.data)

    def _tasks(self, batch: Batch, x: Any) -> Any:
        """How much an example is of each latent task, [B, I]."""
        x, cu_seqlens = _prompt(x, batch)
        if self.pooling == "attention":
            pooled = tape.attention_pool(x, self.query, cu_seqlens)
        else:
            pooled = tape.mean_pool(x, cu_seqlens)
        return tape.softmax_router(tape.dense(pooled, self.weight, self.bias))

    def extra_repr(self) -> str:
        """Sizes."""
        n_tasks, _, n_skills = self.logits.shape
        return f"{n_tasks} latent tasks, {n_skills} skills, pooling={self.pooling}, noise={self.noise}"


def _prompt(x: Any, batch: Batch) -> tuple[Any, np.ndarray]:
    """The tokens that may be read, and where each example's start."""
    rows, cu_seqlens = batch.prompt
    return x if rows is None else tape.embedding(rows, x), cu_seqlens
