"""The compiled extension: strict, in place, no conversion (see csrc/python). :mod:`polymoe.functional` is its friendly face."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

def adamw_step(
    data: Array,
    grad: Array,
    m: Array,
    v: Array,
    offsets: Array,
    lengths: Array,
    lr: Array,
    weight_decay: Array,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    grad_scale: float,
    /,
) -> None: ...
def add(a: Array, b: Array, y: Array, /) -> None: ...
def attention_bwd(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    cu_seqlens: Array,
    n_heads: int,
    scale: float,
    causal: int,
    dq: Array,
    dk: Array,
    dv: Array,
    /,
) -> None: ...
def attention_fwd(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens: Array,
    n_heads: int,
    scale: float,
    causal: int,
    out: Array,
    lse: Array,
    /,
) -> None: ...
def cross_entropy_bwd(
    dloss: Array,
    logits: Array,
    labels: Array,
    starts: Array | None,
    ends: Array | None,
    weights: Array | None,
    lse: Array,
    dlogits: Array,
    /,
) -> None: ...
def cross_entropy_fwd(
    logits: Array,
    labels: Array,
    starts: Array | None,
    ends: Array | None,
    weights: Array | None,
    loss: Array,
    per_example: Array,
    lse: Array,
    /,
) -> None: ...
def dense_bwd_weight(dy: Array, x: Array, dweight: Array | None, dbias: Array | None, /) -> None: ...
def embedding_bwd(ids: Array, dy: Array, dtable: Array, /) -> None: ...
def embedding_fwd(ids: Array, table: Array, y: Array, /) -> None: ...
def empty(shape: int | Sequence[int], dtype: Any, /) -> Array: ...
def gelu_bwd(tanh_form: int, x: Array, dy: Array, dx: Array, /) -> None: ...
def gelu_fwd(tanh_form: int, x: Array, y: Array, /) -> None: ...
def get_isa() -> str: ...
def get_num_threads() -> int: ...
def global_norm(grad: Array, offsets: Array, lengths: Array, /) -> float: ...
def isas() -> list[str]: ...
def l2_normalize_bwd(dy: Array, y: Array, norm: Array, dx: Array, /) -> None: ...
def l2_normalize_fwd(x: Array, eps: float, y: Array, norm: Array, /) -> None: ...
def layer_norm_bwd(
    dy: Array,
    x: Array,
    residual: Array | None,
    weight: Array,
    mean: Array,
    rstd: Array,
    dx: Array,
    dweight: Array | None,
    dbias: Array | None,
    /,
) -> None: ...
def layer_norm_fwd(
    x: Array,
    residual: Array | None,
    weight: Array,
    bias: Array,
    eps: float,
    y: Array,
    mean: Array,
    rstd: Array,
    /,
) -> None: ...
def linear_bwd(
    dy: Array,
    weight: Array,
    x: Array | None,
    h: Array | None,
    lora_A: Array | None,
    lora_B: Array | None,
    weights: Array | None,
    adapter_ids: Array | None,
    cu_seqlens: Array | None,
    scale: float,
    concat: int,
    dx: Array | None,
    dlora_A: Array | None,
    dlora_B: Array | None,
    dweights: Array | None,
    /,
) -> None: ...
def linear_fwd(
    x: Array,
    weight: Array,
    bias: Array | None,
    lora_A: Array | None,
    lora_B: Array | None,
    weights: Array | None,
    adapter_ids: Array | None,
    cu_seqlens: Array | None,
    scale: float,
    concat: int,
    y: Array,
    h: Array | None,
    /,
) -> None: ...
def mean_pool_bwd(dy: Array, cu_seqlens: Array, dx: Array, /) -> None: ...
def mean_pool_fwd(x: Array, cu_seqlens: Array, y: Array, /) -> None: ...
def mix_bwd(
    dout: Array, weights: Array, bank: Array, scale: float, dweights: Array, dbank: Array, /
) -> None: ...
def mix_fwd(weights: Array, bank: Array, scale: float, out: Array, /) -> None: ...
def mse_bwd(
    dloss: Array, predictions: Array, targets: Array, weights: Array | None, dpredictions: Array, /
) -> None: ...
def mse_fwd(
    predictions: Array, targets: Array, weights: Array | None, loss: Array, per_example: Array, /
) -> None: ...
def multiply(a: Array, b: Array, y: Array, /) -> None: ...
def openmp() -> str: ...
def pack(weight: Array, transpose: int, panels: Array, /) -> None: ...
def peak(n: int, /) -> float: ...
def release_memory() -> int: ...
def scale_by_bwd(dy: Array, x: Array, log_scale: Array, dx: Array, dlog_scale: Array, /) -> None: ...
def scale_by_fwd(x: Array, log_scale: Array, y: Array, /) -> None: ...
def set_isa(name: str, /) -> None: ...
def set_num_threads(n: int, /) -> None: ...
def task_router_bwd(
    dweights: Array, task_ids: Array, weights: Array, gates: Array, temperature: float, dlogits: Array, /
) -> None: ...
def task_router_fwd(
    logits: Array, task_ids: Array, noise: Array | None, temperature: float, weights: Array, gates: Array, /
) -> None: ...
def uniform(seed: int, key: int, step: int, example_ids: Array, out: Array, /) -> None: ...
