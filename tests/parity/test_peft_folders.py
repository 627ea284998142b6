"""Folders that PEFT writes, of every kind: the same outputs here and back there, or a reason why not."""

import json
import warnings

import numpy as np
import pytest
from peft_side import TEXTS, from_peft, hidden, ours, torch_bert
from tiny_bert import write_bert

from polymoe.adapters import adapt
from polymoe.interop.convert import convert, read_lora
from polymoe.interop.export import export_task
from polymoe.interop.merge import merge
from polymoe.interop.peft import load_adapter, read_detached
from polymoe.models import load_base

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
BIAS = "ignore:Adapter 'default'.*lora_B.bias"  # PEFT takes it for a matrix that lost a dimension
pytestmark = pytest.mark.filterwarnings(BIAS)

LORA = {"r": 4, "target_modules": ["query", "output.dense"], "init_lora_weights": False}
KINDS = {
    "bias lora_only": peft.LoraConfig(bias="lora_only", **LORA),
    "lora_bias": peft.LoraConfig(lora_bias=True, use_rslora=True, **LORA),
    "both biases": peft.LoraConfig(bias="lora_only", lora_bias=True, lora_alpha=3, **LORA),
    "ia3": peft.IA3Config(),
    "ia3 of all": peft.IA3Config(target_modules=".*(query|dense)", feedforward_modules=".*dense"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert") / "tiny", pooling="mean_tokens")


def trained(folder, config):
    """PEFT's model with values far from where they start."""
    model = peft.get_peft_model(torch_bert(folder), config).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.rand_like(parameter) / 2
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_pefts_gives_the_same_here_and_back_there(folder, tmp_path, kind):
    theirs = trained(folder, KINDS[kind])
    theirs.save_pretrained(tmp_path / "theirs")
    base = load_base(folder)
    model = load_adapter(base, tmp_path / "theirs", tasks=["a"])
    expected = hidden(theirs, base, TEXTS)
    with model.disable_adapter():
        assert np.abs(ours(model, TEXTS, "a") - expected).max() > 0.1
    np.testing.assert_allclose(ours(model, TEXTS, "a"), expected, rtol=0, atol=1e-5)
    model.save_adapter(tmp_path / "ours")
    again = hidden(from_peft(folder, tmp_path / "ours"), base, TEXTS)
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("to", ["peft", "merged"])
@pytest.mark.parametrize("kind", ["bias lora_only", "lora_bias", "both biases"])
def test_biases_are_exported_with_the_update(folder, tmp_path, kind, to):
    theirs = trained(folder, KINDS[kind])
    theirs.save_pretrained(tmp_path / "theirs")
    base = load_base(folder)
    result = export_task(load_adapter(base, tmp_path / "theirs"), None, to, tmp_path / "out", texts=TEXTS)
    assert result.error < 2e-6 < 1e-2 < result.moves
    there = from_peft(folder, tmp_path / "out") if to == "peft" else torch_bert(tmp_path / "out")
    np.testing.assert_allclose(hidden(there, base, TEXTS), hidden(theirs, base, TEXTS), rtol=0, atol=1e-5)


def test_an_ia3_of_ours_on_some_layers_loads_in_peft(folder, tmp_path):
    base = load_base(folder)
    options = {"target_modules": ["key", "dense"], "feedforward_modules": ["output.dense"]}
    model = adapt(base, "ia3", ["a"], init_weights=False, layers_to_transform=[1], **options)
    model.save_adapter(tmp_path / "ours")
    config = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert config["peft_type"] == "IA3"
    assert config["feedforward_modules"] == [f"encoder.layer.1.{n}output.dense" for n in ("attention.", "")]
    found = hidden(from_peft(folder, tmp_path / "ours"), base, TEXTS)
    np.testing.assert_allclose(found, ours(model, TEXTS, "a"), rtol=0, atol=1e-5)


def test_a_lora_of_a_model_with_a_head_is_one_of_its_base(folder, tmp_path):
    config = transformers.BertConfig.from_pretrained(folder)
    torch.manual_seed(0)
    whole = transformers.BertForMaskedLM(config)
    whole.bert.load_state_dict(torch_bert(folder).state_dict())
    theirs = peft.get_peft_model(whole, peft.LoraConfig(r=2, target_modules=["key"], init_lora_weights=False))
    theirs.eval().save_pretrained(tmp_path / "theirs")
    base = load_base(folder)
    model = load_adapter(base, tmp_path / "theirs", tasks=["a"])
    expected = hidden(theirs.base_model.model.bert, base, TEXTS)
    np.testing.assert_allclose(ours(model, TEXTS, "a"), expected, rtol=0, atol=1e-5)


# ---- a base that is not here: GPT-2, whose layers are Conv1D


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 64, "n_positions": 32}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, attn_pdrop=0.0)
    ).eval()


