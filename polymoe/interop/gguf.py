"""LoRA as a GGUF file for llama.cpp, with its names and shapes (extra ``gguf``).

    general.type "adapter", adapter.type "lora", general.architecture, adapter.lora.alpha
    blk.N.attn_q.weight.lora_a (r, D), blk.N.attn_q.weight.lora_b (O, r) ...

llama.cpp adds ``alpha / r (x lora_a^T) lora_b^T`` with one alpha for all layers and each layer's own r: where
our scales differ, lora_b takes the rest. It rotates other pairs of columns than Hugging Face does, so that
the rows of a Llama's q and k are stored in another order, which needs the number of heads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polymoe.files import PathLike
from polymoe.interop.lora import Lora, Pair, commonest, make_pair, pair_up

FILE = "adapter.gguf"
_LLAMA = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_BERT = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
}
# llama.cpp's architecture -> what comes before a layer's number, and its linear layers here and there
NAMES: dict[str, tuple[str, dict[str, str]]] = {
    "bert": ("encoder.layer.", _BERT),
    "llama": ("model.layers.", _LLAMA),
    "qwen2": ("model.layers.", _LLAMA),
}
ARCHITECTURES = {"bert": "bert", "llama": "llama", "mistral": "llama", "qwen2": "qwen2"}  # by model_type


def write_gguf(lora: Lora, folder: PathLike, config: Mapping[str, Any]) -> None:
    """Write ``adapter.gguf`` into an existing folder. ``config``: the base's config.json (model_type, heads).

    ModuleNotFoundError without the library; ValueError for a base or a module whose name there we do not
    know.
    """
    gguf = _library()
    lora.without_bias("llama.cpp's LoRA has no biases")
    kind = _architecture(config)
    alpha = commonest(pair.scale * pair.r for pair in lora.pairs.values())
    alpha = float(np.float32(alpha))
    writer = gguf.GGUFWriter(Path(folder) / FILE, kind)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    if isinstance(task := lora.provenance.get("task"), str):
        writer.add_string(gguf.Keys.Adapter.LORA_TASK_NAME, task)
    for name, pair in lora.pairs.items():
        pair = pair.scaled(alpha / pair.r)
        key = f"{_there(kind, name)}.weight"
        B = np.ascontiguousarray(pair.lora_B.T)
        writer.add_tensor(f"{key}.lora_a", np.ascontiguousarray(pair.lora_A))
        writer.add_tensor(f"{key}.lora_b", B[_order(kind, config, name, len(B))])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model_config(path: Path) -> dict[str, Any]:
    """Of the model in a GGUF file, what :func:`write_gguf` needs; no weights are read."""
    fields = {name: field.contents() for name, field in _library().GGUFReader(path).fields.items()}
    kind = fields.get("general.architecture")
    heads = {"num_attention_heads": "head_count", "num_key_value_heads": "head_count_kv"}
    return {"model_type": kind} | {
        ours: fields.get(f"{kind}.attention.{name}") for ours, name in heads.items()
    }


def read_gguf(path: PathLike, config: Mapping[str, Any] | None = None) -> Lora:
    """The LoRA in a file, or in the ``adapter.gguf`` of a folder. ``config``: the base's config.json, needed
    for Llama's heads.

    FileNotFoundError for a missing file; ValueError that names the file for a broken one and one that is no
    LoRA.
    """
    gguf, path = _library(), Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a GGUF file, got none")
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise ValueError(f"{path}: expected a whole GGUF file, got {error}") from error
    kind, what = fields.get("general.architecture"), (fields.get("general.type"), fields.get("adapter.type"))
    if what != ("adapter", "lora"):
        raise ValueError(
            f"{path}: expected a LoRA (general.type, adapter.type), got {what[0]!r}, {what[1]!r}"
        )
    if kind not in NAMES:
        raise ValueError(f"{path}: general.architecture: expected one of {', '.join(NAMES)}, got {kind!r}")
    config = {} if config is None else config
    alpha = fields.get("adapter.lora.alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"{path}: adapter.lora.alpha: expected a finite number, got {alpha!r}")
    pairs: dict[str, Pair] = {}
    for key, (A, B) in pair_up(tensors, "weight.lora_a", "weight.lora_b", path).items():
        name, B = _here(kind, key, path), B.copy()
        B[_order(kind, config, name, len(B))] = B.copy()
        pairs[name] = make_pair(name, A, B.T, alpha / len(A) if alpha else 1.0, path)
    task = fields.get("adapter.lora.task_name")
    return Lora(pairs, provenance={} if task is None else {"task": task})


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise ModuleNotFoundError(
            "gguf: expected the library, got none; run `pip install 'polymoe[gguf]'`", name="gguf"
        ) from None
    return gguf


def _architecture(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        expected = ", ".join(ARCHITECTURES)
        raise ValueError(f"base: expected a model_type of {expected} (whose names we know), got {kind!r}")
    return ARCHITECTURES[kind]


def _there(kind: str, name: str) -> str:
    """llama.cpp's name of a module."""
    prefix, names = NAMES[kind]
    found = re.fullmatch(rf"{re.escape(prefix)}(\d+)\.(.+)", name)
    if found is None or found[2] not in names:
        raise ValueError(f"{name}: expected {prefix}N. and one of {', '.join(names)}, got another module")
    return f"blk.{found[1]}.{names[found[2]]}"


def _here(kind: str, key: str, path: Path) -> str:
    prefix, names = NAMES[kind]
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", key)
    back = {there: here for here, there in names.items()}
    if found is None or found[2] not in back:
        raise ValueError(f"{path}: expected blk.N. and one of {', '.join(back)}, got {key}")
    return f"{prefix}{found[1]}.{back[found[2]]}"


def _order(kind: str, config: Mapping[str, Any], name: str, n: int) -> np.ndarray:
    """Which of our n rows stand where in the file: within a head of a Llama's q and k, those of both halves
    in turn."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.rpartition(".")[2])
    rows = np.arange(n)
    if kind != "llama" or heads is None:
        return rows
    count = config.get(heads) or config.get("num_attention_heads")
    if not isinstance(count, int) or n % (2 * count):
        raise ValueError(f"base: expected a config.json with {heads} that divides {n} rows, got {count!r}")
    return rows.reshape(count, 2, -1).swapaxes(1, 2).ravel()
