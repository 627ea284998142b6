"""Vectors that multiply: (IA)3, MoV, and any router over them."""

import numpy as np
import pytest
from test_adapters_layers import fill
from test_methods_parameters import T5_XL, count
from training_base import base_folder, make_model, make_trainer

from polymoe.adapters import adapt, adapt_linear, configure
from polymoe.adapters.parts import Site
from polymoe.batch import Batch
from polymoe.models import load_base
from polymoe.tape import data_of

EXACT = {"rtol": 1e-12, "atol": 0}
W, BIAS = fill(4, 6, phi=0.2), fill(4, phi=0.9)


def layer(method, tasks=0, **fields):
    return adapt_linear(W, BIAS, method, n_tasks=tasks or None, **fields)


def bank(made):
    return made.adapter.experts.vectors


def test_ia3_multiplies_the_output_and_for_named_modules_the_input():
    x, v = fill(2, 3, 6, phi=0.1), fill(1, 4, phi=0.5)
    made = layer("ia3")
    bank(made).data[...] = v
    y, saved = made.forward(x)
    np.testing.assert_allclose(y, (x @ W.T + BIAS) * v[0], **EXACT)
    np.testing.assert_allclose(made.backward(saved, y), (y * v[0]) @ W, rtol=1e-11)
    np.testing.assert_allclose(bank(made).grad[0], (y * (x @ W.T + BIAS)).sum((0, 1)), rtol=1e-11)
    made = layer("ia3", feedforward_modules="linear")
    bank(made).data[...] = u = fill(1, 6, phi=0.5)
    np.testing.assert_allclose(made.forward(x)[0], (x * u[0]) @ W.T + BIAS, rtol=1e-11)


def test_mov_mixes_the_vectors_of_each_token():
    x, made = fill(2, 3, 6, phi=0.1), layer("mov", n_skills=3)
    bank(made).data[...] = v = fill(3, 4, phi=0.5)
    made.adapter.router.weight.data[...] = rows = fill(3, 6, phi=0.4)
    p = np.exp(x @ rows.T)
    p /= p.sum(-1, keepdims=True)
    y = made.forward(x)[0]
    np.testing.assert_allclose(y, (x @ W.T + BIAS) * (p @ v), rtol=1e-11)
    # By the lines above, on sine values of which anybody can make the same.
    np.testing.assert_allclose(y.sum(), 6.796732015369998, rtol=0, atol=1e-9)
    expected = [1.440086898589, -0.260461299824, -0.376102266733, 1.237634975094]
    np.testing.assert_allclose(y[0, 0], expected, rtol=0, atol=1e-9)


def test_the_best_vectors_alone_are_mixed():
    x, made = fill(2, 3, 6, phi=0.1), layer("mov", n_skills=4, top_k=2)
    bank(made).data[...] = v = fill(4, 4, phi=0.5)
    logits = x @ made.adapter.router.weight.data.T
    p = np.where(logits >= np.sort(logits)[..., -2:-1], np.exp(logits), 0)
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(made.forward(x)[0], (x @ W.T + BIAS) * (p @ v), rtol=1e-11)


def test_vectors_start_as_the_base():
    x = fill(2, 3, 6, phi=0.1)
    np.testing.assert_array_equal(layer("ia3").forward(x)[0], layer("lora").forward(x)[0])
    for method, fields in (("mov", {}), ("poly", {"experts": "vector"}), ("mov", {"top_k": 2})):
        made = layer(method, 2, **fields)
        np.testing.assert_allclose(made.forward(x, 1)[0], x @ W.T + BIAS, rtol=1e-11)


def test_one_vector_is_ia3_whoever_routes():
    x, v = fill(2, 3, 6, phi=0.1), fill(1, 4, phi=0.5)
    expected = (x @ W.T + BIAS) * v[0]
    for method in ("mov", "poly", "smear", "mhr-mu", "private"):
        made = layer(method, 1, experts="vector", n_skills=1)
        bank(made).data[...] = v
        np.testing.assert_allclose(made.forward(x, 0)[0], expected, rtol=1e-11, err_msg=method)


