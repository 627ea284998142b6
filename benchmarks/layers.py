"""One adapted layer, forward and backward: what the adapter costs, and PEFT's layers.

The frozen product is W x forward and W^T dy backward; the adapter adds a rank-r term whose pair is mixed from
S skills for every example, by a task router that draws noise for each, on both sides. Its cost over the
frozen layer alone is the overhead. ``+16 B``: arrays that start 16 bytes behind a cache line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from benchmarks import rivals
from benchmarks.options import Options
from benchmarks.timing import Candidate, Contest, Work, close, same_bits
from polymoe import _core
from polymoe import functional as F
from polymoe import reference as R
from polymoe.random import uniform


class Shape(NamedTuple):
    """B examples of L tokens, D to O, S skills, Q heads, and the ranks to try."""

    B: int
    L: int
    D: int
    O: int
    ranks: tuple[int, ...]
    Q: int = 1
    S: int = 8

    def __str__(self) -> str:
        heads = f", {self.Q} heads" if self.Q > 1 else ""
        return f"{self.B} x {self.L}, {self.D} -> {self.O}, S={self.S}{heads}"


SHAPES = (
    Shape(32, 128, 384, 384, (4, 8, 16, 64)),
    Shape(32, 128, 384, 1536, (8,)),
    Shape(32, 128, 1536, 384, (8,)),
    Shape(32, 128, 384, 384, (4,), Q=4),
    Shape(32, 128, 768, 768, (16,)),
    Shape(8, 512, 1024, 1024, (16,)),
    Shape(32, 8, 384, 384, (8,)),
)
QUICK = (Shape(8, 128, 384, 384, (4, 8, 16, 64)), Shape(4, 128, 768, 768, (16,)))
BF16_TOLERANCE = 2e-2  # of the largest value
Run = Callable[[], tuple[Any, ...]]


def contests(options: Options) -> Iterator[Contest]:
    """One for each shape."""
    for shape in QUICK if options.quick else SHAPES:
        yield contest(options, shape)


def aligned(a: np.ndarray, offset: int = 0) -> np.ndarray:
    """A copy that starts so many bytes behind a cache line."""
    room = _core.empty((a.nbytes + offset,), np.uint8)
    out: np.ndarray = room[offset : offset + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


class Layer:
    """Arrays of a layer: the same for us, PEFT and the reference."""

    def __init__(self, shape: Shape, r: int, tasks: int = 8) -> None:
        B, L, D, O, _, Q, S = self.shape = shape
        rng = np.random.default_rng(0)
        draw = lambda *size: rng.standard_normal(size, np.float32)
        self.r = r
        self.x, self.dy = (aligned(draw(B * L, n)) for n in (D, O))
        self.weight = draw(O, D) / np.float32(D**0.5)
        self.lora_A, self.lora_B = draw(S, r, D) / np.float32(D**0.5), draw(S, r, O)
        self.logits, self.task_ids = draw(tasks, Q, S), np.arange(B) % tasks
        self.cu_seqlens, self.adapter_ids = np.arange(B + 1) * L, np.arange(B)
        self.step = 0

    def noise(self, step: int) -> np.ndarray:
        """Uniform numbers [B, Q, S]."""
        B, Q, S = self.shape.B, self.shape.Q, self.shape.S
        return uniform(0, "bench", step, "layer", self.adapter_ids, Q * S).reshape(B, Q, S)

    def mixed(self, module: Any, weight: Any, x: Any, dy: Any, noise: Any) -> tuple[Any, ...]:
        """y, dx, dlora_A, dlora_B, dlogits of the Poly layer by ``module``."""
        cast = lambda a: a.astype(x.dtype, copy=False)
        weights, routed = module.task_router(cast(self.logits), self.task_ids, cast(noise))
        y, saved = module.linear(
            x,
            weight,
            lora_A=cast(self.lora_A),
            lora_B=cast(self.lora_B),
            weights=weights,
            adapter_ids=self.adapter_ids,
            cu_seqlens=self.cu_seqlens,
            scale=1 / self.r,
        )
        grads = fields(module.linear_backward(saved, dy))
        dlogits = fields(module.task_router_backward(routed, grads["dweights"]))["dlogits"]
        return y, grads["dx"], grads["dlora_A"], grads["dlora_B"], dlogits

    def poly(self, weight: Any, offset: int = 0) -> Run:
        """Our Poly layer, new noise in every call; ``weight`` None: the adapter alone."""
        x, dy = (aligned(a, offset) for a in (self.x, self.dy))

        def run() -> tuple[Any, ...]:
            self.step += 1
            return self.mixed(F, weight, x, dy, self.noise(self.step))

        return run

    def lora(self, weight: Any) -> Run:
        """Ours with one pair for all."""
        pair = {"lora_A": self.lora_A[:1], "lora_B": self.lora_B[:1], "scale": 1 / self.r}

        def run() -> tuple[Any, ...]:
            y, saved = F.linear(self.x, weight, **pair)
            return y, F.linear_backward(saved, self.dy)

        return run

    def frozen(self, weight: Any) -> Run:
        """Ours without an adapter."""

        def run() -> tuple[Any, ...]:
            y, saved = F.linear(self.x, weight)
            return y, F.linear_backward(saved, self.dy)

        return run

    def check(self, weight: Any, tolerance: float = 2e-5) -> None:
        """Against the reference in float64 with the same noise, and bit for bit with more threads."""
        noise = self.noise(1)
        wide = self.weight.astype(float) if weight is not None else None
        want = self.mixed(R, wide, self.x.astype(float), self.dy.astype(float), noise)
        run = lambda: self.mixed(F, weight, self.x, self.dy, noise)
        for name, a, b in zip(("y", "dx", "dlora_A", "dlora_B", "dlogits"), run(), want, strict=True):
            if name != "dlogits" or self.shape.S > 1:  # of one skill it is 0, and what is left is rounding
                close(f"{self.shape} r={self.r} {name}", a, b, tolerance)
        same_bits(run)

    @property
    def adapter_flops(self) -> float:
        """Of both passes, without mixing."""
        return 6.0 * self.r * len(self.x) * (self.shape.D + self.shape.O)


def fields(grads: Any) -> dict[str, Any]:
    """Gradients by name, of ours and of the reference's."""
    return dict(grads) if isinstance(grads, dict) else grads._asdict()


