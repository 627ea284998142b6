"""THE table of cases: every operation at awkward sizes, with its tolerance, its flops and its bytes.

Read by test_ops.py (every instruction set and dtype against the reference), test_gradients.py (finite
differences) and the benchmarks. A case makes its arguments from a random generator in float64; ``cast``
brings them to a dtype. To add an operation: a function that yields its cases, and its name in ``CASES``.

Errors are measured against the largest absolute value of the exact result (or ``floor`` if that is larger),
so that a tolerance of ``1e-6`` means about eight units in the last place of the largest value in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from polymoe.functional import leaf_size

Args = dict[str, Any]


class Case(NamedTuple):
    """One operation at one size."""

    op: str
    size: str  # what is special about it: "N=129 D=17"
    make: Callable[[np.random.Generator], Args]
    wrt: tuple[str, ...]  # differentiable arguments
    tol: dict[str, float]  # dtype -> tolerance of y and of the gradients
    flops: float = 0.0  # of the forward
    bytes: float = 0.0  # of the forward, in float32
    floor: float = 1e-2
    big: bool = False  # large enough for several threads: also the one that benchmarks time
    steps: bool = False  # y is piecewise constant: its gradient is a straight-through one, not the derivative

    def __str__(self) -> str:
        return f"{self.op}[{self.size}]"


def cast(args: Args, dtype: str) -> Args:
    """The arguments with every float64 array in ``dtype``."""
    return {
        k: v.astype(dtype) if isinstance(v, np.ndarray) and v.dtype == np.float64 else v
        for k, v in args.items()
    }


def lengths_to_cu_seqlens(lengths: Any) -> np.ndarray:
    """Offsets [B+1] of examples of these lengths."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


def concat_cases() -> Iterator[Case]:
    for G, Q, S, P in (
        (0, 1, 2, 3),
        (1, 1, 1, 1),
        (5, 3, 4, 7),
        (500, 2, 9, 100),
        (3, 2, 0, 5),
        (3, 2, 5, 0),
    ):

        def make(rng: np.random.Generator, G: int = G, Q: int = Q, S: int = S, P: int = P) -> Args:
            return {"a": rng.normal(size=(G, Q, S)), "b": rng.normal(size=(G, P))}

        yield Case(
            "concat",
            f"G={G} Q={Q} S={S} P={P}",
            make,
            ("a", "b"),
            {"float32": 1e-6, "float64": 1e-14},
            big=G == 500,
        )


def reshape_cases() -> Iterator[Case]:
    def make(rng: np.random.Generator) -> Args:
        return {"x": rng.normal(size=(4, 3)), "shape": (2, 1, 6)}

    yield Case("reshape", "12", make, ("x",), {"float32": 0.0, "float64": 0.0}, big=True)


COUNTS = (0, 1, 3, 15, 16, 17, 127, 128, 129, 331)
LARGE = 300_000  # values: several threads take part


def add_cases() -> Iterator[Case]:
    for n in (*COUNTS, LARGE):

        def make(rng: np.random.Generator, n: int = n) -> Args:
            return {"a": rng.normal(size=(n,)), "b": rng.normal(size=(n,))}

        yield Case(
            "add",
            f"n={n}",
            make,
            ("a", "b"),
            {"float32": 1e-7, "float64": 1e-15},
            n,
            12.0 * n,
            big=n == LARGE,
        )


def relu_cases() -> Iterator[Case]:
    for n in (*COUNTS, LARGE):

        def make(rng: np.random.Generator, n: int = n) -> Args:
            return {"x": rng.normal(size=(n,))}

        yield Case(
            "relu",
            f"n={n}",
            make,
            ("x",),
            {"float32": 1e-7, "float64": 1e-15},
            n,
            8.0 * n,
            big=n == LARGE,
        )


def multiply_cases() -> Iterator[Case]:
    for n in (*COUNTS, LARGE):

        def make(rng: np.random.Generator, n: int = n) -> Args:
            return {"a": rng.normal(size=(n,)), "b": rng.normal(size=(n,))}

        yield Case(
            "multiply",
            f"n={n}",
            make,
            ("a", "b"),
            {"float32": 1e-7, "float64": 1e-15},
            n,
            12.0 * n,
            big=n == LARGE,
        )

    several = [130, 5, 0, 140, 3, 20]  # longer and shorter than a chunk, empty, meeting within one
    sizes: list[tuple[int, tuple[int, ...], list[int] | None, list[int]]] = [
        (7, (7,), None, [300]),
        (1, (1, 1), None, [5]),
        (5, (0, 5), [], []),
        (17, (3, 17), [2, 0, 2, 2, 0, 1], several),
        (65, (4, 1, 65), [2, 0, 0, 2, 0, 1], several),  # group 3 has no example
        (384, (8, 384), [i % 8 for i in range(40)], [30] * 40),
    ]
    for d, shape, ids, lengths in sizes:

        def grouped(
            rng: np.random.Generator,
            d: int = d,
            shape: tuple[int, ...] = shape,
            ids: list[int] | None = ids,
            lengths: list[int] = lengths,
        ) -> Args:
            args: Args = {"a": rng.normal(size=(sum(lengths), d)), "b": rng.normal(size=shape)}
            if ids is None:
                return args
            ids_array = np.array(ids, dtype=np.int64)
            return {**args, "adapter_ids": ids_array, "cu_seqlens": lengths_to_cu_seqlens(lengths)}

        n = sum(lengths)
        yield Case(
            "multiply",
            f"N={n} D={d} b={shape}",
            grouped,
            ("a", "b"),
            {"float32": 3e-6, "float64": 1e-14},
            1.0 * n * d,
            8.0 * n * d,
            big=d == 384,
        )


def dropout_cases() -> Iterator[Case]:
    for n in (*COUNTS, LARGE):

        def make(rng: np.random.Generator, n: int = n) -> Args:
            return {"x": rng.normal(size=(n, 1)), "mask_scale": (rng.random((n, 1)) < 0.9) / 0.9}

        yield Case(
            "dropout",
            f"n={n}",
            make,
            ("x",),
            {"float32": 1e-7, "float64": 1e-15},
            n,
            12.0 * n,
            big=n == LARGE,
        )


