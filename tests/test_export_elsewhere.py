"""Exports in the libraries that they are for, where these are installed: the logits of the adapted model."""

import warnings

import numpy as np
import pytest
from mixtures import far_mixture
from tiny_llama import byte_level_tokens, tiny_config, tiny_state, write_gguf, write_llama

from polymoe.batch import Batch
from polymoe.interop.export import export_task
from polymoe.models import load_base

IDS = np.array([1, 40, 7, 250, 12, 12, 99])
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
SIZES["vocab_size"] = len(byte_level_tokens())


def model_of(path):
    """A mixture far from its base, and the logits of task b."""
    base = load_base(path)
    model = far_mixture(base, "mhr", ["a", "b"], r=4, n_splits=2, target_modules="all-linear")
    batch = Batch(np.array([0, len(IDS)]), IDS, task_ids=np.array([1]))
    return model, np.asarray(base.logits(model(batch))), np.asarray(base.logits(base(batch)))


def assert_close(found, expected, without):
    assert np.abs(expected - without).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_mlx_lm_computes_of_an_export_what_the_model_does(tmp_path):
    mx = pytest.importorskip("mlx.core")
    utils = pytest.importorskip("mlx_lm.utils")
    write_llama(tmp_path / "base", **SIZES)
    model, expected, without = model_of(tmp_path / "base")
    export_task(model, "b", "mlx", tmp_path / "out", texts=["a b"])
    there, _ = utils.load_model(tmp_path / "base")
    found = np.array(utils.load_adapters(there, str(tmp_path / "out"))(mx.array(IDS[None]))[0])
    assert_close(found, expected, without)


@pytest.mark.filterwarnings("default")
def test_llama_cpp_computes_of_an_export_what_the_model_does(tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    config = tiny_config(**SIZES)
    path = write_gguf(tmp_path / "base.gguf", config, tiny_state(config))
    model, expected, without = model_of(path)
    export_task(model, "b", "gguf", tmp_path / "out", texts=["a b"])
    full = {"type_k": 0, "type_v": 0}  # float32 caches
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = llama_cpp.Llama(
            str(path), lora_path=str(tmp_path / "out/adapter.gguf"), logits_all=True, n_ctx=64, n_threads=1,
            verbose=False, **full,
        )  # fmt: skip
    there.eval(IDS.tolist())
    assert_close(np.array(there.scores[: len(IDS)]), expected, without)
