"""One router for several layers, and routings that are decided once."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_bert import write_bert

from polymoe import load_adapter, tape
from polymoe.adapters import adapt, configure
from polymoe.adapters.inject import sites
from polymoe.adapters.layers import formula, n_parameters
from polymoe.batch import Batch, Routings
from polymoe.models import load_base

TASKS = ("a", "b", "c")
OFFSETS, TOKENS = np.array([0, 3, 4, 9]), np.arange(9) + 5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(write_bert(tmp_path_factory.mktemp("bert") / "tiny", pooling="mean_tokens"))


def make(base, method="poly", **options):
    settings = {"r": 2, "init_weights": False, "target_modules": "all-linear"} | options
    return adapt(base, method, TASKS, **settings)


def batch(task_ids=(2, 0, 1), **fields):
    return Batch(OFFSETS, TOKENS, task_ids=np.array(task_ids), **fields)


def routers(model):
    return {id(layer.router) for layer in model.adapter.layers.values()}


def gradients(model, run, **fields):
    """Of every parameter, for the sum of the hidden states."""
    for _, parameter in model.adapter_parameters():
        parameter.grad = None
    with tape.Tape() as recorded:
        y = run(batch(seed=1, step=3, **fields))
    recorded.backward(y, np.ones_like(y.data))
    return {name: p.grad.copy() for name, p in model.adapter_parameters() if p.grad is not None}


@pytest.mark.parametrize(("granularity", "n"), [("linear", 12), ("block", 2), ("model", 1)])
@pytest.mark.parametrize("method", ["poly", "orchmoe", "smear", "c-poly"])
def test_layers_share_routers_by_granularity(base, method, granularity, n):
    model = make(base, method, router_granularity=granularity)
    assert len(routers(model)) == n
    counted = n_parameters(model.config, sites(base, model.config, len(TASKS)))
    assert counted == sum(p.data.size for _, p in model.adapter_parameters())
    assert ("a " + granularity in formula(model.config)) == (granularity != "linear")


@pytest.mark.parametrize("method", ["poly", "orchmoe", "smear"])
def test_a_shared_router_decides_once(base, method):
    model = make(base, method, router_granularity="block").train()
    routings = Routings()
    model(batch(seed=1, routings=routings))
    assert list(routings) == ["encoder.layer.0", "encoder.layer.1"]
    weights = [tape.data_of(r.weights) for r in routings.values()]
    assert weights[0].shape == (3, 1, 4 if method != "smear" else 8) and (weights[0] != weights[1]).any()


def test_a_shared_table_equals_tables_that_are_equal(base):
    """Without noise: one table for all layers is every layer's table with the same logits, and its gradient
    is the sum of theirs."""
    one = make(base, "mhr", router_granularity="model", noise="off").train()
    many = make(base, "mhr", noise="off").train()
    logits = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    for model in (one, many):
        for name, parameter in model.adapter_parameters():
            if name.endswith("logits"):
                parameter.data[...] = logits
    np.testing.assert_array_equal(one(batch()).data, many(batch()).data)
    shared, own = gradients(one, one), gradients(many, many)
    total = sum(grad for name, grad in own.items() if name.endswith("logits"))
    (name,) = [name for name in shared if name.endswith("logits")]
    np.testing.assert_allclose(shared[name], total, rtol=1e-4, atol=1e-5 * np.abs(total).max())


def recomputed(base, model, b):
    """The hidden states, each layer a checkpoint."""
    b = model.attach(b)
    x = base.embeddings(b)
    for layer in base.encoder.layer:
        x = tape.checkpoint(lambda h, layer=layer: layer(h, b), x) if hasattr(x, "grad") else layer(x, b)
    return x


@pytest.mark.parametrize(
    ("method", "granularity"), [("poly", "block"), ("poly", "model"), ("orchmoe", "block")]
)
def test_recomputation_keeps_the_gradient_of_a_shared_router(base, method, granularity):
    """Within a checkpoint the forward runs twice, and what was decided first carries no gradient."""
    model = make(base, method, router_granularity=granularity, n_skills=3).train()

    plain, again = gradients(model, model), gradients(model, lambda b: recomputed(base, model, b))
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        np.testing.assert_allclose(again[name], grad, rtol=1e-4, atol=1e-5 * np.abs(grad).max(), err_msg=name)


@pytest.mark.parametrize(("granularity", "n"), [("linear", 12), ("block", 2), ("model", 1)])
def test_a_shared_router_tells_its_auxiliary_loss_once(base, granularity, n):
    model = make(base, "poly", router_granularity=granularity, ibp_prior=1.0).train()
    with tape.Tape() as recorded:
        model(batch())
    assert len(recorded.losses) == n


def test_parts_that_are_recomputed_find_what_another_part_decided(base):
    """The first layer, which is not recomputed here, decides for both."""
    model = make(base, "orchmoe", router_granularity="model").train()
    plain, again = gradients(model, model), gradients(model, lambda b: recomputed(base, model, b))
    assert {name: g.tobytes() for name, g in plain.items()} == {n: g.tobytes() for n, g in again.items()}


def test_routings_that_are_passed_on_are_kept(base):
    """A text keeps the routing of its beginning: the routers are not asked again."""
    model = make(base, "smear")
    routings = Routings()
    model(batch(routings=routings))
    kept = {name: routing.weights for name, routing in routings.items()}
    other = replace(batch(routings=routings), token_ids=TOKENS[::-1].copy())
    with_kept = model(other)
    assert all(routings[name].weights is weights for name, weights in kept.items())
    assert (with_kept != model(replace(other, routings=None))).any()


def test_tokens_are_routed_anew(base):
    model = make(base, "molora")
    routings = Routings()
    model(batch(routings=routings))
    other = replace(batch(routings=routings), token_ids=TOKENS[::-1].copy())
    np.testing.assert_array_equal(model(other), model(replace(other, routings=None)))


@pytest.mark.parametrize("granularity", ["block", "model"])
def test_a_shared_router_is_saved_once_and_comes_back(base, tmp_path, granularity):
    model = make(base, "poly", router_granularity=granularity)
    model.save_adapter(tmp_path)
    again = load_adapter(base, tmp_path)
    assert again.config == model.config and len(routers(again)) == len(routers(model))
    np.testing.assert_array_equal(again(batch()), model(batch()))


def test_what_cannot_share_is_refused(base):
    with pytest.raises(ValueError, match=r"router_granularity: expected 'linear' .*token_softmax"):
        configure("molora", router_granularity="block")
    with pytest.raises(ValueError, match="router_granularity: expected 'linear' or 'block' or 'model'"):
        configure("poly", router_granularity="layer")
    with pytest.raises(ValueError, match="n_skills_pattern: expected as many skills"):
        make(base, router_granularity="block", n_skills_pattern={"query": 3})
    with pytest.raises(ValueError, match=r"router_granularity: .*no numbered block"):
        configure("poly", router_granularity="block").router_name("linear")
