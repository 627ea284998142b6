"""One task as one LoRA: the same embeddings in every format, what is refused, and that failures leave
nothing."""

import json
import os
from importlib.util import find_spec

import numpy as np
import pytest
from mixtures import far_mixture
from tiny_bert import write_bert
from tiny_llama import write_llama

from polymoe.adapters import AdaptedModel, adapt
from polymoe.files import read_safetensors
from polymoe.interop import export
from polymoe.interop.export import Exported, attach, export_task, folder_name
from polymoe.interop.mixture import task_lora
from polymoe.models import load_base

TEXTS = ["the cat sees a small dog", "red house", "a big blue dog walks ."]
TASKS = ["a", "b", "c"]
BY_TASK = {
    "lora": {},
    "lora with patterns": {"rank_pattern": {"value": 3}, "alpha_pattern": {"query": 5}},
    "private": {},
    "poly": {"lora_alpha": 3},
    "mhr": {"n_splits": 2},
    "mhr-mu": {},
    "c-poly": {},
    "c-poly with own skills": {"specific": "diagonal"},
    "c-poly in factors": {"mixing": "factors", "n_splits": 2},
    "tlora": {},
    "tensorpoly-i": {"order": 2},
    "tensorpoly-ii": {"order": 2},
}
BY_TEXT = ("smear", "orchmoe", "molora", "mola", "hydralora", "mosld")
FORMATS = ["peft", "mlx", "merged"] + ["gguf"] * (find_spec("gguf") is not None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(
        write_bert(tmp_path_factory.mktemp("bert") / "tiny", pooling="mean_tokens", normalize=True)
    )


def make(base, method, **options):
    """An adapted base with weights and routes that are far from where they start."""
    return far_mixture(base, method, TASKS, **{"r": 2, "target_modules": "all-linear"} | options)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("method", BY_TASK)
def test_an_export_gives_the_embeddings_of_the_model(base, tmp_path, method, to):
    model = make(base, method.split(" ")[0], **BY_TASK[method])
    result = export_task(model, "b", to, tmp_path / "out", texts=TEXTS)
    again = export._read(to, tmp_path / "out", base).encode(TEXTS)
    np.testing.assert_allclose(again, model.encode(TEXTS, "b"), rtol=0, atol=2e-6)
    assert result.exact
    assert result.error < 2e-6 < 1e-2 < result.moves
    assert result.lost < 1e-4


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_of_a_language_model_gives_its_embeddings(tmp_path, to):
    base = load_base(write_llama(tmp_path / "base"))
    model = make(base, "poly")
    assert export_task(model, "b", to, tmp_path / "out", texts=TEXTS).lost < 1e-4


def test_ranks_are_those_of_the_method(base):
    def rank(method, **options):
        pairs = task_lora(make(base, method, **options), "b").pairs.values()
        return {pair.r for pair in pairs}

    assert rank("mhr", n_splits=2) == {2}
    assert rank("c-poly", specific="diagonal", n_skills=3) == {(3 + 1) * 2}
    assert rank("c-poly", specific="learned_row", n_skills=3) == {(3 + 3) * 2}
    assert rank("c-poly", mixing="factors") == {2}


def test_a_task_gets_its_own_route(base):
    model = make(base, "poly")
    one, other = (attach(base, task_lora(model, task)).encode(TEXTS) for task in ("a", "b"))
    assert np.abs(one - other).max() > 1e-3


def test_the_model_goes_back_to_training(base, tmp_path):
    model = make(base, "poly")
    model.train()
    export_task(model, "a", "peft", tmp_path / "out", texts=TEXTS)
    assert model.training and model.adapter.training


@pytest.mark.parametrize("method", BY_TEXT)
def test_routers_that_read_are_exported_only_as_their_mean_with_the_error(base, tmp_path, method):
    model = make(base, method)
    with pytest.raises(ValueError, match=r"task: expected a router that goes by task, got .*mean_route"):
        export_task(model, "a", "peft", tmp_path / "out", texts=TEXTS)
    result = export_task(model, "a", "peft", tmp_path / "out", texts=TEXTS, mean_route=TEXTS)
    off = np.abs(attach(base, task_lora(model, "a", TEXTS)).encode(TEXTS) - model.encode(TEXTS, "a")).max()
    assert not result.exact
    np.testing.assert_allclose(result.error, off, atol=1e-6)
    assert result.error > 1e-3


@pytest.mark.parametrize("method", BY_TEXT)
def test_the_mean_route_of_one_text_is_exact_for_routers_of_whole_texts(base, tmp_path, method):
    model = make(base, method)
    result = export_task(model, None, "peft", tmp_path / "out", texts=TEXTS[:1], mean_route=TEXTS[:1])
    assert (result.error < 2e-6) == (method in ("smear", "orchmoe"))


@pytest.mark.parametrize("method", ["alter-stage-1", "alter", "ia3", "mov"])
def test_what_is_of_no_low_rank_is_refused(base, tmp_path, method):
    types = {"task_types": ["one", "one", "two"]} if method.startswith("alter") else {}
    model = adapt(base, method, TASKS, **types)
    for mean_route in (None, TEXTS):
        with pytest.raises(ValueError, match=r"method: expected experts of low rank, got .*no LoRA holds it"):
            export_task(model, "a", "peft", tmp_path / "out", texts=TEXTS, mean_route=mean_route)
    assert not os.listdir(tmp_path)


def test_what_is_wrong_is_said_and_nothing_is_left(base, tmp_path):
    model = make(base, "poly")
    out = tmp_path / "out"
    for error, match, arguments in (
        (KeyError, r"task: expected one of \['a', 'b', 'c'\], got 'd'", ("d",)),
        (ValueError, r"task: expected one of \['a', 'b', 'c'\], got None", (None,)),
        (ValueError, "to: expected one of peft, mlx, gguf, merged, got 'onnx'", ("a", "onnx")),
    ):
        with pytest.raises(error, match=match):
            export_task(model, *arguments, output=out, texts=TEXTS)
    with pytest.raises(ValueError, match="texts: expected some to compare on"):
        export_task(model, "a", "peft", out, texts=[])
    assert not os.listdir(tmp_path)


def test_a_failed_check_removes_the_output(base, tmp_path, monkeypatch):
    """A file that loses a layer's update on its way."""
    model = make(base, "poly")
    write = export._write

    def lossy(lora, to, folder, base):
        name = next(iter(lora.pairs))
        lora.pairs[name].lora_B[...] = 0
        write(lora, to, folder, base)

    monkeypatch.setattr(export, "_write", lossy)
    with pytest.raises(RuntimeError, match="expected embeddings within 1e-05 of the model's, got"):
        export_task(model, "a", "peft", tmp_path / "some/where/out", texts=TEXTS)
    assert not os.listdir(tmp_path)


def test_an_output_that_is_there_stays(base, tmp_path):
    model, out = make(base, "poly"), tmp_path / "out"
    export_task(model, "a", "peft", out, texts=TEXTS)
    before = read_safetensors(out / "adapter_model.safetensors")
    with pytest.raises(FileExistsError, match="--overwrite replaces it"):
        export_task(model, "b", "peft", out, texts=TEXTS)
    after = read_safetensors(out / "adapter_model.safetensors")
    assert all(np.array_equal(after[key], value) for key, value in before.items())
    assert isinstance(export_task(model, "b", "mlx", out, texts=TEXTS, overwrite=True), Exported)
    assert sorted(os.listdir(out)) == ["adapter_config.json", "adapters.safetensors"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="which is no adapter"):
        export_task(model, "b", "mlx", tmp_path / "mine", texts=TEXTS, overwrite=True)
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


def test_a_peft_export_says_where_it_comes_from(base, tmp_path):
    export_task(make(base, "poly"), "b", "peft", tmp_path / "out", texts=TEXTS)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    ours = json.loads((tmp_path / "out/polymoe.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 1)
    assert ours["base"]["fingerprint"] == base.fingerprint
    assert ours["provenance"]["task"] == "b"
    assert ours["provenance"]["method"] == "poly"


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_merged_folder_is_a_whole_base_in_float32(tmp_path, dtype):
    source = write_bert(tmp_path / "base", dtype=dtype, shards=2, torch_dtype="float16")
    base = load_base(source)
    model = make(base, "poly")
    export_task(model, "a", "merged", tmp_path / "out", texts=TEXTS)
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float32"
    assert {t.dtype.name for t in read_safetensors(tmp_path / "out/model.safetensors").values()} == {
        "float32"
    }
    plain = read_safetensors(tmp_path / "out/model.safetensors")["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(plain, base.embeddings.word_embeddings.weight)


def test_a_base_whose_weights_lie_elsewhere_is_not_merged(tmp_path):
    """Or the merged weights would be written there."""
    write_bert(tmp_path / "elsewhere")
    write_bert(tmp_path / "base", pooling="mean_tokens")
    (tmp_path / "base/inside").symlink_to(tmp_path / "elsewhere")
    modules = [{"path": "inside", "type": "x.Transformer"}]
    (tmp_path / "base/modules.json").write_text(json.dumps(modules))
    before = (tmp_path / "elsewhere/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"modules\.json: expected paths in this folder"):
        export_task(make(load_base(tmp_path / "base"), "poly"), "a", "merged", tmp_path / "out", texts=TEXTS)
    assert sorted(os.listdir(tmp_path)) == ["base", "elsewhere"]
    assert (tmp_path / "elsewhere/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["../../etc", "..", "a/b", "a\\b", ".hidden", "über <b>", "c:d"])
def test_a_folder_name_is_one_harmless_part_of_a_path(name, tmp_path):
    found = folder_name(name)
    assert found != name or name.isidentifier()
    assert (tmp_path / found).resolve().parent == tmp_path.resolve()
    assert not found.startswith(".")
    assert not set("/\\:<>") & set(found)


def test_an_exported_adapter_is_one_of_its_base_alone(base, tmp_path):
    export_task(make(base, "poly"), "a", "peft", tmp_path / "out", texts=TEXTS)
    other = AdaptedModel(load_base(write_bert(tmp_path / "other", seed=1)))
    with pytest.raises(ValueError, match=r"base: expected .* with fingerprint"):
        other.load_adapter(tmp_path / "out")


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/../../b", 3])
def test_a_path_out_of_a_base_is_refused(tmp_path, path):
    write_bert(tmp_path / "base", pooling="mean_tokens")
    (tmp_path / "base/modules.json").write_text(json.dumps([{"path": path, "type": "x.Transformer"}]))
    with pytest.raises(ValueError, match=r"modules\.json: expected paths in this folder, got"):
        load_base(tmp_path / "base")
