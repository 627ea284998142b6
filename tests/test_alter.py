"""ALTER: experts of a whole feed-forward, weighed by the type of the task, then gated by the first token."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import erf, softmax
from tiny_bert import tiny_config, tiny_state
from training_base import TASKS as TINY_TASKS
from training_base import base_folder, classes

from polymoe import tape
from polymoe.adapters import adapt, configure
from polymoe.adapters.feed_forward_banks import Choice
from polymoe.batch import Batch, Routings
from polymoe.models.bert import Bert, BertConfig
from polymoe.recipe import Recipe
from polymoe.training import load_run

TASKS, TYPES = ("a", "b", "c", "d"), ("cls", "nli", "cls", "gen")
LAYER = "encoder.layer.1.feed_forward"


@pytest.fixture(scope="module")
def base():
    return Bert.from_state(BertConfig.from_dict(tiny_config()), tiny_state(tiny_config()), np.float64)


def make(base, method="alter-stage-1", **fields):
    return adapt(base, method, TASKS, **({"task_types": TYPES} | fields))


def batch(task_ids=(0, 1, 3), **fields):
    return Batch(np.array([0, 4, 5, 11]), np.arange(11) % 15 + 5, np.array(task_ids), **fields)


def disturbed(model, seed=0):
    """The model with experts that differ."""
    rng = np.random.default_rng(seed)
    for _, p in model.adapter_parameters():
        p.data += rng.normal(size=p.shape) * 0.2
    return model


def feed_forward(x, up, up_bias, down, down_bias):
    h = x @ up.T + up_bias
    return 0.5 * h * (1 + erf(h / np.sqrt(2))) @ down.T + down_bias


def outputs(bank, x):
    """Each expert's output of x, [n, N, D]."""
    parts = (bank.up_weight, bank.up_bias, bank.down_weight, bank.down_bias)
    return np.array([feed_forward(x, *(p.data[i] for p in parts)) for i in range(bank.n_experts)])


def test_gates_start_from_the_published_weights(base):
    """Golden value 8 of the specification, and the boosted pairs of the authors' code."""
    router = make(base).adapter.layers[LAYER].router
    weights = tape.data_of(router(batch(), None).weights)[:, 0]
    gold = np.array([0.2244068348] * 2 + [0.1837287768] * 3)
    np.testing.assert_allclose(weights, [gold, np.roll(gold, 1), gold[::-1]], atol=1e-9)
    np.testing.assert_allclose(router.logits.data[0, 0], [0.22, 0.22, 0.2, 0.2, 0.2], atol=1e-12)


def test_types_share_a_row(base):
    routing = make(base).adapter.layers[LAYER].router(batch((2, 0, 3)), None)
    assert routing.adapter_ids.tolist() == [0, 0, 1] and routing.weights.shape == (2, 1, 5)


def test_the_last_feed_forward_is_the_site(base):
    assert list(make(base).adapter.layers) == [LAYER]
    both = make(base, target_modules=("feed_forward",))
    assert list(both.adapter.layers) == ["encoder.layer.0.feed_forward", LAYER]


@pytest.mark.parametrize("experts", ["feed_forward", "feed_forward_lora", "bottleneck"])
def test_the_first_stage_starts_as_the_base(base, experts):
    """And the weights get no gradient on the first step, for all experts say the same."""
    model = make(base, experts=experts, r=2).train()
    with tape.Tape() as recorded:
        y = model(batch())
    np.testing.assert_allclose(y.data, base(batch()), rtol=1e-12, atol=1e-12)
    recorded.backward(y, np.random.default_rng(0).normal(size=y.shape))
    grads = {name.rpartition(".")[2]: p.grad for name, p in model.adapter_parameters()}
    assert np.abs(grads["logits"]).max() < 1e-10


