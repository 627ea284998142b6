"""Linear layers of one x in one pass: the same bits as one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polymoe import functional as F
from polymoe import tape as T
from polymoe.parameters import Parameter
from polymoe.threads import num_threads

N, D = 300, 530  # three chunks, the last one cut; two staged blocks
GRADIENTS = ("lora_A", "lora_B", "weights")


def bank(rng: np.random.Generator, O: int, S: int = 3, r: int = 4) -> dict[str, Any]:
    return {"lora_A": drawn(rng, S, r, D), "lora_B": drawn(rng, S, r, O)}


def drawn(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def kinds() -> dict[str, dict[str, Any]]:
    """One layer of each form, of different widths."""
    rng = np.random.default_rng(0)
    groups = {"adapter_ids": np.array([1, 0, 1, 1]), "cu_seqlens": np.array([0, 3, 140, 145, N])}
    few = {"adapter_ids": np.arange(N) % 2, "cu_seqlens": np.arange(N + 1)}
    return {
        "plain": {"weight": drawn(rng, 70, D), "bias": drawn(rng, 70)},
        "mix": {"weight": drawn(rng, 130, D), **bank(rng, 130), "weights": drawn(rng, 2, 2, 3), **groups},
        "concat": {
            "weight": drawn(rng, 64, D), **bank(rng, 64), "weights": drawn(rng, 2, 1, 3), **few,
            "formulation": "concat",
        },
        "outputs": {
            "weight": drawn(rng, 520, D), **bank(rng, 520), "weights": drawn(rng, 2, 1, 3), **groups,
            "mixing": "outputs",
        },
        "gather": {
            "weight": drawn(rng, 33, D), **bank(rng, 33), "weights": drawn(rng, 2, 2), **groups,
            "mixing": "outputs", "ids": np.array([[0, 2], [1, 0]]),
        },
        "turns": {"weight": drawn(rng, 70, D), **bank(rng, 70), "weights": drawn(rng, 2, 2, 3), **few},
        "gathered turns": {
            "weight": drawn(rng, 33, D), **bank(rng, 33), "weights": drawn(rng, 2, 2), **few,
            "mixing": "outputs", "ids": np.array([[0, 2], [1, 0]]),
        },
        "alone": {"weight": None, **bank(rng, 48), "weights": None, **groups, "scale": 0.5},
        "bfloat16": {"weight": F.PackedWeight(drawn(rng, 96, D), "bfloat16"), **bank(rng, 96, 1)},
    }  # fmt: skip


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(
    "names",
    [
        ("mix", "concat", "plain"),
        ("outputs", "gather", "alone", "bfloat16"),
        ("turns", "mix", "gathered turns"),
    ],
)
def test_layers_of_one_x_give_the_bits_of_each_alone(
    names: tuple[str, ...], activation: Any, n_threads: int, isa: str
) -> None:
    rng = np.random.default_rng(1)
    layers = [kinds()[name] for name in names]
    x, times = drawn(rng, N, D), drawn(rng, N, D) if activation else None
    onto = drawn(rng, N, D)
    ys, saved = F.linears(x, layers, activation, times)
    dys = [drawn(rng, *y.shape) for y in ys]
    alone = [F.linear(x, **layer, activation=activation, times=times) for layer in layers]
    with num_threads(n_threads):
        again, _ = F.linears(x, layers, activation, times)
        grads = F.linears_backward(saved, dys, onto=onto)
    dx = onto
    for i in reversed(range(len(layers))):
        y, kept = alone[i]
        np.testing.assert_array_equal(ys[i], y)
        np.testing.assert_array_equal(again[i], y)
        wanted = F.linear_backward(kept, dys[i], onto=None if activation else dx)
        for name in GRADIENTS:
            found, expected = (getattr(g, "d" + name) for g in (grads[i], wanted))
            assert (found is None) == (expected is None)
            if found is not None:
                np.testing.assert_array_equal(found, expected)
        dx = wanted.dx if not activation else dx + wanted.dx
    if activation:  # summed before or after the slope is multiplied
        np.testing.assert_allclose(grads[0].dx, dx, atol=1e-4 * np.abs(dx).max())
    else:
        np.testing.assert_array_equal(grads[0].dx, dx)


def test_few_tokens_share_columns_between_threads() -> None:
    layers = [kinds()[name] for name in ("plain", "bfloat16")]
    x = drawn(np.random.default_rng(2), 5, D)
    with num_threads(1):
        ys, _ = F.linears(x, layers)
    with num_threads(4):
        for y, again in zip(ys, F.linears(x, layers)[0], strict=True):
            np.testing.assert_array_equal(y, again)


def trained(layer: dict[str, Any]) -> dict[str, Any]:
    """Its factors as parameters."""
    return {k: Parameter(v.copy(), "skills") if k in ("lora_A", "lora_B") else v for k, v in layer.items()}


def test_a_tape_records_layers_of_one_x_as_one() -> None:
    """Also where one of the results is not used or needs no gradient."""
    rng = np.random.default_rng(3)
    x, scale = drawn(rng, N, D), drawn(rng, N, 130)
    apart, joint = ([trained(kinds()[n]) for n in ("mix", "gather")] for _ in range(2))
    plain = kinds()["plain"]
    for trains_x in (False, True):
        found = []
        for layers, share in ((apart, lambda x, f: f(x)), (joint, T.together)):
            node = T.Node(x) if trains_x else x
            with T.Tape() as tape:
                y, unused, constant = share(
                    node, lambda x, layers=layers: [T.linear(x, **layer) for layer in (*layers, plain)]
                )
                loss = T.multiply(y, scale)
            assert isinstance(constant, T.Node) == trains_x
            assert isinstance(unused, T.Node)
            for layer in layers:
                layer["lora_A"].grad = layer["lora_B"].grad = None
            tape.backward(loss, np.ones_like(loss.data))
            assert layers[1]["lora_A"].grad is None
            found.append(
                (loss.data, layers[0]["lora_A"].grad, layers[0]["lora_B"].grad, getattr(node, "grad", None))
            )
        for a, b in zip(*found, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_is_no_linear_layer_reads_x_itself() -> None:
    x = drawn(np.random.default_rng(4), 4, D)
    layer = kinds()["plain"]

    def products(shared: Any) -> tuple[Any, ...]:
        assert shared.shape == x.shape
        first = T.linear(shared, **layer)
        twice = T.add(T.linear(shared, **layer), first)
        return first, twice, T.relu(shared)

    first, twice, positive = T.together(x, products)
    np.testing.assert_array_equal(twice, 2 * first)
    np.testing.assert_array_equal(positive, np.maximum(x, 0))


def test_too_many_layers_are_refused() -> None:
    layer = kinds()["plain"]
    x = np.zeros((1, D), np.float32)
    for n in (0, 9):
        with pytest.raises(TypeError, match=f"linear_fwd: expected 1 to 8 layers, got {n}"):
            F.linears(x, [layer] * n)


def test_a_layer_that_reads_its_own_way_is_computed_by_itself() -> None:
    x, layer = drawn(np.random.default_rng(5), 40, D), kinds()["plain"]
    ys = T.together(x, lambda x: (T.linear(x, **layer), T.linear(x, **layer, activation="relu")))
    np.testing.assert_array_equal(ys[1], F.linear(x, **layer, activation="relu")[0])
    with pytest.raises(TypeError, match="multiple values for argument 'weight'"):
        T.together(x, lambda x: (T.linear(x, layer["weight"], weight=layer["weight"]),))


def test_more_layers_than_a_pass_takes_are_several_passes() -> None:
    x, layer = drawn(np.random.default_rng(6), 40, D), kinds()["plain"]
    ys = T.together(x, lambda x: [T.linear(x, **layer) for _ in range(11)])
    assert all(np.array_equal(y, F.linear(x, **layer)[0]) for y in ys)
    assert len(ys) == 11


def test_what_a_tape_goes_back_from_keeps_its_gradient() -> None:
    x = T.Node(drawn(np.random.default_rng(7), 40, D))
    layer = kinds()["plain"]
    with T.Tape() as tape:
        y, other = T.together(x, lambda x: [T.linear(x, **layer), T.linear(x, **layer)])
    dy = np.ones_like(y.data)
    tape.backward(y, dy)
    np.testing.assert_array_equal(y.grad, dy)
    assert other.grad is None
