"""The public operations on plain arrays: ``op(...) -> (y, saved)`` and ``op_backward(saved, dy) ->
gradients``.

Inputs are converted (lists, other memory orders) and never changed; outputs are new 64-byte aligned arrays.
The fields of the gradients are ``d`` + the argument's name, None where there is no gradient; ``needs`` names
the arguments whose gradient is wanted. :mod:`polymoe.reference` says what every operation computes;
:mod:`polymoe.tape` records them.
"""

from polymoe.functional.attention import attention, attention_backward
from polymoe.functional.dense import dense, dense_backward
from polymoe.functional.elementwise import (
    add,
    add_backward,
    dropout,
    dropout_backward,
    gelu,
    gelu_backward,
    multiply,
    multiply_backward,
    relu,
    relu_backward,
    scale_by,
    scale_by_backward,
    silu,
    silu_backward,
)
from polymoe.functional.expert_dense import expert_dense, expert_dense_backward
from polymoe.functional.gather import embedding, embedding_backward, mean_pool, mean_pool_backward
from polymoe.functional.invariance import batch_invariant, get_batch_invariant, set_batch_invariant
from polymoe.functional.linear import linear, linear_backward, linears, linears_backward
from polymoe.functional.lm_loss import lm_loss, lm_loss_backward
from polymoe.functional.loss import cross_entropy, cross_entropy_backward, mse, mse_backward
from polymoe.functional.mix import mix, mix_backward
from polymoe.functional.moe import moe, moe_backward
from polymoe.functional.norm import (
    l2_normalize,
    l2_normalize_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from polymoe.functional.optimizer import adamw_step, global_norm
from polymoe.functional.packed import PackedFactor, PackedWeight
from polymoe.functional.pool import attention_pool, attention_pool_backward
from polymoe.functional.prior import ibp_loss, ibp_loss_backward
from polymoe.functional.rope import rope, rope_backward
from polymoe.functional.route import (
    balance_loss,
    balance_loss_backward,
    softmax_router,
    softmax_router_backward,
    task_router,
    task_router_backward,
    topk_router,
    topk_router_backward,
)
from polymoe.functional.shape import concat, concat_backward, reshape, reshape_backward
from polymoe.functional.tensor import leaf_size, tensor_product, tensor_product_backward

__all__ = [
    "PackedFactor",
    "PackedWeight",
    "adamw_step",
    "add",
    "add_backward",
    "attention",
    "attention_backward",
    "attention_pool",
    "attention_pool_backward",
    "balance_loss",
    "balance_loss_backward",
    "batch_invariant",
    "concat",
    "concat_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "dense",
    "dense_backward",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "expert_dense",
    "expert_dense_backward",
    "gelu",
    "gelu_backward",
    "get_batch_invariant",
    "global_norm",
    "ibp_loss",
    "ibp_loss_backward",
    "l2_normalize",
    "l2_normalize_backward",
    "layer_norm",
    "layer_norm_backward",
    "leaf_size",
    "linear",
    "linear_backward",
    "linears",
    "linears_backward",
    "lm_loss",
    "lm_loss_backward",
    "mean_pool",
    "mean_pool_backward",
    "mix",
    "mix_backward",
    "moe",
    "moe_backward",
    "mse",
    "mse_backward",
    "multiply",
    "multiply_backward",
    "relu",
    "relu_backward",
    "reshape",
    "reshape_backward",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "rope_backward",
    "scale_by",
    "scale_by_backward",
    "set_batch_invariant",
    "silu",
    "silu_backward",
    "softmax_router",
    "softmax_router_backward",
    "task_router",
    "task_router_backward",
    "tensor_product",
    "tensor_product_backward",
    "topk_router",
    "topk_router_backward",
]
