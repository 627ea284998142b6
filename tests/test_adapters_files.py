"""Adapter folders: bitwise round trips, PEFT's names and shapes, and every way in which one can be wrong."""

import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from tiny_bert import write_bert

from polymoe import files
from polymoe.adapters import adapt
from polymoe.batch import Batch, TaskRegistry
from polymoe.interop.peft import load_adapter, read_detached
from polymoe.models import load_base

LAYERS = [f"encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(write_bert(tmp_path_factory.mktemp("bert") / "tiny", pooling="mean_tokens"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return load_base(write_bert(tmp_path_factory.mktemp("bert") / "other", seed=1))


def make(base, method="poly", tasks=("a", "b", "c"), **options):
    return adapt(base, method, tasks, **({"r": 2, "init_weights": False} | options))


def values(model):
    return {name: p.data for name, p in model.adapter_parameters()}


def weights(folder):
    return files.read_safetensors(folder / "adapter_model.safetensors")


def settings(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def edit(folder, name, **fields):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("method", "options", "kind"),
    [
        ("lora", {}, "LORA"),
        (
            "lora",
            {"rank_pattern": {"value": 3}, "alpha_pattern": {"query": 5}, "layers_to_transform": [1]},
            "LORA",
        ),
        ("lora", {"lora_alpha": None, "tasks": ()}, "LORA"),
        ("lora", {"use_rslora": True, "rank_pattern": {"value": 3}}, "LORA"),
        ("poly", {"use_rslora": True}, "POLYMOE"),
        ("lora", {"bias": "lora_only"}, "LORA"),
        ("lora", {"bias": "lora_only", "lora_bias": True, "use_rslora": True}, "LORA"),
        ("ia3", {"r": 8}, "IA3"),
        ("ia3", {"r": 8, "layers_to_transform": [1]}, "IA3"),
        ("ia3", {"r": 8, "target_modules": ".*(key|dense)", "feedforward_modules": ["output.dense"]}, "IA3"),
        ("mov", {"r": 8, "n_skills": 3}, "POLYMOE"),
        ("private", {}, "POLYMOE"),
        ("poly", {}, "POLY"),
        ("poly", {"lora_alpha": 16, "layers_to_transform": 1}, "POLY"),
        ("poly", {"lora_alpha": 3}, "POLYMOE"),
        ("mhr", {"n_splits": 2, "noise": "off", "temperature": 0.5}, "POLY"),
        ("mhr", {"n_splits": 2, "rank_pattern": {"value": 3}}, "POLYMOE"),
        ("poly", {"gate": "l2", "noise": "off"}, "POLYMOE"),
        ("poly", {"gate": "straight_through"}, "POLYMOE"),
        ("poly", {"average_correction": True, "gate_dropout": 0.1}, "POLYMOE"),
        ("poly", {"gate_dropout": 0.1}, "POLY"),
    ],
)
def test_a_saved_adapter_comes_back_bit_for_bit(base, tmp_path, method, options, kind):
    model = make(base, method, **options)
    model.save_adapter(tmp_path / "adapter")
    again = load_adapter(base, tmp_path / "adapter")
    assert settings(tmp_path / "adapter")["peft_type"] == kind
    assert (again.config, again.tasks) == (model.config, model.tasks)
    assert values(again).keys() == values(model).keys()
    for name, value in values(model).items():
        np.testing.assert_array_equal(values(again)[name], value, err_msg=name)
    again.save_adapter(tmp_path / "second")
    for name in sorted(os.listdir(tmp_path / "adapter")):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_poly_has_pefts_names_and_layouts(base, tmp_path):
    model = make(base, "mhr", n_splits=2, lora_alpha=4)
    model.save_adapter(tmp_path)
    found, ours = weights(tmp_path), values(model)
    key, name = f"base_model.model.{LAYERS[0]}.", f"{LAYERS[0]}."
    assert len(found) == 3 * len(LAYERS)
    A, B = ours[name + "experts.lora_A"], ours[name + "experts.lora_B"]  # [S, r, D]
    for q in range(2):
        for s in range(4):
            np.testing.assert_array_equal(found[key + "poly_lora_A"][q, s], A[s, :, q * 12 : q * 12 + 12].T)
            np.testing.assert_array_equal(found[key + "poly_lora_B"][q, s], B[s, :, q * 12 : q * 12 + 12] * 4)
    logits = ours[name + "router.logits"]
    np.testing.assert_array_equal(found[key + "poly_router.module_logits"], logits.reshape(3, 8))
    assert b'"__metadata__":{"format":"pt"}' in (tmp_path / "adapter_model.safetensors").read_bytes()


def test_lora_has_pefts_names_and_layouts(base, tmp_path):
    model = make(base, "lora")
    model.save_adapter(tmp_path)
    found, ours = weights(tmp_path), values(model)
    key = f"base_model.model.{LAYERS[1]}."
    np.testing.assert_array_equal(found[key + "lora_A.weight"], ours[LAYERS[1] + ".experts.lora_A"][0])
    np.testing.assert_array_equal(found[key + "lora_B.weight"], ours[LAYERS[1] + ".experts.lora_B"][0].T)
    assert len(found) == 2 * len(LAYERS)


def test_the_files_are_as_peft_writes_them(base, tmp_path):
    make(base, "poly", target_modules=["query"]).save_adapter(tmp_path, provenance={"data": "here"})
    assert sorted(os.listdir(tmp_path)) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "polymoe.json",
    ]
    assert settings(tmp_path) == {
        "auto_mapping": None,
        "base_model_name_or_path": base.name,
        "exclude_modules": None,
        "inference_mode": True,
        "init_weights": False,
        "modules_to_save": None,
        "n_skills": 4,
        "n_splits": 1,
        "n_tasks": 3,
        "peft_type": "POLY",
        "poly_type": "poly",
        "r": 2,
        "revision": None,
        "target_modules": ["query"],
        "task_type": "FEATURE_EXTRACTION",
    }
    text = (tmp_path / "adapter_config.json").read_text()
    assert text == json.dumps(settings(tmp_path), indent=2, sort_keys=True) + "\n"
    ours = json.loads((tmp_path / "polymoe.json").read_text())
    assert (ours["format_version"], ours["method"], ours["tasks"]) == (1, "poly", ["a", "b", "c"])
    assert ours["base"] == {"name": base.name, "model_type": "bert", "fingerprint": base.fingerprint}
    assert ours["provenance"]["data"] == "here"


