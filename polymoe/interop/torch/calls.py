"""The calls of an injected model that take ``task_ids``: forward and generate."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from polymoe.interop.torch.passes import Pass, Passes

ARGUMENT = "task_ids"


class Call:
    """A method of a model that takes ``task_ids`` as well. It stands on the instance, in front of the
    class's, and shows the signature with them, by which Trainer keeps a column and generate an argument."""

    name: str

    def __init__(self, model: torch.nn.Module, passes: Passes) -> None:
        self.model, self.passes = model, passes
        self.covered = vars(model).get(self.name)
        self.knows = ARGUMENT in inspect.signature(self.original).parameters  # the method itself takes them

    @property
    def original(self) -> Any:
        """The method that it stands in front of."""
        if self.covered is not None:
            return self.covered
        return getattr(type(self.model), self.name).__get__(self.model)

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.original)
        if self.knows:
            return signature
        parameters = list(signature.parameters.values())
        at = len(parameters) - (bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
        ids = inspect.Parameter(ARGUMENT, inspect.Parameter.KEYWORD_ONLY, default=None)
        return signature.replace(parameters=[*parameters[:at], ids, *parameters[at:]])

    def take(self, kwargs: dict[str, Any]) -> Any:
        """The ids among the arguments, taken out unless the method knows them."""
        found = kwargs.get(ARGUMENT) if self.knows else kwargs.pop(ARGUMENT, None)
        return plain(found)

    def install(self) -> None:
        """Stand in front of the method."""
        setattr(self.model, self.name, self)

    def remove(self) -> None:
        """Leave."""
        delattr(self.model, self.name)
        if self.covered is not None:
            setattr(self.model, self.name, self.covered)


class Forward(Call):
    """A model's forward. What it returns gets the auxiliary losses added to its ``loss``, if it has one."""

    name = "forward"

    @property
    def has_two_texts(self) -> bool:
        """Whether a mask may be that of another text than an activation's."""
        return bool(getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own, with ``task_ids``: names or ids of the examples, or one for all."""
        ids = self.take(kwargs)
        mask = None if self.has_two_texts else mask_of(kwargs)
        with self.passes.forward(ids, batch_size(args, kwargs), mask) as at:
            output = self.original(*args, **kwargs)
        self.passes.last = at if at.aux else None
        loss = getattr(output, "loss", None)
        if at.aux and isinstance(loss, torch.Tensor):
            output.loss = loss + auxiliary(at)
            self.passes.last = None
        return output


class Generate(Call):
    """A model's generate: the ids are those of the prompts, whatever number of rows becomes of each."""

    name = "generate"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own, with ``task_ids``."""
        ids, size = self.take(kwargs), batch_size(args, kwargs)
        passes = self.passes
        ids = passes.scope.ids if ids is None else ids
        if size is not None and not passes.scope.disabled:
            ids = passes.checked(ids, size)
        with passes.within(ids=ids, size=size, writing=True):
            return self.original(*args, **kwargs)


def auxiliary(at: Pass) -> torch.Tensor:
    """The sum of the auxiliary losses of a pass."""
    return torch.stack(list(at.aux.values())).sum()


def plain(ids: Any) -> Any:
    """Task ids without torch's tensors."""
    return ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else ids


def batch_size(args: Iterable[Any], kwargs: dict[str, Any]) -> int | None:
    """The number of examples: the first extent of the first tensor among the arguments that has two or more,
    or stands in a mapping that does."""
    given = {k: v for k, v in kwargs.items() if k != ARGUMENT}
    for value in (*args, *given.values()):
        for tensor in value.values() if hasattr(value, "values") and not torch.is_tensor(value) else (value,):
            if torch.is_tensor(tensor) and tensor.dim() >= 2:
                return int(tensor.shape[0])
    return None


def mask_of(kwargs: dict[str, Any]) -> np.ndarray | None:
    """Which tokens there are, [B, L], by the argument attention_mask; None where it has another form."""
    mask: Any = kwargs.get("attention_mask")
    if not torch.is_tensor(mask) or mask.dim() != 2 or mask.is_floating_point():
        return None
    return np.asarray(mask.detach().cpu().numpy() != 0)
