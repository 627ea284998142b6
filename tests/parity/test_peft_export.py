"""Exports, conversions and merges against PEFT: what it makes of our folders, and its merges of the same
LoRAs."""

import numpy as np
import pytest
from mixtures import far_mixture
from peft_side import TEXTS, from_peft, hidden, ours, torch_bert
from real import minilm_folder, smollm2_file
from tiny_bert import write_bert
from tiny_llama import write_llama

from polymoe.batch import Batch
from polymoe.interop.convert import read_lora
from polymoe.interop.export import export_task, shipped_texts
from polymoe.interop.merge import agreeing, dare, drawn, merge
from polymoe.models import load_base

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

METHODS = {
    "lora": {"rank_pattern": {"value": 3}, "alpha_pattern": {"query": 5}},
    "lora, rsLoRA": {"use_rslora": True, "rank_pattern": {"value": 3}},
    "private": {},
    "poly": {"lora_alpha": 3},
    "mhr": {"n_splits": 2, "target_modules": "all-linear"},
    "mhr-mu": {},
    "c-poly": {},
    "tlora": {},
    "tensorpoly-ii": {"order": 2},
}


def make(base, method, **options):
    return far_mixture(base, method, ["a", "b"], **{"r": 2} | options)


@pytest.mark.parametrize("method", METHODS)
def test_peft_computes_of_an_export_what_the_model_does(tmp_path, method):
    folder = write_bert(tmp_path / "base", pooling="mean_tokens")
    base = load_base(folder)
    model = make(base, method.split(",")[0], **METHODS[method])
    export_task(model, "b", "peft", tmp_path / "out", texts=TEXTS)
    found = hidden(from_peft(folder, tmp_path / "out"), base, TEXTS)
    np.testing.assert_allclose(found, ours(model, TEXTS, "b"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_an_export_of_minilm_gives_the_same_in_transformers(tmp_path, to):
    folder = minilm_folder()
    base = load_base(folder)
    model = make(base, "mhr", n_splits=4, r=8, target_modules="all-linear")
    export_task(model, "b", to, tmp_path / "out", texts=shipped_texts()[:8])
    there = from_peft(folder, tmp_path / "out") if to == "peft" else torch_bert(tmp_path / "out")
    texts = shipped_texts()[8:16]
    found, expected = hidden(there, base, texts), ours(model, texts, "b")
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_of_pefts_loads_here(tmp_path, rslora):
    folder = write_bert(tmp_path / "base", pooling="mean_tokens")
    base = load_base(folder)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, target_modules=["query", "dense"], init_lora_weights=False,
        rank_pattern={"dense": 3}, alpha_pattern={"layer.1.output.dense": 2}, task_type="FEATURE_EXTRACTION",
    )  # fmt: skip
    theirs = peft.get_peft_model(torch_bert(folder), config).eval()
    theirs.save_pretrained(tmp_path / "lora")
    from polymoe.interop.peft import load_adapter

    model = load_adapter(base, tmp_path / "lora", tasks=["a"])
    np.testing.assert_allclose(ours(model, TEXTS, "a"), hidden(theirs, base, TEXTS), rtol=0, atol=1e-5)
    model.save_adapter(tmp_path / "again")
    again = from_peft(folder, tmp_path / "again")
    np.testing.assert_allclose(hidden(again, base, TEXTS), hidden(theirs, base, TEXTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, 0.2, -0.5]])
