"""Bad input: the type and the exact words of every refusal, and nothing leaked or written on the way."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from polymoe import _core
from polymoe import functional as F


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def f64(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float64)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def frozen(a: np.ndarray) -> np.ndarray:
    a.setflags(write=False)
    return a


class Bad(NamedTuple):
    """A call, the error it raises and its whole message."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    error: type[Exception]
    message: str


ROUTER = (f32(3, 1, 4), [0, 2])
QKV = (f32(5, 6), f32(5, 6), f32(5, 6))
ADAM = (f32(9), f32(9), f32(9), f32(9))
OVERLAP = (
    "offsets, lengths: expected ascending segments in 0 to 9 that do not overlap, "
    "got {} and {} at position {}"
)

FRIENDLY = [
    Bad(F.add, (f32(2), f64(2)), TypeError, "b: expected dtype float32, got float64"),
    Bad(F.add, (f32(2), f32(3)), ValueError, "b: expected shape (2,), got (3,)"),
    Bad(F.add, (np.ones(2, int), [1, 2]), TypeError, "a: expected dtype float32 or float64, got int64"),
    Bad(F.add, (None, f32(1)), TypeError, "a: expected dtype float32 or float64, got object"),
    Bad(F.multiply, (f32(2, 3), f32(2)), ValueError, "b: expected shape (any, 3), got (1, 2)"),
    Bad(F.multiply, (f32(2, 3), f64(3)), TypeError, "b: expected dtype float32, got float64"),
    Bad(F.multiply, (f32(4), f32(3)), ValueError, "a: expected shape (any, any), got (4,)"),
    Bad(
        F.multiply,
        (f32(2, 3), f32(4, 3)),
        ValueError,
        "adapter_ids: expected a group for every example (b has 4 rows), got None",
    ),
    Bad(
        F.multiply,
        (f32(2, 3), f32(4, 3), [0, 4], [0, 1, 2]),
        IndexError,
        "adapter_ids: expected values from 0 to 3, got 4 at position 1",
    ),
    Bad(
        F.multiply,
        (f32(2, 3), f32(4, 3), [0, 1]),
        ValueError,
        "adapter_ids: expected shape (1,), got (2,)",
    ),
    Bad(
        F.multiply,
        (f32(2, 3), f32(4, 3), [0, 1], [0, 1, 3]),
        ValueError,
        "cu_seqlens: expected offsets that start at 0, never fall and end at 2, got others",
    ),
    Bad(F.scale_by, (f32(2), f32(2)), ValueError, "log_scale: expected shape (1,), got (2,)"),
    Bad(F.dropout, (f32(2), f32(3)), ValueError, "mask_scale: expected shape (2,), got (3,)"),
    Bad(F.gelu, (np.ones(2, np.float16),), TypeError, "x: expected dtype float32 or float64, got float16"),
    Bad(F.gelu, (f32(2), "fast"), ValueError, "approximate: expected one of ['none', 'tanh'], got 'fast'"),
    Bad(F.layer_norm, (f32(2, 3), f32(4), f32(3)), ValueError, "weight: expected shape (3,), got (4,)"),
    Bad(F.layer_norm, (f32(2, 3), f32(3), f64(3)), TypeError, "bias: expected dtype float32, got float64"),
    Bad(F.layer_norm, (f32(3), f32(3), f32(3)), ValueError, "x: expected shape (any, any), got (3,)"),
    Bad(F.layer_norm, (f32(2, 3), f32(3), f32(3), "1"), TypeError, "eps: expected a number, got str"),
    Bad(
        F.layer_norm,
        (f32(2, 3), f32(3), f32(3), 1e-5, f32(2, 4)),
        ValueError,
        "residual: expected shape (2, 3), got (2, 4)",
    ),
    Bad(F.l2_normalize, (f32(3),), ValueError, "x: expected shape (any, any), got (3,)"),
    Bad(
        F.embedding, ([0, 5], f32(5, 2)), IndexError, "ids: expected values from 0 to 4, got 5 at position 1"
    ),
    Bad(F.embedding, ([-1], f32(5, 2)), IndexError, "ids: expected values from 0 to 4, got -1 at position 0"),
    Bad(F.embedding, ([0.5], f32(5, 2)), TypeError, "ids: expected integers, got dtype float64"),
    Bad(F.embedding, ([0], f32(0, 2)), IndexError, "ids: expected values from 0 to -1, got 0 at position 0"),
    Bad(
        F.mean_pool,
        (f32(4, 2), [0, 3]),
        ValueError,
        "cu_seqlens: expected offsets that start at 0, never fall and end at 4, got others",
    ),
    Bad(
        F.mean_pool,
        (f32(4, 2), [0, 3, 2, 4]),
        ValueError,
        "cu_seqlens: expected offsets that start at 0, never fall and end at 4, got others",
    ),
    Bad(
        F.mean_pool,
        (f32(4, 2), []),
        ValueError,
        "cu_seqlens: expected offsets that start at 0, never fall and end at 4, got others",
    ),
    Bad(
        F.task_router,
        (f32(3, 1, 4), [0, 3]),
        IndexError,
        "task_ids: expected values from 0 to 2, got 3 at position 1",
    ),
    Bad(
        F.task_router,
        (f32(3, 1, 4), [-1]),
        IndexError,
        "task_ids: expected values from 0 to 2, got -1 at position 0",
    ),
    Bad(F.task_router, (*ROUTER, f32(2, 1, 5)), ValueError, "noise: expected shape (2, 1, 4), got (2, 1, 5)"),
    Bad(F.task_router, (*ROUTER, None, 0.0), ValueError, "temperature: expected a positive number, got 0.0"),
    Bad(
        F.task_router,
        (*ROUTER, None, 1.0, "relu"),
        ValueError,
        "gate: expected one of ['sigmoid', 'straight_through', 'softmax', 'l2'], got 'relu'",
    ),
    Bad(
        F.task_router,
        (*ROUTER, f32(2, 1, 4), 1.0, "l2"),
        ValueError,
        "noise: expected None (gate 'l2' takes none), got an array",
    ),
    Bad(
        F.task_router,
        (*ROUTER, None, 1.0, "softmax", None, True),
        ValueError,
        "average_correction: expected False (gate 'softmax' is normalised), got True",
    ),
    Bad(
        F.task_router,
        (*ROUTER, None, 1.0, "sigmoid", f32(1, 4)),
        ValueError,
        "mask: expected shape (2, 1, 4), got (1, 4)",
    ),
    Bad(F.tensor_product, (f32(1, 2, 9), 3, 17), ValueError, "order: expected 2, 4 or 8, got 3"),
    Bad(F.tensor_product, (f32(1, 2, 2), 2, 0), ValueError, "d: expected at least 1, got 0"),
    Bad(
        F.tensor_product,
        (f32(1, 2, 12), 2, 17),
        ValueError,
        "leaves: expected 2 leaves of 5 columns for d = 17, got 12 columns in all",
    ),
    Bad(
        F.tensor_product,
        (f32(2, 10), 2, 17),
        ValueError,
        "leaves: expected shape (any, any, any), got (2, 10)",
    ),
    Bad(F.leaf_size, (0, 2), ValueError, "d: expected at least 1, got 0"),
    Bad(F.leaf_size, (5, 0), ValueError, "order: expected at least 1, got 0"),
    Bad(F.ibp_loss, (f32(3),), ValueError, "logits: expected shape (T, S) or (T, Q, S), got (3,)"),
    Bad(F.cross_entropy, (f32(2, 3), [0, 3]), ValueError, "labels: expected 0 to 2 in row 1, got 3"),
    Bad(F.cross_entropy, (f32(2, 3), [0, -1]), ValueError, "labels: expected 0 to 2 in row 1, got -1"),
    Bad(
        F.cross_entropy,
        (f32(2, 3), [0, 0], [0, 1], [3, 3]),
        ValueError,
        "labels: expected 1 to 2 in row 1, got 0",
    ),
    Bad(
        F.cross_entropy,
        (f32(2, 3), [0, 0], [0, 0], [0, 3]),
        ValueError,
        "starts, ends: expected 0 <= start < end <= 3, got 0 and 0 in row 0",
    ),
    Bad(
        F.cross_entropy,
        (f32(2, 3), [0, 0], [0, 0], [3, 4]),
        ValueError,
        "starts, ends: expected 0 <= start < end <= 3, got 0 and 4 in row 1",
    ),
    Bad(F.cross_entropy, (f32(2, 3), [0]), ValueError, "labels: expected shape (2,), got (1,)"),
    Bad(
        F.cross_entropy,
        (f32(2, 3), [0, 1], None, None, f32(3)),
        ValueError,
        "weights: expected shape (2,), got (3,)",
    ),
    Bad(F.mse, (f32(2), f32(3)), ValueError, "targets: expected shape (2,), got (3,)"),
    Bad(
        F.attention,
        (*QKV, [0, 5], 4),
        ValueError,
        "n_heads: expected a number of heads that divides 6, got 4",
    ),
    Bad(
        F.attention,
        (*QKV, [0, 5], 0),
        ValueError,
        "n_heads: expected a number of heads that divides 6, got 0",
    ),
    Bad(
        F.attention,
        (f32(5, 6), f32(4, 6), f32(5, 6), [0, 5], 2),
        ValueError,
        "v: expected shape (4, 6), got (5, 6)",
    ),
    Bad(
        F.attention,
        (f32(5, 6), f32(4, 6), f32(4, 6), [0, 5], 2),
        ValueError,
        "cu_seqlens_k: expected offsets that start at 0, never fall and end at 4, got others",
    ),
    Bad(
        F.attention,
        (f32(2, 6), f32(4, 6), f32(4, 6), [0, 1, 2], 2, None, False, None, [0, 0, 4]),
        ValueError,
        "cu_seqlens_k: expected 1 to 0 keys in example 0, got 0",
    ),
    Bad(
        F.attention,
        (f32(4, 6), f32(5, 6), f32(5, 6), [0, 4], 2, None, True, None, [0, 5], [3]),
        ValueError,
        "key_lengths: expected 4 to 5 keys in example 0, got 3",
    ),
    Bad(
        F.attention,
        (f32(4, 6), f32(5, 6), f32(5, 6), [0, 4], 2, None, False, None, [0, 5], [6]),
        ValueError,
        "key_lengths: expected 1 to 5 keys in example 0, got 6",
    ),
    Bad(
        F.attention,
        (*QKV, [0, 4], 2),
        ValueError,
        "cu_seqlens: expected offsets that start at 0, never fall and end at 5, got others",
    ),
    Bad(
        F.attention,
        (*QKV, [0, 5], 6, None, False, 4),
        ValueError,
        "n_kv_heads: expected a divisor of n_heads = 6, got 4",
    ),
    Bad(
        F.attention,
        (*QKV, [0, 5], 2, None, False, None, None, None, f32(2, 4)),
        ValueError,
        "position_bias: expected an odd number of columns, got 4",
    ),
    Bad(
        F.attention,
        (*QKV, [0, 5], 2, None, False, None, None, None, f32(3, 5)),
        ValueError,
        "position_bias: expected shape (2, any), got (3, 5)",
    ),
    Bad(
        F.attention,
        (*QKV, [0, 5], 6, None, False, 2),
        ValueError,
        "k: expected 2 columns (2 heads of 1), got 6",
    ),
    Bad(F.rms_norm, (f32(2, 3), f32(4)), ValueError, "weight: expected shape (3,), got (4,)"),
    Bad(F.rms_norm, (f32(2, 3), f64(3)), TypeError, "weight: expected dtype float32, got float64"),
    Bad(F.silu, (np.ones(2, int),), TypeError, "x: expected dtype float32 or float64, got int64"),
    Bad(
        F.rope,
        (f32(2, 6), f32(4, 2), f32(4, 2), [0, 1]),
        ValueError,
        "x: expected columns for heads of 4, got 6",
    ),
    Bad(
        F.rope,
        (f32(2, 4), f32(4, 2), f32(3, 2), [0, 1]),
        ValueError,
        "sin: expected shape (4, 2), got (3, 2)",
    ),
    Bad(
        F.rope,
        (f32(2, 4), f32(4, 2), f32(4, 2), [0, 4]),
        IndexError,
        "positions: expected values from 0 to 3, got 4 at position 1",
    ),
    Bad(F.adamw_step, (*ADAM, [0, 3], [4, 1], [1, 1], [0, 0]), ValueError, OVERLAP.format(3, 1, 1)),
    Bad(F.adamw_step, (*ADAM, [8], [2], [1], [0]), ValueError, OVERLAP.format(8, 2, 0)),
    Bad(F.adamw_step, (*ADAM, [-1], [2], [1], [0]), ValueError, OVERLAP.format(-1, 2, 0)),
    Bad(F.adamw_step, (*ADAM, [1], [-1], [1], [0]), ValueError, OVERLAP.format(1, -1, 0)),
    Bad(F.adamw_step, (*ADAM, [1], [2**62], [1], [0]), ValueError, OVERLAP.format(1, 2**62, 0)),
    Bad(F.adamw_step, (*ADAM, [1], [1], [1, 1], [0]), ValueError, "lr: expected shape (1,), got (2,)"),
    Bad(
        F.adamw_step,
        (*ADAM, [1], [1], [1], [0], 1.0),
        ValueError,
        "beta1: expected a number in [0, 1), got 1.0",
    ),
    Bad(
        F.adamw_step,
        (*ADAM, [1], [1], [1], [0], 0.9, -1),
        ValueError,
        "beta2: expected a number in [0, 1), got -1",
    ),
    Bad(
        F.adamw_step,
        (*ADAM, [1], [1], [1], [0], 0.9, 0.9, 1e-8, 0),
        ValueError,
        "step: expected 1 or more, got 0",
    ),
    Bad(
        F.adamw_step,
        (frozen(f32(9)), *ADAM[1:], [1], [1], [1], [0]),
        ValueError,
        "data: expected a writeable array, got a read-only one",
    ),
    Bad(
        F.adamw_step,
        ([1.0], *ADAM[1:], [1], [1], [1], [0]),
        TypeError,
        "data: expected a numpy array, got list",
    ),
    Bad(F.global_norm, (f32(9), [8], [2]), ValueError, OVERLAP.format(8, 2, 0)),
]

