"""The public operations on plain arrays: ``op(...) -> (y, saved)`` and ``op_backward(saved, dy) -> gradients``.

Inputs are converted (lists, other memory orders) and never changed; outputs are new 64-byte aligned arrays. The fields of the
gradients are ``d`` + the argument's name, None where there is no gradient; ``needs`` names the arguments whose gradient is wanted.
:mod:`polymoe.reference` says what every operation computes; :mod:`polymoe.tape` records them.
"""

from polymoe.functional.dense import dense, dense_backward
from polymoe.functional.elementwise import (
    add,
    add_backward,
    dropout,
    dropout_backward,
    gelu,
    gelu_backward,
    scale_by,
    scale_by_backward,
)
from polymoe.functional.linear import PackedWeight, linear, linear_backward
from polymoe.functional.mix import mix, mix_backward
from polymoe.functional.norm import l2_normalize, l2_normalize_backward, layer_norm, layer_norm_backward

__all__ = [
    "PackedWeight",
    "add",
    "add_backward",
    "dense",
    "dense_backward",
    "dropout",
    "dropout_backward",
    "gelu",
    "gelu_backward",
    "l2_normalize",
    "l2_normalize_backward",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "mix",
    "mix_backward",
    "scale_by",
    "scale_by_backward",
]
