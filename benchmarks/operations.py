"""Every large case of tests/cases.py against the reference, which is NumPy: forward, then both passes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.options import Options
from benchmarks.timing import Candidate, Contest, close, same_bits
from polymoe import _core
from polymoe import functional as F
from polymoe import reference as R

PACKED = ("linear", "moe", "lm_loss")
"""Operations whose frozen weight is packed once, beforehand, as a layer does it."""


CALLS = 1000  # of a small operation, timed together


@lru_cache(maxsize=1)
def table() -> Any:
    """The module tests/cases.py."""
    path = Path(__file__).parents[1] / "tests" / "cases.py"
    spec = importlib.util.spec_from_file_location("benchmarks.cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contests(options: Options) -> Iterator[Contest]:
    """One for each large case; with ``quick`` the largest of each operation."""
    cases = [case for case in table().CASES if case.big]
    for case in largest() if options.quick else cases:
        yield contest(case, options.quick)
    yield calls()


def largest() -> list[Any]:
    """The largest case of each operation."""
    cases = sorted((case for case in table().CASES if case.big), key=lambda case: case.flops + case.bytes)
    return list({case.op: case for case in cases}.values())


def contest(case: Any, quick: bool = False) -> Contest:
    """Ours and the reference, in float32, forward and both; ``quick``: the reference in both passes alone."""
    rng = np.random.default_rng(sum(map(ord, str(case))))
    args = table().cast(case.make(rng), "float32")
    wide = {k: v.astype(float) if _is_real(v) else v for k, v in args.items()}
    y, saved = getattr(R, case.op)(**wide)
    dy = rng.normal(size=np.shape(y)).astype(np.float32)
    want = {"y": y, **dict(getattr(R, case.op + "_backward")(saved, dy.astype(float)))}
    ours = dict(args)
    if case.op in PACKED and args.get("weight") is not None:
        ours["weight"] = F.PackedWeight(args["weight"])
    forward, backward = getattr(F, case.op), getattr(F, case.op + "_backward")
    reference, reference_backward = getattr(R, case.op), getattr(R, case.op + "_backward")

    def both(args: dict[str, Any], forward: Callable[..., Any], backward: Callable[..., Any]) -> Any:
        y, saved = forward(**args)
        return y, backward(saved, dy)

    def results() -> list[np.ndarray | None]:
        y, grads = both(ours, forward, backward)
        return [y, *(getattr(grads, "d" + name) for name in case.wrt)]

    def check() -> None:
        for name, value in zip(("y", *("d" + name for name in case.wrt)), results(), strict=True):
            close(f"{case} {name}", value, want[name], case.tol["float32"], case.floor)
        same_bits(results)

    work = (case.flops, case.bytes)
    ours_both, numpy_both = "polymoe, both passes", "NumPy, both passes"
    run = partial(both, args, reference, reference_backward)
    candidates = [
        Candidate("polymoe", partial(forward, **ours), *work, label=case.op),
        Candidate("NumPy", partial(reference, **args), *work),
        Candidate(ours_both, partial(both, ours, forward, backward)),
        Candidate(numpy_both, run, against=ours_both),
    ]
    return Contest("operations", str(case), [c for c in candidates if not quick or c.who != "NumPy"], check)


def calls() -> Contest:
    """What a call costs when there is nothing to do, of the extension and of its friendly face."""
    a, b, y = (np.ones(16, np.float32) for _ in range(3))

    def repeat(call: Callable[..., object], *args: np.ndarray) -> None:
        for _ in range(CALLS):
            call(*args)

    candidates = [
        Candidate("_core.add", partial(repeat, _core.add, a, b, y)),
        Candidate("functional.add", partial(repeat, F.add, a, b)),
        Candidate("np.add", partial(repeat, np.add, a, b, y)),
    ]
    return Contest(
        "operations", f"{CALLS} calls, n=16", candidates, lambda: close("add", F.add(a, b)[0], a + b, 0)
    )


def _is_real(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32
