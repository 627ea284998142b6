"""Arrow: prototypes of trained LoRAs, and the tokens that go by them."""

from signal import SIGINT, raise_signal

import numpy as np
import pytest
from test_adapters_layers import fill
from test_recipe_stages import SMALL, folder, recipe  # noqa: F401
from training_base import TASKS, make_model

from polymoe.adapters import adapt_linear, configure
from polymoe.adapters.by_prototype import prototypes
from polymoe.batch import Batch
from polymoe.files import read_safetensors
from polymoe.parameters import Parameter
from polymoe.training import Callback, TrainingInterrupted, load_run


def pairs(S=4, r=3, D=7, O=5, seed=0):
    rng = np.random.default_rng(seed)
    return Parameter(rng.normal(size=(S, r, D))), Parameter(rng.normal(size=(S, r, O)))


def layer(**fields):
    """Four LoRAs on a frozen layer, with their prototypes."""
    made = adapt_linear(fill(5, 7, phi=0.2), fill(5, phi=0.9), "arrow", r=3, init_weights=False, **fields)
    made.adapter.router.start(made.adapter.experts)
    return made


def test_prototypes_are_first_right_singular_vectors():
    A, B = pairs()
    for s, v in enumerate(prototypes(A, B)):
        expected = np.linalg.svd(B.data[s].T @ A.data[s])[2][0]
        np.testing.assert_allclose(v * np.sign(v @ expected), expected, atol=1e-12)
        assert v[np.abs(v).argmax()] > 0
    B.data[1] = 0
    B.data[2, 1:] = 0  # of rank 1: the direction of its row of A
    found = prototypes(A, B)
    assert not found[1].any()
    np.testing.assert_allclose(np.abs(found[2]), np.abs(A.data[2, 0]) / np.linalg.norm(A.data[2, 0]))


def test_tokens_sum_the_best_pairs_by_a_softmax():
    x = fill(2, 3, 7, phi=0.1)
    for k, temperature in ((3, 1.0), (1, 0.5), (None, 0.25)):
        made = layer(top_k=k, temperature=temperature)
        A, B = (p.data for p in (made.adapter.experts.lora_A, made.adapter.experts.lora_B))
        scores = np.abs(x @ prototypes(*(Parameter(p) for p in (A, B))).T)
        kept = scores >= np.sort(scores)[..., -(k or 4)][..., None]
        w = np.exp(scores / temperature) * kept
        w /= w.sum(-1, keepdims=True)
        expected = x @ fill(5, 7, phi=0.2).T + fill(5, phi=0.9)
        expected = expected + np.einsum("bls,bld,srd,sro->blo", w, x, A, B) / 3
        np.testing.assert_allclose(made.forward(x)[0], expected, rtol=1e-11)


def test_a_sign_changes_nothing():
    made, x = layer(), fill(2, 3, 7, phi=0.1)
    before = made.forward(x)[0]
    made.adapter.router.prototypes.data[1:3] *= -1
    np.testing.assert_array_equal(made.forward(x)[0], before)


def test_x_gets_no_gradient_through_the_choice():
    made, x, dy = layer(), fill(1, 1, 7, phi=0.1), fill(1, 1, 5, phi=0.6)
    _, saved = made.forward(x)
    dx = made.backward(saved, dy)
    routing = made.adapter.router(Batch(np.array([0, 1])), x[0])
    A, B = (p.data[routing.ids[0]] for p in (made.adapter.experts.lora_A, made.adapter.experts.lora_B))
    expected = dy @ fill(5, 7, phi=0.2) + np.einsum("k,blo,kro,krd->bld", routing.weights[0], dy, B, A) / 3
    np.testing.assert_allclose(dx, expected, rtol=1e-11)
    assert all(p.grad is None for _, p in made.named_parameters())


