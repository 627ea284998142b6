"""Factors made of small leaves: sizes of leaves, the golden values of TensorPoly, mixing leaves by order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polymoe import functional as F
from polymoe import tape
from polymoe.parameters import Parameter

TASKS, GROUPS, R, RANK = 4, [1, 3], 3, 2


def fill(*shape: int, phi: float) -> np.ndarray:
    return np.sin(0.7 * np.arange(np.prod(shape)) + phi).reshape(shape)


def leaves_of(order: int, d: int, phi: float) -> np.ndarray:
    """[R, r, order * m] of leaves that are numbered as [order, R, r, m]."""
    leaves = 0.5 * fill(order, R, RANK, F.leaf_size(d, order), phi=phi)
    return np.concatenate(list(leaves), axis=2)


def low_rank(x: np.ndarray, A: Any, B: Any, weights: Any = None) -> Any:
    """(1/r) (x A_g^T) B_g of two examples with a group each."""
    frozen = F.PackedWeight(np.zeros((tape.data_of(B).shape[2], x.shape[1])))
    return tape.linear(x, frozen, None, A, B, weights, np.array([0, 1]), np.array([0, 3, 6]), 1 / RANK)


def tensor_poly_1(x: np.ndarray, order: int, logits: Any, leaves_A: Any, leaves_B: Any, d_out: int) -> Any:
    """Products first, then mixed: the components are skills."""
    weights = tape.task_router(logits, GROUPS)
    A, B = (tape.tensor_product(leaves_A, order, x.shape[1]), tape.tensor_product(leaves_B, order, d_out))
    return low_rank(x, A, B, weights)


def tensor_poly_2(x: np.ndarray, order: int, logits: Any, leaves_A: Any, leaves_B: Any, d_out: int) -> Any:
    """Leaves mixed first: leaves lie side by side, so each is a head of ``mix``."""
    weights = tape.task_router(logits, GROUPS)
    A = tape.tensor_product(tape.mix(weights, leaves_A), order, x.shape[1])
    return low_rank(x, A, tape.tensor_product(tape.mix(weights, leaves_B), order, d_out))


METHODS = {"I": tensor_poly_1, "II": tensor_poly_2}
ROW = {  # y[0, 0] with d_out 6
    ("I", 2): [0.0119068828, 0.0686862027, 0.1409878475, 0.0627056707, 0.0218914632, 0.0186078778],
    ("I", 4): [0.0665598531, 0.2981233243, 0.0513439734, 0.2359023928, 0.0193632595, 0.2098109296],
    ("II", 2): [0.0631248169, 0.1236233416, 0.1337575706, 0.003436668, -0.0296489538, -0.041012516],
    ("II", 4): [0.1130231579, 0.0668692485, -0.175707498, -0.1262779275, 0.6622563617, 0.2118150066],
}
SUM = {
    ("I", 2, 6): 0.6425129196422271,
    ("I", 4, 6): 0.40684459111769555,
    ("II", 2, 6): -0.19604469795762325,
    ("II", 4, 6): -1.4683205803517685,
    ("I", 2, 17): -1.3337104192628928,
    ("I", 4, 17): -2.989214014412805,
    ("II", 2, 17): 3.094434540074171,
    ("II", 4, 17): -4.088591891946889,
}


def arguments(method: str, order: int, d_out: int) -> tuple[np.ndarray, ...]:
    heads = order if method == "II" else 1
    return (
        fill(TASKS, heads, R, phi=0.4),
        leaves_of(order, 7, phi=0.2),
        leaves_of(order, d_out, phi=0.3),
    )


@pytest.mark.parametrize(("method", "order", "d_out"), SUM)
def test_tensor_poly_meets_the_golden_values(method: str, order: int, d_out: int) -> None:
    x = fill(6, 7, phi=0.1)
    y = METHODS[method](x, order, *arguments(method, order, d_out), d_out)
    assert abs(y.sum() - SUM[method, order, d_out]) < 1e-9
    if d_out == 6:
        np.testing.assert_allclose(y[0], ROW[method, order], atol=1e-9, rtol=0)


@pytest.mark.parametrize("order", [2, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_leaves_and_logits(method: str, order: int) -> None:
    """From the output of the layer through products, mixing and router, against finite differences."""
    x, dy, d_out = fill(6, 7, phi=0.1), fill(6, 17, phi=0.9), 17
    arrays = arguments(method, order, d_out)
    nodes = [Parameter(a.copy()) for a in arrays]
    with tape.Tape() as recorded:
        y = METHODS[method](x, order, *nodes, d_out)
    recorded.backward(y, dy)
    rng, step = np.random.default_rng(0), 1e-6
    for i, node in enumerate(nodes):
        v = rng.normal(size=arrays[i].shape)
        losses = []
        for h in (step, -step):
            moved = [a + h * v if j == i else a for j, a in enumerate(arrays)]
            losses.append((METHODS[method](x, order, *moved, d_out) * dy).sum())
        np.testing.assert_allclose((node.grad * v).sum(), (losses[0] - losses[1]) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("order", [2, 4, 8])
def test_mixing_by_order_with_one_hot_weights_picks_leaves(order: int) -> None:
    leaves = leaves_of(order, 17, phi=0.3)
    chosen = np.arange(order) % R
    mixed, _ = F.mix(np.eye(R)[chosen][None], leaves)
    m = leaves.shape[2] // order
    want = np.concatenate([leaves[j, :, o * m : (o + 1) * m] for o, j in enumerate(chosen)], axis=1)
    assert np.array_equal(mixed[0], want)


def test_a_component_does_not_depend_on_its_company() -> None:
    leaves = np.random.default_rng(0).normal(size=(5, 4, 4 * 7)).astype(np.float32)
    y, _ = F.tensor_product(leaves, 4, 2048)
    for j in range(5):
        assert np.array_equal(F.tensor_product(leaves[j : j + 1], 4, 2048)[0][0], y[j])


def test_products_are_normalised_before_the_cut() -> None:
    leaves = np.random.default_rng(0).normal(size=(3, 4, 2 * 5))
    whole, cut = F.tensor_product(leaves, 2, 25)[0], F.tensor_product(leaves, 2, 17)[0]
    assert np.array_equal(whole[..., :17], cut)
    np.testing.assert_allclose(whole.mean(axis=(1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(whole.var(axis=(1, 2)), 1, rtol=1e-4)  # eps


def test_a_zero_leaf_gives_zero_and_a_gradient_of_its_own() -> None:
    """The exact zero start: LN(0) = 0, and the slope 1 / sqrt(eps) reaches the zero leaf alone."""
    leaves = np.random.default_rng(0).normal(size=(1, 2, 2 * 3))
    leaves[..., :3] = 0
    y, saved = F.tensor_product(leaves, 2, 9)
    assert not y.any()
    dy = np.random.default_rng(1).normal(size=y.shape)
    dleaves = F.tensor_product_backward(saved, dy).dleaves
    assert np.abs(dleaves[..., :3]).min() > 0
    assert not dleaves[..., 3:].any()


@pytest.mark.parametrize(
    ("d", "order", "m"),
    [
        (2048, 2, 46),
        (2048, 4, 7),
        (5120, 2, 72),
        (5120, 4, 9),
        (3125, 5, 5),
        (3126, 5, 6),
        (1, 2, 1),
        (2, 8, 2),
    ],
)
def test_leaf_size_is_the_smallest_that_spans(d: int, order: int, m: int) -> None:
    assert F.leaf_size(d, order) == m


@pytest.mark.parametrize("order", [2, 3, 4, 5, 8])
def test_leaf_size_of_exact_powers(order: int) -> None:
    for m in range(2, 30):
        assert (F.leaf_size(m**order, order), F.leaf_size(m**order + 1, order)) == (m, m + 1)