def of_gpt2(seed, **options):
    config = peft.LoraConfig(
        target_modules=["c_attn", "c_proj"], init_lora_weights=False, fan_in_fan_out=True, r=4, **options
    )
    torch.manual_seed(seed)
    return peft.get_peft_model(gpt2(), config).eval()


IDS = torch.arange(24).reshape(2, 12)


def test_a_lora_of_a_base_that_we_do_not_run_goes_through_formats_and_merges(tmp_path):
    models = [of_gpt2(1, rank_pattern={"attn.c_proj": 2}, alpha_pattern={"c_attn": 3}), of_gpt2(2)]
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / str(i))
    adapter = read_detached(tmp_path / "0").adapter
    assert {name: layer.experts.lora_A.shape[1:] for name, layer in adapter.layers.items()} == {
        "transformer.h.0.attn.c_attn": (4, 32),
        "transformer.h.0.attn.c_proj": (2, 32),
        "transformer.h.0.mlp.c_proj": (4, 128),
        "transformer.h.1.attn.c_attn": (4, 32),
        "transformer.h.1.attn.c_proj": (2, 32),
        "transformer.h.1.mlp.c_proj": (4, 128),
    }
    convert(tmp_path / "0", tmp_path / "mlx", "mlx")
    convert(tmp_path / "0", tmp_path / "again", "peft")
    expected = models[0](IDS).logits.detach().numpy()
    np.testing.assert_allclose(logits(tmp_path / "again"), expected, rtol=0, atol=1e-5)
    loras = [read_lora(tmp_path / "mlx"), read_lora(tmp_path / "1")]
    merge([read_lora(tmp_path / "0"), loras[1]], [0.5, -1.0]).lora.save(make(tmp_path / "sum"))
    both = models[0]
    both.load_adapter(tmp_path / "1", "two")
    both.add_weighted_adapter(["default", "two"], [0.5, -1.0], "sum", "cat")
    both.set_adapter("sum")
    np.testing.assert_allclose(logits(tmp_path / "sum"), both(IDS).logits.detach().numpy(), rtol=0, atol=1e-5)
    gpt2().save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"model_type: expected one of .*, got 'gpt2'"):
        load_base(tmp_path / "base")
    with pytest.raises(ValueError, match="base: expected a model_type of bert, llama"):
        convert(tmp_path / "0", tmp_path / "gguf", "gguf", base=tmp_path / "base")


def make(path):
    path.mkdir()
    return path


def logits(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        return peft.PeftModel.from_pretrained(gpt2(), path).eval()(IDS).logits.detach().numpy()


# ---- what has no place here


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            peft.LoraConfig(use_dora=True, **LORA),
            "use_dora: .*norms of the base's own weights.*merge_and_unload",
        ),
        (
            peft.LoraConfig(bias="all", **LORA),
            "bias: expected 'none' or 'lora_only', got 'all': the base is never",
        ),
        (
            peft.LoraConfig(modules_to_save=["intermediate.dense"], **LORA),
            "modules_to_save: .*heads belong to",
        ),
        (
            peft.LoraConfig(trainable_token_indices=[1], **LORA),
            "trainable_token_indices: .*embeddings neither",
        ),
        (
            peft.LoraConfig(r=2, target_modules=["query", "word_embeddings"]),
            "unexpected: .*lora_embedding_A .LoRA of an embedding, and only linear layers",
        ),
        (
            peft.LoHaConfig(target_modules=["query"]),
            "peft_type: expected one of LORA.*got 'LOHA'; merge it into",
        ),
        (peft.OFTConfig(target_modules=["query"], oft_block_size=4), "got 'OFT'; merge it into its base"),
    ],
)
def test_what_peft_has_and_we_do_not_is_refused_with_the_reason(folder, tmp_path, config, reason):
    peft.get_peft_model(torch_bert(folder), config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match=reason):
        convert(tmp_path / "theirs", tmp_path / "out", "mlx")
    with pytest.raises(ValueError, match="expected"):
        load_adapter(load_base(folder), tmp_path / "theirs")
    assert not (tmp_path / "out").exists()


def test_what_is_called_a_pickle_is_one_and_named_adapters_are_found(folder, tmp_path):
    model = peft.get_peft_model(torch_bert(folder), peft.LoraConfig(**LORA), adapter_name="one")
    model.add_adapter("two", peft.LoraConfig(**LORA))
    model.save_pretrained(tmp_path / "named")
    with pytest.raises(FileNotFoundError, match="adapters lie in one, two"):
        read_lora(tmp_path / "named")
    assert len(read_lora(tmp_path / "named/two").pairs) == 6
    torch.save(model.state_dict(), tmp_path / "named/two/adapter_model.bin")
    (tmp_path / "named/two/adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="a pickle, which can run any code"):
        read_lora(tmp_path / "named/two")