def test_loras_stand_side_by_side_with_their_prototypes(tmp_path):
    model = make_model(tmp_path, "lora", r=2, init_weights=False)
    model.add_adapter("other", "lora", seed=1, r=2, init_weights=False)
    model.add_adapter("both", "arrow", TASKS, init_from=["default", "other"])
    config = model.adapters["both"].config
    assert (config.n_skills, config.top_k) == (2, 2)
    for name, made in model.adapters["both"].layers.items():
        experts = [model.adapters[source].layers[name].experts for source in ("default", "other")]
        expected = np.concatenate([prototypes(e.lora_A, e.lora_B) for e in experts])
        np.testing.assert_allclose(made.router.prototypes.data, expected, atol=1e-6)
    assert model.adapters["both"].needs_tasks is False
    with pytest.raises(ValueError, match="top_k: expected 1 to 2"):
        model.add_adapter("more", "arrow", TASKS, init_from=["default", "other"], top_k=3)


def test_arrow_trains_private_adapters_and_nothing_more(folder):  # noqa: F811
    summary = recipe(folder, "arrow").train(folder / "run", progress=None)
    assert summary["steps"] == 0 and set(summary["evaluation"]["tasks"]) == set(TASKS)
    first, second = load_run(folder / "run" / "first-stage"), load_run(folder / "run")
    assert (first.model.config.method, second.model.config.method) == ("private", "arrow")
    assert second.model.get_nb_trainable_parameters()[0] == 0 < first.model.get_nb_trainable_parameters()[0]
    for name, made in second.model.adapter.layers.items():
        source = first.model.adapter.layers[name].experts
        np.testing.assert_array_equal(made.experts.lora_B.data, source.lora_B.data)
        expected = prototypes(source.lora_A, source.lora_B).astype(np.float32)
        np.testing.assert_array_equal(made.router.prototypes.data, expected)
    assert second.evaluate() == summary["evaluation"]
    again = recipe(folder, "arrow").train(folder / "run", resume=True, progress=None)
    assert again["evaluation"] == summary["evaluation"]


def test_arrow_goes_on_where_it_stopped(folder):  # noqa: F811
    recipe(folder, "arrow").train(folder / "whole", progress=None)

    class Stop(Callback):
        def on_step_end(self, trainer, record):
            raise_signal(SIGINT)

    with pytest.raises(TrainingInterrupted):
        recipe(folder, "arrow").train(folder / "stopped", progress=None, callbacks=[Stop()])
    recipe(folder, "arrow").train(folder / "stopped", resume=True, progress=None)
    ours, theirs = (
        read_safetensors(folder / run / "adapter" / "adapter_model.safetensors")
        for run in ("whole", "stopped")
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_folders_of_loras_are_taken(folder):  # noqa: F811
    for seed in range(3):
        training = SMALL | {"seed": seed}
        recipe(folder, "lora", training=training, tasks=[TASKS[seed % 2]]).train(
            folder / f"lora {seed}", progress=None
        )
    sources = [str(folder / "lora 0" / "adapter"), str(folder / "lora 1"), str(folder / "lora 2")]
    summary = recipe(folder, "arrow", init_from=sources).train(folder / "run", progress=None)
    run = load_run(folder / "run")
    assert run.model.config.n_skills == 3 and run.evaluate() == summary["evaluation"]
    assert summary["steps"] > 0  # heads of the tasks: they came with none of the folders


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixing": "factors"}, "mixing: expected 'outputs'"),
        ({"experts": "vector"}, "experts: expected 'lora'"),
        ({"top_k": 5}, "top_k: expected 1 to 4"),
        ({"router_granularity": "model"}, "router_granularity: expected 'linear'"),
    ],
)
def test_what_arrow_cannot_do_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        configure("arrow", **fields)


def test_no_experts_have_no_direction():
    made = adapt_linear(fill(5, 7, phi=0.2), None, "arrow", r=3)
    x = fill(2, 3, 7, phi=0.1)
    np.testing.assert_allclose(made.forward(x)[0], x @ fill(5, 7, phi=0.2).T, rtol=1e-12)
