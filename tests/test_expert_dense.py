"""Whole experts with trainable weights: a loop over experts says what they make; identities, refusals."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from polymoe import _core
from polymoe import functional as F
from polymoe import tape as T

LENGTHS = [130, 5, 0, 140, 3, 20]
CU_SEQLENS = np.cumsum([0, *LENGTHS])
ADAPTER_IDS = np.array([2, 0, 1, 2, 0, 0])
FORMS = [(apart, summed) for apart in (False, True) for summed in (False, True)]


def experts(seed: int, apart: bool, summed: bool, D: int = 24, O: int = 20, dtype: str = "f8") -> Any:
    """Four groups of two out of six experts; group 3 has no example, expert 4 is of group 3 alone."""
    rng, N = np.random.default_rng(seed), sum(LENGTHS)
    shapes = {"x": (N, 2, D) if apart else (N, D), "weight": (6, O, D), "bias": (6, O)}
    shapes |= {"weights": (4, 2)} if summed else {}
    args: dict[str, Any] = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    ids = [[3, 0], [1, 2], [5, 3], [4, 0]]
    return {**args, "ids": ids, "adapter_ids": ADAPTER_IDS, "cu_seqlens": CU_SEQLENS}


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


def loop(args: dict[str, Any], dy: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """y and gradients from one dense product per token's choice, tokens of a choice of an expert together."""
    x, weight, bias, ids = args["x"], args["weight"], args["bias"], np.array(args["ids"])
    group = np.repeat(args["adapter_ids"], np.diff(args["cu_seqlens"]))
    weights = args.get("weights")
    w = np.ones(ids.shape) if weights is None else weights
    y = np.zeros(dy.shape)
    grads = {name: np.zeros_like(args[name]) for name in ("x", "weight", "bias")} | {
        "weights": np.zeros_like(w)
    }
    for g, row in enumerate(ids):
        n = np.flatnonzero(group == g)
        for i, e in enumerate(row):
            of_x, of_y = ((n, i) if a.ndim == 3 else n for a in (x, y))
            z, saved = F.dense(x[of_x], weight[e], bias[e])
            y[of_y] += w[g, i] * z
            grad = F.dense_backward(saved, w[g, i] * dy[of_y])
            grads["x"][of_x] += grad.dx
            grads["weight"][e] += grad.dweight
            grads["bias"][e] += grad.dbias
            grads["weights"][g, i] = np.sum(z * dy[of_y])
    return y, grads


@pytest.mark.parametrize(("apart", "summed"), FORMS)
def test_experts_are_a_loop_of_dense(apart: bool, summed: bool, poisoned: None) -> None:
    args = experts(0, apart, summed)
    y, saved = F.expert_dense(**args)
    dy = np.random.default_rng(1).normal(size=y.shape)
    want, want_grads = loop(args, dy)
    close(y, want)
    grads = F.expert_dense_backward(saved, dy)
    close(grads.dx, want_grads["x"])
    close(grads.dweight, want_grads["weight"])
    close(grads.dbias, want_grads["bias"])
    assert (grads.dweights is None) is not summed
    if summed:
        close(grads.dweights, want_grads["weights"])


@pytest.mark.parametrize("summed", [False, True])
def test_one_expert_is_dense_bit_for_bit(isa: str, summed: bool) -> None:
    rng = np.random.default_rng(2)
    x, weight, bias = (rng.normal(size=s).astype("f4") for s in ((300, 600), (530, 600), (530,)))
    want, dense = F.dense(x, weight, bias)
    weights = np.ones((1, 1), "f4") if summed else None
    y, saved = F.expert_dense(x, weight[None], bias[None], [[0]], weights)
    assert y.tobytes() == want.tobytes()
    grads, want_grads = F.expert_dense_backward(saved, np.cos(y)), F.dense_backward(dense, np.cos(want))
    for name in ("dx", "dweight", "dbias"):
        assert getattr(grads, name).tobytes() == getattr(want_grads, name).tobytes(), name


@pytest.mark.parametrize(("apart", "summed"), FORMS)
def test_experts_not_in_use_do_not_matter_and_get_zeros(isa: str, apart: bool, summed: bool) -> None:
    args = experts(3, apart, summed, dtype="f4")
    want, saved = F.expert_dense(**args)
    want_grads = F.expert_dense_backward(saved, np.cos(want))
    args["weight"][4], args["bias"][4], args["weight"][[1, 2]] = np.nan, np.nan, np.nan  # group 1 is empty
    y, saved = F.expert_dense(**args)
    grads = F.expert_dense_backward(saved, np.cos(y))
    assert y.tobytes() == want.tobytes()
    assert grads.dx.tobytes() == want_grads.dx.tobytes()
    assert not grads.dweight[[1, 2, 4]].any()
    assert not grads.dbias[[1, 2, 4]].any()
    assert grads.dweight[[0, 3, 5]].all()
    if summed:
        assert not grads.dweights[[1, 3]].any()
        assert grads.dweights[[0, 2]].all()


