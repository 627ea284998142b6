"""Which array of ours lies where in a file of PEFT's.

here                       there, after "base_model.model." and the module's name
lora_A [1, r, D]           lora_A.weight (r, D)                                  LORA
lora_B [1, r, O]           lora_B.weight (O, r)
lora_bias [1, 1, O]        lora_B.bias (O,)
module_bias [1, 1, O]      base_layer.bias (O,)
lora_A [S, r, D]           poly_lora_A (Q, S, D/Q, r)                            POLY, POLYMOE
lora_B [S, r, O]           poly_lora_B (Q, S, r, O/Q)
logits [T, Q, S]           poly_router.module_logits (T, Q*S)
vectors [1, O]             ia3_l (O, 1)                                          IA3
vectors [1, D]             ia3_l (1, D) where the input is multiplied
anything else              under its own name, as it is                          POLYMOE
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from polymoe.adapters.config import AdapterConfig
from polymoe.adapters.inject import Adapter
from polymoe.adapters.parts import Site
from polymoe.parameters import Parameter

PREFIX = "base_model.model."

_NAMES = {
    "LORA": {
        "experts.lora_A": "lora_A.weight",
        "experts.lora_B": "lora_B.weight",
        "experts.lora_bias": "lora_B.bias",
        "experts.module_bias": "base_layer.bias",
    },
    "POLY": {
        "experts.lora_A": "poly_lora_A",
        "experts.lora_B": "poly_lora_B",
        "router.logits": "poly_router.module_logits",
    },
    "IA3": {"experts.vectors": "ia3_l"},
}
_NAMES["POLYMOE"] = _NAMES["POLY"]

# What PEFT writes beside these, and what it is.
_STRANGE = {
    "lora_embedding_A": "LoRA of an embedding, and only linear layers are adapted here",
    "lora_embedding_B": "LoRA of an embedding, and only linear layers are adapted here",
    "lora_magnitude_vector": "DoRA's, which divides by norms of the base's own weights",
    "trainable_tokens_delta": "rows of an embedding, and the base is never changed",
    "bias": "a bias of a layer without an adapter, and the base is never changed",
}


@dataclass(frozen=True)
class Entry:
    """A parameter and its place: ``key`` in the file; ``blocks``, how its array is cut; ``axes``, the order
    there; ``shape`` there."""

    key: str
    name: str
    parameter: Parameter
    blocks: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def to_disk(self, array: np.ndarray) -> np.ndarray:
        """An array of ours as PEFT has it."""
        return array.reshape(self.blocks).transpose(self.axes).reshape(self.shape)

    def from_disk(self, array: np.ndarray) -> np.ndarray:
        """The inverse."""
        cut = [self.blocks[axis] for axis in self.axes]
        return array.reshape(cut).transpose(np.argsort(self.axes)).reshape(self.parameter.shape)


def entries(adapter: Adapter, kind: str) -> list[Entry]:
    """All parameters, for a folder of this peft_type; a router that layers share lies with the first."""
    heads = adapter.config.n_splits
    found = {
        id(parameter): _entry(module, _NAMES[kind].get(name, name), parameter, heads, layer)
        for module, layer in reversed(adapter.layers.items())
        for name, parameter in layer.named_parameters()
    }
    return list(found.values())[::-1]


def _entry(module: str, name: str, parameter: Parameter, heads: int, layer: object) -> Entry:
    shape = tuple(parameter.shape)
    blocks, axes, there = shape, tuple(range(len(shape))), shape
    if name in ("lora_A.weight", "lora_B.weight"):
        blocks = shape[1:]
        axes = (0, 1) if name == "lora_A.weight" else (1, 0)
        there = tuple(blocks[axis] for axis in axes)
    elif name in ("lora_B.bias", "base_layer.bias"):
        there = shape[2:]
    elif name in ("poly_lora_A", "poly_lora_B"):
        blocks = (*shape[:2], heads, shape[2] // heads)  # [S, r, Q, D/Q]
        axes = (2, 0, 3, 1) if name == "poly_lora_A" else (2, 0, 1, 3)
        there = tuple(blocks[axis] for axis in axes)
    elif name == "poly_router.module_logits":
        there = (shape[0], int(np.prod(shape[1:])))
    elif name == "ia3_l":
        there = shape if layer.experts.on_input else shape[::-1]  # type: ignore[attr-defined]
    return Entry(f"{PREFIX}{module}.{name}", name, parameter, blocks, axes, there)


def find_sites(config: AdapterConfig, shapes: dict[str, tuple[int, ...]], n_tasks: int) -> list[Site]:
    """The layers that a file is about, by its keys and ``shapes`` alone; a width that nothing tells is 1.

    Methods whose parameters do not tell the widths of a layer (tensor products, feed-forwards) give none.
    """
    widths: dict[str, dict[str, int]] = {}
    for key, shape in shapes.items():
        for end, (width, axes) in _WIDTHS.items():
            if key.endswith(f".{end}") and len(shape) > max(axes):
                module = key.removeprefix(PREFIX).removesuffix(f".{end}")
                size = int(np.prod([shape[axis] for axis in axes]))
                widths.setdefault(module, {})[width] = size
        if key.endswith((".ia3_l", ".experts.vectors")):
            module = key.removeprefix(PREFIX).removesuffix(".ia3_l").removesuffix(".experts.vectors")
            widths.setdefault(module, {}).update(n_in=max(shape), n_out=max(shape))
    return [
        Site(module, widths[module].get("n_in", 1), widths[module].get("n_out", 1), n_tasks)
        for module in sorted(widths, key=_natural)
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


_WIDTHS = {
    "lora_A.weight": ("n_in", (1,)),
    "lora_B.weight": ("n_out", (0,)),
    "poly_lora_A": ("n_in", (0, 2)),
    "poly_lora_B": ("n_out", (0, 3)),
}


def without_head(found: dict[str, np.ndarray], expected: Collection[str]) -> dict[str, np.ndarray]:
    """The weights under the names of the bare base, where all of them have one and the same name before it,
    that of the base in a model with a head ("bert."); else as they are."""
    first = next(iter(expected), PREFIX).removeprefix(PREFIX)
    for key in found:
        head = key.removeprefix(PREFIX).removesuffix(first)
        if key.endswith(f".{first}") and head and all(k.startswith(PREFIX + head) for k in found):
            bare = {PREFIX + k.removeprefix(PREFIX + head): array for k, array in found.items()}
            return bare if bare.keys() == set(expected) else found
    return found


def describe(keys: Iterable[str]) -> str:
    """Keys that nobody expected, and what they are where that is known."""
    found = []
    for key in keys:
        end = key.rpartition(".")[2]
        found.append(f"{key} ({_STRANGE[end]})" if end in _STRANGE else key)
    return ", ".join(found) or "none"
