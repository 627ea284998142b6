"""Routing statistics against what a forward meets, for every method; and one text, token by token."""

import json

import numpy as np
import pytest
from training_base import TASKS, base_folder

from polymoe.adapters import METHODS, adapt
from polymoe.adapters.routers import ROUTERS
from polymoe.adapters.statistics import dense_weights, router_sites
from polymoe.batch import Batch, Routings
from polymoe.data import encode_split, read_tasks
from polymoe.models import load_base
from polymoe.report import entropy, routing_statistics, text_routing

TEXTS = {
    "animal": ["the cat sees a small dog", "a dog sleeps", "red", ""],
    "colour": ["the house, the big red house", "blue walks", "a cat!"],
}
SMALL = {"tensorpoly-i": {"n_skills": 3}, "mosld": {"n_skills": 3}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(base_folder(tmp_path_factory.mktemp("base")))


def make(base, method="poly", tasks=TASKS, **overrides):
    """An adapted tiny base whose routers are far from their start."""
    one = METHODS[method].preset.get("n_skills") == 1
    sizes = SMALL.get(method, {} if one else {"n_skills": 4})
    if METHODS[method].preset.get("site", "linear") == "linear":
        sizes = {"target_modules": "all-linear"} | sizes
    if METHODS[method].preset.get("router") == "task_types":
        sizes = {"task_types": ("one", "other")} | sizes
    model = adapt(base, method, tasks, **(sizes | overrides))
    rng = np.random.default_rng(0)
    for name, p in model.adapter_parameters():
        if ".router." in name:
            p.data[...] += rng.normal(size=p.shape)
    return model.eval()


def forward(model, texts, task):
    """The routings of a forward over texts of one task, and the number of tokens."""
    tokens = model.base.tokenizer.encode(texts)
    batch = Batch(
        tokens.cu_seqlens,
        tokens.ids.astype(np.int64),
        model.tasks.ids([task] * len(texts)),
        routings=Routings(),
    )
    model(batch)
    return batch.routings, tokens


@pytest.mark.parametrize("method", METHODS)
def test_statistics_are_means_of_what_forwards_meet(base, method):
    model = make(base, method)
    found = routing_statistics(model, TEXTS)
    assert found.tasks == tuple(TASKS)
    assert found.router_names == tuple(router_sites(model.adapter))
    for t, task in enumerate(TASKS):
        routings, tokens = forward(model, TEXTS[task], task)
        for router in found.routers:
            routing = routings[router.name]
            assert router.axis == routing.axis == ROUTERS[model.config.router].axis
            rows = dense_weights(routing, router.n_skills).astype(np.float64)
            if routing.axis == "group":  # one task: one group
                group = 0 if routing.adapter_ids is None else routing.adapter_ids[0]
                rows = rows[group : group + 1]
            np.testing.assert_allclose(router.weights[t], rows.mean(axis=0), atol=1e-6)
            np.testing.assert_allclose(router.entropy[t], entropy(rows).mean(axis=0), atol=1e-6)
            expected = {"group": 1, "example": len(tokens), "token": len(tokens.ids)}
            assert router.rows[t] == expected[routing.axis]
            top_k = (router.axis == "token" and model.config.top_k) or 1
            assert router.chosen[t].sum() == router.rows[t] * router.weights.shape[1] * top_k
    text = text_routing(model, TEXTS["animal"][0], "animal")
    routings, tokens = forward(model, TEXTS["animal"][:1], "animal")
    for router in text.routers:
        assert len(router.weights) == (len(tokens.ids) if router.axis == "token" else 1)
        best = np.abs(router.weights).sum(axis=1).argmax(axis=1)
        assert router.ids[:, 0].tolist() == best.tolist()
    json.dumps(text.to_dict())
    assert json.loads(json.dumps(found.to_dict()))["tasks"] == list(TASKS)
    assert method in repr(found)


def test_tables_are_read_without_texts_in_evaluation(base):
    model = make(base, "mhr", n_splits=2, temperature=3.0, gate_dropout=0.5).train()
    found = routing_statistics(model)
    assert model.adapter.training
    assert found.weights.shape == (2, 12, 2, 4)
    gates = 1 / (1 + np.exp(-model.adapter.layers[found.router_names[3]].router.logits.data))
    np.testing.assert_allclose(found.weights[:, 3], gates / gates.sum(-1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(found.routers[3].gates, gates, atol=1e-6)
    assert found.tokens.tolist() == [0, 0]


def test_private_is_the_identity_and_lora_leaves_no_choice(base):
    found = routing_statistics(make(base, "private"))
    assert (found.weights[:, 0, 0] == np.eye(2)).all()
    assert (found.similarity == np.eye(2)).all()
    alone = routing_statistics(make(base, "lora", tasks=()))
    assert alone.tasks == ("all",)
    assert (alone.weights == 1).all()


def test_c_poly_is_the_same_sparse_and_dense(base):
    found = [
        routing_statistics(make(base, "c-poly", mixing=mixing, specific="diagonal")).weights
        for mixing in ("outputs", "factors")
    ]
    assert found[0].shape == (2, 12, 1, 6)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_a_shared_router_comes_once_with_its_layers(base):
    found = routing_statistics(make(base, "poly", router_granularity="block"))
    assert found.router_names == ("encoder.layer.0", "encoder.layer.1")
    assert [len(router.layers) for router in found.routers] == [6, 6]
    assert found.of_layer("encoder.layer.1.output.dense") is found.routers[1]
    with pytest.raises(KeyError, match="layer: expected one of"):
        found.of_layer("encoder.layer.7.output.dense")


def test_layers_with_different_numbers_of_skills_keep_their_own(base):
    found = routing_statistics(make(base, "mola", n_skills_pattern={r".*layer\.0\..*": 2}), TEXTS)
    assert {size: w.shape for size, w in found.by_size().items()} == {2: (2, 6, 1, 2), 4: (2, 6, 1, 4)}
    with pytest.raises(ValueError, match=r"one number of skills, got \[2, 4\]"):
        _ = found.weights
    assert found.similarity.shape == (2, 2)


def test_batches_make_no_difference_and_an_encoded_split_is_as_good(base):
    model = make(base, "mola")
    one, small = routing_statistics(model, TEXTS), routing_statistics(model, TEXTS, batch_tokens=8)
    np.testing.assert_allclose(one.weights, small.weights, atol=1e-6)
    data = read_tasks({task: {"train": [(text, "x") for text in texts]} for task, texts in TEXTS.items()})
    split = encode_split(data, "train", base.tokenizer, model.tasks)
    encoded = routing_statistics(model, split)
    sizes = [sum(len(base.tokenizer.encode([e.input]).ids) for e in data[task].train) for task in TASKS]
    assert encoded.tokens.tolist() == sizes
    assert encoded.routers[0].rows.tolist() == sizes


def test_texts_need_no_known_task_where_the_router_does_not_go_by_task(base):
    found = routing_statistics(make(base, "mola", tasks=()), {"news": ["a house"], "chat": ["walk, dog!"]})
    assert found.tasks == ("news", "chat")


def test_nearest_are_by_falling_similarity(base):
    found = routing_statistics(make(base, "poly", tasks=["a", "b", "c", "d"]))
    near = found.nearest("b")
    assert {task for task, _ in near} == {"a", "c", "d"}
    assert [value for _, value in near] == sorted((value for _, value in near), reverse=True)
    assert near[0] == (near[0][0], pytest.approx(found.similarity[1, "abcd".index(near[0][0])]))
    assert found.nearest("b", 1) == near[:1]
    with pytest.raises(KeyError, match="task: expected one of"):
        found.nearest("e")


@pytest.mark.parametrize(
    ("method", "data", "error", "message"),
    [
        ("mola", None, ValueError, "data: expected texts by task .*token_softmax.*got None"),
        ("mola", {}, ValueError, "data: expected texts of at least one task"),
        ("mola", {"animal": []}, ValueError, "none for animal"),
        ("mola", {"animal": "a text"}, TypeError, "animal: expected a sequence of texts"),
        ("mola", ["a text"], TypeError, "data: expected an EncodedSplit or texts by task, got list"),
    ],
)
def test_bad_texts_are_refused(base, method, data, error, message):
    with pytest.raises(error, match=message):
        routing_statistics(make(base, method), data)


def test_a_disabled_adapter_and_a_missing_task_are_refused(base):
    model = make(base, "mola")
    with model.disable_adapter():
        with pytest.raises(ValueError, match="enabled adapter"):
            routing_statistics(model, TEXTS)
        with pytest.raises(ValueError, match="enabled adapter"):
            text_routing(model, "a cat")
    with pytest.raises(ValueError, match="task_ids: expected one of"):
        text_routing(make(base, "poly"), "a cat")
    with pytest.raises(KeyError, match="expected one of"):
        text_routing(make(base, "poly"), "a cat", "plant")
