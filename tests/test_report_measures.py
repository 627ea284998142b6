"""Measures of routing: their ends, their formulas, and what changes nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polymoe.report import (
    discreteness,
    effective_skills,
    entropy,
    load_balance,
    nearest,
    shares,
    similarity,
    usage,
    variation,
)

WEIGHTS = arrays(np.float64, (3, 2, 5), elements=st.floats(-4, 4, allow_nan=False).map(lambda x: round(x, 3)))


def test_shares_are_of_sizes_and_zero_rows_stay():
    np.testing.assert_allclose(shares([[1, -3], [0, 0]]), [[0.25, 0.75], [0, 0]])


def test_entropy_is_the_formula():
    p = np.array([0.7, 0.2, 0.1])
    expected = -(p * np.log(p)).sum() / np.log(3)
    assert entropy(5 * p) == pytest.approx(expected, abs=1e-15)
    assert effective_skills(5 * p) == pytest.approx(np.exp(expected * np.log(3)), abs=1e-14)


def test_entropy_ends():
    assert entropy(np.ones((2, 7))) == pytest.approx(1)
    assert (entropy(np.eye(4)) == 0).all()
    assert (entropy(np.ones((3, 1))) == 0).all()
    assert effective_skills([[0, 0], [1, 0], [1, 1]]).tolist() == [0, 1, 2]


def test_discreteness_is_zero_for_binary_gates_and_one_for_halves():
    z = np.array([[-40.0, 40.0], [0.0, 0.0], [1.0, -1.0]])
    g = 1 / (1 + np.exp(-z))
    p = g[2, 0]
    binary = -(p * np.log(p) + (1 - p) * np.log(1 - p)) / np.log(2)
    np.testing.assert_allclose(discreteness(g), [0, 1, binary], atol=1e-12)
    assert discreteness([0.0, 1.0]) == 0


def test_usage_sees_the_skills_of_all_tasks_together():
    assert usage(np.eye(4)) == pytest.approx(1)
    assert usage(np.tile([0, 1, 0, 0], (3, 1))) == 0
    assert usage([[1, 0, 0, 0], [0, 1, 0, 0]]) == pytest.approx(0.5)
    assert usage(np.ones((3, 2, 1))).tolist() == [1, 1]  # one skill: all that there is


def test_load_balance_ends():
    even, one = np.ones(4), np.array([1, 0, 0, 0])
    assert load_balance(even, even) == pytest.approx(1)
    assert load_balance(one, one) == pytest.approx(4)
    assert variation(even) == pytest.approx(0)
    assert variation(one) == pytest.approx(np.sqrt(3))


def test_similarity_averages_cosines():
    w = np.random.default_rng(0).normal(size=(3, 4, 2, 5))
    expected = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            for layer in range(4):
                for head in range(2):
                    a, b = w[i, layer, head], w[j, layer, head]
                    expected[i, j] += a @ b / np.linalg.norm(a) / np.linalg.norm(b) / 8
    np.testing.assert_allclose(similarity(w), expected, atol=1e-14)


def test_nearest_is_in_falling_order_without_the_task_itself():
    similar = np.array([[1, 0.2, 0.9, 0.2], [0.2, 1, 0, 0], [0.9, 0, 1, 0], [0.2, 0, 0, 1]])
    assert nearest(similar, 0).tolist() == [2, 1, 3]


@given(WEIGHTS, st.permutations(range(5)), st.floats(0.01, 100))
def test_measures_know_neither_the_names_of_skills_nor_a_scale(weights, order, scale):
    other = scale * weights[..., order]
    for measure in (entropy, effective_skills, usage, variation):
        np.testing.assert_allclose(measure(other), measure(weights), atol=1e-9)
    np.testing.assert_allclose(similarity(other), similarity(weights), atol=1e-9)


@given(WEIGHTS)
def test_measures_stay_in_their_range(weights):
    for value in (entropy(weights), usage(weights), discreteness(shares(weights))):
        assert ((value >= 0) & (value <= 1 + 1e-12)).all()
    used = weights.any(axis=-1)
    effective = effective_skills(weights)
    assert ((effective[used] >= 1) & (effective[used] <= 5 + 1e-9)).all()
    assert (effective[~used] == 0).all()
