"""Frozen weights in bfloat16: what is rounded, what is not, and that a base can be held so."""

import json

import ml_dtypes
import numpy as np
import pytest
from tiny_bert import write_bert
from training_base import base_folder, classes

from polymoe import _core, load_base
from polymoe import functional as F
from polymoe.recipe import Recipe
from polymoe.training import load_run

BFLOAT16 = ml_dtypes.bfloat16
SIZES = [
    (0, 3, 5),
    (1, 1, 1),
    (1, 2, 16),
    (5, 7, 3),
    (13, 17, 33),
    (128, 512, 32),
    (129, 513, 37),
    (300, 1025, 100),
]
U, U_B = 2.0**-24, 2.0**-9


def arrays(N, D, O, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s).astype(np.float32) for s in ((N, D), (O, D), (O,), (N, O), (N, D))]


def bound(n, magnitude):
    """Of the error of a sum of n products of rounded values, elementwise, for the sum of their magnitudes."""
    return (n * U / (1 - n * U) + 2 * U_B + U_B**2) * magnitude


@pytest.mark.parametrize(("N", "D", "O"), SIZES)
def test_products_are_within_the_bound(isa, N, D, O):
    x, w, bias, dy, onto = arrays(N, D, O)
    y, saved = F.linear(x, F.PackedWeight(w, BFLOAT16), bias)
    exact, magnitude = x.astype(float) @ w.T + bias, np.abs(x) @ np.abs(w).T + np.abs(bias)
    assert np.all(np.abs(y - exact) <= bound(D + 1, magnitude))
    dx = F.linear_backward(saved, dy, onto=onto).dx
    exact, magnitude = onto + dy.astype(float) @ w, np.abs(dy) @ np.abs(w) + np.abs(onto)
    assert np.all(np.abs(dx - exact) <= bound(O + 1, magnitude))


def test_products_are_exact_where_nothing_needs_rounding(isa):
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-8, 9, size).astype(np.float32) for size in ((130, 70), (50, 70)))
    y, saved = F.linear(x, F.PackedWeight(w, BFLOAT16))
    np.testing.assert_array_equal(y, x @ w.T)
    dy = rng.integers(-8, 9, y.shape).astype(np.float32)
    np.testing.assert_array_equal(F.linear_backward(saved, dy).dx, dy @ w)


def test_products_are_faster_than_they_are_exact_only_where_the_cpu_multiplies_pairs(isa):
    x, w, *_ = arrays(64, 96, 48)
    stored = w.astype(BFLOAT16).astype(float)
    error = np.abs(F.linear(x, F.PackedWeight(w, BFLOAT16))[0] - x.astype(float) @ stored.T).max()
    assert (error > 1e-3) == (isa == "avx512bf16")  # x is rounded there, and nowhere else


def test_adapters_and_their_gradients_stay_in_float32(isa):
    x, w, bias, dy, _ = arrays(200, 64, 48)
    rng = np.random.default_rng(1)
    term = {
        "lora_A": rng.normal(size=(3, 4, 64)).astype(np.float32),
        "lora_B": rng.normal(size=(3, 4, 48)).astype(np.float32),
        "weights": rng.random((2, 2, 3), dtype=np.float32),
        "adapter_ids": [0, 1, 0],
        "cu_seqlens": [0, 50, 131, 200],
    }
    results = []
    for dtype in (np.float32, BFLOAT16):
        y, saved = F.linear(x, F.PackedWeight(w, dtype), bias, **term)
        alone = F.linear(x, F.PackedWeight(w, dtype), bias)[0]
        results.append((y - alone, saved.h, F.linear_backward(saved, dy)))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-4)
    np.testing.assert_array_equal(results[0][1], results[1][1])
    for name in ("dlora_A", "dlora_B", "dweights"):
        np.testing.assert_array_equal(getattr(results[0][2], name), getattr(results[1][2], name))


def test_bits_do_not_depend_on_threads():
    x, w, bias, dy, _ = arrays(1500, 600, 200)
    packed, results = F.PackedWeight(w, BFLOAT16), []
    before = _core.get_num_threads()
    try:
        for n in (1, 2, 3, 4):
            _core.set_num_threads(n)
            y, saved = F.linear(x, packed, bias)
            results.append((y.tobytes(), F.linear_backward(saved, dy).dx.tobytes()))
    finally:
        _core.set_num_threads(before)
    assert len(set(results)) == 1


def test_a_weight_of_bfloat16_is_not_transposed_while_it_is_packed():
    weight, panels = np.ones((32, 16), np.uint16), np.zeros((1, 16, 32), np.uint16)
    with pytest.raises(ValueError, match="transpose: expected 0 with a weight of bfloat16, got 1"):
        _core.pack(weight, 1, panels)
    assert not panels.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BFLOAT16])
def test_what_is_packed_comes_back_bit_for_bit(dtype):
    weight = np.random.default_rng(0).normal(size=(37, 5)).astype(dtype)
    packed, ids = F.PackedWeight(weight), [36, 0, 15, 16, 16]
    assert packed.unpack().dtype == packed.dtype == dtype
    assert packed.unpack().tobytes() == weight.tobytes()
    np.testing.assert_array_equal(packed.rows(ids), weight[ids].astype(packed.compute_dtype))
    assert packed.rows(ids).dtype == packed.compute_dtype


def test_it_takes_half_the_memory():
    w = np.ones((64, 96), np.float32)
    full, half = F.PackedWeight(w), F.PackedWeight(w, BFLOAT16)
    assert half.nbytes * 2 == full.nbytes


def test_float64_arrays_meet_it_in_float64():
    x, w, *_ = (a.astype(float) for a in arrays(20, 30, 40))
    y, saved = F.linear(x, F.PackedWeight(w, BFLOAT16))
    stored = w.astype(BFLOAT16).astype(float)
    np.testing.assert_allclose(y, x @ stored.T, atol=1e-13)
    np.testing.assert_allclose(F.linear_backward(saved, y).dx, y @ stored, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=f"^dtype: expected dtype float32, float64 or bfloat16, got {dtype}$"):
        F.PackedWeight(np.ones((2, 2), np.float32), dtype)


def test_a_base_in_bfloat16_is_the_same_base(tmp_path):
    folder = write_bert(tmp_path)
    full, half = load_base(folder), load_base(folder, "bfloat16")
    assert (full.weight_dtype, half.weight_dtype) == ("float32", "bfloat16")
    assert full.fingerprint == half.fingerprint
    assert half.dtype == np.float32
    difference = half.encode(["the cat sat"]) - full.encode(["the cat sat"])
    assert 0 < np.abs(difference).max() < 0.05


def test_an_unknown_dtype_of_a_base_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^dtype: expected one of \['float32', 'bfloat16'\], got 'int4'$"):
        load_base(write_bert(tmp_path), "int4")


def test_a_run_says_its_dtype_and_goes_on_in_it(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name, parts in classes().items():
        for part, rows in parts.items():
            lines = [json.dumps({"input": text, "output": label}) + "\n" for text, label in rows]
            (data / f"{name}.{part}.jsonl").write_text("".join(lines))
    recipe = Recipe.from_dict(
        {
            "base": str(base_folder(tmp_path / "base")),
            "data": str(data),
            "dtype": "bfloat16",
            "method": "poly",
            "training": {"epochs": 1},
        }
    )
    summary = recipe.train(tmp_path / "run")
    assert summary["dtype"] == "bfloat16"
    run = load_run(tmp_path / "run")
    assert run.recipe["dtype"] == run.model.base.weight_dtype == "bfloat16"
