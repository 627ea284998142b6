"""Reverse-mode recording of the pairs in :mod:`polymoe.functional`.

Every function here but :func:`together` has the name and the arguments of the functional one and returns
only its ``y``. Under a
tape, an operation that has a :class:`Node` among its arguments returns a ``Node``; arguments that need no
gradient stay plain arrays all the way, so whatever lies below the lowest trainable parameter is never
differentiated.

A ``Node`` has no operators and refuses to become an array: a forgotten operation is a TypeError, never a
silently cut gradient.

    with Tape() as tape:
        loss = tape_function(...)
    tape.backward(loss)                 # Parameter.grad now holds (adds) the gradients
"""

from polymoe.tape.operations import (
    Activated,
    add,
    attention,
    attention_pool,
    balance_loss,
    concat,
    cross_entropy,
    dense,
    differentiable,
    dropout,
    embedding,
    expert_dense,
    gelu,
    ibp_loss,
    l2_normalize,
    layer_norm,
    lm_loss,
    mean_pool,
    mix,
    moe,
    mse,
    multiply,
    relu,
    reshape,
    rms_norm,
    rope,
    scale_by,
    silu,
    softmax_router,
    task_router,
    tensor_product,
    topk_router,
)
from polymoe.tape.record import Gradient, Node, Tape, auxiliary, checkpoint, current_tape, data_of
from polymoe.tape.together import linear, together

__all__ = [
    "Activated",
    "Gradient",
    "Node",
    "Tape",
    "add",
    "attention",
    "attention_pool",
    "auxiliary",
    "balance_loss",
    "checkpoint",
    "concat",
    "cross_entropy",
    "current_tape",
    "data_of",
    "dense",
    "differentiable",
    "dropout",
    "embedding",
    "expert_dense",
    "gelu",
    "ibp_loss",
    "l2_normalize",
    "layer_norm",
    "linear",
    "lm_loss",
    "mean_pool",
    "mix",
    "moe",
    "mse",
    "multiply",
    "relu",
    "reshape",
    "rms_norm",
    "rope",
    "scale_by",
    "silu",
    "softmax_router",
    "task_router",
    "tensor_product",
    "together",
    "topk_router",
]
