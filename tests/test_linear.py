"""What is special about the adapted linear layer, beyond the table of cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polymoe import _core
from polymoe import functional as F
from polymoe import reference as R
from polymoe.functional.linear import CONCAT, MIX, NO_TERM
from polymoe.functional.packed import BFLOAT16

U = 2.0**-24  # float32's unit roundoff


def fill(*shape: int, phi: float) -> np.ndarray:
    return np.sin(0.7 * np.arange(np.prod(shape)) + phi).reshape(shape)


def layer(
    rng: np.random.Generator, N: int, D: int, O: int, r: int, S: int, G: int, Q: int = 1
) -> dict[str, Any]:
    """Arguments of linear in float32: G examples of equal length, each its own group."""
    sizes = {
        "x": (N, D),
        "weight": (O, D),
        "bias": (O,),
        "lora_A": (S, r, D),
        "lora_B": (S, r, O),
        "weights": (G, Q, S),
    }
    args: dict[str, Any] = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sizes.items()}
    return {**args, "adapter_ids": np.arange(G), "cu_seqlens": np.arange(G + 1) * (N // G), "scale": 0.5}


def test_mhr_forward_gives_golden_value() -> None:
    b, L, d_in, d_out, r, S, h, T, tau = 3, 4, 6, 4, 2, 3, 2, 5, 0.8
    A = fill(h, S, d_in // h, r, phi=0.2).transpose(1, 3, 0, 2).reshape(S, r, d_in)  # heads side by side
    B = fill(h, S, r, d_out // h, phi=0.3).transpose(1, 2, 0, 3).reshape(S, r, d_out)
    z = fill(T, h * S, phi=0.4).reshape(T, h, S)[[2, 0, 2]]
    u = 1 / (1 + np.exp(-fill(b, h, S, phi=0.5)))
    s = 1 / (1 + np.exp(-(z + np.log(u) - np.log1p(-u)) / tau))
    w = s / (s.sum(-1, keepdims=True) + 1e-12)
    np.testing.assert_allclose(w[0, 0], [0.3744625876, 0.3526345392, 0.2729028733], atol=1e-9)
    x = fill(b * L, d_in, phi=0.1)
    y, _ = F.linear(x, np.zeros((d_out, d_in)), None, A, B, w, np.arange(b), np.arange(b + 1) * L, 1 / r)
    np.testing.assert_allclose(y[0], [0.0358827531, 0.0429178887, 0.0020160816, -0.0407898479], atol=1e-9)
    np.testing.assert_allclose(y.sum(), 0.24561020209295326, atol=1e-9)


@pytest.mark.parametrize("D", [1, 17, 384, 1536])
def test_error_is_within_the_bound_everywhere(isa: str, D: int) -> None:
    r, S = 8, 3
    args = layer(np.random.default_rng(D), 150, D, 40, r, S, 2)
    args["cu_seqlens"] = np.array([0, 100, 150])
    wide = {
        k: v.astype(np.float64) if getattr(v, "dtype", None) == np.float32 else v for k, v in args.items()
    }
    error = np.abs(F.linear(**args, formulation="mix")[0] - R.linear(**wide)[0])
    # what sums of absolute values allow: D columns, r ranks, S skills in both factors, scale, bias
    sizes = R.linear(**{k: np.abs(v) for k, v in wide.items()})[0]
    n = D + r + 2 * S + 4
    assert np.all(error <= n * U / (1 - n * U) * sizes)


def test_threads_do_not_change_bits_of_any_phase(isa: str, threads: Any) -> None:
    args = layer(
        np.random.default_rng(0), 1280, 192, 200, 64, 4, 64
    )  # every parallel region is above the serial threshold
    args["weight"] = F.PackedWeight(args["weight"])
    args |= {"activation": "silu", "times": args["x"][::-1].copy()}
    dy = np.random.default_rng(1).normal(size=(1280, 200)).astype(np.float32)
    results = []
    for n in (1, 2, 3, 4):
        threads(n)
        y, saved = F.linear(**args)
        results.append([a.tobytes() for a in (y, *F.linear_backward(saved, dy))])
    assert all(r == results[0] for r in results)


def test_example_gives_the_same_bits_in_any_company(isa: str) -> None:
    args = layer(np.random.default_rng(0), 6 * 37, 48, 50, 8, 3, 6)
    for formulation in ("mix", "concat"):
        y, saved = F.linear(**args, formulation=formulation)
        dx = F.linear_backward(saved, np.cos(y)).dx
        for b in range(6):
            rows = slice(37 * b, 37 * b + 37)
            alone = {**args, "x": args["x"][rows], "adapter_ids": [b], "cu_seqlens": None}
            y_b, saved_b = F.linear(**alone, formulation=formulation)
            assert y_b.tobytes() == y[rows].tobytes()
            assert F.linear_backward(saved_b, np.cos(y_b)).dx.tobytes() == dx[rows].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_few_tokens_of_many_groups_are_each_as_alone_on_any_threads(
    isa: str, threads: Any, dtype: str
) -> None:
    """What decoding asks for: one token of each text; threads take parts of the columns."""
    args = layer(np.random.default_rng(0), 5, 600, 215, 8, 3, 5)
    args["weight"] = F.PackedWeight(args["weight"], dtype)
    alone = []
    for b in range(5):
        threads(1)
        one = {**args, "x": args["x"][b : b + 1], "adapter_ids": [b], "cu_seqlens": None}
        y, saved = F.linear(**one, formulation="mix")
        alone.append((y, saved.h))
    for n in (1, 2, 3, 7):
        threads(n)
        y, saved = F.linear(**args, formulation="mix")
        for want, got in zip(map(np.concatenate, zip(*alone, strict=True)), (y, saved.h), strict=True):
            assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("r", [8, 20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_groups_that_take_turns_give_the_same_bits_sorted_or_not(
    isa: str, threads: Any, dtype: str | None, r: int
) -> None:
    """Rows of groups that come back every few tokens are sorted, but not where there are many more groups."""
    args = layer(np.random.default_rng(0), 300, 70, 215, r, 4, 3)
    args["weight"] = dtype and F.PackedWeight(args["weight"], dtype)
    lengths = np.arange(100) % 7
    lengths[0] += 300 - lengths.sum()
    args |= {"adapter_ids": np.arange(100) % 3, "cu_seqlens": np.concatenate([[0], np.cumsum(lengths)])}
    args |= {"formulation": "mix", "activation": "silu", "times": args["x"][::-1].copy()}
    idle = np.zeros((97, 1, 4), np.float32)
    apart = {**args, "weights": np.concatenate([args["weights"], idle])}
    results = []
    for each, n in ((args, 1), (args, 2), (args, 7), (apart, 1)):
        threads(n)
        y, saved = F.linear(**each)
        grads = F.linear_backward(saved, np.cos(y))
        results.append([a.tobytes() for a in (y, *grads[:3], grads.dweights[:3], grads.dtimes)])
    assert all(r == results[0] for r in results)


def test_packed_factor_of_groups_that_take_turns_gives_the_same_bits(isa: str) -> None:
    args = layer(np.random.default_rng(0), 90, 70, 50, 8, 3, 3)
    args |= {"weights": None, "scale": 1.0, "adapter_ids": np.arange(90) % 3, "cu_seqlens": np.arange(91)}
    packed = {**args, "lora_A": F.PackedFactor(args["lora_A"])}
    assert F.linear(**args)[0].tobytes() == F.linear(**packed)[0].tobytes()


def test_formulations_agree() -> None:
    args = layer(np.random.default_rng(3), 60, 24, 20, 4, 5, 12)
    args = {
        k: v.astype(np.float64) if getattr(v, "dtype", None) == np.float32 else v for k, v in args.items()
    }
    args |= {"activation": "gelu", "times": args["x"][::-1].copy()}
    (y, saved), (z, other) = (F.linear(**args, formulation=f) for f in ("mix", "concat"))
    np.testing.assert_allclose(y, z, rtol=1e-11, atol=1e-12)
    for a, b in zip(F.linear_backward(saved, y), F.linear_backward(other, y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("tokens", [59, 60])
def test_auto_puts_few_tokens_side_by_side(tokens: int) -> None:
    args = layer(np.random.default_rng(3), tokens, 24, 20, 4, 5, 12)
    args["cu_seqlens"][-1] = tokens
    assert F.linear(**args)[1].form == (CONCAT if tokens < 5 * 12 else MIX)


def test_no_weights_is_the_pair_itself() -> None:
    args = layer(np.random.default_rng(4), 40, 33, 35, 9, 4, 4)
    direct = {**args, "weights": None}
    one_hot = {**args, "weights": np.eye(4, dtype=np.float32)[:, None], "formulation": "mix"}
    (y, saved), (z, other) = F.linear(**direct), F.linear(**one_hot)
    assert y.tobytes() == z.tobytes()
    dy = np.ones_like(y)
    grads, mixed = F.linear_backward(saved, dy), F.linear_backward(other, dy)
    np.testing.assert_array_equal(grads.dlora_A, mixed.dlora_A)
    np.testing.assert_array_equal(grads.dlora_B, mixed.dlora_B)
    assert grads.dweights is None


def wide_layer(seed: int, **sizes: int) -> dict[str, Any]:
    args = layer(np.random.default_rng(seed), **sizes)
    return {
        k: v.astype(np.float64) if getattr(v, "dtype", None) == np.float32 else v for k, v in args.items()
    }


def test_sparse_outputs_are_dense_outputs() -> None:
    args = wide_layer(6, N=60, D=24, O=20, r=4, S=7, G=5)
    ids = np.array([[0, 6], [3, 2], [2, 3], [5, 0], [1, 4]])
    rows = np.arange(5)[:, None]
    dense = np.zeros((5, 1, 7))
    dense[rows, 0, ids] = w = args["weights"][rows, 0, ids]
    (y, saved), (z, other) = (
        F.linear(**{**args, "weights": a}, mixing="outputs", ids=i) for a, i in ((w, ids), (dense, None))
    )
    np.testing.assert_allclose(y, z, rtol=1e-11, atol=1e-12)
    grads, want = F.linear_backward(saved, y), F.linear_backward(other, y)
    for name in ("dx", "dlora_A", "dlora_B"):
        np.testing.assert_allclose(getattr(grads, name), getattr(want, name), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(grads.dweights, want.dweights[rows, 0, ids], rtol=1e-10, atol=1e-11)


def test_one_hot_outputs_are_that_expert_and_mixed_factors() -> None:
    args = wide_layer(7, N=60, D=24, O=20, r=4, S=5, G=5)
    args["weights"] = np.eye(5)[[3, 1, 4, 0, 2]][:, None]
    want, _ = F.linear(**{**args, "weights": None, "adapter_ids": [3, 1, 4, 0, 2]})
    for more in ({"mixing": "factors"}, {"mixing": "outputs"}):
        np.testing.assert_allclose(F.linear(**args, **more)[0], want, rtol=1e-11, atol=1e-12)


def test_experts_that_are_not_chosen_are_not_touched(isa: str) -> None:
    args = layer(np.random.default_rng(8), 40, 33, 35, 3, 6, 4)
    ids = np.array([[5, 1], [1, 3], [3, 1], [1, 5]])
    args |= {"mixing": "outputs", "ids": ids, "weights": args["weights"][:, 0, :2]}
    clean, _ = F.linear(**args)
    for name in ("lora_A", "lora_B"):
        args[name] = args[name].copy()
        args[name][[0, 2, 4]] = np.nan
    y, saved = F.linear(**args)
    assert y.tobytes() == clean.tobytes()
    grads = F.linear_backward(saved, np.cos(y))
    assert all(np.isfinite(g).all() for g in grads if g is not None)
    for grad in (grads.dlora_A, grads.dlora_B):
        assert not grad[[0, 2, 4]].any()
        assert grad[[1, 3, 5]].all()


def test_pairs_without_tokens_are_not_touched(isa: str) -> None:
    args = {**layer(np.random.default_rng(9), 40, 33, 35, 3, 6, 4), "weights": None}
    args["lora_A"][[4, 5]] = args["lora_B"][[4, 5]] = np.nan
    y, saved = F.linear(**args)
    grads = F.linear_backward(saved, y)
    assert all(np.isfinite(a).all() for a in (y, grads.dx, grads.dlora_A, grads.dlora_B))
    assert not grads.dlora_A[4:].any()


@pytest.mark.parametrize("form", [{"formulation": "mix"}, {"formulation": "concat"}, {"mixing": "outputs"}])
def test_term_alone_is_what_is_added(form: dict[str, Any]) -> None:
    args = wide_layer(10, N=40, D=600, O=20, r=4, S=3, G=4)
    plain, saved = F.linear(args["x"], args["weight"], args["bias"])
    y, with_term = F.linear(**args, **form)
    alone, of_term = F.linear(**{**args, "weight": None, "bias": None}, **form)
    np.testing.assert_allclose(alone, y - plain, rtol=1e-9, atol=1e-10)
    dx = [F.linear_backward(s, y).dx for s in (with_term, saved, of_term)]
    np.testing.assert_allclose(dx[2], dx[0] - dx[1], rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("form", [{"formulation": "mix"}, {"formulation": "concat"}, {"mixing": "outputs"}])
def test_gradient_of_x_needs_no_other(form: dict[str, Any]) -> None:
    args = wide_layer(11, N=40, D=16, O=20, r=4, S=3, G=4)
    y, saved = F.linear(**args, **form)
    assert F.linear_backward(saved, y, {"x"}).dx.tobytes() == F.linear_backward(saved, y).dx.tobytes()


def test_only_needed_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    args = layer(np.random.default_rng(5), 40, 16, 16, 4, 3, 4)
    args["weight"] = F.PackedWeight(args["weight"])
    y, saved = F.linear(**args)
    everything = F.linear_backward(saved, y)._asdict()
    for name in ("lora_A", "lora_B", "weights", "x"):
        grads = F.linear_backward(saved, y, needs={name})._asdict()
        assert grads["d" + name].tobytes() == everything["d" + name].tobytes()
        assert all(value is None for key, value in grads.items() if key != "d" + name)
    monkeypatch.delattr(F.PackedWeight, "transpose")  # which only dx needs
    F.linear_backward(saved, y, needs={"lora_A"})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (16, 8), (17, 9), (100, 33)])
def test_packed_weight_unpacks_bit_for_bit(shape: tuple[int, int], dtype: str) -> None:
    w = np.random.default_rng(0).normal(size=shape).astype(dtype)
    packed = F.PackedWeight(np.asfortranarray(w))
    assert packed.shape == shape
    assert packed.dtype == dtype
    assert packed.unpack().tobytes() == w.tobytes()
    padding = packed.panels.transpose(0, 2, 1).reshape(-1, shape[1])[shape[0] :]
    assert not padding.any()
    assert repr(packed) == f"PackedWeight(shape={shape}, dtype={dtype})"


@pytest.mark.parametrize("dtype", ["float32", "float64", BFLOAT16])
def test_panels_of_the_transpose_are_those_of_a_transposed_weight(isa: str, dtype: Any) -> None:
    for shape in ((1, 1), (7, 33), (16, 16), (32, 48), (65, 80), (80, 65), (129, 31)):
        w = np.random.default_rng(0).normal(size=shape).astype(dtype)
        want = F.PackedWeight(w.T).panels
        assert F.PackedWeight(w).transpose().tobytes() == want.tobytes(), shape


def test_packed_weight_survives_a_change_of_instruction_set() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(20, 40)).astype(np.float32), rng.normal(size=(50, 40)).astype(np.float32)
    packed, before = F.PackedWeight(w), _core.get_isa()
    try:
        for isa in _core.isas():
            _core.set_isa(isa)
            np.testing.assert_allclose(F.linear(x, packed)[0], x @ w.T, atol=1e-4)
    finally:
        _core.set_isa(before)


@pytest.mark.parametrize(("N", "O"), [(1, 1), (3, 15), (13, 17), (130, 33)])
def test_nothing_is_written_beyond_y(isa: str, N: int, O: int) -> None:
    guard, value = 64, np.float32(7)
    memory = np.full(2 * guard + N * O, value)
    y = memory[guard : guard + N * O].reshape(N, O)
    x, packed = np.ones((N, 5), np.float32), F.PackedWeight(np.ones((O, 5), np.float32))
    _core.linear_fwd(x, 0, None, (packed.panels, None, *NO_TERM, None, y, None))
    assert np.all(y == 5)
    assert np.all(memory[:guard] == value)
    assert np.all(memory[-guard:] == value)


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16])
def test_a_weight_larger_than_a_cache_gives_the_bits_of_its_parts(isa: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(45, 1501)).astype(np.float32), rng.normal(size=(600, 1501)).astype(dtype)
    assert F.PackedWeight(w).nbytes > 1 << 20 > F.PackedWeight(w[:128]).nbytes
    parts = [F.linear(x, F.PackedWeight(w[o : o + 128]))[0] for o in range(0, 600, 128)]
    np.testing.assert_array_equal(F.linear(x, F.PackedWeight(w))[0], np.hstack(parts))


def test_panels_that_are_not_aligned_are_refused() -> None:
    memory, y = _core.empty((2 * 5 * 16,), np.float32), np.zeros((1, 16), np.float32)
    panels = memory[1 : 1 + 5 * 16].reshape(1, 5, 16)
    message = "weight: expected panels at a multiple of 64 bytes, got 4 beyond one"
    with pytest.raises(ValueError, match=message):
        _core.linear_fwd(np.ones((1, 5), np.float32), 0, None, (panels, None, *NO_TERM, None, y, None))
    assert not y.any()
    lora_A, lora_B = np.ones((1, 16, 5), np.float32), np.ones((1, 16, 16), np.float32)
    term, packed = (lora_A, lora_B, *NO_TERM[2:]), memory[1 : 1 + 16 * 5].reshape(1, 16, 5)
    with pytest.raises(
        ValueError, match="panels: expected panels at a multiple of 64 bytes, got 4 beyond one"
    ):
        _core.linear_fwd(np.ones((1, 5), np.float32), 0, None, (None, None, *term, packed, y, None))
    assert not y.any()


@pytest.mark.parametrize(("N", "D", "r"), [(1, 1, 1), (5, 17, 3), (130, 15, 9)])
def test_nothing_is_written_beyond_gradients(isa: str, N: int, D: int, r: int) -> None:
    guard, n = 64, r * D
    memory = np.full(2 * guard + n, 7, np.float32)
    dlora_A = memory[guard : guard + n].reshape(1, r, D)
    ones = [np.ones(s, np.float32) for s in ((N, D), (N, D), (N, r), (1, r, D), (1, r, D))]
    dy, x, h, lora_A, lora_B = ones
    term = (lora_A, lora_B, *NO_TERM[2:])
    _core.linear_bwd(x, 0, None, None, None, None, (dy, None, h, *term, dlora_A, None, None))
    assert np.all(dlora_A == N * D)
    assert np.all(memory[:guard] == 7)
    assert np.all(memory[-guard:] == 7)


BAD = {
    "weight: expected dtype float32, got float64": (TypeError, {"weight": np.ones((6, 8))}),
    "bias: expected dtype float32, got float64": (TypeError, {"bias": np.ones(6)}),
    "bias: expected shape (6,), got (5,)": (ValueError, {"bias": np.ones(5, np.float32)}),
    "lora_A: expected shape (any, any, 8), got (2, 3, 9)": (
        ValueError,
        {"lora_A": np.ones((2, 3, 9), np.float32)},
    ),
    "lora_B: expected shape (2, 3, 6), got (2, 4, 6)": (
        ValueError,
        {"lora_B": np.ones((2, 4, 6), np.float32)},
    ),
    "lora_B: expected a numpy array, got NoneType": (TypeError, {"lora_B": None}),
    "lora_A: expected an array to go with lora_B, got None": (TypeError, {"lora_A": None}),
    "lora_A: expected a rank of at least 1, got 0": (
        ValueError,
        {"lora_A": np.ones((2, 0, 8), np.float32), "lora_B": np.ones((2, 0, 6), np.float32)},
    ),
    "lora_B: expected at least one column, got none": (
        ValueError,
        {"weight": None, "bias": None, "lora_B": np.ones((2, 3, 0), np.float32)},
    ),
    "lora_A: expected at least one column, got none": (
        ValueError,
        {"x": np.ones((5, 0), np.float32), "weight": None, "lora_A": np.ones((2, 3, 0), np.float32)},
    ),
    "weights: expected shape (any, any, 2), got (2, 1, 3)": (
        ValueError,
        {"weights": np.ones((2, 1, 3), np.float32)},
    ),
    "weights: expected a number of heads that divides 8 and 6, got 4": (
        ValueError,
        {"weights": np.ones((2, 4, 2), np.float32)},
    ),
    "weights: expected at least one group, got none": (
        ValueError,
        {"weights": np.ones((0, 1, 2), np.float32), "adapter_ids": None, "cu_seqlens": None},
    ),
    "adapter_ids: expected values from 0 to 1, got 2 at position 1": (IndexError, {"adapter_ids": [0, 2]}),
    "adapter_ids: expected values from 0 to 1, got -1 at position 0": (IndexError, {"adapter_ids": [-1, 0]}),
    "adapter_ids: expected shape (2,), got (3,)": (ValueError, {"adapter_ids": [0, 1, 0]}),
    "adapter_ids: expected integers, got dtype float64": (TypeError, {"adapter_ids": [0.0, 1.0]}),
    "cu_seqlens: expected offsets that start at 0, never fall and end at 5, got others": (
        ValueError,
        {"cu_seqlens": [0, 3, 4]},
    ),
    "formulation: expected 'auto', 'mix' or 'concat', got 'fast'": (ValueError, {"formulation": "fast"}),
    "formulation: expected 'mix' or 'auto' (concat needs weights of one head), got 'concat'": (
        ValueError,
        {"formulation": "concat", "weights": np.ones((2, 2, 2), np.float32)},
    ),
    "mixing: expected 'factors' or 'outputs', got 'sum'": (ValueError, {"mixing": "sum"}),
    "weights: expected one head (outputs are not cut in blocks), got 2": (
        ValueError,
        {"mixing": "outputs", "weights": np.ones((2, 2, 2), np.float32)},
    ),
    "ids: expected None (factors are mixed by dense weights), got an array": (
        ValueError,
        {"ids": [[0], [1]]},
    ),
    "ids: expected values from 0 to 1, got 2 at position 1": (
        IndexError,
        {"mixing": "outputs", "ids": [[0], [2]], "weights": np.ones((2, 1), np.float32)},
    ),
    "ids: expected shape (2, 1), got (2, 2)": (
        ValueError,
        {"mixing": "outputs", "ids": [[0, 1], [1, 0]], "weights": np.ones((2, 1), np.float32)},
    ),
    "weights: expected a numpy array, got NoneType": (
        TypeError,
        {"mixing": "outputs", "ids": [[0], [1]], "weights": None},
    ),
    "weight: expected an array where lora_A is None, got None": (
        TypeError,
        {"weight": None, "lora_A": None, "lora_B": None, "weights": None},
    ),
    "activation: expected one of [None, 'relu', 'gelu', 'gelu_tanh', 'silu'], got 'tanh'": (
        ValueError,
        {"activation": "tanh"},
    ),
    "times: expected None without an activation, got an array": (
        TypeError,
        {"times": np.ones((5, 8), np.float32)},
    ),
    "times: expected shape (5, 8), got (5, 7)": (
        ValueError,
        {"activation": "silu", "times": np.ones((5, 7), np.float32)},
    ),
    "x: expected dtype float32 or float64, got int64": (TypeError, {"x": np.ones((5, 8), np.int64)}),
    "x: expected shape (any, any), got (5,)": (ValueError, {"x": np.ones(5, np.float32)}),
    "weight: expected shape (O, D) with both at least 1, got (0, 8)": (
        ValueError,
        {"weight": np.ones((0, 8), np.float32)},
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused(message: str) -> None:
    error, change = BAD[message]
    args = {
        "x": np.ones((5, 8), np.float32),
        "weight": np.ones((6, 8), np.float32),
        "lora_A": np.ones((2, 3, 8), np.float32),
        "lora_B": np.ones((2, 3, 6), np.float32),
        "weights": np.ones((2, 1, 2), np.float32),
        "adapter_ids": [0, 1],
        "cu_seqlens": [0, 3, 5],
        "formulation": "mix",
    }
    with pytest.raises(error) as raised:
        F.linear(**{**args, **change})
    assert str(raised.value) == message


def test_other_precision_of_dy_is_refused() -> None:
    for op in (F.linear, F.dense):
        saved = op(np.ones((2, 3), np.float32), np.ones((4, 3), np.float32))[1]
        with pytest.raises(TypeError, match=r"^dy: expected dtype float32, got float64$"):
            getattr(F, op.__name__ + "_backward")(saved, np.ones((2, 4)))


def test_packed_weight_refuses_other_dtypes() -> None:
    with pytest.raises(
        TypeError, match=r"^weight: expected dtype float32, float64 or bfloat16, got float16$"
    ):
        F.PackedWeight(np.ones((2, 2), np.float16))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_a_packed_weight_are_those_of_the_weight(dtype):
    weight = np.random.default_rng(0).normal(size=(37, 5)).astype(dtype)
    packed, ids = F.PackedWeight(weight), [36, 0, 15, 16, 16]
    np.testing.assert_array_equal(packed.rows(ids), weight[ids])
    assert packed.rows([]).shape == (0, 5)
    for wrong in ([37], [-1]):
        with pytest.raises(IndexError, match="ids: expected values from 0 to 36, got others"):
            packed.rows(wrong)


def test_a_sum_of_gradients_is_that_of_the_activated_x() -> None:
    rng = np.random.default_rng(0)
    x, weight, dy, onto = (rng.normal(size=s) for s in ((9, 5), (7, 5), (9, 7), (9, 5)))
    _, saved = F.linear(x, weight, activation="gelu")
    dx = F.linear_backward(saved, dy).dx
    assert dx is not None
    np.testing.assert_array_equal(F.linear_backward(saved, dy, onto=onto).dx, dx + onto)
    assert F.linear_backward(saved, dy, needs={"times"}).dx is None


def test_threads_that_share_columns_activate_each_once(isa: str, threads: Any) -> None:
    rng = np.random.default_rng(0)
    x, times, weight = (rng.normal(size=s).astype(np.float32) for s in ((9, 700), (9, 700), (700, 700)))
    packed, results = F.PackedWeight(weight), []
    for n in (1, 2, 7):
        threads(n)
        y, saved = F.linear(x, packed, activation="silu", times=times)
        grads = F.linear_backward(saved, y)
        assert grads.dx is not None and grads.dtimes is not None
        results.append((y.tobytes(), grads.dx.tobytes(), grads.dtimes.tobytes()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("r", [3, 8, 20])
def test_a_packed_factor_gives_the_bits_of_the_array(r: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(200, 37)).astype(np.float32), rng.normal(size=(50, 37)).astype(np.float32)
    lora_A, lora_B = (rng.normal(size=(3, r, n)).astype(np.float32) for n in (37, 50))
    groups = {"adapter_ids": np.array([2, 0]), "cu_seqlens": np.array([0, 60, 200])}
    packed, before = F.PackedFactor(lora_A), _core.get_isa()
    try:
        for isa in _core.isas():  # it is packed again where the layout may be another
            _core.set_isa(isa)
            found = F.linear(x, w, None, packed, lora_B, **groups)[0]
            np.testing.assert_array_equal(found, F.linear(x, w, None, lora_A, lora_B, **groups)[0])
    finally:
        _core.set_isa(before)
    weights = np.ones((3, 1, 3), np.float32)
    for refused in ({"scale": 2.0}, {"weights": weights}):
        with pytest.raises(
            ValueError, match="lora_A: expected an array with weights or a scale, got a Packed"
        ):
            F.linear(x, w, None, packed, lora_B, **refused)
