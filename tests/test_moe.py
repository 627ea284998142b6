"""Experts mixed by their outputs, token routers and pooling: golden values, identities, refusals."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from polymoe import functional as F
from polymoe import tape as T


def fill(*shape: int, phi: float) -> np.ndarray:
    return np.sin(0.7 * np.arange(np.prod(shape)) + phi).reshape(shape)


def experts(seed: int, N: int = 60, D: int = 24, O: int = 20, r: int = 4, S: int = 5, S_A: int = 5) -> Any:
    rng = np.random.default_rng(seed)
    shapes = {"x": (N, D), "weight": (O, D), "bias": (O,), "lora_A": (S_A, r, D), "lora_B": (S, r, O)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()} | {"scale": 0.5}


def single(args: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v.astype(np.float32) if getattr(v, "dtype", None) == np.float64 else v for k, v in args.items()
    }


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("formulation", ["dense", "buckets"])
@pytest.mark.parametrize(
    ("threshold", "first", "total"),
    [
        (-0.3, (8.9560145647, 5.0420594739, -7.2420456785), -4.8756950428491646),
        (-0.6, (5.8755521650, 5.5261957032, -3.9970087754), 17.56441471793426),
    ],
)
def test_mosld_gives_golden_values(
    threshold: float, first: tuple[float, ...], total: float, formulation: Any
) -> None:
    x, A = fill(5, 4, phi=0.1), np.where(fill(2, 4, phi=0.9) > threshold, fill(2, 4, phi=0.2), 0) / 0.9
    B = fill(4, 3, 2, phi=0.3).transpose(0, 2, 1)
    logits, _ = F.dense(x, fill(4, 4, phi=0.4))
    weights, saved = F.topk_router(logits, 2)
    y, _ = F.moe(x, None, None, A[None], B, weights, saved.ids, 16 / 2, formulation)
    np.testing.assert_allclose(y[0], first, atol=1e-9)
    np.testing.assert_allclose(y.sum(), total, atol=1e-9)
    np.testing.assert_allclose(F.balance_loss(logits, saved.ids)[0], 1.025827358678616, atol=1e-9)


def test_orchmoe_gives_golden_values() -> None:
    x, cu_seqlens = fill(3, 4, 5, phi=0.1), np.array([0, 4, 7, 9])
    tokens = x[np.arange(4) < np.diff(cu_seqlens)[:, None]]
    pooled, _ = F.attention_pool(tokens, fill(5, phi=1.1), cu_seqlens)
    p, _ = F.softmax_router(F.dense(pooled, fill(3, 5, phi=0.4), fill(3, phi=0.5))[0])
    u = 1 / (1 + np.exp(-fill(3, 1, 4, phi=0.9)))
    allocation, _ = F.task_router(fill(3, 1, 4, phi=0.7), [0, 1, 2], u)
    alpha, _ = F.mix(p[:, None], allocation)
    want = [
        (0.2180952429, 0.2676301323, 0.2736835038, 0.240591121),
        (0.1999981180, 0.2613728717, 0.2771544353, 0.2614745750),
        (0.2271784354, 0.2614908338, 0.2663922200, 0.2449385111),
    ]
    np.testing.assert_allclose(alpha[:, 0], want, atol=1e-9)
    A, B = fill(4, 2, 5, phi=0.2), fill(4, 4, 2, phi=0.3).transpose(0, 2, 1)
    y, _ = F.linear(tokens, None, None, A, B, alpha, [0, 1, 2], cu_seqlens, 0.5, mixing="outputs")
    np.testing.assert_allclose(y[0], (-0.294545231, 0.3832030284, 0.4248090788, -0.2387958576), atol=1e-9)
    np.testing.assert_allclose(y.sum(), 0.03389059490902557, atol=1e-9)


def test_alter_gate_gives_golden_value() -> None:
    gate, _ = F.softmax_router([[0.22, 0.22, 0.2, 0.2, 0.2]], 0.1)
    np.testing.assert_allclose(gate[0], [0.2244068348] * 2 + [0.1837287768] * 3, atol=1e-9)


@pytest.mark.parametrize("S_A", [1, 5])
def test_all_experts_by_id_are_dense(S_A: int) -> None:
    args, rng = experts(0, S_A=S_A), np.random.default_rng(1)
    logits, dy = rng.normal(size=(60, 5)), rng.normal(size=(60, 20))
    w, router = F.softmax_router(logits)
    y, saved = F.moe(**args, weights=w)
    want = F.moe_backward(saved, dy)
    dlogits = F.softmax_router_backward(router, want.dweights).dlogits
    for formulation in ("dense", "buckets"):
        kept, top = F.topk_router(logits, 5)
        z, other = F.moe(**args, weights=kept, ids=top.ids, formulation=formulation)
        close(z, y)
        grads = F.moe_backward(other, dy)
        close(grads.dx, want.dx)
        close(grads.dlora_A, want.dlora_A)
        close(grads.dlora_B, want.dlora_B)
        close(F.topk_router_backward(top, grads.dweights).dlogits, dlogits)


@pytest.mark.parametrize("S_A", [1, 5])
def test_one_hot_is_that_expert(S_A: int) -> None:
    args, chosen = experts(2, S_A=S_A), np.arange(60) * 7 % 5
    one = {k: v for k, v in args.items() if k != "lora_A"}
    lora_A = np.broadcast_to(args["lora_A"], (5, 4, 24))
    want, _ = F.linear(**one, lora_A=lora_A, adapter_ids=chosen, cu_seqlens=np.arange(61))
    close(F.moe(**args, weights=np.eye(5)[chosen])[0], want)
    close(F.moe(**args, weights=np.ones((60, 1)), ids=chosen[:, None])[0], want)


@pytest.mark.parametrize("formulation", ["dense", "buckets"])
def test_one_shared_expert_is_lora(formulation: Any) -> None:
    args = experts(3, S=1, S_A=1)
    y, saved = F.linear(**args)
    z, other = F.moe(**args, weights=np.ones((60, 1)), ids=np.zeros((60, 1), int), formulation=formulation)
    close(z, y)
    grads, want = F.moe_backward(other, np.cos(y)), F.linear_backward(saved, np.cos(y))
    for name in ("dx", "dlora_A", "dlora_B"):
        close(getattr(grads, name), getattr(want, name))


def test_weights_of_an_example_are_those_of_its_tokens() -> None:
    args, w = experts(4), np.random.default_rng(5).normal(size=(3, 1, 5))
    lengths = [20, 0, 40]
    y, saved = F.linear(**args, weights=w, adapter_ids=range(3), cu_seqlens=[0, 20, 20, 60], mixing="outputs")
    z, other = F.moe(**args, weights=np.repeat(w[:, 0], lengths, axis=0))
    close(z, y)
    by_token = F.moe_backward(other, y).dweights
    close(F.linear_backward(saved, y).dweights[[0, 2], 0], [by_token[:20].sum(0), by_token[20:].sum(0)])


def test_choosing_an_expert_twice_adds_its_weights() -> None:
    args, w = experts(6), np.random.default_rng(7).normal(size=(60, 2))
    ids = np.full((60, 2), 3)
    y, saved = F.moe(**args, weights=w, ids=ids)
    z, other = F.moe(**args, weights=w, ids=ids, formulation="dense")
    assert saved.buckets
    close(y, z)
    for a, b in zip(F.moe_backward(saved, y), F.moe_backward(other, y), strict=True):
        close(a, b)


@pytest.mark.parametrize("S_A", [1, 9])
def test_experts_that_no_token_chose_are_not_touched(isa: str, S_A: int) -> None:
    args = single(experts(8, N=700, S=9, S_A=S_A))
    ids = np.array([7, 2, 5])[np.random.default_rng(9).integers(0, 3, (700, 2))]
    w = np.ones((700, 2), np.float32)
    rest = [0, 1, 3, 4, 6, 8]
    args["lora_B"][rest] = np.nan
    if S_A == 9:
        args["lora_A"][rest] = np.nan
    y, saved = F.moe(**args, weights=w, ids=ids)
    grads = F.moe_backward(saved, np.cos(y))
    assert all(np.isfinite(a).all() for a in (y, *grads))
    assert not grads.dlora_B[rest].any()
    assert grads.dlora_B[[2, 5, 7]].all()


@pytest.mark.parametrize("S_A", [1, 6])
@pytest.mark.parametrize("formulation", ["dense", "buckets"])
def test_token_gives_the_same_bits_in_any_company(isa: str, formulation: Any, S_A: int) -> None:
    args = single(experts(10, N=600, S=6, S_A=S_A))
    w, router = F.topk_router(np.random.default_rng(11).normal(size=(600, 6)).astype(np.float32), 2)
    y, saved = F.moe(**args, weights=w, ids=router.ids, formulation=formulation)
    grads = F.moe_backward(saved, np.cos(y))
    for rows in (slice(0, 1), slice(100, 137), slice(500, 600)):
        part = {**args, "x": args["x"][rows], "weights": w[rows], "ids": router.ids[rows]}
        z, other = F.moe(**part, formulation=formulation)
        assert z.tobytes() == y[rows].tobytes()
        alone = F.moe_backward(other, np.cos(z))
        assert alone.dx.tobytes() == grads.dx[rows].tobytes()
        assert alone.dweights.tobytes() == grads.dweights[rows].tobytes()


@pytest.mark.parametrize("S_A", [1, 6])
@pytest.mark.parametrize("formulation", ["dense", "buckets"])
def test_only_needed_gradients_are_computed(formulation: Any, S_A: int) -> None:
    args = experts(12, S=6, S_A=S_A)
    w, router = F.topk_router(np.random.default_rng(13).normal(size=(60, 6)), 2)
    y, saved = F.moe(**args, weights=w, ids=router.ids, formulation=formulation)
    everything = F.moe_backward(saved, y)._asdict()
    for name in ("x", "lora_A", "lora_B", "weights"):
        grads = F.moe_backward(saved, y, {name})._asdict()
        assert grads["d" + name].tobytes() == everything["d" + name].tobytes()
        assert all(value is None for key, value in grads.items() if key != "d" + name)


def test_auto_takes_buckets_up_to_two_fifths_of_the_experts() -> None:
    args, ids = experts(14), np.zeros((60, 3), int)
    taken = [F.moe(**args, weights=np.ones((60, k)), ids=ids[:, :k])[1].buckets for k in (1, 2, 3)]
    assert taken == [True, True, False]
    assert not F.moe(**args, weights=np.ones((60, 5)))[1].buckets


def test_ties_go_to_the_lower_index(isa: str) -> None:
    logits = np.array([[1, 3, 3, 1, 3], [0, 0, 0, 0, 0]], np.float32)
    weights, saved = F.topk_router(logits, 4)
    assert saved.ids.tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    np.testing.assert_array_equal(weights[1], np.float32(0.25))


def test_topk_is_the_softmax_cut_and_normalised_again(isa: str) -> None:
    logits = np.random.default_rng(15).normal(size=(200, 7)).astype(np.float32)
    weights, saved = F.topk_router(logits, 3)
    full, _ = F.softmax_router(logits)
    kept = np.take_along_axis(full, saved.ids, axis=1)
    np.testing.assert_allclose(weights, kept / kept.sum(1, keepdims=True), rtol=2e-6)
    assert np.all(np.diff(weights, axis=1) <= 0)


def test_topk_of_one_has_weight_one_and_no_gradient() -> None:
    weights, saved = F.topk_router(np.random.default_rng(16).normal(size=(9, 4)), 1)
    assert np.all(weights == 1)
    assert not F.topk_router_backward(saved, np.ones((9, 1))).dlogits.any()


def test_topk_ranks_nan_last_and_keeps_ids_valid(isa: str) -> None:
    logits = np.array([[np.nan, 1, -np.inf, 2], [np.nan] * 4], np.float32)
    weights, saved = F.topk_router(logits, 3)
    assert saved.ids.tolist() == [[3, 1, 2], [0, 1, 2]]
    assert np.isfinite(weights[0]).all()
    assert np.isnan(weights[1]).all()


def test_balance_loss_is_one_when_balanced_and_largest_when_collapsed() -> None:
    even = F.balance_loss(np.zeros((8, 4)), np.arange(16).reshape(8, 2) % 4)[0]
    alone = F.balance_loss(np.array([[50.0, 0, 0, 0]] * 8), np.zeros((8, 1), int))[0]
    np.testing.assert_allclose([even, alone], [1, 4], rtol=1e-12)
    assert F.balance_loss(np.zeros((0, 4)), np.zeros((0, 2), int))[0] == 0


def test_a_query_of_zeros_pools_the_mean() -> None:
    x, cu_seqlens = np.random.default_rng(17).normal(size=(9, 5)), [0, 4, 4, 9]
    close(F.attention_pool(x, np.zeros(5), cu_seqlens)[0], F.mean_pool(x, cu_seqlens)[0])


def test_router_on_the_tape_gives_ids_beside_weights() -> None:
    args, logits = experts(18, S=8, S_A=8), T.Node(np.random.default_rng(19).normal(size=(60, 8)))
    with T.Tape() as tape:
        weights, ids = T.topk_router(logits, 2)
        y = T.moe(**args, weights=weights, ids=ids)
        balance = T.balance_loss(logits, ids)
    tape.backward(y, np.ones(y.shape))
    through_moe = logits.grad
    assert isinstance(ids, np.ndarray)
    assert isinstance(balance, T.Node)
    assert np.count_nonzero(through_moe) == 120
    plain, plain_ids = T.topk_router(logits.data, 2)
    assert isinstance(plain, np.ndarray)
    assert np.array_equal(plain_ids, ids)


ARGS: dict[str, Any] = {
    "x": np.ones((5, 8)),
    "weight": np.ones((6, 8)),
    "bias": None,
    "lora_A": np.ones((3, 2, 8)),
    "lora_B": np.ones((3, 2, 6)),
    "weights": np.ones((5, 2)),
    "ids": np.zeros((5, 2), int),
}
BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (F.moe, {"lora_A": np.ones((2, 2, 8))}, ValueError, "lora_A: expected 1 or 3 experts, got 2"),
    (F.moe, {"lora_B": np.ones((3, 4, 6))}, ValueError, "lora_B: expected shape (any, 2, 6), got (3, 4, 6)"),
    (F.moe, {"weights": np.ones((5, 3))}, ValueError, "weights: expected shape (5, 2), got (5, 3)"),
    (F.moe, {"ids": None}, ValueError, "weights: expected shape (5, 3), got (5, 2)"),
    (F.moe, {"ids": np.full((5, 2), 3)}, IndexError, "ids: expected values from 0 to 2, got 3 at position 0"),
    (F.moe, {"ids": np.zeros((5, 2))}, TypeError, "ids: expected integers, got dtype float64"),
    (F.moe, {"weights": np.ones((5, 2), "f4")}, TypeError, "weights: expected dtype float64, got float32"),
    (
        F.moe,
        {"ids": None, "weights": np.ones((5, 3)), "formulation": "buckets"},
        TypeError,
        "ids: expected an array to go with buckets, got None",
    ),
    (
        F.moe,
        {"formulation": "fast"},
        ValueError,
        "formulation: expected 'auto', 'dense' or 'buckets', got 'fast'",
    ),
    (
        F.moe,
        {"lora_A": np.ones((3, 0, 8)), "lora_B": np.ones((3, 0, 6))},
        ValueError,
        "lora_A: expected a rank of at least 1, got 0",
    ),
    (
        F.moe,
        {"weight": None, "bias": None, "lora_B": np.ones((3, 2, 0))},
        ValueError,
        "lora_B: expected at least one column, got none",
    ),
    (F.topk_router, {"logits": np.ones((2, 3)), "k": 4}, ValueError, "k: expected 1 to 3, got 4"),
    (F.topk_router, {"logits": np.ones((2, 3)), "k": 0}, ValueError, "k: expected 1 to 3, got 0"),
    (
        F.topk_router,
        {"logits": np.ones(3), "k": 1},
        ValueError,
        "logits: expected shape (any, any), got (3,)",
    ),
    (
        F.softmax_router,
        {"logits": np.ones((2, 3)), "temperature": 0.0},
        ValueError,
        "temperature: expected a positive number, got 0.0",
    ),
    (
        F.softmax_router,
        {"logits": np.ones((2, 0))},
        ValueError,
        "logits: expected at least one column, got none",
    ),
    (
        F.balance_loss,
        {"logits": np.ones((2, 3)), "ids": [[0], [3]]},
        IndexError,
        "ids: expected values from 0 to 2, got 3 at position 1",
    ),
    (
        F.balance_loss,
        {"logits": np.ones((2, 3)), "ids": [[0]]},
        ValueError,
        "ids: expected shape (2, any), got (1, 1)",
    ),
    (
        F.attention_pool,
        {"x": np.ones((4, 3)), "query": np.ones(2), "cu_seqlens": [0, 4]},
        ValueError,
        "query: expected shape (3,), got (2,)",
    ),
    (
        F.attention_pool,
        {"x": np.ones((4, 3)), "query": np.ones(3), "cu_seqlens": [0, 3]},
        ValueError,
        "cu_seqlens: expected offsets that start at 0, never fall and end at 4, got others",
    ),
]


@pytest.mark.parametrize(("op", "change", "error", "message"), BAD, ids=[b[3] for b in BAD])
def test_bad_arguments_are_refused(
    op: Any, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        op(**{**ARGS, **change} if op is F.moe else change)


def test_shapes_of_dy_are_checked() -> None:
    logits = np.ones((4, 3))
    for op, args in [
        (F.moe, ARGS),
        (F.softmax_router, {"logits": logits}),
        (F.topk_router, {"logits": logits, "k": 2}),
        (F.balance_loss, {"logits": logits, "ids": np.zeros((4, 1), int)}),
        (F.attention_pool, {"x": logits, "query": np.ones(3), "cu_seqlens": [0, 4]}),
    ]:
        y, saved = op(**args)
        with pytest.raises(ValueError, match="expected shape"):
            getattr(F, op.__name__ + "_backward")(saved, np.zeros((*y.shape, 2)))
