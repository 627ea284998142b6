"""What polymoe sets out to reach, as ratios of one run, and whether the rows of a run do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.growth import slopes
from benchmarks.operations import CALLS
from benchmarks.timing import Row

Values = Iterable[tuple[float, str]]  # and where each was measured


class Results(NamedTuple):
    """Rows, and the memory of fresh processes."""

    rows: Sequence[Row]
    resident: Sequence[dict[str, Any]] = ()

    def find(self, group: str, who: str, what: str = "") -> list[Row]:
        """Rows of a group whose names match these patterns, ``who`` as a whole."""
        return [
            row
            for row in self.rows
            if row.group == group and re.fullmatch(who, row.who) and re.search(what, row.what)
        ]


class Target(NamedTuple):
    """``most``: values must not be above ``limit``; else not below. The worst value counts."""

    what: str
    limit: float
    unit: str
    values: Callable[[Results], Values]
    most: bool = False

    def worst(self, results: Results) -> tuple[float, str] | None:
        """The value that is furthest from the limit and where; None where nothing was measured."""
        found = sorted(self.values(results))
        return (found[-1] if self.most else found[0]) if found else None

    def reached(self, value: float) -> bool:
        """Whether it is."""
        return value <= self.limit if self.most else value >= self.limit


def of_peak(row: Row) -> float:
    """Percent of the peak of multiply-adds, warm."""
    return 100 * row.flops / row.seconds / row.facts["peak"]


def peak(group: str, who: str, what: str = "") -> Callable[[Results], Values]:
    """Percent of peak."""
    return lambda results: [(of_peak(row), row.what) for row in results.find(group, who, what)]


def product(isa: str, dtype: str = "float32") -> Callable[[Results], Values]:
    """Percent of the peak of an instruction set, wherever it is the best one or one of several."""
    return lambda results: [
        (of_peak(row), row.what)
        for row in results.find("products", "polymoe.*", SMALL)
        if row.isa == isa and row.dtype == dtype
    ]


def of_roof(group: str, who: str, what: str, state: int) -> Callable[[Results], Values]:
    """Percent of the roof that binds."""
    return lambda results: [(row.percent[state], row.what) for row in results.find(group, who, what)]


def overhead(who: str, what: str, group: str = "layers") -> Callable[[Results], Values]:
    """Percent over the same without an adapter."""
    return lambda results: [
        (100 * row.overhead, row.what) for row in results.find(group, who, what) if row.overhead is not None
    ]


def faster(
    group: str, rival: str, what: str = "", ours: str = "polymoe", state: int = 1
) -> Callable[[Results], Values]:
    """The time of the best of the rivals over ours, contest by contest."""

    def values(results: Results) -> Values:
        for row in results.find(group, re.escape(ours), what):
            theirs = results.find(group, rival, f"^{re.escape(row.what)}$")
            times = [(r.warm or r.cold)[0] if state else r.cold[0] for r in theirs]
            if times:
                yield min(times) / (row.seconds if state else row.cold[0]), row.what

    return values


def excess(results: Results) -> Values:
    """Time over that of all experts, less k / S, for k up to 0.4 S."""
    for row in results.find("experts", r"polymoe k=\d+"):
        k, n_experts = int(row.who.partition("k=")[2]), int(row.what.partition("S=")[2])
        if k <= 0.4 * n_experts:
            yield row.ratio[1] - k / n_experts, f"{row.what}, k={k}"


def memory(ours: str, model: str) -> Callable[[Results], Values]:
    """Peak resident memory over PEFT's."""

    def values(results: Results) -> Values:
        for entry in results.resident:
            if entry["who"] == ours and entry["what"].startswith(model):
                for theirs in results.resident:
                    if theirs["who"] == "peft" and theirs["what"] == entry["what"]:
                        yield entry["peak"] / theirs["peak"], entry["what"]

    return values


def doubling(series: str) -> Callable[[Results], Values]:
    """Percent that twice as many take longer."""
    return lambda results: [(100 * g.doubling, series) for g in slopes(results.rows) if g.name == series]


def linear(results: Results) -> Values:
    """The slope over many tokens."""
    return [(g.upper, "tokens") for g in slopes(results.rows) if g.name == "tokens"]


LONG = r"x (128|256|512), 384 -> 384, S=8$"
SMALL, LARGE = r"^(?!.* 4096 ->)", " 4096 ->"
BF16, FP32 = "PEFT bf16.*", "PEFT (stock|tuned)"
MINI, SMOL = r"MiniLM \d", r"SmolLM2 \d"
PADDED, INSTRUCTIONS = "PEFT, padded", "real instructions"
GROUPED = "polymoe, 8 distinct rows"
ANY = "any alignment"