@pytest.mark.parametrize(("apart", "summed"), FORMS)
def test_threads_do_not_change_bits(isa: str, threads: Any, apart: bool, summed: bool) -> None:
    args = experts(4, apart, summed, D=130, O=70, dtype="f4")
    results = []
    for n in (1, 2, 3, 4):
        threads(n)
        y, saved = F.expert_dense(**args)
        grads = F.expert_dense_backward(saved, np.cos(y))
        results.append([y.tobytes(), *(g.tobytes() for g in grads if g is not None)])
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize(("apart", "summed"), FORMS)
def test_example_gives_the_same_bits_in_any_company(isa: str, apart: bool, summed: bool) -> None:
    args = experts(5, apart, summed, dtype="f4")
    y, saved = F.expert_dense(**args)
    grads = F.expert_dense_backward(saved, np.cos(y))
    for b in (0, 1, 5):
        rows = slice(CU_SEQLENS[b], CU_SEQLENS[b + 1])
        part = {**args, "x": args["x"][rows], "adapter_ids": [ADAPTER_IDS[b]], "cu_seqlens": [0, LENGTHS[b]]}
        z, other = F.expert_dense(**part)
        assert z.tobytes() == y[rows].tobytes()
        assert F.expert_dense_backward(other, np.cos(z)).dx.tobytes() == grads.dx[rows].tobytes()


def test_groups_with_equal_rows_share_pieces_but_not_weights() -> None:
    args = experts(6, apart=True, summed=True)
    by_example = {
        "ids": np.array(args["ids"])[ADAPTER_IDS],
        "weights": args["weights"][ADAPTER_IDS],
        "adapter_ids": np.arange(6),
    }
    y, saved = F.expert_dense(**args)
    z, other = F.expert_dense(**{**args, **by_example})
    assert z.tobytes() == y.tobytes()
    grads, apart = F.expert_dense_backward(saved, np.cos(y)), F.expert_dense_backward(other, np.cos(y))
    assert apart.dx.tobytes() == grads.dx.tobytes()
    assert apart.dweight.tobytes() == grads.dweight.tobytes()
    sums = np.zeros((4, 2))
    np.add.at(sums, ADAPTER_IDS, apart.dweights)
    close(grads.dweights, sums)
    assert len(np.unique(apart.dweights[[0, 1, 3, 4, 5]])) == 10


def test_order_of_the_choices_is_a_matter_of_rounding() -> None:
    args = experts(7, apart=True, summed=True)
    flip = {
        "x": args["x"][:, ::-1],
        "ids": np.array(args["ids"])[:, ::-1],
        "weights": args["weights"][:, ::-1],
    }
    y, saved = F.expert_dense(**args)
    z, other = F.expert_dense(**{**args, **flip})
    close(z, y)
    grads, flipped = F.expert_dense_backward(saved, y), F.expert_dense_backward(other, y)
    close(flipped.dx[:, ::-1], grads.dx)
    close(flipped.dweights[:, ::-1], grads.dweights)
    close(flipped.dweight, grads.dweight)


def test_equal_feed_forwards_are_that_feed_forward_and_move_no_gate() -> None:
    """All experts copies of one, gates that sum to 1: the mixture is the feed-forward, all gate gradients of
    a group are equal."""
    rng, S, D, H = np.random.default_rng(8), 5, 12, 48
    x, up, down, b, c = (rng.normal(size=s) for s in ((40, D), (H, D), (D, H), (H,), (D,)))
    gates, _ = F.softmax_router(rng.normal(size=(3, S)))
    groups = {"adapter_ids": [2, 0], "cu_seqlens": [0, 15, 40]}
    ids = np.tile(np.arange(S), (3, 1))

    def copies(a: np.ndarray) -> np.ndarray:
        return np.repeat(a[None], S, axis=0)

    h, _ = F.gelu(F.expert_dense(x, copies(up), copies(b), ids, **groups)[0])
    y, saved = F.expert_dense(h, copies(down), copies(c), ids, gates, **groups)
    close(y, F.dense(F.gelu(F.dense(x, up, b)[0])[0], down, c)[0])
    dgates = F.expert_dense_backward(saved, np.cos(y)).dweights
    close(dgates, np.repeat(dgates[:, :1], S, axis=1))


@pytest.mark.parametrize(("apart", "summed"), FORMS)
def test_only_needed_gradients_are_computed(apart: bool, summed: bool) -> None:
    y, saved = F.expert_dense(**experts(9, apart, summed))
    everything = F.expert_dense_backward(saved, y)._asdict()
    for name in ("x", "weight", "bias", *(("weights",) if summed else ())):
        grads = F.expert_dense_backward(saved, y, {name})._asdict()
        assert grads["d" + name].tobytes() == everything["d" + name].tobytes()
        assert all(value is None for key, value in grads.items() if key != "d" + name)


