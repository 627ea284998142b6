"""LoRAs between formats without a base, and merges: products stay what they were, errors are exact."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from tiny import write_json
from tiny_bert import write_bert

from polymoe.adapters import adapt
from polymoe.files import read_json, read_safetensors, write_safetensors
from polymoe.interop.convert import convert, read_lora
from polymoe.interop.lora import Lora, Pair, cat, distance, norm
from polymoe.interop.merge import dare, merge, ties
from polymoe.interop.mixture import task_lora
from polymoe.models import load_base

NAMES = ["encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense"]
LLAMA = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"]
needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="no gguf here: pip install gguf")
TO = ["peft", "mlx", pytest.param("gguf", marks=needs_gguf)]


def pair(seed, r=2, D=12, O=8, scale=0.5):
    rng = np.random.default_rng(seed)
    return Pair(*(rng.normal(size=(r, n)).astype(np.float32) for n in (D, O)), scale)


def lora(seed=0, ranks=(2, 3), scales=(0.5, 2.0), names=NAMES):
    pairs = {
        name: pair(seed * 10 + i, r, 12 + i, 8 + 4 * i, scale)
        for i, (name, r, scale) in enumerate(zip(names, ranks, scales, strict=True))
    }
    return Lora(pairs, {"name": "some/base"})


def assert_same(one, other, atol=1e-6):
    assert one.pairs.keys() == other.pairs.keys()
    for name, pair in one.pairs.items():
        np.testing.assert_allclose(pair.update(), other.pairs[name].update(), rtol=0, atol=atol, err_msg=name)


@pytest.fixture
def folder(tmp_path):
    write_bert(tmp_path / "base")
    (tmp_path / "peft").mkdir()
    lora().save(tmp_path / "peft")
    return tmp_path


@pytest.mark.parametrize("back", TO)
@pytest.mark.parametrize("to", TO)
def test_a_lora_goes_through_every_format(folder, to, back):
    first = convert(folder / "peft", folder / "one", to, base=folder / "base")
    second = convert(folder / "one", folder / "two", back, base=folder / "base")
    assert (first.source, first.to, first.layers, first.rank) == ("peft", to, 2, 3)
    assert second.source == to
    assert max(first.error, second.error) < 2e-7
    assert_same(read_lora(folder / "two"), lora())


def test_mlx_has_one_rank_and_one_scale_and_its_own_layout(folder):
    convert(folder / "peft", folder / "mlx", "mlx")
    config, found = (
        read_json(folder / "mlx/adapter_config.json"),
        read_safetensors(folder / "mlx/adapters.safetensors"),
    )
    assert config["fine_tune_type"] == "lora"
    assert config["num_layers"] == -1
    assert config["lora_parameters"] == {
        "rank": 3, "scale": 0.5, "dropout": 0.0, "keys": ["attention.self.query", "output.dense"]
    }  # fmt: skip
    x = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    a, b = (found[f"{NAMES[0]}.lora_{part}"] for part in "ab")
    assert (a.shape, b.shape) == ((12, 3), (3, 8))
    np.testing.assert_allclose(0.5 * x @ a @ b, x @ lora().pairs[NAMES[0]].update().T, atol=1e-5)


@needs_gguf
def test_gguf_has_the_names_and_shapes_that_llama_cpp_writes(folder):
    import gguf

    convert(folder / "peft", folder / "gguf", "gguf", base=folder / "base")
    reader = gguf.GGUFReader(folder / "gguf/adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "bert"
    assert fields["adapter.type"] == "lora"
    found = {tensor.name: tensor.data.shape for tensor in reader.tensors}
    assert found == {
        "blk.0.attn_q.weight.lora_a": (2, 12),
        "blk.0.attn_q.weight.lora_b": (8, 2),
        "blk.1.ffn_down.weight.lora_a": (3, 13),
        "blk.1.ffn_down.weight.lora_b": (12, 3),
    }
    alpha = fields["adapter.lora.alpha"]
    for name, key in zip(NAMES, ("blk.0.attn_q", "blk.1.ffn_down"), strict=True):
        a, b = (
            next(t.data for t in reader.tensors if t.name == f"{key}.weight.lora_{part}") for part in "ab"
        )
        np.testing.assert_allclose(alpha / b.shape[1] * b @ a, lora().pairs[name].update(), atol=1e-6)


@needs_gguf
@pytest.mark.parametrize("kind", ["bert", "llama", "qwen2"])
def test_names_are_those_of_the_gguf_library(kind):
    import gguf

    from polymoe.interop.gguf import NAMES

    prefix, names = NAMES[kind]
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], 2)
    for here, there in names.items():
        assert theirs.get_name(f"{prefix}1.{here}") == f"blk.1.{there}"


@needs_gguf
def test_rows_of_a_llamas_heads_go_to_the_order_of_llama_cpp_and_back(tmp_path):
    import gguf

    config = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1}
    (tmp_path / "base").mkdir()
    write_json(tmp_path / "base/config.json", config)
    (tmp_path / "peft").mkdir()
    source = lora(ranks=(2, 2, 2), scales=(1.0, 1.0, 1.0), names=LLAMA)
    source.save(tmp_path / "peft")
    convert(tmp_path / "peft", tmp_path / "gguf", "gguf", base=tmp_path / "base")
    reader = gguf.GGUFReader(tmp_path / "gguf/adapter.gguf")
    found = {t.name: t.data for t in reader.tensors}
    for name, key, rows in (
        (LLAMA[0], "blk.0.attn_q", [0, 2, 1, 3, 4, 6, 5, 7]),
        (LLAMA[1], "blk.0.attn_k", [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]),
        (LLAMA[2], "blk.1.ffn_down", range(16)),
    ):
        np.testing.assert_array_equal(found[f"{key}.weight.lora_b"], source.pairs[name].lora_B.T[list(rows)])
    convert(tmp_path / "gguf", tmp_path / "back", "peft", base=tmp_path / "base")
    assert_same(read_lora(tmp_path / "back"), source)
    with pytest.raises(ValueError, match=r"base: expected a config.json with num_key_value_heads"):
        convert(tmp_path / "gguf/adapter.gguf", tmp_path / "no", "peft")


@pytest.mark.parametrize("options", [{}, {"n_splits": 2, "lora_alpha": 4}])
def test_a_task_of_a_poly_folder_is_a_lora_without_its_base(tmp_path, options):
    base = load_base(write_bert(tmp_path / "base"))
    model = adapt(base, "poly", ["a", "b"], r=2, init_weights=False, **options)
    rng = np.random.default_rng(0)
    for name, p in model.adapter_parameters():
        if "logits" in name:
            p.data[...] = rng.normal(size=p.shape)
    model.save_adapter(tmp_path / "poly")
    convert(tmp_path / "poly", tmp_path / "lora", "peft", task="b")
    assert_same(read_lora(tmp_path / "lora"), task_lora(model, "b"))
    with pytest.raises(ValueError, match=r"task: expected one of \['a', 'b'\], got None"):
        convert(tmp_path / "poly", tmp_path / "no", "peft")
    with pytest.raises(KeyError, match="task: expected one of"):
        convert(tmp_path / "poly", tmp_path / "no", "peft", task="c")


@pytest.mark.parametrize(
    ("method", "task"), [("private", "b"), ("c-poly", "b"), ("mhr-mu", None), ("lora", None)]
)
def test_a_task_of_our_own_methods_is_a_lora_without_its_base_too(tmp_path, method, task):
    base = load_base(write_bert(tmp_path / "base"))
    model = adapt(base, method, ["a", "b"], r=2, init_weights=False)
    model.save_adapter(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "lora", "peft", task=task)
    assert_same(read_lora(tmp_path / "lora"), task_lora(model, task))


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("smear", "expected a router that goes by task"),
        ("mov", "expected experts of low rank"),
        ("tlora", "a 'tlora' adapter is read with its base"),
    ],
)
def test_what_is_no_lora_without_its_base_is_refused(tmp_path, method, reason):
    adapt(load_base(write_bert(tmp_path / "base")), method, ["a"]).save_adapter(tmp_path / "ours")
    with pytest.raises(ValueError, match=reason):
        convert(tmp_path / "ours", tmp_path / "out", "peft")


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_sources_that_cannot_be_read_are_refused_with_the_reason(folder):
    def refused(match, error=ValueError, source="peft", to="mlx", **options):
        with pytest.raises(error, match=match):
            convert(folder / source, folder / "out", to, **options)
        assert not (folder / "out").exists()

    refused("to: expected one of peft, mlx, gguf, got 'merged'", to="merged")
    refused("expected an adapter .*, got none; adapters lie in peft", FileNotFoundError, source=".")
    refused("task: expected None", task="a")
    refused("base: expected the folder of the base, .* says 'some/base', got None", to="gguf")
    weights = folder / "peft/adapter_model.safetensors"
    found = read_safetensors(weights)
    (folder / "peft/polymoe.json").unlink()
    key = f"base_model.model.{NAMES[0]}.lora_A.weight"
    bare = {k: v for k, v in found.items() if k != key}
    write_safetensors(weights, bare)
    refused(f"missing: {key}; unexpected: none")
    write_safetensors(weights, found | {"base_model.model.x.lora_magnitude_vector": np.zeros(3, np.float32)})
    refused(r"missing: none; unexpected: .*x\.lora_magnitude_vector \(DoRA's, which divides by norms")
    write_safetensors(weights, found | {key: found[key][:1]})
    refused(rf"{key}: expected shape \(2, 12\), got \(1, 12\)")
    write_safetensors(weights, found | {key: found[key] * np.float32(np.nan)})
    refused("lora_A.weight: expected finite weights")
    write_safetensors(weights, found)
    edit(folder / "peft/adapter_config.json", target_modules=["query"])
    refused(f"expected weights of target_modules .*, got {NAMES[1]}")
    edit(folder / "peft/adapter_config.json", peft_type="LOHA")
    refused("peft_type: expected one of LORA, POLY, IA3, POLYMOE, got 'LOHA'; merge it into its base")


def test_an_mlx_folder_of_another_kind_is_refused(folder):
    convert(folder / "peft", folder / "mlx", "mlx")
    edit(folder / "mlx/adapter_config.json", fine_tune_type="dora")
    with pytest.raises(ValueError, match="fine_tune_type: expected 'lora'"):
        read_lora(folder / "mlx")
    edit(folder / "mlx/adapter_config.json", fine_tune_type="lora", lora_parameters={})
    with pytest.raises(ValueError, match="lora_parameters: expected a scale"):
        read_lora(folder / "mlx")
    edit(folder / "mlx/adapter_config.json", lora_parameters={"scale": float("nan")})
    with pytest.raises(ValueError, match="lora_parameters: expected a finite scale, got nan"):
        read_lora(folder / "mlx")


@needs_gguf
def test_a_file_that_is_no_gguf_lora_is_refused(folder):
    (folder / "broken.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ValueError, match=r"broken\.gguf: expected"):
        read_lora(folder / "broken.gguf")
    with pytest.raises(FileNotFoundError, match="expected a GGUF file, got none"):
        read_lora(folder / "none.gguf")
    from gguf import GGUFWriter

    writer = GGUFWriter(folder / "no alpha.gguf", "bert")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"adapter\.lora\.alpha: expected a finite number, got None"):
        read_lora(folder / "no alpha.gguf")
    strange = Lora({"embeddings.word_embeddings": pair(0)})
    (folder / "strange").mkdir()
    strange.save(folder / "strange")
    with pytest.raises(ValueError, match=r"embeddings.word_embeddings: expected encoder.layer.N"):
        convert(folder / "strange", folder / "out", "gguf", base=folder / "base")
    assert not (folder / "out").exists()


# ---- merge


def wanted(loras, weights):
    names = dict.fromkeys(name for one in loras for name in one.pairs)
    return {
        name: sum(
            w * one.pairs[name].update() for one, w in zip(loras, weights, strict=True) if name in one.pairs
        )
        for name in names
    }


def relative(merged, target):
    """The error figure with whole matrices."""
    lost = sum(np.linalg.norm(merged.pairs[name].update() - full) ** 2 for name, full in target.items())
    return np.sqrt(lost / sum(np.linalg.norm(full) ** 2 for full in target.values()))


METHODS = [
    ("cat", {}),
    ("svd", {}),
    ("svd", {"rank": 1}),
    ("linear", {}),
    ("ties", {"density": 0.6}),
    ("dare", {"density": 0.7}),
    ("dare_ties", {"density": 0.7}),
    ("magnitude_prune", {"density": 0.7}),
    ("ties_svd", {"density": 0.7, "rank": 4}),
    ("dare_svd", {"density": 0.7}),
    ("magnitude_prune_svd", {"density": 0.9}),
]


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_the_error_of_a_merge_is_that_of_the_whole_matrices(method, options):
    loras, weights = [lora(i) for i in range(3)], [0.5, 1.0, -0.25]
    merged = merge(loras, weights, method, **options)
    np.testing.assert_allclose(
        merged.error, relative(merged.lora, wanted(loras, weights)), rtol=1e-6, atol=1e-7
    )
    assert (merged.error < 1e-6) == (method == "cat")


def test_cat_sums_ranks_and_svd_of_that_rank_loses_nothing():
    loras = [lora(i) for i in range(2)]
    assert [pair.r for pair in merge(loras).lora.pairs.values()] == [4, 6]
    assert merge(loras, method="svd", rank=6).error < 1e-6


def test_svd_is_the_best_of_its_rank():
    loras = [lora(i) for i in range(2)]
    found = merge(loras, method="svd", rank=2).lora
    for name, full in wanted(loras, [1, 1]).items():
        u, s, vt = np.linalg.svd(full)
        np.testing.assert_allclose(found.pairs[name].update(), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)


def test_a_layer_that_some_adapt_is_merged_of_those():
    one, other = lora(0), Lora({NAMES[0]: pair(7)})
    found = merge([one, other], method="linear").lora.pairs
    np.testing.assert_allclose(found[NAMES[1]].update(), one.pairs[NAMES[1]].update(), atol=1e-5)


def test_ties_keeps_what_is_large_and_agrees():
    arrays = np.array([[4.0, -3.0, 0.1, 2.0], [2.0, 5.0, -0.2, 0.3]])
    np.testing.assert_allclose(ties(arrays, np.array([1.0, 1.0]), 0.5), [3.0, 5.0, 0, 0])
    np.testing.assert_allclose(ties(arrays, np.array([1.0, 2.0]), 0.75), [4.0, 10.0, 0, 1.3])


def test_dare_keeps_its_share_and_the_mean():
    ones = np.ones((1, 400, 100))
    found = dare(ones, np.ones(1), 0.25, np.random.default_rng(0))
    assert set(np.unique(found)) == {0.0, 4.0}
    np.testing.assert_allclose(found.mean(), 1, atol=0.05)
    loras = [lora(i) for i in range(2)]
    one, two, three = (merge(loras, method="dare", density=0.5, seed=seed).lora for seed in (0, 0, 1))
    assert_same(one, two, 0)
    assert distance(one.pairs[NAMES[0]], three.pairs[NAMES[0]]) > 0.1


def test_a_norm_of_nearly_nothing_keeps_its_digits():
    """A difference 1e-9 of its terms: by squares of norms it would be lost below 1e-8."""
    one = cat([pair(0)])
    other = Pair(one.lora_A, one.lora_B * (1 + 1e-9))
    np.testing.assert_allclose(distance(one, other), 1e-9 * norm(one), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"method": "sum"},
            r"method: expected one of cat, svd, linear, ties, .*, magnitude_prune_svd, got 'sum'",
        ),
        ({"method": "linear_svd"}, "method: expected one of"),
        ({"method": "ties_svd", "rank": 2}, r"density: expected a share in"),
        ({"method": "dare_ties", "rank": 2, "density": 0.5}, "rank: expected None"),
        ({"method": "linear", "sign": "frequency"}, "sign: expected 'total'"),
        (
            {"method": "ties", "density": 0.5, "sign": "most"},
            "sign: expected 'total' or 'frequency', got 'most'",
        ),
        ({"weights": [1.0]}, "weights: expected 2, one for each adapter, got 1"),
        ({"weights": [1.0, float("nan")]}, "weights: expected finite numbers"),
        ({"method": "linear", "rank": 3}, "rank: expected None"),
        ({"method": "svd", "rank": 0}, "rank: expected at least 1, got 0"),
        ({"method": "ties"}, r"density: expected a share in \(0, 1\] .*, got None"),
        ({"method": "dare", "density": 1.5}, "density: expected a share"),
        ({"density": 0.5}, "density: expected None"),
    ],
)
def test_settings_of_a_merge_that_do_not_fit_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        merge([lora(0), lora(1)], **options)


def test_loras_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="loras: expected at least one"):
        merge([])
    with pytest.raises(ValueError, match="expected one base, got names other/base, some/base"):
        merge([lora(0), Lora(lora(1).pairs, {"name": "other/base"})])
    with pytest.raises(ValueError, match=f"{NAMES[0]}: expected one shape"):
        merge([Lora({NAMES[0]: pair(0)}), Lora({NAMES[0]: pair(0, D=10)})])
    with pytest.raises(ValueError, match=f"{NAMES[0]}: expected one rank .*, got 2, 3"):
        merge([Lora({NAMES[0]: pair(0)}), Lora({NAMES[0]: pair(0, r=3)})], method="linear")
