"""Vectors that scale columns: (IA)^3 for all tokens, by group, mixed from a bank."""

from __future__ import annotations

import numpy as np

from polymoe import functional as F
from polymoe import tape
from polymoe.parameters import Parameter

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 40)).astype(np.float32)
IDS, CU_SEQLENS = np.array([1, 0, 1, 2]), np.array([0, 130, 140, 140, 300])


def test_a_vector_of_ones_changes_nothing() -> None:
    assert np.array_equal(F.multiply(X, np.ones(40, np.float32))[0], X)


def test_one_vector_is_a_group_of_all() -> None:
    vector, dy = RNG.normal(size=40).astype(np.float32), RNG.normal(size=X.shape).astype(np.float32)
    y, saved = F.multiply(X, vector)
    grouped, grouped_saved = F.multiply(X, vector[None], np.zeros(4, int), CU_SEQLENS)
    assert np.array_equal(y, grouped)
    one, group = F.multiply_backward(saved, dy), F.multiply_backward(grouped_saved, dy)
    assert np.array_equal(one.da, group.da)
    assert np.array_equal(one.db, group.db[0])  # sums are split by chunk, not by example


def test_only_what_is_needed_is_computed() -> None:
    _, saved = F.multiply(X, X)
    assert F.multiply_backward(saved, X, {"a"}).db is None
    assert F.multiply_backward(saved, X, {"b"}).da is None


def test_vectors_mixed_from_a_bank() -> None:
    """MoV at the level of groups: the weights of a group mix S vectors, which scale its tokens."""
    weights, bank = RNG.random((3, 1, 5)), Parameter(RNG.normal(size=(5, 1, 40)))
    x, dy = X.astype(float), RNG.normal(size=X.shape)
    with tape.Tape() as recorded:
        y = tape.multiply(x, tape.mix(weights, bank), IDS, CU_SEQLENS)
    recorded.backward(y, dy)
    w = weights[IDS][np.repeat(np.arange(4), np.diff(CU_SEQLENS)), 0]  # [N, S]
    np.testing.assert_allclose(y.data, x * (w @ bank.data[:, 0]), rtol=1e-13)
    np.testing.assert_allclose(bank.grad[:, 0], w.T @ (dy * x), rtol=1e-11, atol=1e-12)
