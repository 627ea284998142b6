"""What we are compared with, where it is installed: torch, and PEFT's layers and models.

PEFT's Poly draws noise for every example in training and has no switch for it, so both sides draw it. glibc
gives the memory of large temporaries back to the system and takes it again, page fault by page fault;
``stock`` and ``tuned`` switch that within the process, so that torch is met at its best as well.
"""

from __future__ import annotations

import ctypes
import importlib
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

# malloc.h of glibc
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
MOST, DYNAMIC_MOST = 2**31 - 1, 32 << 20


@lru_cache(maxsize=1)
def torch() -> Any:
    """The module, with PEFT and transformers beside it; None, and one line, where one of them is missing."""
    try:
        found = importlib.import_module("torch")
        for name in ("peft", "transformers"):
            importlib.import_module(name)
    except ImportError as error:
        print(f"no torch + PEFT here ({error}): compared with NumPy alone (extra `parity`)")
        return None
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers by an old name
    return found


@lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def can_tune() -> bool:
    """Whether the C library is one whose allocator can be set."""
    return _libc() is not None


def _set(options: dict[int, int]) -> None:
    for name, value in options.items():
        assert _libc().mallopt(name, value) == 1, f"mallopt({name}, {value}) was refused"
    _libc().malloc_trim(0)


def stock(largest: int) -> Callable[[], None]:
    """Sets what glibc's own rule arrives at once an array of so many bytes was freed: larger ones are mapped,
    twice as much is kept at the top of the heap; it stops at 32 MiB."""
    threshold = min(max(largest + 4096, 128 << 10), DYNAMIC_MOST)
    return partial(
        _set,
        {MMAP_MAX: 65536, MMAP_THRESHOLD: threshold, TRIM_THRESHOLD: 2 * threshold, TOP_PAD: 128 << 10},
    )


def tuned() -> None:
    """Nothing is mapped and nothing is given back."""
    _set({MMAP_MAX: 0, TRIM_THRESHOLD: MOST, TOP_PAD: 64 << 20})


def tensor(a: np.ndarray, grad: bool = False) -> Any:
    """A tensor over the same memory."""
    return torch().from_numpy(a).requires_grad_(grad)


def linear(weight: np.ndarray) -> Any:
    """torch.nn.Linear with this frozen weight, without a bias."""
    module = torch().nn.Linear(*weight.shape[::-1], bias=False)
    module.weight.data = tensor(weight)
    return module.requires_grad_(False)


def adapted(weight: np.ndarray, method: str, **options: Any) -> Any:
    """PEFT's layer of a method ("poly", "lora") over this frozen weight, in training, B not zero."""
    peft, t = importlib.import_module("peft"), torch()
    kind = {"poly": peft.PolyConfig, "lora": peft.LoraConfig}[method]
    start = {"poly": {"init_weights": False}, "lora": {"init_lora_weights": False}}[method]
    model = t.nn.Sequential()
    model.add_module("layer", linear(weight))
    config = kind(target_modules=["layer"], **start, **options)
    return peft.get_peft_model(model, config).base_model.model.layer.train()


def forward_backward(forward: Callable[[Any], Any], x: np.ndarray, dy: np.ndarray) -> Callable[[], Any]:
    """One call: y and the gradients of x and of every parameter, which are new each time."""
    x_leaf, dy_tensor = tensor(x, grad=True), tensor(dy)
    parameters = [p for p in getattr(forward, "parameters", list)() if p.requires_grad]

    def run() -> Any:
        for leaf in (x_leaf, *parameters):
            leaf.grad = None
        y = forward(x_leaf)
        y.backward(dy_tensor)
        return y

    return run


def parameters_in(module: Any, names: tuple[str, ...]) -> list[np.ndarray]:
    """Copies of the first parameter whose name holds each of these."""
    found = dict(module.named_parameters())
    return [next(p for n, p in found.items() if name in n).detach().numpy().copy() for name in names]
