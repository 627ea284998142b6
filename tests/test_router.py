"""The gates of the task router: what each one makes of a table of logits, and at its ends."""

from __future__ import annotations

import numpy as np
import pytest

from polymoe import functional as F

LOGITS = np.random.default_rng(0).normal(size=(3, 2, 5))
IDS = [2, 0, 2]


def grad(saved: F.TaskRouterSaved, dy: np.ndarray) -> np.ndarray:
    return F.task_router_backward(saved, dy).dlogits


def test_softmax_meets_the_golden_value_of_alter() -> None:
    w, _ = F.task_router([[[0.22, 0.22, 0.2, 0.2, 0.2]]], [0], None, 0.1, "softmax")
    np.testing.assert_allclose(w[0, 0], [0.2244068348] * 2 + [0.1837287768] * 3, atol=1e-9, rtol=0)


def test_softmax_of_enormous_logits_is_a_choice() -> None:
    w, saved = F.task_router(np.array([[[1e4, -1e4, 3.0]]], np.float32), [0], None, 0.1, "softmax")
    assert np.array_equal(w[0, 0], np.array([1, 0, 0], np.float32))
    assert np.array_equal(grad(saved, np.ones_like(w)), np.zeros((1, 1, 3)))


def test_straight_through_rounds_and_keeps_the_slope_of_the_sigmoid() -> None:
    w, saved = F.task_router(LOGITS, IDS, gate="straight_through")
    open_ = LOGITS[IDS] > 0
    np.testing.assert_allclose(w, open_ / np.maximum(open_.sum(2, keepdims=True), 1), atol=1e-11)
    rng = np.random.default_rng(1)
    dy, s = rng.normal(size=w.shape), 1 / (1 + np.exp(-LOGITS[IDS]))
    ds = (dy - (dy * w).sum(2, keepdims=True)) / open_.sum(2, keepdims=True)
    want = np.zeros_like(LOGITS)
    np.add.at(want, IDS, ds * s * (1 - s))
    np.testing.assert_allclose(grad(saved, dy), want, atol=1e-10)


def test_straight_through_without_an_open_gate_uses_no_skill_and_can_recover() -> None:
    logits = np.array([[[-1.0, -0.5, 0.0]]])  # one half is rounded to 0
    w, saved = F.task_router(logits, [0], gate="straight_through")
    assert not w.any()
    dy, s = np.array([[[1.0, -2.0, 3.0]]]), 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(grad(saved, dy), dy * s * (1 - s), rtol=1e-12)


def test_average_correction_has_the_same_slope_without_an_open_gate() -> None:
    logits, dy = np.array([[[-1.0, -0.5, -2.0, -0.1]]]), np.array([[[1.0, -2.0, 3.0, 0.5]]])
    w, saved = F.task_router(logits, [0], gate="straight_through", average_correction=True)
    assert not w.any()
    s = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(grad(saved, dy), dy * s * (1 - s) / 2, rtol=1e-12)


def test_l2_has_length_one_and_no_gradient_along_itself() -> None:
    w, saved = F.task_router(LOGITS, IDS, gate="l2")
    np.testing.assert_allclose((w * w).sum(2), 1, rtol=1e-12)
    np.testing.assert_allclose(grad(saved, w), 0, atol=1e-12)
    zero, saved = F.task_router(np.zeros((1, 1, 4)), [0], gate="l2")
    assert not zero.any()
    assert np.abs(grad(saved, np.ones_like(zero))).max() <= 1


@pytest.mark.parametrize("gate", ["sigmoid", "straight_through"])
def test_average_correction_is_a_factor(gate: str) -> None:
    w, saved = F.task_router(LOGITS, IDS, gate=gate, average_correction=True)
    np.testing.assert_allclose(w, saved.gates * np.sqrt(2 / 5), rtol=1e-14)


@pytest.mark.parametrize("gate", ["sigmoid", "straight_through", "softmax", "l2"])
def test_a_masked_skill_has_no_weight_and_no_gradient(gate: str) -> None:
    mask = np.full((3, 2, 5), 1 / 0.8)
    mask[:, :, 3] = 0
    w, saved = F.task_router(LOGITS, IDS, gate=gate, mask=mask)
    assert not w[:, :, 3].any()
    dlogits = grad(saved, np.random.default_rng(2).normal(size=w.shape))
    assert not dlogits[:, :, 3].any()
    assert dlogits[:, :, :3].any()
    kept = np.delete(LOGITS, 3, axis=2)
    np.testing.assert_allclose(np.delete(w, 3, axis=2), F.task_router(kept, IDS, gate=gate)[0], atol=1e-11)


@pytest.mark.parametrize("gate", ["sigmoid", "straight_through", "softmax", "l2"])
def test_everything_masked_gives_zero_and_finite_gradients(gate: str, isa: str) -> None:
    w, saved = F.task_router(LOGITS.astype(np.float32), IDS, gate=gate, mask=np.zeros((3, 2, 5), np.float32))
    assert not w.any()
    assert not grad(saved, np.ones_like(w)).any()