STRICT = [
    Bad(_core.add, (f32(2), f32(2)), TypeError, "add: expected 3 arguments, got 2"),
    Bad(_core.add, ([1.0], f32(1), f32(1)), TypeError, "a: expected a numpy array, got list"),
    Bad(
        _core.add,
        (f32(4)[::2], f32(2), f32(2)),
        ValueError,
        "a: expected a C-contiguous array, got strides that are not",
    ),
    Bad(_core.add, (f32(2).astype(">f4"), f32(2), f32(2)), TypeError, "a: expected dtype float32, got >f4"),
    Bad(
        _core.add,
        (f32(2), f32(2), frozen(f32(2))),
        ValueError,
        "y: expected a writeable array, got a read-only one",
    ),
    Bad(
        _core.embedding_fwd,
        (np.zeros(1, np.int32), f32(2, 2), f32(1, 2)),
        TypeError,
        "ids: expected dtype int64, got int32",
    ),
    Bad(
        _core.embedding_bwd,
        (i64(4), f32(1, 2), f32(2, 2)),
        IndexError,
        "ids: expected values from 0 to 1, got 4 at position 0",
    ),
    Bad(
        _core.mean_pool_bwd,
        (f32(1, 2), i64(0, 4), f32(3, 2)),
        ValueError,
        "cu_seqlens: expected offsets that start at 0, never fall and end at 3, got others",
    ),
    Bad(
        _core.task_router_bwd,
        (f32(1, 1, 2), i64(1), f32(1, 1, 2), f32(1, 1, 2), 0, 0, f32(1, 1, 2)),
        IndexError,
        "task_ids: expected values from 0 to 0, got 1 at position 0",
    ),
    Bad(
        _core.task_router_bwd,
        (f32(1, 1, 2), i64(0), f32(1, 1, 2), f32(1, 1, 2), 400, 0, f32(1, 1, 2)),
        ValueError,
        "gate: expected 0 to 3, got 400",
    ),
    Bad(
        _core.cross_entropy_bwd,
        (f32(1), f32(1, 2), i64(2), None, None, None, f32(1), f32(1, 2)),
        ValueError,
        "labels: expected 0 to 1 in row 0, got 2",
    ),
    Bad(
        _core.attention_bwd,
        (*[f32(2, 4)] * 5, f32(3, 2), i64(0, 2), i64(0, 2), None, 2, 2, 1.0, 0, None, *[f32(2, 4)] * 3),
        ValueError,
        "lse: expected shape (2, 2), got (3, 2)",
    ),
    Bad(_core.set_isa, ("vax",), ValueError, f"isa: expected one of {_core.isas()}, got 'vax'"),
    Bad(_core.set_num_threads, (-1,), ValueError, "n: expected 0 (the default) to 4096, got -1"),
    Bad(
        _core.empty,
        ((2, -1), "float32"),
        ValueError,
        "shape: expected non-negative extents that fit in memory, and a plain dtype",
    ),
    Bad(
        _core.empty,
        ((2**40, 2**40), "float32"),
        ValueError,
        "shape: expected non-negative extents that fit in memory, and a plain dtype",
    ),
]


