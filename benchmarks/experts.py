"""Experts mixed by their outputs, token by token: all, and the k best, against a loop over experts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks import rivals
from benchmarks.options import Options
from benchmarks.timing import Candidate, Contest, close, same_bits
from polymoe import functional as F
from polymoe import reference as R

SIZES = ((4096, 384, 8, 8, (1, 2, 3)), (4096, 384, 8, 16, (1, 2, 4)))  # N, D, r, S, k
QUICK = ((1024, 384, 8, 8, (1, 2)),)


def contests(options: Options) -> Iterator[Contest]:
    """One for each size."""
    for size in QUICK if options.quick else SIZES:
        yield contest(options, *size)


def contest(options: Options, n: int, d: int, r: int, s: int, ks: tuple[int, ...]) -> Contest:
    """Both passes of the experts alone."""
    rng = np.random.default_rng(0)
    draw = lambda *size: rng.standard_normal(size, np.float32)
    x, dy, A, B, logits = (
        draw(n, d),
        draw(n, d),
        draw(s, r, d) / np.float32(d**0.5),
        draw(s, r, d),
        draw(n, s),
    )
    ways: dict[str, dict[str, Any]] = {"polymoe": {"weights": F.softmax_router(logits)[0]}}
    for k in ks:
        weights, saved = F.topk_router(logits, k)
        ways[f"polymoe k={k}"] = {"weights": weights, "ids": saved.ids}

    def run(module: Any, args: dict[str, Any], *arrays: np.ndarray) -> tuple[Any, ...]:
        x, dy, A, B = arrays
        y, saved = module.moe(x, None, None, A, B, **args)
        grads = module.moe_backward(saved, dy)
        return y, *(
            grads
            if isinstance(grads, tuple)
            else (grads["d" + n] for n in ("x", "lora_A", "lora_B", "weights"))
        )

    def work(k: int) -> tuple[float, float]:
        return 12.0 * n * k * r * d, 4.0 * 5 * n * d

    ours = partial(run, F)
    candidates = [
        Candidate(
            who,
            partial(ours, args, x, dy, A, B),
            *work(int(who.partition("k=")[2] or s)),
            label=who[8:] or f"{s} experts",
        )
        for who, args in ways.items()
    ]
    if options.torch:
        candidates += _torch(ways, work, s, x, dy, A, B)

    def check() -> None:
        few = slice(0, 192)
        for who, args in ways.items():
            some = {name: value[few] for name, value in args.items()}
            wide = {k: v.astype(float) if v.dtype == np.float32 else v for k, v in some.items()}
            got = ours(some, x[few], dy[few], A, B)
            want = run(R, wide, *(a.astype(float) for a in (x[few], dy[few], A, B)))
            for a, b in zip(got, want, strict=True):
                close(who, a, b, 2e-5)
            same_bits(partial(ours, args, x, dy, A, B))

    return Contest("experts", f"N={n} D={d} r={r} S={s}", candidates, check)


def _torch(
    ways: dict[str, dict[str, Any]],
    work: Any,
    n_experts: int,
    x: np.ndarray,
    dy: np.ndarray,
    A: np.ndarray,
    B: np.ndarray,
) -> Iterator[Candidate]:
    torch = rivals.torch()
    before = rivals.tuned if rivals.can_tune() else None
    for who, args in ways.items():
        leaves = [rivals.tensor(a, grad=True) for a in (x, A, B, args["weights"])]
        ids = torch.from_numpy(args["ids"]) if "ids" in args else None
        chosen = args["ids"].shape[1] if "ids" in args else n_experts

        def run(leaves: Any = leaves, ids: Any = ids) -> Any:
            for leaf in leaves:
                leaf.grad = None
            x, A, B, weights = leaves
            if ids is None:
                y = sum(weights[:, e : e + 1] * (x @ A[e].T @ B[e]) for e in range(n_experts))
            else:
                y = torch.zeros_like(x)
                for e in range(n_experts):
                    rows, slots = torch.nonzero(ids == e, as_tuple=True)
                    y = y.index_add(0, rows, weights[rows, slots, None] * (x[rows] @ A[e].T @ B[e]))
            y.backward(rivals.tensor(dy))
            return y

        name = "torch, loop over experts" + who[7:]
        yield Candidate(name, run, *work(chosen), against=who, before=before)
