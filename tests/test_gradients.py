"""Every gradient against directional finite differences in float64, for every case that is not large."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, Case
from test_ops import fields, generator

from polymoe import functional as F

STEP = 1e-6


@pytest.mark.parametrize("case", [c for c in CASES if not c.big and c.wrt and not c.steps], ids=str)
def test_backward_is_the_derivative(case: Case) -> None:
    rng = generator(case)
    args = case.make(rng)
    op = getattr(F, case.op)
    y, saved = op(**args)
    dy = rng.normal(size=np.shape(y))
    grads = fields(getattr(F, case.op + "_backward")(saved, dy))
    for name in case.wrt:
        v = rng.normal(size=args[name].shape)
        plus, minus = (float(np.sum(op(**{**args, name: args[name] + h * v})[0] * dy)) for h in (STEP, -STEP))
        difference = (plus - minus) / (2 * STEP)
        slope = float(np.sum(grads["d" + name] * v))
        scale = float(np.sqrt(np.sum(grads["d" + name] ** 2) * np.sum(v**2))) + 1e-3
        assert abs(slope - difference) <= 2e-6 * scale, (
            f"{case}: d{name} gives {slope}, finite differences {difference}"
        )