def scale_by_cases() -> Iterator[Case]:
    for n in (*COUNTS, LARGE):

        def make(rng: np.random.Generator, n: int = n) -> Args:
            return {"x": rng.normal(size=(n,)), "log_scale": rng.normal(size=1)}

        yield Case(
            "scale_by",
            f"n={n}",
            make,
            ("x", "log_scale"),
            {"float32": 3e-7, "float64": 1e-14},
            n,
            8.0 * n,
            big=n == LARGE,
        )


def gelu_cases() -> Iterator[Case]:
    for approximate in ("none", "tanh"):
        for n in (*COUNTS, LARGE):

            def make(rng: np.random.Generator, n: int = n, approximate: str = approximate) -> Args:
                return {"x": rng.normal(size=(n,)) * 3, "approximate": approximate}

            yield Case(
                "gelu",
                f"{approximate} n={n}",
                make,
                ("x",),
                {"float32": 2e-6, "float64": 1e-13},
                30.0 * n,
                8.0 * n,
                floor=1.0,
                big=n == LARGE,
            )


def silu_cases() -> Iterator[Case]:
    for n in (*COUNTS, LARGE):

        def make(rng: np.random.Generator, n: int = n) -> Args:
            return {"x": rng.normal(size=(n,)) * 5}

        yield Case(
            "silu",
            f"n={n}",
            make,
            ("x",),
            {"float32": 1e-6, "float64": 1e-14},
            20.0 * n,
            8.0 * n,
            floor=1.0,
            big=n == LARGE,
        )


def layer_norm_cases() -> Iterator[Case]:
    sizes = [(0, 5), (1, 1), (3, 2), (127, 15), (128, 16), (129, 17), (300, 33), (700, 384)]
    for n, d in sizes:
        for residual in (False, True):

            def make(rng: np.random.Generator, n: int = n, d: int = d, residual: bool = residual) -> Args:
                args = {
                    "x": rng.normal(size=(n, d)) + 0.5,
                    "weight": rng.normal(size=d),
                    "bias": rng.normal(size=d),
                    "eps": 1e-5,
                }
                return {**args, "residual": rng.normal(size=(n, d))} if residual else args

            wrt = ("x", "weight", "bias", "residual") if residual else ("x", "weight", "bias")
            yield Case(
                "layer_norm",
                f"N={n} D={d}{' residual' if residual else ''}",
                make,
                wrt,
                {"float32": 3e-6, "float64": 1e-12},
                8.0 * n * d,
                (12.0 if residual else 8.0) * n * d,
                floor=1e3 if d < 3 else 1e-2,
                big=d == 384,
            )  # one or two columns: dx is a difference of large numbers

            def with_inverse(
                rng: np.random.Generator, make: Callable[[np.random.Generator], Args] = make
            ) -> Args:
                args = make(rng)
                weight = np.sign(args["weight"]) * (0.5 + np.abs(args["weight"]))
                return {**args, "weight": weight, "inverse": 1 / weight}

            yield Case(
                "layer_norm",
                f"N={n} D={d}{' residual' if residual else ''} inverse",
                with_inverse,
                ("x", "residual") if residual else ("x",),
                {"float32": 1e-5, "float64": 1e-11},
                floor=1e3 if d < 3 else 1e-2,
            )


def rms_norm_cases() -> Iterator[Case]:
    for n, d in [(0, 5), (1, 1), (3, 2), (127, 15), (128, 16), (129, 17), (300, 33), (700, 576)]:

        def make(rng: np.random.Generator, n: int = n, d: int = d) -> Args:
            return {"x": rng.normal(size=(n, d)) + 0.5, "weight": rng.normal(size=d), "eps": 1e-5}

        yield Case(
            "rms_norm",
            f"N={n} D={d}",
            make,
            ("x", "weight"),
            {"float32": 3e-6, "float64": 1e-12},
            5.0 * n * d,
            8.0 * n * d,
            floor=100.0 if d < 3 else 1e-2,  # one or two columns: dx is a difference of large numbers
            big=d == 576,
        )

        def with_inverse(
            rng: np.random.Generator, make: Callable[[np.random.Generator], Args] = make
        ) -> Args:
            args = make(rng)
            return {**args, "inverse": 1 / args["weight"]}

        yield Case(
            "rms_norm",
            f"N={n} D={d} inverse",
            with_inverse,
            ("x",),
            {"float32": 1e-5, "float64": 1e-11},
            floor=100.0 if d < 3 else 1e-2,
        )