def test_heads_mix_blocks_of_a_vector():
    x, made = fill(2, 3, 6, phi=0.1), layer("mhr", 2, experts="vector", n_splits=2, n_skills=3)
    bank(made).data[...] = v = fill(3, 4, phi=0.5)
    made.adapter.router.logits.data[...] = z = fill(2, 2, 3, phi=0.4)
    s = 1 / (1 + np.exp(-z[[1, 0]]))
    w = s / (s.sum(-1, keepdims=True) + 1e-12)
    mixed = np.einsum("bqs,sqd->bqd", w, v.reshape(3, 2, 2)).reshape(2, 1, 4)
    np.testing.assert_allclose(made.forward(x, [1, 0])[0], (x @ W.T + BIAS) * mixed, rtol=1e-11)
    with pytest.raises(ValueError, match="n_splits: expected a divisor of the 4 values of linear, got 3"):
        layer("mhr", 2, experts="vector", n_splits=3)


def test_absent_experts_are_not_touched():
    made = layer("c-poly", 50, experts="vector", specific="fixed")
    absent = np.ones(53, bool)
    absent[[0, 1, 2, 3 + 17]] = False
    bank(made).data[absent] = np.nan
    y, saved = made.forward(fill(2, 3, 6, phi=0.1), [17, 17])
    assert np.isfinite(y).all() and np.isfinite(made.backward(saved, y)).all()
    assert not bank(made).grad[absent].any()


def test_where_a_base_has_vectors(tmp_path):
    base = load_base(base_folder(tmp_path))
    model = adapt(base, "ia3")
    assert model.config.target_modules == ("key", "value", "output.dense")
    assert model.config.feedforward_modules == ("output.dense",)
    shapes = {name.split(".", 3)[3]: p.shape for name, p in model.adapter_parameters() if ".layer.0." in name}
    assert shapes == {
        "attention.self.key.experts.vectors": (1, 24),
        "attention.self.value.experts.vectors": (1, 24),
        "attention.output.dense.experts.vectors": (1, 24),
        "output.dense.experts.vectors": (1, 40),
    }
    on_outputs = adapt(base, "ia3", feedforward_modules=())
    assert (
        dict(on_outputs.adapter_parameters())["encoder.layer.0.output.dense.experts.vectors"].shape[1] == 24
    )
    whole = Batch(np.array([0, 3, 7]), np.arange(7) + 5)
    np.testing.assert_array_equal(data_of(model.embed(whole)), base.embed(whole))


def test_vectors_are_counted_as_published():
    # (IA)3 of T5-XL: keys and values of three attentions in 24 blocks each, and one of the two inner layers.
    keys_and_values = [s for s in T5_XL if s.name.startswith("attention")][: 72 * 2]
    inner = [Site(f"wi_1.{i}", 2048, 5120) for i in range(48)]
    assert count(keys_and_values + inner, 0, "ia3") == 540_672
    assert count(keys_and_values + inner, 0, "mov") == 10 * 540_672 + 10 * 2048 * len(keys_and_values + inner)
    outer = [
        Site(f"wo.{i}", 5120, 2048) for i in range(48)
    ]  # the same values, as the input of the last layer
    assert count(keys_and_values + outer, 0, "ia3", feedforward_modules=r"wo\..*") == 540_672


def test_vectors_do_not_decay(tmp_path):
    trainer = make_trainer(tmp_path, model=make_model(tmp_path / "base", "ia3"), weight_decay=0.5)
    decays = dict(zip((s.group for s in trainer.optimizer.segments), trainer.optimizer._decays, strict=True))
    assert decays["gains"] == 0 and decays["heads"] == 0.5
    assert trainer.optimizer.rates["gains"] == 3e-3


def test_several_vectors_stand_side_by_side(tmp_path):
    model = make_model(tmp_path, "ia3", init_weights=False)
    model.add_adapter("other", "ia3", seed=1, r=2, init_weights=False)
    model.add_adapter("both", "poly", ["a", "b"], experts="vector", init_from=["default", "other"])
    for name, made in model.adapters["both"].layers.items():
        sources = [
            model.adapters[source].layers[name].experts.vectors.data for source in ("default", "other")
        ]
        np.testing.assert_array_equal(made.experts.vectors.data, np.concatenate(sources))


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("ia3", {"lora_dropout": 0.1}, r"lora_dropout: expected 0 \(the experts 'vector'\), got 0.1"),
        ("ia3", {"mixing": "leaves"}, "mixing: expected 'factors' or 'outputs'"),
        ("ia3", {"n_skills": 2}, "n_skills: expected 1"),
        ("mov", {"mixing": "factors"}, "mixing: expected 'outputs'"),
        ("mov", {"top_k": 11}, "top_k: expected 1 to 10"),
        ("lora", {"feedforward_modules": ["output.dense"]}, "feedforward_modules: expected None"),
    ],
)
def test_what_vectors_cannot_do_is_refused(method, fields, message):
    with pytest.raises(ValueError, match=message):
        configure(method, **fields)
