"""In place, on flat buffers of parameters: adamw_step, global_norm. Segments are ascending and do not
overlap."""

from __future__ import annotations

from typing import Any

import numpy as np

from polymoe import _core
from polymoe.functional._arrays import Array, index, real


def adamw_step(
    data: Array,
    grad: Any,
    m: Array,
    v: Array,
    offsets: Any,
    lengths: Any,
    lr: Any,
    weight_decay: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    step: int = 1,
    grad_scale: float = 1.0,
) -> None:
    """One step of AdamW on the segments ``offsets[i]`` to ``offsets[i] + lengths[i]`` of the flat ``data``,
    in place.

    Segment i has its own ``lr[i]`` and ``weight_decay[i]``; everything outside the segments, and its moments
    ``m`` and ``v``, keeps its bits. ``step`` counts from 1; the gradient is multiplied by ``grad_scale``
    (clipping) as it is read. Formula and order are those of ``torch.optim.AdamW``. Loshchilov and Hutter
    2019, arXiv 1711.05101.
    """
    rates, decays = (np.asarray(value, dtype=np.float64, order="C") for value in (lr, weight_decay))
    _core.adamw_step(
        data,
        real(grad, "grad"),
        m,
        v,
        index(offsets, "offsets"),
        index(lengths, "lengths"),
        rates,
        decays,
        beta1,
        beta2,
        eps,
        step,
        grad_scale,
    )


def global_norm(grad: Any, offsets: Any, lengths: Any) -> float:
    """Euclidean norm of these segments of the flat ``grad`` together, summed in float64 in a fixed order."""
    return _core.global_norm(real(grad, "grad"), index(offsets, "offsets"), index(lengths, "lengths"))