def label(bad: Bad) -> str:
    return f"{bad.call.__name__}: {bad.message}"


@pytest.mark.parametrize("bad", FRIENDLY + STRICT, ids=label)
def test_bad_input_is_refused_in_these_words(bad: Bad) -> None:
    before = [a.tobytes() for a in bad.args if isinstance(a, np.ndarray)]
    with pytest.raises(bad.error, match=f"^{re.escape(bad.message)}$"):
        bad.call(*bad.args)
    assert before == [a.tobytes() for a in bad.args if isinstance(a, np.ndarray)]


def test_shapes_of_dy_are_checked() -> None:
    for op, args in [
        (F.gelu, (f32(3),)),
        (F.relu, (f32(3),)),
        (F.multiply, (f32(3), f32(3))),
        (F.multiply, (f32(2, 3), f32(3))),
        (F.layer_norm, (f32(2, 3), f32(3), f32(3))),
        (F.attention, (*QKV, [0, 5], 2)),
        (F.silu, (f32(3),)),
        (F.rms_norm, (f32(2, 3), f32(3))),
        (F.rope, (f32(2, 4), f32(4, 2), f32(4, 2), [0, 1])),
        (F.mean_pool, (f32(4, 2), [0, 4])),
        (F.embedding, ([0, 1], f32(2, 3))),
        (F.task_router, ROUTER),
        (F.mse, (f32(2), f32(2))),
        (F.tensor_product, (f32(1, 2, 10), 2, 17)),
    ]:
        y, saved = op(*args)
        with pytest.raises(ValueError, match="expected shape"):
            getattr(F, op.__name__ + "_backward")(saved, np.zeros((*y.shape, 2), np.float32))


