"""Adapters against PEFT on a small random BERT: folders both ways, outputs, gradients, starts, noise."""

import warnings

import numpy as np
import pytest
from real import minilm_folder
from tiny_bert import write_bert
from transformers_side import ours_of, padded, without_noise

from polymoe import tape
from polymoe.adapters import adapt
from polymoe.batch import Batch
from polymoe.interop.export import shipped_texts
from polymoe.interop.peft import load_adapter
from polymoe.models import load_base

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

LENGTHS = [5, 2, 7, 1]
TASKS = [2, 0, 2, 1]
RNG = np.random.default_rng(3)
IDS = RNG.integers(5, 20, sum(LENGTHS))
DY = RNG.normal(size=(sum(LENGTHS), 24)).astype(np.float32)

METHODS = {
    "lora": ("lora", {"lora_alpha": 6, "rank_pattern": {"value": 3}}),
    "lora of all linear layers": ("lora", {"target_modules": "all-linear"}),
    "poly": ("poly", {"n_skills": 3}),
    "poly with alpha": ("poly", {"lora_alpha": 16, "layers_to_transform": [1]}),
    "mhr": ("mhr", {"n_splits": 2}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture(scope="module")
def base(folder):
    return load_base(folder)


def torch_bert(folder):
    return transformers.BertModel.from_pretrained(
        folder, attn_implementation="eager", add_pooling_layer=False
    ).eval()


def batch(**fields):
    return Batch(np.cumsum([0, *LENGTHS]), IDS, task_ids=np.array(TASKS), **fields)


def mask():
    return np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]


def their_output(model, poly):
    """Hidden states [N, D] of a PeftModel, without noise."""
    given = {"input_ids": padded(IDS, mask()), "attention_mask": torch.tensor(mask()).long()}
    given |= {"task_ids": torch.tensor(TASKS)} if poly else {}
    return without_noise(model)(**given).last_hidden_state[torch.tensor(mask())]


def from_torch(folder, path, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", category=UserWarning
        )  # what PEFT drops or misses, it only warns about
        return peft.PeftModel.from_pretrained(torch_bert(folder), path, **options)


def make(base, method, options):
    return adapt(
        base, method, ["a", "b", "c"], seed=4, **({"r": 2, "init_weights": False, "noise": "off"} | options)
    )


@pytest.mark.parametrize("case", METHODS)
def test_a_folder_of_ours_computes_the_same_in_peft(folder, base, tmp_path, case):
    method, options = METHODS[case]
    model = make(base, method, options)
    model.save_adapter(tmp_path)
    theirs = from_torch(folder, tmp_path)
    with torch.inference_mode():
        expected = their_output(theirs, method != "lora").numpy()
    ours = model(batch())
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)
    assert np.abs(ours - base(batch())).max() > 0.01


@pytest.mark.parametrize("tune", ["router", "head"])
def test_an_adapter_that_learnt_one_more_task_computes_the_same_in_peft(folder, base, tmp_path, tune):
    model = adapt(base, "mhr", ["a", "b"], r=2, n_splits=2, init_weights=False, noise="off")
    model.add_task("c", tune)
    for name, parameter in model.adapter_parameters():
        if name.endswith("logits"):
            parameter.data += np.arange(3)[:, None, None]  # they start too close to be told apart
    model.save_adapter(tmp_path)
    with torch.inference_mode():
        expected = their_output(from_torch(folder, tmp_path), True).numpy()
    np.testing.assert_allclose(model(batch()), expected, rtol=0, atol=2e-5)


def peft_config(method, **options):
    shared = {
        "r": 4,
        "target_modules": ["query", "value", "dense"],
        "task_type": "FEATURE_EXTRACTION",
    } | options
    if method == "lora":
        return peft.LoraConfig(init_lora_weights=False, lora_alpha=6, **shared)
    splits = {"poly": 1, "mhr": 2}[method]
    return peft.PolyConfig(init_weights=False, n_tasks=3, n_skills=3, n_splits=splits, **shared)