def seconds_of_a_call(results: Results) -> Values:
    """Microseconds of one call."""
    return [(1e6 * row.seconds / CALLS, row.what) for row in results.find("operations", "_core.add")]


def in_the_layer(r: int, limit: float) -> Target:
    """What an adapter of this rank may cost."""
    return Target(
        f"adapter in a layer, D = 384, r = {r}", limit, "% over", overhead(f"polymoe r={r}", LONG), True
    )


def in_generation(B: int, texts: str, half: str) -> Target:
    """What an adapter may cost where texts are written."""
    values = overhead("polymoe" + half, rf", {B} x .* tokens$", "generation")
    return Target(f"adapter in writing {texts},{half or ' fp32'}", 10, "% over", values, True)


TARGETS = (
    Target("frozen product, fp32, D 384 to 1536", 92, "% of peak", peak("products", "polymoe", SMALL)),
    Target("the same, over the better of NumPy and torch", 0.97, "x", faster("products", "NumPy|torch")),
    Target("the same, D = 4096", 90, "% of peak", peak("products", "polymoe", LARGE)),
    Target("the same, AVX2", 95, "% of its peak", product("avx2")),
    Target("the same, base", 75, "% of its peak", product("base")),
    Target("frozen product, bf16", 90, "% of peak", product("avx512bf16", "bfloat16")),
    *(in_the_layer(r, limit) for r, limit in ((4, 5), (8, 8), (16, 15), (64, 60))),
    Target(
        "adapter in a layer, D >= 768, r = 16", 8, "% over", overhead("polymoe r=16", r"(768|1024) ->"), True
    ),
    Target("adapter alone, cold, r = 8", 90, "% of roof", of_roof("alone", "polymoe", "r=8$", 0)),
    Target("the same, over torch", 3, "x", faster("alone", "torch.*", "r=8$", state=0)),
    Target(
        f"adapter alone, warm, r 16 to 64, {ANY}", 70, "% of peak", peak("alone", "polymoe.*", "r=(16|64)$")
    ),
    Target("one token a row, over bmm per example", 10, "x", faster("short", "torch.*", " x 1,")),
    Target("the same, 8 distinct rows", 25, "x", faster("short", "torch.*", " x 1,", GROUPED)),
    Target("all experts by token", 80, "% of peak", peak("experts", "polymoe")),
    Target("the same, over a loop over experts", 8, "x", faster("experts", "torch, loop over experts")),
    Target("the k best experts: share of the time of all, less k/S", 0.1, "", excess, True),
    Target("MiniLM step, fp32", 85, "% of its limit", of_roof("steps", "polymoe", MINI, 1)),
    Target("the same, over PEFT", 1.7, "x", faster("steps", FP32, MINI)),
    Target("the same, peak resident over PEFT's", 0.5, "x", memory("polymoe", "minilm"), True),
    Target("MiniLM step, bf16", 100 / 1.2, "% of its limit", of_roof("steps", "polymoe bf16", MINI, 1)),
    Target("the same, over PEFT bf16", 2.1, "x", faster("steps", BF16, MINI, "polymoe bf16")),
    Target("the same, over PEFT fp32", 2.8, "x", faster("steps", FP32, MINI, "polymoe bf16")),
    Target("real texts, tokens a second over PEFT's", 3, "x", faster("steps", PADDED, "real texts")),
    Target("SmolLM2 step, fp32", 85, "% of its limit", of_roof("steps", "polymoe", SMOL, 1)),
    Target("the same, over PEFT", 1.8, "x", faster("steps", FP32, SMOL)),
    Target("the same, peak resident over PEFT's", 0.6, "x", memory("polymoe", "smollm2"), True),
    Target("the same, blocks recomputed", 1 / 3, "x", memory("polymoe-recomputed", "smollm2"), True),
    Target("SmolLM2 step, bf16, over PEFT bf16", 2.2, "x", faster("steps", BF16, SMOL, "polymoe bf16")),
    Target("the same, peak resident over PEFT's", 0.45, "x", memory("polymoe-bf16", "smollm2"), True),
    Target("real instructions, tokens a second over PEFT's", 3, "x", faster("steps", PADDED, INSTRUCTIONS)),
    Target("the same, bf16", 3, "x", faster("steps", "PEFT bf16 .*, padded", INSTRUCTIONS, "polymoe bf16")),
    *(in_generation(1, "one text", half) for half in ("", " bf16")),
    *(in_generation(16, "16 texts of 8 tasks", half) for half in ("", " bf16")),
    Target("a call of the extension, small input", 5, "us", seconds_of_a_call, True),
    Target("twice as many tasks", 1, "% longer", doubling("tasks"), True),
    Target("twice as many skills", 3, "% longer", doubling("skills"), True),
    Target("time over tokens: slope", 1.05, "", linear, True),
)