def contest(options: Options, shape: Shape) -> Contest:
    """The frozen layer, ours at every rank, PEFT's."""
    layers = {r: Layer(shape, r) for r in shape.ranks}
    first = next(iter(layers.values()))
    packed, half = (F.PackedWeight(first.weight, dtype=dtype) for dtype in (np.float32, ml_dtypes.bfloat16))
    n, D, O = len(first.x), shape.D, shape.O
    frozen, moved = 4.0 * n * D * O, 4.0 * (3 * n * D + 2 * n * O + 2 * D * O)
    candidates = [Candidate("polymoe frozen", first.frozen(packed), frozen, moved)]
    for r, layer in layers.items():
        work = (frozen + layer.adapter_flops, moved)
        label = f"{D} → {O}, r={r}"
        candidates.append(
            Candidate(f"polymoe r={r}", layer.poly(packed), *work, bare="polymoe frozen", label=label)
        )
    r = 8 if 8 in layers else shape.ranks[0]
    layer, ours = layers[r], f"polymoe r={r}"
    work = (frozen + layer.adapter_flops, moved)
    candidates.append(Candidate(f"{ours} +16 B", layer.poly(packed, 16), *work, against=ours))
    candidates.append(Candidate(f"polymoe LoRA r={r}", layer.lora(packed), *work, bare="polymoe frozen"))
    candidates += [
        Candidate("polymoe bf16 frozen", first.frozen(half), frozen, moved, dtype="bfloat16"),
        Candidate(
            f"polymoe bf16 r={r}",
            layer.poly(half),
            *work,
            bare="polymoe bf16 frozen",
            against=ours,
            dtype="bfloat16",
            least=Work(frozen, layer.adapter_flops).least("bfloat16"),
        ),
    ]
    if options.torch:
        candidates += peft(layer, ours, f"polymoe LoRA r={r}", work, frozen)

    def check() -> None:
        for each in layers.values():
            each.check(packed)
        layer.check(half, BF16_TOLERANCE)

    return Contest("layers", str(shape), candidates, check)


def peft(layer: Layer, ours: str, lora: str, work: tuple[float, float], frozen: float) -> Iterator[Candidate]:
    """PEFT's layers on the same arrays, with both ways of getting memory."""
    torch, (B, L, D, O, _, Q, S), r = rivals.torch(), layer.shape, layer.r
    x, dy = layer.x.reshape(B, L, D), layer.dy.reshape(B, L, O)
    task_ids = torch.from_numpy(layer.task_ids)
    linear = rivals.linear(layer.weight)
    poly = rivals.adapted(layer.weight, "poly", r=r, n_tasks=8, n_skills=S, n_splits=Q)
    single = rivals.adapted(layer.weight, "lora", r=r)
    run = rivals.forward_backward(_WithTasks(poly, task_ids), x, dy)
    largest = max(layer.x.nbytes, layer.dy.nbytes)
    memory = (
        (("stock", rivals.stock(largest)), ("tuned", rivals.tuned)) if rivals.can_tune() else (("", None),)
    )
    for name, before in memory:
        yield Candidate(
            f"PEFT Poly r={r} {name}".strip(),
            run,
            *work,
            against=ours,
            bare="torch frozen",
            before=before,
        )
    before = memory[-1][1]
    yield Candidate("torch frozen", rivals.forward_backward(linear, x, dy), frozen, work[1], before=before)
    run = rivals.forward_backward(single, x, dy)
    yield Candidate(f"PEFT LoRA r={r}", run, *work, against=lora, bare="torch frozen", before=before)


class _WithTasks:
    """PEFT's layer with its task ids."""

    def __init__(self, layer: Any, task_ids: Any) -> None:
        self.layer, self.task_ids = layer, task_ids
        self.parameters = layer.parameters

    def __call__(self, x: Any) -> Any:
        return self.layer(x, task_ids=self.task_ids)