def rope_cases() -> Iterator[Case]:
    for n, h, d, p in [(0, 1, 2, 1), (1, 1, 2, 3), (5, 3, 6, 2), (129, 2, 34, 50), (1000, 9, 64, 300)]:

        def make(rng: np.random.Generator, n: int = n, h: int = h, d: int = d, p: int = p) -> Args:
            angles = rng.normal(size=(p, d // 2)) * 10
            tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
            return {"x": rng.normal(size=(n, h * d)), **tables, "positions": rng.integers(0, p, size=n)}

        yield Case(
            "rope",
            f"N={n} H={h} d={d} P={p}",
            make,
            ("x",),
            {"float32": 3e-7, "float64": 1e-15},
            3.0 * n * h * d,
            8.0 * n * h * d,
            big=n == 1000,
        )


def l2_normalize_cases() -> Iterator[Case]:
    for b, d in [(0, 3), (1, 1), (2, 17), (129, 31), (1000, 384)]:

        def make(rng: np.random.Generator, b: int = b, d: int = d) -> Args:
            return {"x": rng.normal(size=(b, d))}

        yield Case(
            "l2_normalize",
            f"B={b} D={d}",
            make,
            ("x",),
            {"float32": 1e-6, "float64": 1e-13},
            3.0 * b * d,
            8.0 * b * d,
            floor=100.0 if d == 1 else 1.0,
            big=d == 384,
        )

    def tiny(rng: np.random.Generator) -> Args:
        return {"x": rng.normal(size=(3, 5)) * 1e-3, "eps": 1.0}

    yield Case("l2_normalize", "shorter than eps", tiny, ("x",), {"float32": 1e-6, "float64": 1e-13})


def embedding_cases() -> Iterator[Case]:
    for n, v, d in [(0, 3, 4), (1, 1, 1), (17, 5, 3), (129, 40, 65), (2000, 300, 128)]:

        def make(rng: np.random.Generator, n: int = n, v: int = v, d: int = d) -> Args:
            return {"ids": rng.integers(0, v, size=n), "table": rng.normal(size=(v, d))}

        yield Case(
            "embedding",
            f"N={n} V={v} D={d}",
            make,
            ("table",),
            {"float32": 1e-6, "float64": 1e-14},
            0,
            8.0 * n * d,
            big=n == 2000,
        )


def mean_pool_cases() -> Iterator[Case]:
    for name, lengths, d in [
        ("no examples", [], 3),
        ("empty ones", [0, 1, 0, 5, 0], 7),
        ("D=1", [1, 2, 129], 1),
        ("mixed", [128, 1, 300, 17], 384),
        ("many", [100] * 32, 384),
    ]:

        def make(rng: np.random.Generator, lengths: list[int] = lengths, d: int = d) -> Args:
            return {"x": rng.normal(size=(sum(lengths), d)), "cu_seqlens": lengths_to_cu_seqlens(lengths)}

        n = sum(lengths)
        yield Case(
            "mean_pool",
            name,
            make,
            ("x",),
            {"float32": 2e-6, "float64": 1e-14},
            1.0 * n * d,
            4.0 * n * d,
            big=name == "many",
        )


def task_router_cases() -> Iterator[Case]:
    sizes = [
        (1, 1, 1, 1, True),
        (3, 0, 2, 4, True),
        (5, 4, 1, 8, False),
        (5, 7, 3, 5, True),
        (20, 32, 8, 8, True),
    ]
    for t, g, q, s, noisy in sizes:

        def make(
            rng: np.random.Generator, t: int = t, g: int = g, q: int = q, s: int = s, noisy: bool = noisy
        ) -> Args:
            args = {"logits": rng.normal(size=(t, q, s)), "task_ids": rng.integers(0, t, size=g)}
            return (
                {**args, "noise": rng.uniform(0.01, 0.99, size=(g, q, s)), "temperature": 0.7}
                if noisy
                else args
            )

        yield Case(
            "task_router",
            f"T={t} G={g} Q={q} S={s}{' noise' if noisy else ''}",
            make,
            ("logits",),
            {"float32": 1e-6, "float64": 1e-14},
            20.0 * g * q * s,
            16.0 * g * q * s,
            floor=0.1,
            big=g == 32,
        )

    gates: list[tuple[str, Args]] = [
        ("sigmoid", {"mask": 0.25}),
        ("sigmoid", {"average_correction": True, "mask": 0.25}),
        ("straight_through", {}),
        ("straight_through", {"noise": True, "temperature": 0.5, "mask": 0.25}),
        ("straight_through", {"average_correction": True}),
        ("softmax", {"temperature": 0.3}),
        ("softmax", {"mask": 0.25}),
        ("l2", {}),
        ("l2", {"mask": 0.25}),
    ]
    for gate, options in gates:

        def make_gate(rng: np.random.Generator, gate: str = gate, options: Args = options) -> Args:
            g, q, s = 9, 2, 6
            args = {
                "logits": rng.normal(size=(5, q, s)),
                "task_ids": rng.integers(0, 5, size=g),
                "gate": gate,
            }
            args |= options
            if "noise" in options:
                args["noise"] = rng.uniform(0.01, 0.99, size=(g, q, s))
            if "mask" in options:
                args["mask"] = (rng.random((g, q, s)) >= options["mask"]) / (1 - options["mask"])
            return args

        yield Case(
            "task_router",
            " ".join([gate, *options]),
            make_gate,
            ("logits",),
            {"float32": 1e-6, "float64": 1e-14},
            floor=0.1,
            steps=gate == "straight_through",
        )


def attention_pool_cases() -> Iterator[Case]:
    for name, lengths, d in [
        ("no examples", [], 3),
        ("empty ones", [0, 1, 0, 5, 0], 7),
        ("D=1", [1, 2, 129], 1),
        ("mixed", [128, 1, 30, 17], 33),
        ("many", [100] * 16, 384),
    ]:

        def make(rng: np.random.Generator, lengths: list[int] = lengths, d: int = d) -> Args:
            x, query = rng.normal(size=(sum(lengths), d)), rng.normal(size=d)
            args = {"x": x, "query": query, "cu_seqlens": lengths_to_cu_seqlens(lengths)}
            return {**args, "scale": 0.7} if d == 7 else args

        n = sum(lengths)
        yield Case(
            "attention_pool",
            name,
            make,
            ("x", "query"),
            {"float32": 3e-6, "float64": 1e-13},
            4.0 * n * d,
            4.0 * n * d,
            floor=0.1,
            big=name == "many",
        )


TOKENS = [(0, 3), (1, 1), (5, 2), (17, 16), (129, 17), (300, 5), (5000, 8)]  # N, S


def softmax_router_cases() -> Iterator[Case]:
    for n, s in TOKENS:

        def make(rng: np.random.Generator, n: int = n, s: int = s) -> Args:
            return {"logits": rng.normal(size=(n, s)), "temperature": 0.7}

        yield Case(
            "softmax_router",
            f"N={n} S={s}",
            make,
            ("logits",),
            {"float32": 1e-6, "float64": 1e-14},
            20.0 * n * s,
            8.0 * n * s,
            floor=0.1,
            big=n == 5000,
        )


def topk_router_cases() -> Iterator[Case]:
    for n, s in TOKENS:
        for k in sorted({1, min(2, s), s}):

            def make(rng: np.random.Generator, n: int = n, s: int = s, k: int = k) -> Args:
                return {"logits": rng.normal(size=(n, s)), "k": k}

            yield Case(
                "topk_router",
                f"N={n} S={s} k={k}",
                make,
                ("logits",),
                {"float32": 1e-6, "float64": 1e-14},
                8.0 * n * s * k,
                4.0 * n * (s + 3 * k),
                floor=0.1,
                big=n == 5000,
            )


def balance_loss_cases() -> Iterator[Case]:
    for n, s in TOKENS:

        def make(rng: np.random.Generator, n: int = n, s: int = s) -> Args:
            return {"logits": rng.normal(size=(n, s)), "ids": rng.integers(0, s, size=(n, min(2, s)))}

        yield Case(
            "balance_loss",
            f"N={n} S={s}",
            make,
            ("logits",),
            {"float32": 1e-6, "float64": 1e-14},
            20.0 * n * s,
            4.0 * n * s,
            floor=1.0 / max(n, 1),  # the size of a slope: dlogits is a difference of them
            big=n == 5000,
        )


def ibp_loss_cases() -> Iterator[Case]:
    for t, s in [(0, 3), (3, 0), (1, 1), (4, 3), (3, 40), (20, 8), (300, 129)]:

        def make(rng: np.random.Generator, t: int = t, s: int = s) -> Args:
            return {"logits": rng.normal(size=(t, s))}

        yield Case(
            "ibp_loss",
            f"T={t} S={s}",
            make,
            ("logits",),
            {"float32": 1e-6, "float64": 1e-13},
            1.0 * t * s,
            4.0 * t * s,
            big=t == 300,
            steps=True,
        )

    def heads(rng: np.random.Generator) -> Args:
        return {"logits": rng.normal(size=(5, 2, 3))}

    yield Case("ibp_loss", "heads", heads, ("logits",), {"float32": 1e-6, "float64": 1e-13}, steps=True)


def cross_entropy_cases() -> Iterator[Case]:
    for b, c in [(0, 3), (1, 1), (5, 2), (17, 16), (16, 33), (33, 129), (700, 300)]:
        for ranged in (False, True):

            def make(rng: np.random.Generator, b: int = b, c: int = c, ranged: bool = ranged) -> Args:
                args = {"logits": rng.normal(size=(b, c)) * 4}
                if not ranged:
                    return {**args, "labels": rng.integers(0, c, size=b)}
                starts = rng.integers(0, c, size=b)
                ends = rng.integers(starts + 1, c + 1)
                return {
                    **args,
                    "labels": rng.integers(starts, ends),
                    "starts": starts,
                    "ends": ends,
                    "weights": rng.uniform(0.5, 2, size=b),
                }

            yield Case(
                "cross_entropy",
                f"B={b} C={c}{' ranges, weights' if ranged else ''}",
                make,
                ("logits",),
                {"float32": 1e-6, "float64": 1e-13},
                20.0 * b * c,
                4.0 * b * c,
                big=b == 700,
            )

    def skipped(rng: np.random.Generator) -> Args:
        return {"logits": rng.normal(size=(3, 4)), "labels": np.array([0, 1, 2]), "weights": np.zeros(3)}

    yield Case("cross_entropy", "weights 0", skipped, ("logits",), {"float32": 0, "float64": 0})


def lm_loss_cases() -> Iterator[Case]:
    for n, d, v in (
        (0, 3, 5),
        (1, 1, 1),
        (7, 17, 33),
        (64, 8, 50),
        (65, 33, 17),
        (130, 9, 300),
        (300, 64, 3000),
    ):

        def make(rng: np.random.Generator, n: int = n, d: int = d, v: int = v) -> Args:
            args = {"x": rng.normal(size=(n, d)), "weight": rng.normal(size=(v, d)) / np.sqrt(d)}
            args["labels"] = rng.integers(v, size=n)
            return {**args, "weights": rng.uniform(0, 2, size=n)} if n % 2 else args

        yield Case(
            "lm_loss",
            f"N={n} D={d} V={v}",
            make,
            ("x",),
            {"float32": 4e-6, "float64": 1e-13},
            4.0 * n * d * v,
            4.0 * d * v,
            big=n == 300,
        )


def mse_cases() -> Iterator[Case]:
    for b in (*COUNTS, 5000):

        def make(rng: np.random.Generator, b: int = b) -> Args:
            args = {"predictions": rng.normal(size=b), "targets": rng.normal(size=b)}
            return {**args, "weights": rng.uniform(0.5, 2, size=b)} if b % 2 else args

        yield Case(
            "mse",
            f"B={b}",
            make,
            ("predictions",),
            {"float32": 1e-6, "float64": 1e-14},
            4.0 * b,
            8.0 * b,
            big=b == 5000,
        )


def attention_cases() -> Iterator[Case]:
    lengths = [0, 1, 15, 16, 17, 0, 31, 33]
    sizes = [
        ("no examples", [], 2, 2, 8),
        ("B=1 L=0", [0], 1, 1, 4),
        ("L=1", [1], 3, 3, 5),
        ("short", lengths, 2, 2, 32),
        ("odd head", [17, 2], 3, 3, 7),
        ("127 to 129", [127, 128, 129], 1, 1, 33),
        ("head 64", [40, 65], 2, 2, 64),
        ("long", [300], 2, 2, 32),
        ("many", [128, 100, 1, 512], 4, 4, 32),
        ("one for all", lengths, 4, 1, 7),
        ("pairs", [33, 0, 5], 6, 3, 16),
        ("many shared", [128, 100, 1, 512], 9, 3, 64),
    ]
    for name, lengths, h, kv, hd in sizes:
        for causal in (False, True):
            n = sum(lengths)

            def make(
                rng: np.random.Generator,
                lengths: list[int] = lengths,
                h: int = h,
                kv: int = kv,
                hd: int = hd,
                causal: bool = causal,
                n: int = n,
            ) -> Args:
                q, k, v = (rng.normal(size=(n, heads * hd)) for heads in (h, kv, kv))
                args: Args = {
                    "q": 2 * q,
                    "k": k,
                    "v": v,
                    "cu_seqlens": lengths_to_cu_seqlens(lengths),
                    "n_heads": h,
                    "causal": causal,
                }
                return args if kv == h else {**args, "n_kv_heads": kv}

            flops = 4.0 * h * hd * sum(x * x for x in lengths) / (2 if causal else 1)
            yield Case(
                "attention",
                f"{name} H={h}{f'/{kv}' if kv < h else ''} d={hd}{' causal' if causal else ''}",
                make,
                ("q", "k", "v"),
                {"float32": 4e-6, "float64": 1e-13},
                flops,
                8.0 * n * (h + kv) * hd,
                floor=1.0,
                big=name.startswith("many"),
            )

    def scaled(rng: np.random.Generator) -> Args:
        q, k, v = (rng.normal(size=(20, 6)) for _ in range(3))
        return {"q": q, "k": k, "v": v, "cu_seqlens": np.array([0, 20]), "n_heads": 2, "scale": 0.3}

    for name, queries, rooms, keys, h, kv in (
        ("new tokens", [1, 1, 1], [5, 40, 9], [3, 33, 9], 4, 2),
        ("several new", [3, 0, 33, 2], [3, 4, 70, 90], [3, 2, 65, 90], 2, 2),
        ("blocks of new", [40, 70], [90, 71], None, 2, 1),
        ("room left over", [1, 2], [7, 8], None, 3, 1),
        ("cached", [1] * 40, [700] * 40, [650] * 40, 4, 4),
    ):
        for causal in (False, True):

            def cached(
                rng: np.random.Generator,
                queries: list[int] = queries,
                rooms: list[int] = rooms,
                keys: list[int] | None = keys,
                h: int = h,
                kv: int = kv,
                causal: bool = causal,
            ) -> Args:
                q, (k, v) = rng.normal(size=(sum(queries), h * 8)), rng.normal(size=(2, sum(rooms), kv * 8))
                args = {"q": 2 * q, "k": k, "v": v, "n_heads": h, "n_kv_heads": kv, "causal": causal}
                offsets = {"cu_seqlens": queries, "cu_seqlens_k": rooms}
                args |= {name: lengths_to_cu_seqlens(lengths) for name, lengths in offsets.items()}
                return args if keys is None else {**args, "key_lengths": np.array(keys)}

            yield Case(
                "attention",
                f"{name} H={h}/{kv}{' causal' if causal else ''}",
                cached,
                ("q", "k", "v"),
                {"float32": 4e-6, "float64": 1e-13},
                32.0 * h * sum(a * b for a, b in zip(queries, keys or rooms, strict=True)),
                64.0 * kv * sum(keys or rooms),
                floor=1.0,
                big=name == "cached",
            )

    for name, queries, rooms, P, h, kv, causal in (
        ("bias", [0, 1, 40, 16], [0, 1, 40, 16], 16, 3, 3, False),
        ("bias", [70, 33], [70, 33], 9, 4, 2, True),
        ("bias of new tokens", [1, 3, 40], [33, 3, 90], 16, 2, 2, True),
        ("bias of few keys", [50, 2], [7, 5], 4, 2, 1, False),
        ("bias by a sign", [5], [5], 1, 1, 1, False),
        ("one bias for all", [20], [20], 0, 2, 2, True),
        ("many with bias", [128, 100, 1, 512], [128, 100, 1, 512], 128, 4, 4, False),
    ):

        def biased(
            rng: np.random.Generator,
            queries: list[int] = queries,
            rooms: list[int] = rooms,
            P: int = P,
            h: int = h,
            kv: int = kv,
            causal: bool = causal,
        ) -> Args:
            q, (k, v) = rng.normal(size=(sum(queries), h * 9)), rng.normal(size=(2, sum(rooms), kv * 9))
            args = {"q": q, "k": k, "v": v, "n_heads": h, "n_kv_heads": kv, "causal": causal}
            offsets = {"cu_seqlens": queries, "cu_seqlens_k": rooms}
            args |= {name: lengths_to_cu_seqlens(lengths) for name, lengths in offsets.items()}
            return {**args, "position_bias": 2 * rng.normal(size=(h, 2 * P + 1))}

        yield Case(
            "attention",
            f"{name} P={P} H={h}/{kv}{' causal' if causal else ''}",
            biased,
            ("q", "k", "v"),
            {"float32": 4e-6, "float64": 1e-13},
            36.0 * h * sum(a * b for a, b in zip(queries, rooms, strict=True)),
            72.0 * kv * sum(rooms),
            floor=1.0,
            big=name.startswith("many"),
        )

    yield Case("attention", "scale", scaled, ("q", "k", "v"), {"float32": 4e-6, "float64": 1e-13}, floor=1.0)


def mix_cases() -> Iterator[Case]:
    sizes = [
        (0, 1, 2, 3, 8),
        (1, 1, 1, 1, 1),
        (3, 2, 5, 3, 34),
        (5, 4, 4, 2, 4),
        (6, 1, 7, 8, 33),
        (16, 2, 8, 16, 512),
    ]
    for g, q, s, r, d in sizes:

        def make(
            rng: np.random.Generator, g: int = g, q: int = q, s: int = s, r: int = r, d: int = d
        ) -> Args:
            return {"weights": rng.normal(size=(g, q, s)), "bank": rng.normal(size=(s, r, d)), "scale": 0.7}

        yield Case(
            "mix",
            f"G={g} Q={q} S={s} r={r} D={d}",
            make,
            ("weights", "bank"),
            {"float32": 1e-6, "float64": 1e-14},
            2.0 * g * s * r * d,
            4.0 * (s + g) * r * d,
            big=d == 512,
        )


def tensor_product_cases() -> Iterator[Case]:
    sizes = [
        (2, 0, 2, 5),
        (2, 1, 1, 1),
        (2, 3, 2, 7),  # cut in the middle of a row of the product
        (2, 2, 3, 256),  # not cut
        (2, 2, 1, 1089),
        (4, 3, 2, 16),
        (4, 2, 3, 17),
        (4, 1, 5, 1200),
        (8, 2, 2, 6),
        (8, 1, 3, 300),
        (2, 8, 16, 2048),
        (4, 9, 16, 2048),
        (8, 8, 16, 2048),
    ]
    for order, j, r, d in sizes:

        def make(rng: np.random.Generator, order: int = order, j: int = j, r: int = r, d: int = d) -> Args:
            leaves = rng.normal(size=(j, r, order * leaf_size(d, order))) + 0.3
            return {"leaves": leaves, "order": order, "d": d}

        yield Case(
            "tensor_product",
            f"order={order} J={j} r={r} d={d}",
            make,
            ("leaves",),
            {"float32": 3e-6, "float64": 1e-12},
            2.0 * j * r * d,
            4.0 * j * r * d,
            floor=10.0 if d == 1 else 1e-2,  # one value: its distance from the mean is rounding
            big=d == 2048,
        )

    def tiny(rng: np.random.Generator) -> Args:  # eps, not the variance, decides the scale
        return {"leaves": rng.normal(size=(2, 3, 10)) * 1e-2, "order": 2, "d": 20}

    yield Case("tensor_product", "smaller than eps", tiny, ("leaves",), {"float32": 3e-6, "float64": 1e-12})


def dense_cases() -> Iterator[Case]:
    sizes = [(0, 3, 2), (1, 1, 1), (3, 7, 15), (16, 17, 16), (129, 33, 40), (300, 530, 130)]
    for n, d, o in sizes:
        for bias in (False, True):

            def make(rng: np.random.Generator, n: int = n, d: int = d, o: int = o, bias: bool = bias) -> Args:
                args = {"x": rng.normal(size=(n, d)), "weight": rng.normal(size=(o, d))}
                return {**args, "bias": rng.normal(size=o)} if bias else args

            yield Case(
                "dense",
                f"N={n} D={d} O={o}{' bias' if bias else ''}",
                make,
                ("x", "weight", "bias") if bias else ("x", "weight"),
                {"float32": 3e-6, "float64": 1e-14},
                2.0 * n * d * o,
                4.0 * (n * d + n * o + d * o),
                big=n == 300,
            )


class Term(NamedTuple):
    """A low-rank term: its extents, the group of every example and how long the examples are."""

    r: int
    S: int
    Q: int
    G: int | None  # None: no weights, pair g is lora_A[g]
    adapter_ids: list[int]
    lengths: list[int]
    formulation: str = "auto"
    mixing: str = "factors"
    k: int | None = None  # outputs of so many experts per group, of G groups


def linear_cases() -> Iterator[Case]:
    several = [130, 5, 0, 140, 3, 20]  # longer and shorter than a chunk, empty, meeting within one
    sizes = [
        (1, 1, Term(1, 1, 1, 1, [0], [1])),
        (7, 15, Term(3, 2, 1, 2, [1, 0, 1, 1, 0], [5, 0, 20, 3, 1], "mix")),
        (16, 17, Term(8, 4, 1, 3, [2, 0, 1, 2, 0, 0], several, "mix")),
        (16, 24, Term(8, 4, 4, 3, [2, 0, 2, 2, 0, 1], several)),
        (33, 40, Term(16, 3, 1, None, [2, 0, 2, 2, 0, 1], several)),
        (17, 1, Term(5, 5, 1, None, [4], [129])),
        (385, 16, Term(64, 2, 1, 2, [0, 1], [9, 8], "mix")),
        (1100, 12, Term(100, 2, 2, 1, [0], [13])),  # three blocks of columns
        (12, 530, Term(9, 2, 2, 1, [0], [13])),
        (20, 36, Term(7, 4, 1, 4, [3, 1, 2, 0], [1, 2, 0, 1])),  # few tokens per group: concat
        (33, 35, Term(5, 4, 1, 4, [3, 2, 1, 0, 1], [3, 2, 1, 0, 150], "concat")),
        (16, 32, Term(2, 3, 1, 4, [], [])),
        (16, 32, Term(2, 3, 1, 4, [], [], "mix")),
        (16, 32, Term(2, 3, 1, 0, [], [])),
        (192, 200, Term(16, 8, 2, 24, [3 * i % 24 for i in range(40)], [7 * i % 50 for i in range(40)])),
        (128, 136, Term(4, 8, 1, 100, [i % 100 for i in range(300)], [i % 3 for i in range(300)])),
        (200, 190, Term(20, 4, 1, None, [i % 4 for i in range(40)], [30] * 40)),
        # groups that take turns every few tokens: sorted
        (33, 40, Term(5, 3, 1, 3, [i % 3 for i in range(60)], [i % 6 for i in range(60)], "mix")),
        (530, 17, Term(20, 2, 1, None, [i % 2 for i in range(90)], [1 + i % 3 for i in range(90)])),
        (20, 12, Term(2, 9, 1, 3, [i % 3 for i in range(50)], [3] * 50, mixing="outputs", k=2)),
        (1, 1, Term(1, 1, 1, 1, [0], [1], mixing="outputs")),
        (17, 33, Term(3, 5, 1, 3, [2, 0, 1, 2, 0, 0], several, mixing="outputs")),
        (530, 12, Term(4, 7, 1, 5, [0, 4, 1], [2, 130, 9], mixing="outputs")),
        (16, 32, Term(2, 3, 1, 4, [], [], mixing="outputs")),
        (96, 100, Term(8, 6, 1, 40, list(range(40)), [30] * 40, mixing="outputs")),
        (17, 33, Term(3, 9, 1, 3, [2, 0, 1, 2, 0, 0], several, mixing="outputs", k=2)),
        (16, 15, Term(8, 20, 1, 4, [0, 3, 3, 0], [1, 2, 0, 30], mixing="outputs", k=3)),  # groups 1, 2 unused
        (1, 1, Term(1, 1, 1, 1, [0], [1], mixing="outputs", k=1)),
        (20, 30, Term(2, 3, 1, 4, [], [], mixing="outputs", k=2)),
        (96, 100, Term(8, 50, 1, 8, [i % 8 for i in range(40)], [30] * 40, mixing="outputs", k=4)),
    ]
    for d, o, term in sizes:
        n = sum(term.lengths)

        def make(rng: np.random.Generator, d: int = d, o: int = o, t: Term = term) -> Args:
            args = {
                "x": rng.normal(size=(sum(t.lengths), d)),
                "weight": rng.normal(size=(o, d)) / d**0.5,
                "bias": rng.normal(size=o),
                "lora_A": rng.normal(size=(t.S, t.r, d)) / d**0.5,
                "lora_B": rng.normal(size=(t.S, t.r, o)) / t.r**0.5,
                "adapter_ids": np.array(t.adapter_ids, dtype=np.int64),
                "cu_seqlens": lengths_to_cu_seqlens(t.lengths),
                "scale": 0.6,
                "formulation": t.formulation,
                "mixing": t.mixing,
            }
            if t.G is None:
                return args
            if t.k is None:
                return {**args, "weights": rng.random((t.G, t.Q, t.S))}
            ids = rng.permuted(np.tile(np.arange(t.S), (t.G, 1)), axis=1)[:, : t.k]
            return {**args, "weights": rng.normal(size=(t.G, t.k)), "ids": ids}

        yield Case(
            "linear",
            f"N={n} D={d} O={o} r={term.r} S={term.S} Q={term.Q} G={term.G} "
            + (term.formulation if term.mixing == "factors" else f"outputs k={term.k}"),
            make,
            ("x", "lora_A", "lora_B") + (() if term.G is None else ("weights",)),
            {"float32": 1e-5, "float64": 1e-13},
            2.0 * n * (d * o + term.r * (d + o)),
            4.0 * (n * (d + o) + d * o),
            big=n > 300,
        )

    def plain(rng: np.random.Generator) -> Args:
        return {"x": rng.normal(size=(13, 70)), "weight": rng.normal(size=(50, 70))}

    yield Case("linear", "no term", plain, ("x",), {"float32": 1e-5, "float64": 1e-13})

    for form in ("mix", "concat", "pairs", "outputs", "ids"):

        def alone(rng: np.random.Generator, form: str = form) -> Args:
            args = {"x": rng.normal(size=(200, 600)), "weight": None, "cu_seqlens": np.array([0, 40, 200])}
            args |= {"lora_A": rng.normal(size=(3, 4, 600)) / 25, "lora_B": rng.normal(size=(3, 4, 37))}
            args |= {"adapter_ids": np.array([1, 0]), "scale": 0.7, "weights": rng.random((2, 1, 3))}
            if form in ("mix", "concat"):
                return {**args, "formulation": form}
            if form == "pairs":
                return {k: v for k, v in args.items() if k != "weights"}
            ids = {"weights": rng.random((2, 2)), "ids": np.array([[2, 0], [0, 1]])} if form == "ids" else {}
            return {**args, **ids, "mixing": "outputs"}

        yield Case(
            "linear",
            f"term alone, {form}",
            alone,
            ("x", "lora_A", "lora_B") + (() if form == "pairs" else ("weights",)),
            {"float32": 1e-5, "float64": 1e-13},
        )

    for activation, n, d, term_too, gated in (
        ("relu", 130, 33, True, False),
        ("gelu", 300, 530, True, False),
        ("gelu_tanh", 5, 16, True, True),
        ("silu", 200, 600, True, True),
        ("gelu", 17, 1, False, False),
        ("silu", 0, 7, False, True),
        ("silu", 140, 70, False, True),
    ):
        of_term = {"lora_A": (3, 4, d), "lora_B": (3, 4, 50), "weights": (2, 1, 3)} if term_too else {}
        shapes = {"x": (n, d), "weight": (50, d), **({"times": (n, d)} if gated else {}), **of_term}

        def read(rng: np.random.Generator, how: str = activation, n: int = n, shapes: Args = shapes) -> Args:
            args = {name: rng.normal(size=shape) for name, shape in shapes.items()}
            groups = {"adapter_ids": np.array([1, 0]), "cu_seqlens": np.array([0, n // 3, n])}
            return {**args, "activation": how, **(groups if "lora_A" in args else {})}

        yield Case(
            "linear",
            f"{activation} N={n} D={d}" + (" times" if gated else "") + ("" if term_too else " no term"),
            read,
            tuple(name for name in shapes if name != "weight"),
            {"float32": 1e-5, "float64": 1e-13},
        )

    def one_group(rng: np.random.Generator) -> Args:
        args = {"lora_A": rng.normal(size=(2, 4, 70)), "lora_B": rng.normal(size=(2, 4, 50))}
        return {**plain(rng), **args, "weights": rng.random((1, 2, 2))}

    yield Case(
        "linear",
        "one group",
        one_group,
        ("x", "lora_A", "lora_B", "weights"),
        {"float32": 1e-5, "float64": 1e-13},
    )


class Experts(NamedTuple):
    """Experts of a layer that mixes outputs by token."""

    r: int
    S: int
    k: int | None  # None: dense weights
    shared: bool
    formulation: str = "auto"


def moe_cases() -> Iterator[Case]:
    sizes = [
        (0, 5, 6, Experts(2, 3, None, False)),
        (0, 5, 6, Experts(2, 3, 1, True, "buckets")),
        (1, 1, 1, Experts(1, 1, None, False)),
        (1, 1, 1, Experts(1, 1, 1, True, "buckets")),
        (5, 7, 9, Experts(3, 4, 2, False)),  # half of the experts: dense
        (130, 17, 33, Experts(3, 5, None, True)),
        (130, 33, 17, Experts(8, 5, 2, False)),
        (130, 33, 17, Experts(9, 5, 2, True)),
        (129, 20, 12, Experts(2, 3, 3, False, "buckets")),
        (129, 20, 12, Experts(2, 3, 2, True, "dense")),
        (40, 530, 35, Experts(4, 7, 2, False)),
        (40, 1030, 530, Experts(4, 7, 2, True, "buckets")),
        (1100, 9, 8, Experts(2, 40, 3, False)),  # three blocks, some experts with few tokens
        (900, 96, 100, Experts(8, 4, None, False)),
        (900, 96, 100, Experts(8, 4, None, True)),
        (1300, 96, 100, Experts(8, 8, 2, False)),
        (1300, 96, 100, Experts(8, 8, 2, True)),
    ]
    for n, d, o, e in sizes:
        for alone in (False, True) if 5 < n < 200 else (False,):

            def make(
                rng: np.random.Generator,
                n: int = n,
                d: int = d,
                o: int = o,
                e: Experts = e,
                alone: bool = alone,
            ) -> Args:
                args = {
                    "x": rng.normal(size=(n, d)),
                    "weight": None if alone else rng.normal(size=(o, d)) / d**0.5,
                    "bias": None if alone else rng.normal(size=o),
                    "lora_A": rng.normal(size=(1 if e.shared else e.S, e.r, d)) / d**0.5,
                    "lora_B": rng.normal(size=(e.S, e.r, o)) / e.r**0.5,
                    "weights": rng.normal(size=(n, e.S if e.k is None else e.k)),
                    "scale": 0.6,
                    "formulation": e.formulation,
                }
                ids = np.argsort(rng.random((n, e.S)), axis=1)[:, : e.k]
                return args if e.k is None else {**args, "ids": ids}

            yield Case(
                "moe",
                f"N={n} D={d} O={o} r={e.r} S={e.S}{' shared A' if e.shared else ''}"
                + ("" if e.k is None else f" k={e.k}")
                + f" {e.formulation}{' alone' if alone else ''}",
                make,
                ("x", "lora_A", "lora_B", "weights"),
                {"float32": 1e-5, "float64": 1e-13},
                2.0 * n * (d * o + (e.k or e.S) * e.r * (d + o)),
                4.0 * (n * (d + o) + d * o),
                big=n in (900, 1300),
            )


class Choices(NamedTuple):
    """Experts of whole layers: how many there are and a group uses, the group of every example, lengths."""

    S: int
    k: int
    G: int
    adapter_ids: list[int] | None  # None: group 0 for all
    lengths: list[int]


def expert_dense_cases() -> Iterator[Case]:
    several = [130, 5, 0, 140, 3, 20]  # longer and shorter than a chunk, empty, meeting within one
    sizes = [
        (5, 3, Choices(3, 2, 2, [], [])),
        (5, 3, Choices(3, 2, 0, [], [])),
        (5, 3, Choices(3, 2, 1, [0], [0])),
        (1, 1, Choices(1, 1, 1, None, [1])),
        (17, 16, Choices(1, 1, 1, None, [129])),
        (7, 15, Choices(4, 1, 3, [2, 0, 1, 2, 0, 0], several)),
        (16, 33, Choices(3, 3, 4, [3, 0, 1, 3, 0, 0], several)),  # all experts, group 2 unused
        (20, 19, Choices(9, 3, 6, [0, 1, 2, 3, 4, 5], several)),
        (530, 12, Choices(3, 2, 2, [1, 0], [2, 9])),  # two blocks of columns
        (12, 1030, Choices(3, 2, 2, [1, 0], [2, 9])),
        (96, 100, Choices(5, 2, 3, [i % 3 for i in range(40)], [7 * i % 50 for i in range(40)])),
    ]
    for d, o, c in sizes:
        for apart, summed in ((False, False), (False, True), (True, False), (True, True)):

            def make(
                rng: np.random.Generator,
                d: int = d,
                o: int = o,
                c: Choices = c,
                apart: bool = apart,
                summed: bool = summed,
            ) -> Args:
                n = sum(c.lengths)
                args = {
                    "x": rng.normal(size=(n, c.k, d) if apart else (n, d)),
                    "weight": rng.normal(size=(c.S, o, d)) / d**0.5,
                    "bias": rng.normal(size=(c.S, o)) if o != 12 else None,
                    "ids": rng.permuted(np.tile(np.arange(c.S), (c.G, 1)), axis=1)[:, : c.k],
                }
                if summed:
                    args["weights"] = rng.normal(size=(c.G, c.k))
                if c.adapter_ids is None:
                    return args
                ids = np.array(c.adapter_ids, dtype=np.int64)
                return {**args, "adapter_ids": ids, "cu_seqlens": lengths_to_cu_seqlens(c.lengths)}

            n = sum(c.lengths)
            yield Case(
                "expert_dense",
                f"N={n} D={d} O={o} S={c.S} k={c.k} G={c.G}{' apart' if apart else ''}"
                + (" summed" if summed else ""),
                make,
                ("x", "weight") + (("bias",) if o != 12 else ()) + (("weights",) if summed else ()),
                {"float32": 1e-5, "float64": 1e-13},
                2.0 * n * c.k * d * o,
                4.0 * (n * (d * (c.k if apart else 1) + o * (1 if summed else c.k)) + c.S * d * o),
                big=len(c.lengths) == 40,
            )


CASES = [
    case
    for cases in (
        add_cases,
        multiply_cases,
        relu_cases,
        dropout_cases,
        scale_by_cases,
        gelu_cases,
        silu_cases,
        layer_norm_cases,
        rms_norm_cases,
        rope_cases,
        l2_normalize_cases,
        concat_cases,
        reshape_cases,
        embedding_cases,
        mean_pool_cases,
        attention_pool_cases,
        task_router_cases,
        softmax_router_cases,
        topk_router_cases,
        balance_loss_cases,
        ibp_loss_cases,
        cross_entropy_cases,
        lm_loss_cases,
        mse_cases,
        attention_cases,
        mix_cases,
        tensor_product_cases,
        dense_cases,
        linear_cases,
        moe_cases,
        expert_dense_cases,
    )
    for case in cases()
]