@pytest.mark.parametrize("bad", [b for b in STRICT if b.call is not _core.empty], ids=label)
def test_refusals_leak_no_references(bad: Bad) -> None:
    args = bad.args

    def calls(n: int) -> None:
        for _ in range(n):
            try:
                bad.call(*args)
            except bad.error:
                continue

    assert_stable(args, calls)


GOOD: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (_core.add, (f32(3), f32(3), f32(3))),
    (
        _core.layer_norm_bwd,
        (f32(2, 3), f32(2, 3), None, f32(3), f32(3), f32(3), f32(2), f32(2), f32(2, 3), None, f32(3)),
    ),
    (
        _core.attention_fwd,
        (*[f32(3, 4)] * 3, i64(0, 3), i64(0, 3), None, 2, 2, 1.0, 0, f32(2, 5), f32(3, 4), f32(2, 3)),
    ),
    (_core.rms_norm_bwd, (f32(2, 3), f32(2, 3), f32(3), f32(3), f32(2), f32(2, 3), f32(3))),
    (_core.rope, (f32(2, 4), f32(5, 2), f32(5, 2), i64(0, 4), 0, f32(2, 4))),
    (_core.cross_entropy_fwd, (f32(2, 3), i64(0, 1), None, None, None, f32(1), f32(2), f32(2))),
    (_core.task_router_fwd, (f32(3, 1, 4), i64(0, 2), None, None, 1.0, 0, 0, *[f32(2, 1, 4)] * 3)),
    (_core.tensor_product_bwd, (f32(1, 2, 17), f32(1, 2, 10), 2, 1e-5, f32(1, 2, 10))),
    (_core.ibp_loss_bwd, (f32(1), f32(3, 4), f32(3, 4))),
    (_core.multiply_rows_bwd, (f32(2, 3), f32(2, 3), i64(1), i64(0, 2), f32(2, 3))),
    (
        _core.expert_dense_bwd,
        (f32(2, 4), f32(2, 1, 3), f32(2, 4, 3), f32(2, 4), i64(1)[None], f32(1, 1), i64(0), i64(0, 2))
        + (f32(2, 1, 3), f32(2, 4, 3), f32(2, 4), f32(1, 1)),
    ),
    (_core.global_norm, (f32(9), i64(0), i64(9))),
    (_core.uniform, (1, 2, 3, i64(4), f32(1, 8))),
]