@pytest.mark.parametrize(
    ("method", "theirs", "options"),
    [
        ("linear", "linear", {}),
        ("cat", "cat", {}),
        ("svd", "svd", {}),
        ("svd", "svd", {"rank": 2}),
        ("ties", "ties", {"density": 0.5}),
        ("ties", "ties", {"density": 0.5, "sign": "frequency"}),
        ("magnitude_prune", "magnitude_prune", {"density": 0.5}),
        ("ties_svd", "ties_svd", {"density": 0.5, "rank": 2}),
        ("magnitude_prune_svd", "magnitude_prune_svd", {"density": 0.7}),
        # nothing is drawn where everything is kept
        ("dare", "dare_linear", {"density": 1.0}),
        ("dare_ties", "dare_ties", {"density": 1.0}),
        ("dare_linear_svd", "dare_linear_svd", {"density": 1.0}),
        ("dare_ties_svd", "dare_ties_svd", {"density": 1.0}),
    ],
)
@pytest.mark.filterwarnings("ignore:The density 1.0 is greater than or equal to 1")
def test_merges_are_those_of_peft(tmp_path, method, theirs, options, weights):
    folder = write_bert(tmp_path / "base")
    names = ["one", "two", "three"]
    model = None
    for i, name in enumerate(names):
        torch.manual_seed(i)
        config = peft.LoraConfig(
            r=3, lora_alpha=4 + i, target_modules=["query", "dense"], init_lora_weights=False
        )
        if model is None:
            model = peft.get_peft_model(torch_bert(folder), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    model.save_pretrained(tmp_path / "loras")
    their_options = {"svd_rank": options.get("rank"), "density": options.get("density")}
    their_options["majority_sign_method"] = options.get("sign", "total")
    model.add_weighted_adapter(names, weights, "sum", combination_type=theirs, **their_options)
    loras = [read_lora(tmp_path / "loras" / name) for name in names]
    modules = dict(model.base_model.model.named_modules())
    order = [name for name in modules if name in loras[0].pairs]
    loras = [type(lora)({name: lora.pairs[name] for name in order}) for lora in loras]
    found = merge(loras, weights, method, **options).lora
    for name in order:
        expected = modules[name].get_delta_weight("sum").detach().numpy()
        np.testing.assert_allclose(found.pairs[name].update(), expected, rtol=0, atol=1e-5, err_msg=name)


class Draws:
    """PEFT's random choice as uniform numbers: 0 where torch keeps an entry, 1 where it does not."""

    def __init__(self, density):
        torch.manual_seed(0)
        self.density = density

    def random(self, shape):
        return 1 - torch.bernoulli(torch.full(shape, self.density)).numpy()


def test_dare_is_that_of_peft():
    from peft.utils.merge_utils import dare_linear

    arrays = np.random.default_rng(0).normal(size=(3, 20, 30)).astype(np.float32)
    weights = np.array([0.7, 0.2, -0.5], np.float32)
    found = dare(arrays, weights, 0.6, Draws(0.6))
    torch.manual_seed(0)
    expected = dare_linear([torch.tensor(a) for a in arrays], torch.tensor(weights), 0.6).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_dare_ties_is_that_of_peft():
    from peft.utils.merge_utils import dare_ties

    arrays = np.random.default_rng(0).normal(size=(3, 20, 30)).astype(np.float32)
    weights = np.array([0.7, 0.2, -0.5], np.float32)
    found = agreeing(drawn(arrays, 0.6, Draws(0.6)), weights)
    torch.manual_seed(0)
    expected = dare_ties([torch.tensor(a) for a in arrays], torch.tensor(weights), 0.6).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_an_export_of_a_language_model_gives_the_same_hidden_states(tmp_path, to):
    """Also where the q and k of the base have rotary positions and shared heads; and merged."""
    folder = write_llama(tmp_path / "base")
    base = load_base(folder)
    model = make(base, "mhr", n_splits=2, target_modules="all-linear")
    export_task(model, "b", to, tmp_path / "out", texts=TEXTS)

    def torch_llama(path):
        return transformers.LlamaForCausalLM.from_pretrained(path, attn_implementation="eager").eval()

    there = torch_llama(tmp_path / "out" if to == "merged" else folder)
    if to == "peft":
        there = peft.PeftModel.from_pretrained(there, tmp_path / "out").eval().base_model.model
    found = hidden(there.model, base, TEXTS)
    np.testing.assert_allclose(found, ours(model, TEXTS, "b"), rtol=0, atol=1e-5)


def test_exports_of_smollm2_give_the_logits_of_the_model(tmp_path):
    """Both tasks of one mixture, in PEFT on transformers' own reading of the GGUF file."""
    path = smollm2_file()
    base = load_base("smollm2")
    model = make(base, "mhr", n_splits=3, r=8, target_modules="all-linear")
    there = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = base.tokenizer.encode(["The capital of France is Paris, and that of", "Wake me at six, please."])
    for i, task in enumerate(model.tasks.names):
        export_task(model, task, "peft", tmp_path / task, texts=TEXTS[:1])
        if i == 0:
            there = peft.PeftModel.from_pretrained(there, tmp_path / task, adapter_name=task).eval()
        else:
            there.load_adapter(tmp_path / task, task)
        there.set_adapter(task)
        for a, b in zip(tokens.cu_seqlens, tokens.cu_seqlens[1:], strict=False):
            ids = tokens.ids[a:b].astype(np.int64)
            with torch.inference_mode():
                expected = there(torch.tensor(ids)[None]).logits[0].numpy()
            task_ids = np.full(1, i)
            hidden_states = model(Batch(np.array([0, b - a]), ids, task_ids=task_ids))
            without = np.asarray(base.logits(base(Batch(np.array([0, b - a]), ids))))
            found = np.asarray(base.logits(hidden_states))
            assert np.abs(found - without).max() > 0.3
            assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
