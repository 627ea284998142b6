"""The Indian buffet prior: its golden values, and its straight-through gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polymoe import functional as F


def table(Z: list[list[int]]) -> np.ndarray:
    """Logits whose sigmoid is above one half where Z is 1."""
    return (2 * np.array(Z, float) - 1) * 1.3


def test_ibp_meets_the_golden_values() -> None:
    logits = table([[1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0]])
    loss, saved = F.ibp_loss(logits)
    assert abs(loss - -2.0794415416798) < 1e-12
    p = 1 / (1 + np.exp(-logits))
    by_count = F.ibp_loss_backward(saved, 1.0).dlogits / (p * (1 - p))
    np.testing.assert_allclose(by_count, np.tile([-0.5, 0.5, 0.5], (4, 1)), rtol=1e-12)
    twice, _ = F.ibp_loss(table([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]))
    assert abs(twice - 0.6931471806) < 1e-9


def test_ibp_gradient_is_that_of_the_counts_in_real_numbers() -> None:
    """Finite differences of the same formula where the threshold is replaced by the sigmoid's increments."""
    rng = np.random.default_rng(0)
    logits, v, step = rng.normal(size=(9, 5)), rng.normal(size=(9, 5)), 1e-6
    hard, p = logits > 0, lambda z: 1 / (1 + np.exp(-z))

    def smooth(z: np.ndarray) -> float:
        m = (hard + p(z) - p(logits)).sum(0)
        return -sum(math.lgamma(9 - x + 1) + math.lgamma(x) for x in m)

    assert hard.any(0).all()
    got = (F.ibp_loss_backward(F.ibp_loss(logits)[1], 2.0).dlogits * v).sum()
    want = (smooth(logits + step * v) - smooth(logits - step * v)) / step
    assert abs(got - want) < 1e-7 * abs(want)


def test_ibp_leaves_unused_columns_alone(isa: str) -> None:
    logits = np.array([[-1, 2, 0], [-0.5, -1, 0]], np.float32)
    dlogits = F.ibp_loss_backward(F.ibp_loss(logits)[1], 1.0).dlogits
    assert not dlogits[:, [0, 2]].any()
    assert dlogits[:, 1].all()


def test_ibp_heads_are_columns() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 2, 4))
    loss, saved = F.ibp_loss(logits)
    flat, flat_saved = F.ibp_loss(logits.reshape(6, 8))
    assert loss == flat
    dlogits, want = (F.ibp_loss_backward(s, 1.0).dlogits for s in (saved, flat_saved))
    assert np.array_equal(dlogits, want.reshape(6, 2, 4))


@pytest.mark.parametrize("equal", [1, 2, 7])
def test_ibp_counts_equal_columns(equal: int) -> None:
    column = np.array([1.0, -1, 1, -1, 1])[:, None]
    alone, several = F.ibp_loss(column)[0], F.ibp_loss(np.tile(column, equal))[0]
    assert abs(several - (equal * alone + math.lgamma(equal + 1))) < 1e-12