def test_a_card_that_somebody_wrote_is_kept(base, tmp_path):
    model = make(base)
    model.save_adapter(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Tasks, in the order of their ids: a, b, c." in card
    model.save_adapter(tmp_path)
    assert (tmp_path / "README.md").read_text() == card
    (tmp_path / "README.md").write_text("mine")
    model.save_adapter(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_several_adapters_are_loaded_beside_each_other(base, tmp_path):
    model = make(base)
    model.save_adapter(tmp_path / "poly")
    model.add_adapter("lora", "lora", r=3)
    model.save_adapter(tmp_path / "lora", "lora")
    again = load_adapter(base, tmp_path / "lora", adapter_name="one")
    again.load_adapter(tmp_path / "poly", "two")
    assert (again.adapter_names, again.active_adapter) == (["one", "two"], "one")
    again.set_adapter("two")
    batch = Batch(np.array([0, 4]), np.arange(4), task_ids=np.array([1]))
    np.testing.assert_array_equal(again(batch), model(batch))
    with pytest.raises(ValueError, match="adapter_name: expected one besides"):
        again.load_adapter(tmp_path / "poly", "two")


# ---- what PEFT alone has written


@pytest.mark.parametrize(
    ("method", "options"), [("lora", {"lora_alpha": 5}), ("poly", {}), ("mhr", {"n_splits": 2})]
)
def test_a_folder_without_our_file_is_read_as_pefts(base, tmp_path, method, options):
    model = make(base, method, **options)
    model.save_adapter(tmp_path)
    (tmp_path / "polymoe.json").unlink()
    again = load_adapter(base, tmp_path)
    names = ("task_0", "task_1", "task_2") if method != "lora" else ()
    assert (again.tasks, again.config.method) == (TaskRegistry(names), method)
    assert again.config.scale(LAYERS[0]) == model.config.scale(LAYERS[0])
    for name, value in values(model).items():
        np.testing.assert_array_equal(values(again)[name], value, err_msg=name)
    assert load_adapter(base, tmp_path, tasks=["x", "y", "z"]).tasks == TaskRegistry(["x", "y", "z"])


def test_an_alpha_that_is_folded_gives_peft_the_same_function(base, tmp_path):
    model = make(base, "poly", lora_alpha=16)
    model.save_adapter(tmp_path)
    (tmp_path / "polymoe.json").unlink()
    batch = Batch(np.array([0, 4, 9]), np.arange(9), task_ids=np.array([1, 2]))
    np.testing.assert_array_equal(load_adapter(base, tmp_path)(batch), model(batch))


def test_half_precision_is_widened(base, tmp_path):
    make(base, "lora").save_adapter(tmp_path)
    (tmp_path / "polymoe.json").unlink()
    found = {key: value.astype(ml_dtypes.bfloat16) for key, value in weights(tmp_path).items()}
    files.write_safetensors(tmp_path / "adapter_model.safetensors", found, {"format": "pt"})
    loaded = values(load_adapter(base, tmp_path))[f"{LAYERS[0]}.experts.lora_A"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(
        loaded[0], found[f"base_model.model.{LAYERS[0]}.lora_A.weight"].astype(np.float32)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"peft_type": "LOHA"},
            "peft_type: expected one of LORA, POLY, IA3, POLYMOE, got 'LOHA'; merge it into",
        ),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type: .* got 'PROMPT_TUNING': learnt tokens in front"),
        (
            {"peft_type": "XLORA"},
            "peft_type: .* got 'XLORA': its router is a network of its own; load its LoRAs",
        ),
        (
            {"peft_type": None, "model_class": "X"},
            "expected an adapter of PEFT's, got one of the library adapters",
        ),
        ({"peft_type": "POLYMOE"}, "expected polymoe.json beside it"),
        ({"use_dora": True}, "use_dora: expected None, got True: DoRA divides by norms .*merge_and_unload"),
        ({"bias": "all"}, "bias: expected 'none' or 'lora_only', got 'all': the base is never changed"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices: expected None, .* embeddings neither"),
        ({"target_parameters": ["w"]}, "target_parameters: expected None"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights: expected True, got 'pissa': it starts from other",
        ),
        (
            {"modules_to_save": ["classifier"]},
            "modules_to_save: expected None, got .*heads belong to the objective",
        ),
        ({"layer_replication": [[0, 4]]}, "layer_replication: expected None"),
        ({"r": "8"}, "r: expected an integer, got '8'"),
    ],
)
def test_a_setting_that_we_do_not_have_is_refused(base, tmp_path, fields, message):
    make(base, "lora").save_adapter(tmp_path)
    (tmp_path / "polymoe.json").unlink()
    edit(tmp_path, "adapter_config.json", **fields)
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {message}"):
        load_adapter(base, tmp_path)


# ---- what can be wrong


@pytest.fixture
def folder(base, tmp_path):
    make(base).save_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_another_base_is_refused_unless_asked_for(other, folder):
    with pytest.raises(
        ValueError, match=rf"base: expected '.*tiny' with .*, got '.*other' with {other.fingerprint}"
    ):
        load_adapter(other, folder)
    assert load_adapter(other, folder, check_base=False).tasks.names == ("a", "b", "c")


def test_missing_and_unexpected_weights_are_listed(base, folder):
    (folder / "polymoe.json").unlink()
    found = weights(folder)
    key = f"base_model.model.{LAYERS[0]}."
    found[key + "lora_A.weight"] = found.pop(key + "poly_lora_A")
    files.write_safetensors(folder / "adapter_model.safetensors", found)
    with pytest.raises(ValueError, match=rf"missing: {key}poly_lora_A; unexpected: {key}lora_A.weight"):
        load_adapter(base, folder)


def test_a_weight_of_another_shape_or_not_finite_is_named(base, folder):
    (folder / "polymoe.json").unlink()
    found = weights(folder)
    key = f"base_model.model.{LAYERS[0]}.poly_lora_A"
    for bad, message in (
        (found[key][..., :1], r"expected shape \(1, 4, 24, 2\), got \(1, 4, 24, 1\)"),
        (found[key] * np.nan, "expected finite weights, got NaN or infinity"),
    ):
        files.write_safetensors(folder / "adapter_model.safetensors", found | {key: bad})
        with pytest.raises(ValueError, match=rf"adapter_model\.safetensors: {key}: {message}"):
            load_adapter(base, folder)


def test_weights_of_another_save_are_noticed(base, folder, tmp_path):
    make(base, seed=5).save_adapter(tmp_path / "later")
    shutil.copy(tmp_path / "later/adapter_model.safetensors", folder)
    with pytest.raises(ValueError, match=r"expected the weights that polymoe\.json was saved with"):
        load_adapter(base, folder)
    (folder / "polymoe.json").unlink()
    assert load_adapter(base, folder).tasks.names == ("task_0", "task_1", "task_2")


def test_a_truncated_file_is_named(base, folder):
    path = folder / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: expected"):
        load_adapter(base, folder)
    (folder / "polymoe.json").unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: expected a complete safetensors file"):
        load_adapter(base, folder)


def test_a_pickle_is_refused_with_the_reason(base, folder):
    os.rename(folder / "adapter_model.safetensors", folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin: .* a pickle, which can run any code"):
        load_adapter(base, folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(base, folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_adapter(base, folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 2}', r"format_version: expected 1 \(of this polymoe\), got 2"),
        ("{}", "format_version: expected 1 .*, got None"),
        ('{"format_version": 1}', r"expected config, tasks, base and weights, got KeyError\('config'\)"),
        (
            '{"format_version": 1, "config": {"rank": 4}, "tasks": []}',
            "expected config, tasks, base and weights",
        ),
        ("[]", "expected a JSON object, got list"),
        ("{", "expected JSON"),
    ],
)
def test_a_broken_or_newer_polymoe_json_is_refused(base, folder, text, message):
    (folder / "polymoe.json").write_text(text)
    with pytest.raises(ValueError, match=rf"polymoe\.json: {message}"):
        load_adapter(base, folder)


def test_task_names_must_agree(base, folder):
    with pytest.raises(ValueError, match=r"tasks: expected those of .*polymoe\.json"):
        load_adapter(base, folder, tasks=["a", "b"])
    (folder / "polymoe.json").unlink()
    with pytest.raises(ValueError, match=r"tasks: expected 3 names .*, got 2"):
        load_adapter(base, folder, tasks=["a", "b"])


def test_weights_that_are_not_finite_are_not_saved(base, folder):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    model = make(base)
    values(model)[f"{LAYERS[0]}.router.logits"][0, 0, 0] = np.inf
    with pytest.raises(
        ValueError, match=rf"expected finite weights, .*{LAYERS[0]}\.poly_router\.module_logits"
    ):
        model.save_adapter(folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_a_disk_that_is_full_leaves_the_folder_as_it_was(base, folder, monkeypatch):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(base, seed=9).save_adapter(folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_weights_that_are_missing_or_too_many_are_taken_as_zeros_and_left_out_when_asked(base, tmp_path):
    model = make(base, "poly")
    model.save_adapter(tmp_path)
    (tmp_path / "polymoe.json").unlink()
    found = weights(tmp_path)
    gone = f"base_model.model.{LAYERS[0]}.poly_lora_B"
    del found[gone]
    extra = {"base_model.model.x.poly_lora_A": np.zeros(3, np.float32)}
    files.write_safetensors(tmp_path / "adapter_model.safetensors", found | extra)
    message = rf"missing: {gone}; unexpected: base_model\.model\.x\.poly_lora_A"
    with pytest.raises(ValueError, match=message):
        load_adapter(base, tmp_path)
    with pytest.warns(UserWarning, match=message):
        loose = values(load_adapter(base, tmp_path, strict=False))
    for name, value in values(model).items():
        expected = np.zeros_like(value) if name == f"{LAYERS[0]}.experts.lora_B" else value
        np.testing.assert_array_equal(loose[name], expected, err_msg=name)
    files.write_safetensors(tmp_path / "adapter_model.safetensors", extra)
    with pytest.raises(ValueError, match="expected the weights of 4 layers"):
        load_adapter(base, tmp_path, strict=False)


JUNK = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "x",
    "(",
    "../../etc/passwd",
    [],
    [1],
    ["a"],
    {},
    {"a": "b"},
    [[1]],
    [None],
]


@pytest.mark.parametrize("method", ["lora", "poly", "ia3"])
def test_whatever_stands_in_a_configuration_is_read_or_refused(base, tmp_path, method):
    """And refused as what a caller expects, with the file named."""
    make(base, method).save_adapter(tmp_path)
    (tmp_path / "polymoe.json").unlink()
    path = tmp_path / "adapter_config.json"
    config, refused = settings(tmp_path), []
    for name in [*config, "unknown"]:
        for value in JUNK:
            path.write_text(json.dumps({**config, name: value}))
            try:
                read_detached(tmp_path)
            except ValueError as error:
                refused.append(str(error))
    assert len(refused) > 50
    assert all(str(tmp_path) in message for message in refused)
