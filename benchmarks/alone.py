"""The adapter without the frozen product, as somebody runs it beside a layer of their own; short examples.

Alone, an adapter of a low rank is bound by memory when its arrays are cold. With few tokens for each routing
row it is bound by mixing, which the other forms avoid: skills side by side, or rows that are equal as one
group. ``+16 B``: arrays that start 16 bytes behind a cache line.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks import rivals
from benchmarks.layers import Layer, Shape
from benchmarks.options import Options
from benchmarks.timing import Candidate, Contest, close, same_bits
from polymoe import functional as F
from polymoe import reference as R

BOTH = (Shape(32, 128, 384, 384, (8, 16, 64)),)
BOTH_QUICK = (Shape(8, 128, 384, 384, (8, 64)),)
SHORT = (1, 2, 4, 16)  # tokens of an example
SHORT_QUICK = (1, 4)


def contests(options: Options) -> Iterator[Contest]:
    """Both passes for each rank, the forward for each length."""
    for shape in BOTH_QUICK if options.quick else BOTH:
        for r in shape.ranks:
            yield both_passes(options, shape, r)
    for length in SHORT_QUICK if options.quick else SHORT:
        yield short(options, Shape(512, length, 384, 384, (8,)))


def both_passes(options: Options, shape: Shape, r: int) -> Contest:
    """Forward and backward of the term alone."""
    layer = Layer(shape, r)
    n, D, O = len(layer.x), shape.D, shape.O
    work = (layer.adapter_flops, 4.0 * n * (3 * D + 2 * O))
    candidates = [
        Candidate("polymoe", layer.poly(None), *work, label=f"adapter alone, r={r}"),
        Candidate("polymoe +16 B", layer.poly(None, 16), *work),
    ]
    if options.torch:
        term = Term(layer)
        x, dy = (a.reshape(shape.B, shape.L, -1) for a in (layer.x, layer.dy))
        run = rivals.forward_backward(term, x, dy)
        memory = (("", None),)
        if rivals.can_tune():
            memory = ((" stock", rivals.stock(layer.x.nbytes)), (" tuned", rivals.tuned))
        candidates += [Candidate(f"torch{name}", run, *work, before=before) for name, before in memory]
    return Contest("alone", f"{shape}, r={r}", candidates, lambda: layer.check(None))


class Term:
    """PEFT's formula of a Poly layer, without its linear layer: two batched products, divided by r."""

    def __init__(self, layer: Layer) -> None:
        self.r, self.torch = layer.r, rivals.torch()
        self.A = rivals.tensor(layer.lora_A.transpose(0, 2, 1).copy(), grad=True)  # [S, D, r]
        self.B = rivals.tensor(layer.lora_B, grad=True)
        self.logits = rivals.tensor(layer.logits[:, 0].copy(), grad=True)
        self.task_ids = self.torch.from_numpy(layer.task_ids)

    def parameters(self) -> list[Any]:
        """What is trained."""
        return [self.A, self.B, self.logits]

    def weights(self) -> Any:
        """[B, S], with noise for every example."""
        logits = self.logits[self.task_ids]
        gates = self.torch.distributions.RelaxedBernoulli(
            temperature=self.torch.tensor(1.0), logits=logits, validate_args=False
        ).rsample()
        return gates / (gates.sum(-1, keepdim=True) + 1e-12)

    def __call__(self, x: Any) -> Any:
        weights = self.weights()
        A, B = (self.torch.einsum("bs,sij->bij", weights, bank) for bank in (self.A, self.B))
        return x.bmm(A).bmm(B) / self.r


def short(options: Options, shape: Shape) -> Contest:
    """Forward of few tokens for each of many routing rows."""
    layer = Layer(shape, 8)
    n, D, O = len(layer.x), shape.D, shape.O
    routed = F.task_router(layer.logits, layer.task_ids, layer.noise(1))[0]
    pair = {"lora_A": layer.lora_A, "lora_B": layer.lora_B, "cu_seqlens": layer.cu_seqlens}
    own = {**pair, "weights": routed, "adapter_ids": layer.adapter_ids}
    grouped = {**pair, "weights": routed[:8], "adapter_ids": layer.adapter_ids % 8}
    work = (2.0 * 8 * n * (D + O), 4.0 * n * (D + O))
    run = partial(F.linear, layer.x, None)
    candidates = [
        Candidate("polymoe", partial(run, **own), *work),
        Candidate("polymoe, 8 distinct rows", partial(run, **grouped), *work),
        Candidate("polymoe, mixed", partial(run, formulation="mix", **own), *work),
    ]
    if options.torch:
        torch = rivals.torch()
        x = rivals.tensor(layer.x.reshape(shape.B, shape.L, D))
        A = rivals.tensor(layer.lora_A.transpose(0, 2, 1).copy())
        B, weights = rivals.tensor(layer.lora_B), rivals.tensor(routed[:, 0].copy())

        def per_example() -> Any:
            with torch.inference_mode():
                mixed = (torch.einsum("bs,sij->bij", weights, bank) for bank in (A, B))
                return x.bmm(next(mixed)).bmm(next(mixed))

        before = rivals.tuned if rivals.can_tune() else None
        candidates.append(Candidate("torch, bmm per example", per_example, *work, before=before))

    def check() -> None:
        for args in (own, {**own, "formulation": "mix"}, grouped):
            wide = {k: v.astype(float) if np.asarray(v).dtype == np.float32 else v for k, v in args.items()}
            close(f"{shape}", run(**args)[0], R.linear(layer.x.astype(float), None, **wide)[0], 1e-5)
            same_bits(lambda args=args: [run(**args)[0]])

    return Contest("short", f"{shape}, r=8, forward", candidates, check)
