"""A router whose weights no gradient finds: plain numbers for each task, found by a search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polymoe.adapters.parts import Router, Site
from polymoe.batch import Batch, Routing

if TYPE_CHECKING:
    from polymoe.adapters.config import AdapterConfig


class Coefficients(Router):
    """A weight for each task and expert, as it is: no gate, no normaliser, of either sign. LoRAHub.

        A = sum_s w[t, s] A_s,    B = sum_s w[t, s] B_s

    ``coefficients`` [T, 1, S] start as 0, which is the base alone, and are not trained: the trainer finds a
    task's row by :mod:`polymoe.training.search`. Where factors are mixed, a row and its negative are the
    same. Published: the same weights in all layers (``router_granularity`` "model"); with weights by layer
    there are more of them than a short search can find. Huang et al. 2023, arXiv 2307.13269.
    """

    needs_tasks = True
    searched = "coefficients"

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        self.coefficients = site.full((site.n_tasks, 1, config.skills(site.name)), 0, "router")
        self.coefficients.trainable = False

    def __call__(self, batch: Batch, x: Any) -> Routing:
        """Weights [G, 1, S] of the tasks in the batch."""
        tasks, adapter_ids = batch.task_groups
        return Routing("group", self.coefficients.data[tasks], adapter_ids=adapter_ids)

    def extra_repr(self) -> str:
        """Sizes."""
        n_tasks, _, n_skills = self.coefficients.shape
        return f"{n_tasks} tasks, {n_skills} skills"
