"""What the README shows runs as it stands."""

import numpy as np
from readme import lines_of_code, python_blocks

import polymoe


def test_the_numpy_loop_learns_in_ten_lines():
    block = python_blocks("Plug in")[0]
    names = {"np": np, "polymoe": polymoe, "rng": np.random.default_rng(0)}
    exec(block, names)
    assert lines_of_code(block) <= 10
    assert np.mean((names["y"] - names["target"]) ** 2) < 0.05
