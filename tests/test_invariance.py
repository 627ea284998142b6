"""What an operation makes of an example does not depend on its batch, bit for bit; and the mode that keeps
:func:`polymoe.functional.linear` from choosing by the batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cases import lengths_to_cu_seqlens

import polymoe
from polymoe import functional as F

D, O, R, S, G, WIDE = 36, 30, 3, 5, 3, 1100  # WIDE: columns of several blocks in scratch
rng = np.random.default_rng(0)
POOL = {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in {
        "W": (O, D), "bias": (O,), "spread": (WIDE, D), "wide": (WIDE, WIDE), "vector": (D,), "rows": (G, D),
        "A": (S, R, D), "B": (S, R, O), "A10": (S, 10, D), "B10": (S, 10, O),
        "w": (G, 1, S), "heads": (G, 3, S), "chosen": (G, 2), "router": (S, D), "angles": (400, 6),
        "E": (S, O, D), "b": (S, O),
    }.items()
}  # fmt: skip
IDS = np.array([[0, 3], [4, 1], [2, 0]])
PACKED = F.PackedWeight(POOL["W"]), F.PackedWeight(POOL["wide"])


def grouped(**options: Any) -> Callable[..., Any]:
    names = {"A": "A", "B": "B", "w": "w"} | {k: options.pop(k) for k in ("A", "B", "w") if k in options}

    def run(x: Any, groups: Any, offsets: Any) -> Any:
        A, B, w = (POOL[name] for name in names.values())
        return F.linear(x, PACKED[0], POOL["bias"], A, B, w, groups, offsets, 0.5, **options)[0]

    return run


def by_token(k: int | None, **options: Any) -> Callable[..., Any]:
    def run(x: Any, groups: Any, offsets: Any) -> Any:
        logits = F.dense(x, POOL["router"])[0]
        weights, ids = F.softmax_router(logits)[0], None
        if k is not None:
            weights, saved = F.topk_router(logits, k)
            ids = saved.ids
        A = POOL["A"][: options.get("n_A", S)]
        return F.moe(x, PACKED[0], None, A, POOL["B"], weights, ids, 0.5, options.get("form", "auto"))[0]

    return run


def expert_dense(x: Any, weights: Any, groups: Any, offsets: Any) -> Any:
    return F.expert_dense(x, POOL["E"], POOL["b"], IDS, weights, groups, offsets)[0]


def places(offsets: Any) -> np.ndarray:
    return np.concatenate([np.arange(n) for n in np.diff(offsets)])


# Of x [N, D], the group of every example [B] and the offsets of examples: rows of tokens, or of examples.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "linear": lambda x, groups, offsets: F.linear(x, PACKED[0], POOL["bias"])[0],
    "linear wide": lambda x, groups, offsets: F.linear(F.dense(x, POOL["spread"])[0], PACKED[1])[0],
    "linear mix": grouped(formulation="mix"),
    "linear mix by heads": grouped(w="heads"),
    "linear concat": grouped(formulation="concat"),
    "linear mix of high rank": grouped(formulation="mix", A="A10", B="B10"),
    "linear concat of high rank": grouped(formulation="concat", A="A10", B="B10"),
    "linear outputs": grouped(mixing="outputs"),
    "linear chosen outputs": grouped(mixing="outputs", ids=IDS, w="chosen"),
    "mix": lambda x, groups, offsets: F.mix(POOL["heads"][groups], POOL["A"])[0],
    "task_router": lambda x, groups, offsets: F.task_router(POOL["heads"], groups)[0],
    "moe dense": by_token(None),
    "moe dense shared": by_token(None, n_A=1),
    "moe buckets": by_token(2, form="buckets"),
    "moe buckets shared": by_token(2, form="buckets", n_A=1),
    "moe chosen densely": by_token(3, form="dense"),
    "expert_dense": lambda x, groups, offsets: expert_dense(x, None, groups, offsets),
    "expert_dense sum": lambda x, groups, offsets: expert_dense(x, POOL["chosen"], groups, offsets),
    "multiply": lambda x, groups, offsets: F.multiply(x, POOL["rows"], groups, offsets)[0],
    "rope": lambda x, groups, offsets: F.rope(x, POOL["angles"], -POOL["angles"], places(offsets))[0],
    "layer_norm": lambda x, groups, offsets: F.layer_norm(x, POOL["vector"], POOL["vector"], 1e-5)[0],
    "rms_norm": lambda x, groups, offsets: F.rms_norm(x, POOL["vector"], 1e-5)[0],
    "l2_normalize": lambda x, groups, offsets: F.l2_normalize(x)[0],
    "gelu": lambda x, groups, offsets: F.gelu(x, "tanh")[0],
    "silu": lambda x, groups, offsets: F.silu(x)[0],
    "attention": lambda x, groups, offsets: F.attention(x, -x, x, offsets, 3)[0],
    "causal attention": lambda x, groups, offsets: F.attention(x, -x, x, offsets, 1, causal=True)[0],
    "mean_pool": lambda x, groups, offsets: F.mean_pool(x, offsets)[0],
    "attention_pool": lambda x, groups, offsets: F.attention_pool(x, POOL["vector"], offsets)[0],
}


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_operation_gives_an_example_the_same_bits_in_any_batch(op: str, isa: str) -> None:
    rng = np.random.default_rng(3)
    for sizes in ([1], [1, 2, 3, 5, 7], [130, 1, 61, 127], [128, 4, 9, 300], [11, 0, 129, 13, 1, 26]):
        offsets = lengths_to_cu_seqlens(sizes)
        x, groups = rng.normal(size=(offsets[-1], D)).astype(np.float32), rng.integers(G, size=len(sizes))
        together = OPERATIONS[op](x, groups, offsets)
        for b, (start, end) in enumerate(pairwise(offsets)):
            alone = OPERATIONS[op](x[start:end].copy(), groups[b : b + 1], np.array([0, end - start]))
            mine = slice(start, end) if len(together) == offsets[-1] else slice(b, b + 1)
            np.testing.assert_array_equal(together[mine], alone, err_msg=f"{sizes}, example {b}")


def test_the_mode_pins_the_formula_that_auto_takes() -> None:
    x, offsets, groups = np.ones((3, D), np.float32), np.array([0, 1, 2, 3]), np.array([0, 1, 2])
    run = {name: grouped(formulation=name)(x, groups, offsets) for name in ("auto", "mix", "concat")}
    np.testing.assert_array_equal(run["auto"], run["concat"])
    assert (run["mix"] != run["concat"]).any()
    with polymoe.batch_invariant():
        np.testing.assert_array_equal(grouped(formulation="auto")(x, groups, offsets), run["mix"])
        np.testing.assert_array_equal(grouped(formulation="concat")(x, groups, offsets), run["concat"])


def test_the_mode_is_set_for_all_threads_or_for_a_block() -> None:
    def elsewhere() -> bool:
        seen: list[bool] = []
        thread = threading.Thread(target=lambda: seen.append(polymoe.get_batch_invariant()))
        thread.start()
        thread.join()
        return seen[0]

    assert not polymoe.get_batch_invariant()
    with polymoe.batch_invariant():
        assert polymoe.get_batch_invariant()
        assert not elsewhere()
        with polymoe.batch_invariant(None):
            assert polymoe.get_batch_invariant()
        with polymoe.batch_invariant(False):
            assert not polymoe.get_batch_invariant()
        assert polymoe.get_batch_invariant()
    polymoe.set_batch_invariant(True)
    try:
        assert polymoe.get_batch_invariant()
        assert elsewhere()
    finally:
        polymoe.set_batch_invariant(False)
    assert not polymoe.get_batch_invariant()
