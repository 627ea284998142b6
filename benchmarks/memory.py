"""Peak resident memory of a few training steps: ``python -m benchmarks.memory SIDE MODEL B L THREADS``.

A process of its own, so that nothing else was there before. Prints JSON: bytes when the libraries are loaded,
when the model is, and at most.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks import machine, rivals
from benchmarks.models import Ours, Peft
from benchmarks.texts import drawn
from polymoe.training.summary import peak_rss_bytes

STEPS = 3


def main(side: str, name: str, B: str, L: str, threads: str) -> None:
    """Build, run, print."""
    with machine.threads(int(threads)) as n:
        if side == "peft":
            rivals.torch().set_num_threads(n)
        libraries = peak_rss_bytes()
        run: Callable[..., Any]
        if side == "peft":
            run = Peft(name)
        else:
            run = Ours(name, "bfloat16" if side.endswith("bf16") else "float32")
            run = partial(run, again=side.endswith("recomputed"))
        model = peak_rss_bytes()
        texts, dy = drawn(int(B), int(L)), None
        if name == "minilm":
            dy = np.random.default_rng(1).standard_normal((int(B), 384), np.float32)
        for _ in range(STEPS):
            run(texts, dy)
    print(json.dumps({"libraries": libraries, "model": model, "peak": peak_rss_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
