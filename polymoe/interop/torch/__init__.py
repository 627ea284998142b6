"""Adapters of polymoe in torch models, forward and backward by our kernels: any loop, Trainer, generate.

    from polymoe.interop.torch import inject, parameter_groups

    model = inject(AutoModel.from_pretrained(...), "poly", tasks=["sentiment", "topic"])
    optimizer = torch.optim.AdamW(parameter_groups(model))
    output = model(**inputs, task_ids=["topic", "sentiment"])

Needs torch (extra ``torch``). Reading order: injection.py (the functions), base.py (a torch model as adapters
see it), passes.py (whose rows there are), linear.py (the layer), recorded.py (our tape in torch's graph),
calls.py (forward and generate).
"""

from polymoe.interop.torch.injection import (
    auxiliary_loss,
    disable_adapter,
    eject,
    get_adapter,
    inject,
    load_adapter,
    parameter_groups,
    save_adapter,
    task_ids,
)
from polymoe.interop.torch.linear import InjectedLinear

__all__ = [
    "InjectedLinear",
    "auxiliary_loss",
    "disable_adapter",
    "eject",
    "get_adapter",
    "inject",
    "load_adapter",
    "parameter_groups",
    "save_adapter",
    "task_ids",
]
