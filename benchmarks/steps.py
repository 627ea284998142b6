"""Whole training steps of real models with Poly adapters on every linear layer, against torch + PEFT.

MiniLM and SmolLM2, at full length and on real texts of mixed lengths, which are packed here and padded there.
The limit of a step adds up its parts, each at its own roof. Memory is that of a fresh process each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rivals
from benchmarks.models import Ours, Peft, same_function, same_loss
from benchmarks.options import Options
from benchmarks.texts import Texts, drawn, inputs, instructions
from benchmarks.timing import Candidate, Contest

FEW = 1  # rounds, where each takes more than a minute
LARGEST = 32 << 20  # bytes: larger arrays do not move glibc's threshold


@lru_cache(maxsize=4)
def ours(name: str, dtype: str = "float32") -> Ours:
    """Built once."""
    return Ours(name, dtype)


@lru_cache(maxsize=4)
def peft(name: str, adapted: bool = True) -> Peft:
    """Built once."""
    return Peft(name, adapted)


def contests(options: Options) -> Iterator[Contest]:
    """MiniLM, and without ``quick`` SmolLM2, each on real texts too; one line says what is not here."""
    B, L, most = (4, 32, 64) if options.quick else (32, 128, 256)  # most: of a real text
    try:
        ours("minilm")
    except ModuleNotFoundError as error:
        print(f"no steps: {error}")
        return
    yield step(options, "minilm", drawn(B, L), f"MiniLM {B} x {L}")
    files = sorted((data_folder() / "superglue").glob("*.train.jsonl"))
    if files:
        batches = inputs(ours("minilm").base, files, B, 1 if options.quick else 3, most)
        yield real(options, "minilm", batches, f"MiniLM, real texts, {len(batches)} x {B}")
    else:
        print(f"no real texts at {data_folder()} (POLYMOE_DATA)")
    if not options.quick:
        try:
            ours("smollm2")
        except ModuleNotFoundError as error:
            print(f"no SmolLM2: {error}")
            return
        yield step(options, "smollm2", drawn(8, 128), "SmolLM2 8 x 128")
        folder = data_folder() / "superni"
        if not folder.is_dir():
            print(f"no instructions at {data_folder()} (POLYMOE_DATA)")
            return
        batches = instructions(ours("smollm2").base, folder, 8, 2, 384)
        yield real(options, "smollm2", batches, "SmolLM2, real instructions, 2 x 8")._replace(rounds=FEW)


def data_folder() -> Path:
    """Where real tasks are."""
    return Path(os.environ.get("POLYMOE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def step(options: Options, name: str, texts: Texts, what: str) -> Contest:
    """One batch."""
    dy = _dy(name, texts)
    work, tokens = ours(name).work(texts), float(texts.cu_seqlens[-1])
    shared: dict[str, Any] = {"flops": work.frozen + work.rest, "tokens": tokens}
    fp32 = {**shared, "least": work.least("float32")}
    bf16 = {**shared, "least": work.least("bfloat16"), "dtype": "bfloat16"}
    bare = "frozen base" if dy is not None else None
    candidates = [
        Candidate("polymoe", partial(ours(name), texts, dy), bare=bare and f"polymoe {bare}", **fp32),
        Candidate("polymoe bf16", partial(ours(name, "bfloat16"), texts, dy), **bf16),
    ]
    if name == "smollm2":
        candidates.append(Candidate("polymoe, recomputed", partial(ours(name), texts, again=True), **fp32))
    if dy is not None:
        candidates.append(Candidate(f"polymoe {bare}", partial(ours(name).frozen, texts, dy)))
    if options.torch:
        theirs = partial(peft(name), texts, dy)
        for memory, before in _memory()[-1 if options.quick else 0 :]:
            more = {**fp32, "before": before, "bare": bare and f"torch {bare}"}
            candidates.append(Candidate(f"PEFT{memory}", theirs, **more))
            if options.rivals_in("bfloat16"):
                more = {**bf16, "before": before, "against": "polymoe bf16"}
                candidates.append(
                    Candidate(f"PEFT bf16 autocast{memory}", partial(theirs, bf16=True), **more)
                )
        if dy is not None:
            run, more = partial(peft(name, False), texts, dy), {"against": f"polymoe {bare}"}
            candidates.append(Candidate(f"torch {bare}", run, before=_memory()[-1][1], **more))
    return Contest("steps", what, candidates, partial(_check, options, name, texts, dy))


def real(options: Options, name: str, batches: list[Texts], what: str) -> Contest:
    """Batches of mixed lengths: tokens a second count real tokens alone."""
    dys = [_dy(name, texts) for texts in batches]
    tokens = float(sum(t.cu_seqlens[-1] for t in batches))
    works = [ours(name).work(t) for t in batches]
    flops = sum(w.frozen + w.rest for w in works)

    def all_of(run: Callable[..., Any], **more: Any) -> Callable[[], None]:
        def each() -> None:
            for texts, dy in zip(batches, dys, strict=True):
                run(texts, dy, **more)

        return each

    def least(dtype: str) -> Callable[..., float]:
        return lambda limits, isa: sum(w.least(dtype)(limits, isa) for w in works)

    shared: dict[str, Any] = {"flops": flops, "tokens": tokens}
    candidates = [Candidate("polymoe", all_of(ours(name)), least=least("float32"), **shared)]
    half = all_of(ours(name, "bfloat16"))
    candidates.append(Candidate("polymoe bf16", half, dtype="bfloat16", least=least("bfloat16"), **shared))
    if options.torch:
        # the padded logits of SmolLM2, where the allocator keeps all, are 13 GB in place of 10, and no faster
        run, before = all_of(peft(name)), _memory()[0 if name == "smollm2" else -1][1]
        candidates.append(Candidate("PEFT, padded", run, before=before, least=least("float32"), **shared))
    if options.rivals_in("bfloat16"):
        half = all_of(peft(name), bf16=True)
        shared |= {"against": "polymoe bf16", "dtype": "bfloat16", "before": before}
        candidates.append(Candidate("PEFT bf16 autocast, padded", half, least=least("bfloat16"), **shared))
    return Contest("steps", what, candidates, partial(_check, options, name, batches[0], dys[0]))


def _dy(name: str, texts: Texts) -> np.ndarray | None:
    """The gradient that meets MiniLM's vectors; SmolLM2 has a loss."""
    if name == "smollm2":
        return None
    shape = (len(texts.task_ids), ours(name).base.hidden_size)
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def _memory() -> list[tuple[str, Callable[[], None] | None]]:
    return (
        [(" stock", rivals.stock(LARGEST)), (" tuned", rivals.tuned)] if rivals.can_tune() else [("", None)]
    )