@pytest.mark.parametrize(("call", "args"), GOOD, ids=lambda v: getattr(v, "__name__", ""))
def test_calls_leak_no_references(call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    assert_stable(args, lambda n: [call(*args) for _ in range(n)])


def assert_stable(args: tuple[Any, ...], calls: Callable[[int], Any]) -> None:
    """1000 calls leave the reference counts of their arguments, and of None, where they were."""
    calls(10)
    arrays = [a for a in args if isinstance(a, np.ndarray)]
    # Others hold these too, and may let go of a few meanwhile; a leak would be 1000.
    shared = [None, *(a for a in args if not isinstance(a, np.ndarray)), *(a.dtype for a in arrays)]
    before, others = [sys.getrefcount(a) for a in arrays], [sys.getrefcount(o) for o in shared]
    calls(1000)
    assert [sys.getrefcount(a) for a in arrays] == before
    assert max(abs(sys.getrefcount(o) - n) for o, n in zip(shared, others, strict=True)) < 100


def test_memory_of_empty_is_reused_and_aligned() -> None:
    a = _core.empty((1000, 1000), "float32")
    address = a.ctypes.data
    assert address % 64 == 0
    del a
    b = _core.empty((1000, 1000), "float32")
    assert b.ctypes.data == address
    assert _core.empty((0, 3), "float64").shape == (0, 3)


def test_lists_and_other_layouts_are_converted() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    weight, bias = [1, 1, 1, 1], (0, 0, 0, 0)
    want, _ = F.layer_norm(x, np.ones(4, np.float32), np.zeros(4, np.float32))
    for same in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        y, _ = F.layer_norm(same, weight, bias)
        assert y.dtype == np.float32
        assert np.array_equal(y, want)
    assert F.layer_norm(x.tolist(), weight, bias)[0].dtype == np.float64