def test_tape_differentiates_a_mixture_of_feed_forwards() -> None:
    args = experts(10, apart=False, summed=False)
    rng = np.random.default_rng(11)
    groups = {name: args[name] for name in ("ids", "adapter_ids", "cu_seqlens")}
    values = {
        "up": args["weight"],
        "b": args["bias"],
        "down": rng.normal(size=(6, 24, 20)),
        "w": rng.random((4, 2)),
    }
    dy, step = rng.normal(size=(len(args["x"]), 24)), 1e-6

    def layer(up: Any, b: Any, down: Any, w: Any) -> Any:
        h = T.gelu(T.expert_dense(args["x"], up, b, **groups))
        return T.expert_dense(h, down, None, weights=w, **groups)

    nodes = {name: T.Node(value) for name, value in values.items()}
    with T.Tape() as tape:
        y = layer(**nodes)
    tape.backward(y, dy)
    for name, node in nodes.items():
        v = rng.normal(size=node.shape)
        plus, minus = (np.sum(layer(**{**values, name: values[name] + h * v}) * dy) for h in (step, -step))
        np.testing.assert_allclose(np.sum(node.grad * v), (plus - minus) / (2 * step), rtol=1e-6)


ARGS: dict[str, Any] = {
    "x": np.ones((5, 2, 8)),
    "weight": np.ones((3, 6, 8)),
    "bias": np.ones((3, 6)),
    "ids": [[0, 2], [1, 0]],
    "weights": np.ones((2, 2)),
    "adapter_ids": [1, 0],
    "cu_seqlens": [0, 2, 5],
}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": np.ones(5)}, ValueError, "x: expected shape (any, 8), got (5,)"),
    ({"x": np.ones((5, 7))}, ValueError, "x: expected shape (any, 8), got (5, 7)"),
    ({"x": np.ones((5, 3, 8))}, ValueError, "x: expected shape (any, 2, 8), got (5, 3, 8)"),
    ({"x": np.ones((5, 8), "f4")}, TypeError, "weight: expected dtype float32, got float64"),
    ({"weight": np.ones((6, 8))}, ValueError, "weight: expected shape (any, any, any), got (6, 8)"),
    (
        {"weight": np.ones((0, 6, 8)), "bias": None, "ids": np.zeros((2, 2), int)},
        ValueError,
        "weight: expected extents of at least 1, got (0, 6, 8)",
    ),
    ({"bias": np.ones((3, 5))}, ValueError, "bias: expected shape (3, 6), got (3, 5)"),
    ({"bias": np.ones(6)}, ValueError, "bias: expected shape (3, 6), got (6,)"),
    ({"ids": [0, 2]}, ValueError, "ids: expected shape (any, any), got (2,)"),
    ({"ids": [[0, 1.5]]}, TypeError, "ids: expected integers, got dtype float64"),
    ({"ids": [[0, 2], [1, 3]]}, IndexError, "ids: expected values from 0 to 2, got 3 at position 3"),
    ({"ids": [[-1, 2], [1, 0]]}, IndexError, "ids: expected values from 0 to 2, got -1 at position 0"),
    ({"ids": [[0, 2], [1, 1]]}, ValueError, "ids: expected different experts in a row, got 1 twice in row 1"),
    (
        {"ids": np.zeros((2, 0), int), "x": np.ones((5, 8)), "weights": np.ones((2, 0))},
        ValueError,
        "ids: expected at least one expert in a row, got none",
    ),
    (
        {"ids": np.zeros((0, 2), int), "weights": None, "adapter_ids": None, "cu_seqlens": None},
        ValueError,
        "ids: expected at least one group, got none",
    ),
    ({"weights": np.ones((2, 3))}, ValueError, "weights: expected shape (2, 2), got (2, 3)"),
    ({"weights": np.ones((2, 2), "f4")}, TypeError, "weights: expected dtype float64, got float32"),
    ({"adapter_ids": [2, 0]}, IndexError, "adapter_ids: expected values from 0 to 1, got 2 at position 0"),
    ({"adapter_ids": [0]}, ValueError, "adapter_ids: expected shape (2,), got (1,)"),
    (
        {"cu_seqlens": [0, 2, 4]},
        ValueError,
        "cu_seqlens: expected offsets that start at 0, never fall and end at 5, got others",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[b[2] for b in BAD])
def test_bad_arguments_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        F.expert_dense(**{**ARGS, **change})


@pytest.mark.parametrize(("apart", "summed"), FORMS)
def test_shape_of_dy_is_checked(apart: bool, summed: bool) -> None:
    y, saved = F.expert_dense(**experts(12, apart, summed))
    for dy in (np.zeros((*y.shape, 2)), np.zeros(y.shape[:-1]), np.zeros((len(y) + 1, *y.shape[1:]))):
        with pytest.raises(ValueError, match="dy: expected shape"):
            F.expert_dense_backward(saved, dy)


def test_gradient_of_no_weights_is_refused() -> None:
    x, weight, ids = np.ones((2, 3)), np.ones((1, 4, 3)), np.zeros((1, 1), np.int64)
    args = (np.ones((2, 1, 4)), x, weight, None, ids, None, None, None, None, None, None, np.ones((1, 1)))
    with pytest.raises(TypeError, match="weights: expected a numpy array, got NoneType"):
        _core.expert_dense_bwd(*args)