@pytest.mark.parametrize("method", ["lora", "poly", "mhr"])
def test_a_folder_of_pefts_computes_the_same_here(folder, base, tmp_path, method):
    torch.manual_seed(0)
    theirs = peft.get_peft_model(torch_bert(folder), peft_config(method)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "module_logits" in name:
                parameter.normal_()  # they start too close to each other to be told apart
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(base, tmp_path, tasks=["a", "b", "c"])
    with torch.inference_mode():
        expected = their_output(theirs, method != "lora").numpy()
    np.testing.assert_allclose(ours(batch()), expected, rtol=0, atol=2e-5)
    again = tmp_path / "again"
    ours.save_adapter(again)
    before, after = (safetensors_of(path) for path in (tmp_path, again))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def safetensors_of(path):
    from safetensors.torch import load_file

    return load_file(path / "adapter_model.safetensors")


@pytest.mark.parametrize("method", ["lora", "poly", "mhr"])
def test_gradients_are_those_of_peft(folder, base, tmp_path, method):
    model = make(
        base, method, {"target_modules": "all-linear"} | ({"n_splits": 2} if method == "mhr" else {})
    ).train()
    model.save_adapter(tmp_path)
    theirs = from_torch(folder, tmp_path, is_trainable=True)
    (their_output(theirs, method != "lora") * torch.tensor(DY)).sum().backward()
    with tape.Tape() as recorded:
        y = model(batch())
    recorded.backward(y, DY)
    grads = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.grad is not None}
    assert len(grads) == len(model.adapter_parameters())
    for name, parameter in model.adapter_parameters():
        layer, _, part = name.rpartition(".")[0].rpartition(".")[0], None, name.rpartition(".")[2]
        expected = ours_of(
            part, next(g for n, g in grads.items() if matches(n, layer, part)), parameter.shape
        )
        scale = np.abs(expected).max()
        np.testing.assert_allclose(parameter.grad / scale, expected / scale, rtol=0, atol=2e-5, err_msg=name)


def matches(theirs, layer, part):
    part = {"logits": "module_logits"}.get(part, part)
    return theirs.startswith(f"base_model.model.{layer}.") and part in theirs


def test_training_noise_has_the_distribution_of_peft():
    """Means and spreads of the weights of many draws, for logits that are not zero."""
    from peft.tuners.poly.router import PolyRouter

    from polymoe.adapters import configure
    from polymoe.adapters.by_task import TaskTable
    from polymoe.adapters.parts import Site

    z = np.array([[1.0, -0.5, 0.2, 0.0]], np.float32)
    theirs = PolyRouter(peft.PolyConfig(n_tasks=1, n_skills=2, n_splits=2)).train()
    theirs.module_logits.data = torch.tensor(z)
    torch.manual_seed(0)
    n = 20000
    expected = theirs(torch.zeros(n, dtype=torch.long), None).detach().numpy()
    ours = TaskTable(configure("mhr", n_skills=2, n_splits=2), Site("layer", 4, 4, n_tasks=1))
    ours.logits.data[...] = z.reshape(1, 2, 2)
    ours.training = True
    given = Batch(np.arange(n + 1), task_ids=np.zeros(n, np.int64), seed=5)
    weights = tape.data_of(ours(given, None).weights)
    np.testing.assert_allclose(weights.mean(0), expected.mean(0), atol=0.01)
    np.testing.assert_allclose(weights.std(0), expected.std(0), atol=0.01)


@pytest.mark.parametrize("splits", [1, 2])
def test_initial_values_have_the_distribution_of_peft(splits):
    from peft.tuners.poly.layer import Linear

    from polymoe.adapters import adapt_linear

    torch.manual_seed(0)
    theirs = Linear(
        torch.nn.Linear(96, 64), "default", peft.PolyConfig(n_skills=8, n_splits=splits, n_tasks=2000)
    )
    ours = adapt_linear(
        np.zeros((64, 96), np.float32), None, "mhr", n_tasks=2000, n_skills=8, n_splits=splits
    ).adapter
    A, B = theirs.poly_lora_A["default"].detach().numpy(), theirs.poly_lora_B["default"].detach().numpy()
    logits = theirs.poly_router["default"].module_logits.detach().numpy()
    for mine, his in ((ours.experts.lora_A.data, A), (ours.router.logits.data, logits)):
        np.testing.assert_allclose(np.abs(mine).max(), np.abs(his).max(), rtol=0.02)
        np.testing.assert_allclose(mine.std(), his.std(), rtol=0.05)
    assert not B.any()
    assert not ours.experts.lora_B.data.any()


