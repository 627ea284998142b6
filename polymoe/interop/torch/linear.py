"""A linear layer of torch with its adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from polymoe import tape
from polymoe.adapters.layers import AdapterLayer
from polymoe.batch import Batch, Routing
from polymoe.interop.torch.base import FLOATS, FrozenLinear, dtype_name
from polymoe.interop.torch.passes import Decision, Pass, Passes, current_node
from polymoe.interop.torch.recorded import Held, Leaf, record
from polymoe.nn import Module
from polymoe.parameters import Parameter


class Group(torch.nn.Module):
    """Parameters of a part of an adapter ("router", "experts")."""


class InjectedLinear(torch.nn.Module):
    """y = x W^T + b and the term of an adapter, forward and backward by polymoe's kernels.

    In the place of an nn.Linear or Conv1D: ``weight`` and ``bias`` are the same parameters under the same
    names (the weight is None once it was released), frozen; those of the adapter lie in ``router`` and
    ``experts``, in the layout of :mod:`polymoe.adapters`. Takes [..., D] of float32, bfloat16 or float16,
    computes in float32 and returns the input's dtype.
    """

    weight: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None

    def __init__(self, frozen: FrozenLinear, layer: AdapterLayer, passes: Passes) -> None:
        super().__init__()
        original = frozen.source
        self._original = (original,)  # in a tuple, so that it is no submodule
        self._was = original.weight.dtype, original.weight.requires_grad
        self.register_parameter("weight", original.weight)
        self.register_parameter("bias", original.bias)
        self.in_features, self.out_features = frozen.in_features, frozen.out_features
        if frozen.transposed:
            self.nx, self.nf = self.in_features, self.out_features  # Conv1D's names
        self.frozen, self.layer, self.passes = frozen, layer, passes
        frozen.source = self
        self.shares_router = False
        self.of_router: list[Held] = []
        self.of_experts: list[Held] = []
        self.held: list[Held] = []
        self.train(original.training)

    # ---- parameters

    def hold(self, first: InjectedLinear | None) -> None:
        """Make parameters of torch of the adapter's; ``first``: the layer that holds the router already."""
        self.of_experts = self._hold("experts", self.layer.experts)
        if first is None:
            self.of_router = self._hold("router", self.layer.router)
        else:
            self.of_router = first.of_router
            self.shares_router = first.shares_router = True
        self.held = self.of_router + self.of_experts

    def _hold(self, part: str, module: Module) -> list[Held]:
        found: list[Held] = []
        top = Group()
        for path, owner in module.named_modules():
            group: torch.nn.Module = top
            for name in path.split(".") if path else ():
                if name not in group._modules:
                    group.add_module(name, Group())
                group = group._modules[name]
            for name, value in list(vars(owner).items()):
                if type(value) is Parameter:
                    leaf = Leaf(value.data, value.group, value.trainable)
                    setattr(owner, name, leaf)
                    tensor = torch.nn.Parameter(torch.from_numpy(leaf.data), requires_grad=leaf.trainable)
                    group.register_parameter(name, tensor)
                    found.append(Held(leaf, group, name))
        if found:
            self.add_module(part, top)
        return found

    def release(self) -> None:
        """Let go of the original weight; what was packed of it stays."""
        _ = self.frozen.weight
        self.weight = None
        self._original[0].weight = None

    def original(self) -> torch.nn.Module:
        """The layer that stood here."""
        module = self._original[0]
        module.weight = self.frozen.restored(*self._was) if self.weight is None else self.weight
        module.bias = self.bias
        return module.train(self.training)

    # ---- forward

    def train(self, mode: bool = True) -> InjectedLinear:
        """Switch noise and dropout on (or off)."""
        super().train(mode)
        self.layer.train(mode and self.passes.learns)
        self.passes.training = mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y [..., O] of x [..., D]: whose tasks the rows belong to was said at the model's call.

        TypeError for another dtype, ValueError for another shape or device; see
        :class:`polymoe.batch.TaskRegistry` for errors in task ids.
        """
        at = self.passes.current(self.layer.name)
        if at.scope.disabled:
            return self.base(x)
        self._check(x)
        if x.dim() == 1:
            return self.forward(x[None])[0]
        given = x.dtype
        x = (x if given is torch.float32 else x.float()).contiguous()
        hidden = None if self.layer.router.axis == "group" else at.kept(x.shape)
        if hidden is None:
            y = self._adapted(x, at.batch(x.shape), at)
        else:
            # A masked token belongs to no example: the router does not see it, and the base alone answers.
            batch, seen, masked = hidden
            rows = x.reshape(-1, self.in_features)
            y = rows.new_zeros(len(rows), self.out_features)
            y = y.index_copy(0, seen, self._adapted(rows[seen], batch, at))
            y = y.index_copy(0, masked, record(self._base, (rows[masked],), ())[0])
            y = y.view(*x.shape[:-1], self.out_features)
        return y if given is torch.float32 else y.to(given)

    def base(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer gave before."""
        if self.weight is not None:
            return self.original()(x)
        self._check(x)
        y, _ = record(self._base, (x.float().contiguous(),), ())
        return y.to(x.dtype)

    def _base(self, x: Any) -> Any:
        return tape.linear(x, self.frozen.weight, self.frozen.bias)

    def _adapted(self, x: torch.Tensor, batch: Batch, at: Pass) -> torch.Tensor:
        layer, frozen = self.layer, self.frozen
        if not self.shares_router or batch.routings is not None:
            y, aux = record(lambda x: layer(x, frozen, batch), (x,), self.held)
            if aux is not None:
                at.hear(layer.name, aux)
            return y
        decided = self._decide(x, batch, at)
        routing = decided.routing
        weights = () if decided.weights is None else (decided.weights,)

        def run(x: Any, *weights: Any) -> Any:
            routings: Any = _Decided(replace(routing, weights=weights[0]) if weights else routing)
            return layer(x, frozen, replace(batch, routings=routings))

        return record(run, (x, *weights), self.of_experts)[0]

    def _decide(self, x: torch.Tensor, batch: Batch, at: Pass) -> Decision:
        """What the router that layers share says, asked once in a forward."""
        router, name, node = self.layer.router, self.layer.name, current_node()
        again = None if node is None or at.node == node else node
        key = (router.name, again)
        decided = at.decisions.get(key)
        if again is not None and decided is None:
            # Backward recomputes this layer alone, or with others.
            first = at.decisions.get((router.name, None))
            by_other = first is not None and first.decider != name
            if by_other and (first.weights is None or first.weights.requires_grad):  # type: ignore[union-attr]
                return first  # type: ignore[return-value]
            if router.axis == "example" and (by_other or first is None):
                raise RuntimeError(
                    f"router_granularity: expected layers that are recomputed together with the one whose "
                    f"activations decide, got {name} alone; use_reentrant=False does"
                )
        if decided is None or name in decided.users:
            parts: list[Routing] = []

            def run(x: Any) -> Any:
                parts.append(router(batch, x))
                if parts[-1].aux is not None:
                    tape.auxiliary(parts[-1].aux)
                return parts[-1].weights

            weights, aux = record(run, (x,), self.of_router, rows=False)
            decided = Decision(replace(parts[0], weights=None, aux=None), weights, name, set())
            at.decisions[key] = decided
            if aux is not None:
                at.hear(name, aux)
        decided.users.add(name)
        return decided

    def _check(self, x: torch.Tensor) -> None:
        if not x.is_cpu:
            raise ValueError(f"x: expected a tensor on the CPU, got one on {x.device}")
        if x.dtype not in FLOATS:
            raise TypeError(f"x: expected dtype float32, bfloat16 or float16, got {dtype_name(x)}")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected shape (B, ..., {self.in_features}), got {tuple(x.shape)}")
        for name, tensor in self._parameters.items():
            if tensor is not None and tensor.requires_grad:
                raise ValueError(
                    f"{self.layer.name}.{name}: expected requires_grad False (an adapted layer is frozen), "
                    "got True"
                )

    def extra_repr(self) -> str:
        """Sizes and parts."""
        sizes = f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, router={self.layer.router!r}, experts={self.layer.experts!r}"


class _Decided:
    """Routings that were decided before."""

    stand = False

    def __init__(self, routing: Routing) -> None:
        self.routing = routing

    def decide(self, name: str, layer: str, decide: Any) -> Routing:
        return self.routing
