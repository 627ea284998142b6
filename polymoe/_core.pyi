"""The compiled extension: strict, in place, no conversion (see csrc/python). :mod:`polymoe.functional` is its
friendly face."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

_Array = NDArray[Any]

def adamw_step(
    data: _Array,
    grad: _Array,
    m: _Array,
    v: _Array,
    offsets: _Array,
    lengths: _Array,
    lr: _Array,
    weight_decay: _Array,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    grad_scale: float,
    /,
) -> None: ...
def add(a: _Array, b: _Array, y: _Array, /) -> None: ...
def attention_bwd(
    dout: _Array,
    q: _Array,
    k: _Array,
    v: _Array,
    out: _Array,
    lse: _Array,
    cu_seqlens: _Array,
    cu_seqlens_k: _Array,
    key_lengths: _Array | None,
    n_heads: int,
    n_kv_heads: int,
    scale: float,
    causal: int,
    position_bias: _Array | None,
    dq: _Array,
    dk: _Array,
    dv: _Array,
    /,
) -> None: ...
def attention_fwd(
    q: _Array,
    k: _Array,
    v: _Array,
    cu_seqlens: _Array,
    cu_seqlens_k: _Array,
    key_lengths: _Array | None,
    n_heads: int,
    n_kv_heads: int,
    scale: float,
    causal: int,
    position_bias: _Array | None,
    out: _Array,
    lse: _Array,
    /,
) -> None: ...
def attention_pool_bwd(
    dy: _Array,
    x: _Array,
    query: _Array,
    cu_seqlens: _Array,
    weights: _Array,
    scale: float,
    dx: _Array,
    dquery: _Array,
    /,
) -> None: ...
def attention_pool_fwd(
    x: _Array, query: _Array, cu_seqlens: _Array, scale: float, y: _Array, weights: _Array, /
) -> None: ...
def balance_loss_bwd(dloss: _Array, logits: _Array, fractions: _Array, dlogits: _Array, /) -> None: ...
def balance_loss_fwd(logits: _Array, ids: _Array, loss: _Array, fractions: _Array, /) -> None: ...
def cross_entropy_bwd(
    dloss: _Array,
    logits: _Array,
    labels: _Array,
    starts: _Array | None,
    ends: _Array | None,
    weights: _Array | None,
    lse: _Array,
    dlogits: _Array,
    /,
) -> None: ...
def cross_entropy_fwd(
    logits: _Array,
    labels: _Array,
    starts: _Array | None,
    ends: _Array | None,
    weights: _Array | None,
    loss: _Array,
    per_example: _Array,
    lse: _Array,
    /,
) -> None: ...
def dense_bwd_weight(dy: _Array, x: _Array, dweight: _Array | None, dbias: _Array | None, /) -> None: ...
def embedding_bwd(ids: _Array, dy: _Array, dtable: _Array, /) -> None: ...
def embedding_fwd(ids: _Array, table: _Array, y: _Array, /) -> None: ...
def empty(shape: int | Sequence[int], dtype: Any, /) -> _Array: ...
def expert_dense_bwd(
    dy: _Array,
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    ids: _Array,
    weights: _Array | None,
    adapter_ids: _Array | None,
    cu_seqlens: _Array | None,
    dx: _Array | None,
    dweight: _Array | None,
    dbias: _Array | None,
    dweights: _Array | None,
    /,
) -> None: ...
def expert_dense_fwd(
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    ids: _Array,
    weights: _Array | None,
    adapter_ids: _Array | None,
    cu_seqlens: _Array | None,
    y: _Array,
    /,
) -> None: ...
def gelu_bwd(tanh_form: int, x: _Array, dy: _Array, dx: _Array, /) -> None: ...
def gelu_fwd(tanh_form: int, x: _Array, y: _Array, /) -> None: ...
def get_isa() -> str: ...
def get_num_threads() -> int: ...
def global_norm(grad: _Array, offsets: _Array, lengths: _Array, /) -> float: ...
def ibp_loss_bwd(dloss: _Array, logits: _Array, dlogits: _Array, /) -> None: ...
def ibp_loss_fwd(logits: _Array, loss: _Array, /) -> None: ...
def isas() -> list[str]: ...
def l2_normalize_bwd(dy: _Array, y: _Array, norm: _Array, dx: _Array, /) -> None: ...
def l2_normalize_fwd(x: _Array, eps: float, y: _Array, norm: _Array, /) -> None: ...
def layer_norm_bwd(
    dy: _Array,
    x: _Array,
    residual: _Array | None,
    weight: _Array,
    bias: _Array | None,
    inverse: _Array | None,
    mean: _Array,
    rstd: _Array,
    dx: _Array,
    dweight: _Array | None,
    dbias: _Array | None,
    /,
) -> None: ...
def layer_norm_fwd(
    x: _Array,
    residual: _Array | None,
    weight: _Array,
    bias: _Array,
    eps: float,
    y: _Array,
    mean: _Array,
    rstd: _Array,
    /,
) -> None: ...
def factor_pack(factor: _Array, panels: _Array, /) -> None: ...
def linear_bwd(
    x: _Array | None,
    activation: int,
    times: _Array | None,
    onto: _Array | None,
    dx: _Array | None,
    dtimes: _Array | None,
    /,
    *layers: tuple[Any, ...],
) -> None: ...
def linear_fwd(x: _Array, activation: int, times: _Array | None, /, *layers: tuple[Any, ...]) -> None: ...
def mean_pool_bwd(dy: _Array, cu_seqlens: _Array, dx: _Array, /) -> None: ...
def mean_pool_fwd(x: _Array, cu_seqlens: _Array, y: _Array, /) -> None: ...
def mix_bwd(
    dout: _Array, weights: _Array, bank: _Array, scale: float, dweights: _Array, dbank: _Array, /
) -> None: ...
def mix_fwd(weights: _Array, bank: _Array, scale: float, out: _Array, /) -> None: ...
def moe_bwd(
    dy: _Array,
    weight: _Array | None,
    x: _Array,
    h: _Array,
    lora_A: _Array,
    lora_B: _Array,
    weights: _Array,
    ids: _Array | None,
    scale: float,
    buckets: int,
    onto: _Array | None,
    dx: _Array | None,
    dlora_A: _Array | None,
    dlora_B: _Array | None,
    dweights: _Array | None,
    /,
) -> None: ...
def moe_fwd(
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    lora_A: _Array,
    lora_B: _Array,
    weights: _Array,
    ids: _Array | None,
    scale: float,
    buckets: int,
    y: _Array,
    h: _Array | None,
    /,
) -> None: ...
def mse_bwd(
    dloss: _Array, predictions: _Array, targets: _Array, weights: _Array | None, dpredictions: _Array, /
) -> None: ...
def mse_fwd(
    predictions: _Array, targets: _Array, weights: _Array | None, loss: _Array, per_example: _Array, /
) -> None: ...
def multiply(a: _Array, b: _Array, y: _Array, /) -> None: ...
def multiply_rows_bwd(
    dy: _Array, a: _Array, adapter_ids: _Array | None, cu_seqlens: _Array | None, db: _Array, /
) -> None: ...
def multiply_rows_fwd(
    a: _Array, b: _Array, adapter_ids: _Array | None, cu_seqlens: _Array | None, y: _Array, /
) -> None: ...
def openmp() -> str: ...
def pack(weight: _Array, transpose: int, panels: _Array, /) -> None: ...
def memory_used(restart: bool, /) -> tuple[int, int]: ...
def peak(n: int, bf16: int, /) -> float: ...
def read(x: _Array, times: int, /) -> float: ...
def release_memory() -> int: ...
def relu_bwd(y: _Array, dy: _Array, dx: _Array, /) -> None: ...
def relu_fwd(x: _Array, y: _Array, /) -> None: ...
def rms_norm_bwd(
    dy: _Array,
    x: _Array,
    weight: _Array,
    inverse: _Array | None,
    rstd: _Array,
    dx: _Array,
    dweight: _Array | None,
    /,
) -> None: ...
def rms_norm_fwd(x: _Array, weight: _Array, eps: float, y: _Array, rstd: _Array, /) -> None: ...
def rope(x: _Array, cos: _Array, sin: _Array, positions: _Array, back: int, y: _Array, /) -> None: ...
def scale_by_bwd(dy: _Array, x: _Array, log_scale: _Array, dx: _Array, dlog_scale: _Array, /) -> None: ...
def scale_by_fwd(x: _Array, log_scale: _Array, y: _Array, /) -> None: ...
def set_isa(name: str, /) -> None: ...
def set_num_threads(n: int, /) -> None: ...
def set_num_threads_here(n: int, /) -> int: ...
def silu_bwd(x: _Array, dy: _Array, dx: _Array, /) -> None: ...
def silu_fwd(x: _Array, y: _Array, /) -> None: ...
def softmax_router_bwd(dweights: _Array, weights: _Array, temperature: float, dlogits: _Array, /) -> None: ...
def softmax_router_fwd(logits: _Array, temperature: float, weights: _Array, /) -> None: ...
def task_router_bwd(
    dweights: _Array,
    task_ids: _Array,
    weights: _Array,
    slopes: _Array,
    gate: int,
    average: int,
    dlogits: _Array,
    /,
) -> None: ...
def task_router_fwd(
    logits: _Array,
    task_ids: _Array,
    noise: _Array | None,
    mask: _Array | None,
    temperature: float,
    gate: int,
    average: int,
    weights: _Array,
    gates: _Array,
    slopes: _Array,
    /,
) -> None: ...
def tensor_product_bwd(dout: _Array, leaves: _Array, order: int, eps: float, dleaves: _Array, /) -> None: ...
def tensor_product_fwd(leaves: _Array, order: int, eps: float, out: _Array, /) -> None: ...
def topk_router_bwd(dweights: _Array, weights: _Array, ids: _Array, dlogits: _Array, /) -> None: ...
def topk_router_fwd(logits: _Array, weights: _Array, ids: _Array, /) -> None: ...
def uniform(seed: int, key: int, step: int, example_ids: _Array, out: _Array, /) -> None: ...
def transpose(panels: _Array, O: int, D: int, out: _Array, /) -> None: ...
