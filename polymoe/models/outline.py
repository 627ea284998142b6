"""A base of the right sizes without its weights: blocks share one matrix for each shape, so that a step can
be tried before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polymoe.functional import PackedWeight
from polymoe.models.build import Builder

PATTERN = np.random.default_rng(0).normal(0, 0.02, 65537).astype(np.float32)


class OutlinedWeight(PackedWeight):
    """One of many that share the panels of ``first``."""

    def __init__(self, first: PackedWeight) -> None:
        vars(self).update(vars(first))


class OutlineBuilder(Builder):
    """Makes modules of the ``shapes`` of a configuration, with numbers that mean nothing."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]) -> None:
        super().__init__({}, dtype)
        self._shapes = shapes
        self._packed: dict[tuple[int, ...], PackedWeight] = {}

    def array(self, name: str, copy: bool = True) -> np.ndarray:
        """Small numbers in the shape of a weight."""
        return np.resize(PATTERN, self._shapes[name])

    def packed(self, name: str) -> PackedWeight:
        """A weight [O, D], packed once for its shape."""
        shape = self._shapes[name]
        if shape not in self._packed:
            self._packed[shape] = PackedWeight(self.array(name), self.weight_dtype)
        return OutlinedWeight(self._packed[shape])
