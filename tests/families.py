"""What holds of the network of every family, for the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from polymoe import tape
from polymoe.batch import Batch
from polymoe.parameters import Parameter


def assert_gradient_is_that_of_differences(
    base: Any, name: str, n: int, output: Callable[[Batch], Any], batch: Batch, rtol: float = 1e-7
) -> None:
    """Of ``output(batch)`` by the input [n, D] of the projection ``name``, along a random direction."""
    rng, projection = np.random.default_rng(2), base.get_submodule(name)
    shift, v = rng.normal(size=(2, n, base.hidden_size))  # the least adapter: its input is shifted

    def run(m: Any) -> Any:
        adapter = lambda x, module, batch: tape.linear(tape.add(x, m), module.weight, module.bias)
        return output(dataclasses.replace(batch, adapters={projection: adapter}))

    parameter = Parameter(shift)
    with tape.Tape() as t:
        y = run(parameter)
    dy = rng.normal(size=y.data.shape)
    t.backward(y, dy)
    expected = np.sum((run(shift + 1e-5 * v) - run(shift - 1e-5 * v)) * dy) / 2e-5
    np.testing.assert_allclose(np.sum(parameter.grad * v), expected, rtol=rtol)


def assert_weights(base: Any, state: Mapping[str, np.ndarray], tolerance: float) -> None:
    """That the frozen weights of ``base`` are these, in float32."""
    for name in base.config.shapes():
        module, _, attribute = name.rpartition(".")
        weight = getattr(base.get_submodule(module), attribute)
        array = weight.unpack() if hasattr(weight, "unpack") else weight
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, state[name], atol=tolerance, rtol=0)