def test_the_first_stage_is_the_weighted_sum(base):
    model = disturbed(make(base))
    layer, x = model.adapter.layers[LAYER], np.random.default_rng(1).normal(size=(11, 24))
    y = layer(x, base.encoder.layer[1].feed_forward, batch())
    w = softmax(layer.router.logits.data[:, 0] / 0.1, axis=1)
    each = outputs(layer.experts.own, x)
    for (start, end), kind in zip([(0, 4), (4, 5), (5, 11)], (0, 1, 2), strict=True):
        expected = np.einsum("s,snd->nd", w[kind], each[:, start:end])
        np.testing.assert_allclose(y[start:end], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_second_stage_is_gated_by_the_first_token(base, renormalize):
    model = disturbed(make(base, "alter", renormalize=renormalize))
    layer, x = model.adapter.layers[LAYER], np.random.default_rng(1).normal(size=(11, 24))
    y = layer(x, base.encoder.layer[1].feed_forward, batch())
    own, shared = outputs(layer.experts.own, x), outputs(layer.experts.shared, x)
    g = softmax(layer.router.logits.data[:, 0] / 0.1, axis=1)
    for b, (start, end) in enumerate([(0, 4), (4, 5), (5, 11)]):
        best = np.argsort(-g[b], kind="stable")[:2]
        kept = g[b, best] / (g[b, best].sum() if renormalize else 1)
        mixture = np.einsum("s,snd->nd", kept, own[best, start:end])
        stacked = np.concatenate([mixture[0], *shared[:, start]])
        gate_in, gate_out = layer.experts.gate_in.data, layer.experts.gate_out.data
        v = softmax(gate_out @ np.maximum(gate_in @ stacked, 0))
        expected = v[0] * mixture + np.einsum("m,mnd->nd", v[1:], shared[:, start:end])
        np.testing.assert_allclose(y[start:end], expected, rtol=1e-9, atol=1e-9)


def test_experts_outside_of_top_k_are_not_read(base):
    """With one task type in the batch, others' experts may hold anything."""
    model = disturbed(make(base, "alter"))
    layer, x = model.adapter.layers[LAYER], np.random.default_rng(1).normal(size=(11, 24))
    frozen = base.encoder.layer[1].feed_forward
    before = layer(x, frozen, batch((0, 0, 2)))
    used = layer.router(batch((0, 0, 2)), None).ids[0]
    for i in set(range(5)) - set(used.tolist()):
        layer.experts.own.up_weight.data[i] = np.nan
    np.testing.assert_array_equal(layer(x, frozen, batch((0, 0, 2))), before)


@pytest.mark.parametrize("kind", ["feed_forward", "feed_forward_lora", "bottleneck"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_bank_is_its_experts_one_by_one(base, kind, apart):
    model = disturbed(make(base, experts=kind, r=2))
    bank = model.adapter.layers[LAYER].experts.own
    rng, x = np.random.default_rng(2), np.random.default_rng(1).normal(size=(11, 24))
    ids, offsets, groups = np.array([[3, 0], [1, 4]]), np.array([0, 4, 4, 11]), np.array([1, 0, 0])
    frozen = base.encoder.layer[1].feed_forward
    weights = rng.normal(size=(2, 2))
    y = bank(x, frozen, Choice(ids, None if apart else weights, groups, offsets))
    every = np.array([bank(x, frozen, Choice(np.array([[i]]), None, np.zeros(1, int), np.array([0, 11])))
                      for i in range(5)])[:, :, 0]  # fmt: skip
    token_groups = np.repeat(groups, np.diff(offsets))
    picked = np.array([every[ids[g], n] for n, g in enumerate(token_groups)])
    expected = picked if apart else np.einsum("nk,nkd->nd", weights[token_groups], picked)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)
    if kind == "feed_forward":
        np.testing.assert_allclose(every, outputs(bank, x), rtol=1e-10, atol=1e-10)


def test_a_text_keeps_its_gate(base):
    """Later tokens come without the first one: what it decided stays."""
    model = disturbed(make(base, "alter"))
    layer, frozen = model.adapter.layers[LAYER], base.encoder.layer[1].feed_forward
    x = np.random.default_rng(1).normal(size=(6, 24))
    whole = layer(x, frozen, Batch(np.array([0, 6]), task_ids=np.array([0])))
    routings = Routings()
    first = Batch(np.array([0, 4]), task_ids=np.array([0]), routings=routings)
    second = replace(first, cu_seqlens=np.array([0, 2]))
    parts = layer(x[:4], frozen, first), layer(x[4:], frozen, second)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12, atol=1e-12)
    assert f"{LAYER}.gate" in routings


def test_empty_examples_are_no_error(base):
    model = disturbed(make(base, "alter"))
    layer, frozen = model.adapter.layers[LAYER], base.encoder.layer[1].feed_forward
    x = np.random.default_rng(1).normal(size=(3, 24))
    y = layer(x, frozen, Batch(np.array([0, 0, 3, 3]), task_ids=np.array([1, 0, 3])))
    alone = layer(x, frozen, Batch(np.array([0, 3]), task_ids=np.array([0])))
    np.testing.assert_allclose(y, alone, rtol=1e-12, atol=1e-12)
    none = layer(x[:0], frozen, Batch(np.array([0, 0]), task_ids=np.array([1])))
    assert none.shape == (0, 24)


def test_both_stages_run_from_one_recipe(tmp_path):
    recipe = Recipe.from_dict(
        {
            "data": str(write(tmp_path)),
            "base": str(base_folder(tmp_path / "base")),
            "method": "alter",
            "adapter": {"task_types": ["animals", "colours"], "n_shared": 2},
            "training": {"epochs": 1, "batch_size": 8},
            "first_stage": {"training": {"epochs": 2, "learning_rate": 1e-3}},
        }
    )
    recipe.train(tmp_path / "run", progress=None)
    first, second = load_run(tmp_path / "run" / "first-stage"), load_run(tmp_path / "run")
    assert first.model.config.method == "alter-stage-1" and first.recipe["training"]["epochs"] == 2
    assert second.model.config.task_types == ("animals", "colours")
    (ours,), (theirs,) = (run.model.adapter.layers.values() for run in (second, first))
    assert ours.experts.n_experts == theirs.experts.n_experts == 5 and ours.experts.n_shared == 2
    moved = np.abs(ours.experts.own.up_weight.data - theirs.experts.own.up_weight.data).max()
    assert 0 < moved < 0.01  # it started from the first stage
    assert second.predict(["the cat sees"], TINY_TASKS[0])[0].output in ("cat", "dog")


def write(folder):
    (folder / "tasks").mkdir()
    for name, splits in classes().items():
        for split, rows in splits.items():
            lines = [f'{{"input": "{text}", "output": "{label}"}}' for text, label in rows]
            (folder / "tasks" / f"{name}.{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "tasks"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task_types": None}, r"task_types: expected the type of each task, in their order, got None"),
        ({"task_types": ("one",)}, r"task_types: expected a type for each of 4 tasks, got \('one',\)"),
        ({"task_types": ("", "b", "c", "d")}, "task_types: expected the type of each task"),
        ({"top_k": 6}, r"top_k: expected 1 to 5 \(the fewest skills\), got 6"),
        ({"temperature": 0}, "temperature: expected a positive number, got 0"),
        ({"n_shared": 1}, r"n_shared: expected 0 \(the mixing 'outputs'\), got 1"),
        ({"mixing": "gated"}, r"n_shared: expected at least 1 \(the mixing 'gated'\), got 0"),
        ({"mixing": "factors"}, r"mixing: expected 'outputs' or 'gated'"),
        ({"renormalize": True}, r"renormalize: expected False \(without top_k\), got True"),
        ({"site": "linear"}, r"site: expected 'feed_forward' \(the experts 'feed_forward'\), got 'linear'"),
        ({"lora_dropout": 0.1}, "lora_dropout: expected 0"),
        ({"noise": "per_task"}, "noise: expected 'off'"),
        ({"target_modules": ("dense",)}, "target_modules: expected feed-forwards, got"),
        ({"target_modules": ("wrong",)}, r"expected the names of feed-forwards.*layer\.\*\.feed_forward"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(base, fields, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make(base, **fields)


def test_a_token_router_has_no_gate_for_examples():
    parts = {"experts": "bottleneck", "site": "feed_forward", "mixing": "gated", "n_shared": 1}
    with pytest.raises(ValueError, match=r"mixing: expected 'outputs' \(the router 'token_softmax'"):
        configure("molora", **parts)
    with pytest.raises(ValueError, match="router: expected 'task_types' or"):
        configure("poly", **parts)