def test_the_count_of_trainable_parameters_is_that_of_peft(folder, base, capsys):
    adapt(base, "mhr", ["a", "b", "c"], r=4, n_skills=3, n_splits=2).print_trainable_parameters()
    ours = capsys.readouterr().out
    config = peft_config("mhr", target_modules=["query", "value"])
    peft.get_peft_model(torch_bert(folder), config).print_trainable_parameters()
    assert ours == capsys.readouterr().out


def test_the_layer_computes_what_pefts_layer_does():
    """[B, L, D] and task ids into both, with noise off; and [B, D], which PEFT refuses."""
    from peft.tuners.poly.layer import Linear

    from polymoe.adapters import adapt_linear

    config = peft.PolyConfig(r=3, n_skills=3, n_splits=2, n_tasks=3, init_weights=False)
    torch.manual_seed(1)
    linear = torch.nn.Linear(12, 8)
    theirs = Linear(linear, "default", config).eval()
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    ours = adapt_linear(weight, bias, "mhr", n_tasks=3, r=3, n_skills=3, n_splits=2)
    ours.adapter.experts.lora_A.data[...] = ours_of(
        "lora_A", theirs.poly_lora_A["default"].detach().numpy(), (3, 3, 12)
    )
    ours.adapter.experts.lora_B.data[...] = ours_of(
        "lora_B", theirs.poly_lora_B["default"].detach().numpy(), (3, 3, 8)
    )
    logits = theirs.poly_router["default"].module_logits.detach().numpy()
    ours.adapter.router.logits.data[...] = logits.reshape(3, 2, 3)
    x = np.random.default_rng(0).normal(size=(4, 5, 12)).astype(np.float32)
    expected = theirs(torch.tensor(x), task_ids=torch.tensor(TASKS)).detach().numpy()
    np.testing.assert_allclose(ours.forward(x, TASKS)[0], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.forward(x[:, 0], TASKS)[0], expected[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("splits", [1, 4])
def test_a_poly_that_peft_has_trained_on_minilm_gives_the_same_here_and_back_there(tmp_path, splits):
    folder, texts = minilm_folder(), shipped_texts()[:8]
    base = load_base(folder)
    config = peft.PolyConfig(
        r=8, n_tasks=2, n_skills=4, n_splits=splits, target_modules=["query", "value", "output.dense"],
        task_type="FEATURE_EXTRACTION",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = peft.get_peft_model(torch_bert(folder), config).train()
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2)
    tokens = base.tokenizer.encode(texts)
    rows = [tokens.take(np.array([i]))[0].astype(np.int64) for i in range(len(texts))]
    for _ in range(3):
        for i, ids in enumerate(rows):
            hidden = theirs(input_ids=torch.tensor(ids)[None], task_ids=torch.tensor([i % 2]))
            (hidden.last_hidden_state - (1.0 if i % 2 else -1.0)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_adapter(base, tmp_path / "theirs", tasks=["a", "b"])
    model.save_adapter(tmp_path / "ours")
    again = from_torch(folder, tmp_path / "ours")
    for side in (theirs, again):
        side.eval()
    for i, ids in enumerate(rows):
        one = Batch(np.array([0, len(ids)]), ids, task_ids=np.array([i % 2]))
        given = {"input_ids": torch.tensor(ids)[None], "task_ids": torch.tensor([i % 2])}
        found = tape.data_of(model(one))
        assert i or np.abs(found - tape.data_of(base(one))).max() > 0.05
        for side in (theirs, again):
            with torch.inference_mode():
                expected = side(**given).last_hidden_state[0].numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
