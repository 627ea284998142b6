"""Accuracy over the whole range, and values that a step should survive: infinities, NaN, enormous scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polymoe import functional as F

SWEEP = np.linspace(-12, 12, 200_001, dtype=np.float32)


def test_gelu_is_exact_to_1e_6(isa: str) -> None:
    x = SWEEP.astype(np.float64)
    phi = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    y, saved = F.gelu(SWEEP)
    assert np.max(np.abs(y - x * phi)) < 1e-6
    slope = phi + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    assert np.max(np.abs(F.gelu_backward(saved, np.ones_like(SWEEP)).dx - slope)) < 1e-6


def test_gelu_tail_has_relative_accuracy(isa: str) -> None:
    x = np.linspace(-6, -0.5, 10_001, dtype=np.float32)
    want = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])
    assert np.max(np.abs(F.gelu(x)[0] / want - 1)) < 5e-6


def test_softmax_has_relative_accuracy(isa: str) -> None:
    """Gradients of the cross entropy are exp(x - lse): our exp, from its largest results to about 1e-37."""
    logits = np.concatenate([[0.0], -np.linspace(1e-3, 80, 20_001)]).astype(np.float32)[None]
    _, saved = F.cross_entropy(logits, [0])
    got = F.cross_entropy_backward(saved, 1.0).dlogits[0, 1:].astype(float)
    argument = (logits[0, 1:] - saved.lse[0]).astype(float)  # rounded to float32 as the kernel rounds it
    assert np.max(np.abs(got / np.exp(argument) - 1)) < 3e-7


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_at_infinity_and_nan(isa: str, approximate: str) -> None:
    x = np.array([np.inf, 1e30, 100, -100, np.nan] * 5, np.float32)
    y, saved = F.gelu(x, approximate)
    assert np.array_equal(y[:5], np.array([np.inf, 1e30, 100, 0, np.nan], np.float32), equal_nan=True)
    slope = F.gelu_backward(saved, np.ones_like(x)).dx
    assert np.array_equal(slope[2:5], np.array([1, 0, np.nan], np.float32), equal_nan=True)


def test_relu_at_infinity_and_nan(isa: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, -0.0, 1e-38] * 5, np.float32)
    y, saved = F.relu(x)
    assert np.array_equal(y[:5], np.array([np.inf, 0, np.nan, 0, 1e-38], np.float32), equal_nan=True)
    assert np.array_equal(F.relu_backward(saved, np.ones_like(x)).dx[[0, 1, 3, 4]], [1, 0, 0, 1])


def qkv(n: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(3, n, 32)).astype(np.float32))


def test_attention_nan_stays_in_its_example(isa: str) -> None:
    q, k, v = qkv(60)
    v[10, 3] = np.nan
    y, saved = F.attention(q, k, v, [0, 20, 60], 2)
    assert np.isnan(y[:20, 3]).all()
    assert np.isfinite(y[20:]).all()
    grads = F.attention_backward(saved, np.ones_like(y))
    assert np.isnan(grads.dq[:20, :16]).all()
    assert all(np.isfinite(g[20:]).all() for g in grads)


@pytest.mark.parametrize("where", [0, 1])
def test_attention_nan_scores_make_nan(isa: str, where: int) -> None:
    arrays = qkv(40)
    arrays[where][5, 0] = np.nan
    y, _ = F.attention(*arrays, [0, 40], 2)
    assert np.isnan(y[5 if where == 0 else slice(None), :16]).all()
    assert np.isfinite(y[:, 16:]).all()


def test_attention_with_enormous_scores_is_a_choice(isa: str) -> None:
    q, k, v = qkv(50)
    y, saved = F.attention(q * 1e4, k, v, [0, 50], 2)
    choice = np.concatenate(
        [v[(q[:, h] @ k[:, h].T).argmax(axis=1), h] for h in (slice(0, 16), slice(16, 32))], 1
    )
    assert np.max(np.abs(y - choice)) < 1e-3
    assert all(np.isfinite(g).all() for g in F.attention_backward(saved, np.ones_like(y)))


def test_cross_entropy_with_enormous_logits() -> None:
    logits = np.array([[1e4, 0, -1e4]], np.float32)
    loss, saved = F.cross_entropy(logits, [2])
    assert loss == np.float32(2e4)
    assert np.array_equal(F.cross_entropy_backward(saved, 1.0).dlogits, [[1, 0, -1]])


def test_layer_norm_with_a_large_mean(isa: str) -> None:
    x = np.random.default_rng(0).normal(size=(5, 384))
    got, _ = F.layer_norm((x + 100).astype(np.float32), np.ones(384, np.float32), np.zeros(384, np.float32))
    assert np.max(np.abs(got - (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True))) < 1e-4


def test_router_at_the_ends_of_the_noise(isa: str) -> None:
    noise = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    weights, saved = F.task_router(np.zeros((1, 1, 3), np.float32), [0], noise)
    np.testing.assert_allclose(weights[0, 0], [0, 1 / 3, 2 / 3], rtol=1e-6)
    assert np.isfinite(F.task_router_backward(saved, np.ones_like(weights)).dlogits).all()


def test_router_meets_the_golden_values() -> None:
    for temperature, gate in ((1.0, 0.7590170140720099), (0.5, 0.9084284688124459)):
        _, saved = F.task_router([[[0.3]]], [0], [[[0.7]]], temperature)
        assert abs(float(saved.gates[0, 0, 0]) - gate) < 1e-12
    b, q, s = 3, 2, 3
    logits = np.sin(0.7 * np.arange(5 * q * s) + 0.4).reshape(5, q, s)
    noise = 1 / (1 + np.exp(-np.sin(0.7 * np.arange(b * q * s) + 0.5))).reshape(b, q, s)
    weights, _ = F.task_router(logits, [2, 0, 2], noise, 0.8)
    np.testing.assert_allclose(weights[0, 0], [0.3744625876, 0.3526345392, 0.2729028733], atol=1e-10)


def test_router_ignores_temperature_without_noise() -> None:
    logits = np.array([[[1.0, -2.0]]])
    assert np.array_equal(F.task_router(logits, [0], None, 0.1)[0], F.task_router(logits, [0])[0])
