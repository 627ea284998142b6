"""Operations that are recorded: the pairs of :mod:`polymoe.functional`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from polymoe import functional as F
from polymoe.functional.linear import Activation
from polymoe.tape.record import Deferred, Node, Record, current_tape, data_of, gradients_of, whole_of


class Activated(Deferred):
    """``activation(x) * times``, which nobody has computed yet.

    :func:`linear` forms it as it reads x, without an array of its own. Every other function asks for the
    whole, which is then kept for whoever reads it next.
    """

    __slots__ = ("_whole", "activation", "times", "x")

    def __init__(self, x: Any, activation: Activation, times: Any = None) -> None:
        self.x, self.activation, self.times = x, activation, times
        self._whole: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return tuple(self.x.shape)

    @property
    def whole(self) -> Any:
        """The value itself."""
        if self._whole is None:
            name, *approximate = self.activation.split("_")
            y = {"relu": relu, "gelu": gelu, "silu": silu}[name](self.x, *approximate)
            self._whole = y if self.times is None else multiply(y, self.times)
        return self._whole

    def reading(self) -> dict[str, Any] | None:
        """What :func:`linear` reads instead, unless the whole is there."""
        if self._whole is not None:
            return None
        return {"x": self.x, "activation": self.activation, "times": self.times}


def differentiable(
    forward: Callable[..., Any], backward: Callable[..., Any], beside: str | None = None
) -> Callable[..., Any]:
    """``forward -> (y, saved)`` as a recorded operation; ``backward(saved, dy)`` gives ``d<argument>, ...``.

    ``beside`` names a field of ``saved``, an array without gradient, that is returned beside ``y``."""
    signature = inspect.signature(forward)
    parameters = tuple(signature.parameters)
    takes = inspect.signature(backward).parameters
    selective, adds, activates = "needs" in takes, "onto" in takes, "activation" in parameters

    def op(*args: Any, **kwargs: Any) -> Any:
        tape = current_tape()
        given = (*args, *kwargs.values())
        kinds = set(map(type, given))
        if tape is None and kinds.isdisjoint(Deferred.kinds):  # nothing is recorded
            if not kinds.isdisjoint(Node.kinds):
                args = tuple(data_of(value) for value in args)
                kwargs = {name: data_of(value) for name, value in kwargs.items()}
            y, saved = forward(*args, **kwargs)
            return y if beside is None else (y, getattr(saved, beside))
        bound = dict(zip(parameters, args, strict=False)) | kwargs
        if len(bound) != len(given):
            signature.bind(*args, **kwargs)  # too many arguments, or one given twice: it says which
        for name, value in tuple(bound.items()):
            if not isinstance(value, Deferred):
                continue
            if activates and name == "x" and isinstance(value, Activated) and (reading := value.reading()):
                bound |= {key: whole_of(read) for key, read in reading.items()}
            else:
                bound[name] = value.whole
        gradients = gradients_of(bound)
        y, saved = forward(**{name: data_of(value) for name, value in bound.items()})
        output = y
        if tape is not None and gradients:
            output = Node(y)
            tape.records.append(Record(output.gradient, saved, backward, gradients, selective, adds))
        return output if beside is None else (output, getattr(saved, beside))

    op.__name__ = op.__qualname__ = forward.__name__
    returns = "y alone" if beside is None else f"y and saved.{beside}"
    op.__doc__ = (
        f"{forward.__doc__}\n\n    Differentiable form of "
        f":func:`polymoe.functional.{forward.__name__}`: returns {returns}."
    )
    return op


linear = differentiable(F.linear, F.linear_backward)
moe = differentiable(F.moe, F.moe_backward)
dense = differentiable(F.dense, F.dense_backward)
expert_dense = differentiable(F.expert_dense, F.expert_dense_backward)
mix = differentiable(F.mix, F.mix_backward)
task_router = differentiable(F.task_router, F.task_router_backward)
tensor_product = differentiable(F.tensor_product, F.tensor_product_backward)
softmax_router = differentiable(F.softmax_router, F.softmax_router_backward)
topk_router = differentiable(F.topk_router, F.topk_router_backward, beside="ids")
balance_loss = differentiable(F.balance_loss, F.balance_loss_backward)
layer_norm = differentiable(F.layer_norm, F.layer_norm_backward)
rms_norm = differentiable(F.rms_norm, F.rms_norm_backward)
rope = differentiable(F.rope, F.rope_backward)
silu = differentiable(F.silu, F.silu_backward)
gelu = differentiable(F.gelu, F.gelu_backward)
relu = differentiable(F.relu, F.relu_backward)
multiply = differentiable(F.multiply, F.multiply_backward)
add = differentiable(F.add, F.add_backward)
scale_by = differentiable(F.scale_by, F.scale_by_backward)
l2_normalize = differentiable(F.l2_normalize, F.l2_normalize_backward)
attention = differentiable(F.attention, F.attention_backward)
embedding = differentiable(F.embedding, F.embedding_backward)
mean_pool = differentiable(F.mean_pool, F.mean_pool_backward)
attention_pool = differentiable(F.attention_pool, F.attention_pool_backward)
dropout = differentiable(F.dropout, F.dropout_backward)
concat = differentiable(F.concat, F.concat_backward)
reshape = differentiable(F.reshape, F.reshape_backward)
ibp_loss = differentiable(F.ibp_loss, F.ibp_loss_backward)
cross_entropy = differentiable(F.cross_entropy, F.cross_entropy_backward)
mse = differentiable(F.mse, F.mse_backward)
lm_loss = differentiable(F.lm_loss, F.lm_loss_backward, beside="per_token")
