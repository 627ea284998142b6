"""Adapters that are far from where training starts, for the tests of what is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from polymoe.adapters import AdaptedModel, adapt


def far_mixture(base: Any, method: str, tasks: list[str], **options: Any) -> AdaptedModel:
    """An adapted base with random weights and routes."""
    if not method.startswith("t"):  # tensors have no other start
        options["init_weights"] = False
    model = adapt(base, method, tasks, **options)
    rng = np.random.default_rng(0)
    for name, p in model.adapter_parameters():
        if "router" in name:
            p.data[...] = rng.normal(size=p.shape)
    return model