def _check(options: Options, name: str, texts: Texts, dy: np.ndarray | None) -> None:
    """The base computes what torch's does, and a language model's loss with its adapter is PEFT's; gradients
    and noise of a step are compared in the tests."""
    ours(name)(texts, dy)
    if options.torch:
        for dtype, most in (("float32", 1e-3), ("bfloat16", 0.1)):
            error = same_function(name, ours(name, dtype), peft(name), texts)
            assert error < most, f"{name} {dtype} is off by {error:.2g} of its largest value: not timed"
            if name == "smollm2":
                error = same_loss(ours(name, dtype), peft(name), texts)
                assert error < most, f"the loss of {name} {dtype} is off by {error:.2g} of PEFT's: not timed"


def resident(options: Options) -> list[dict[str, Any]]:
    """Peak memory of a few steps in a fresh process, for each side and model."""
    found = []
    for name, B, L in (("minilm", 32, 128), ("smollm2", 8, 128)):
        sides = ["polymoe", "polymoe-recomputed", "polymoe-bf16", *["peft"] * options.torch]
        for side in sides:
            command = [
                sys.executable,
                "-m",
                "benchmarks.memory",
                side,
                name,
                str(B),
                str(L),
                str(options.threads),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"no memory of {side} {name}: {done.stderr.strip().splitlines()[-1]}")
                continue
            found.append(
                {"who": side, "what": f"{name} {B} x {L}", **json.loads(done.stdout.splitlines()[-1])}
            )
    return found
