"""Methods against values that were computed by two independent programs from their equations."""

import numpy as np
import pytest
from test_adapters_layers import fill

from polymoe.adapters import adapt_linear
from polymoe.batch import Batch

EXACT = {"rtol": 0, "atol": 1e-9}


def layer(method, D, O, tasks=0, **fields):
    """Without the base's product."""
    return adapt_linear(np.zeros((O, D)), None, method, n_tasks=tasks or None, **fields)


def set_pairs(made, A, B):
    """From [Q, S, D/Q, r] and [Q, S, r, O/Q]."""
    S, r = A.shape[1], A.shape[3]
    made.adapter.experts.lora_A.data[...] = A.transpose(1, 3, 0, 2).reshape(S, r, -1)
    made.adapter.experts.lora_B.data[...] = B.transpose(1, 2, 0, 3).reshape(S, r, -1)


def cpoly(**fields):
    made = layer("c-poly", 4, 6, 3, n_skills=2, r=2, **fields)
    made.adapter.router.specific.data[...] = np.eye(3) + 0.1 * fill(3, 3, phi=0.8)
    return made


def test_c_poly_with_factors():
    made = cpoly(mixing="factors", n_splits=2, noise="off")
    made.adapter.router.common.logits.data[...] = fill(3, 4, phi=0.4).reshape(3, 2, 2)
    set_pairs(made, fill(2, 5, 2, 2, phi=0.2), fill(2, 5, 2, 3, phi=0.3))
    y, _ = made.forward(fill(2, 3, 4, phi=0.1), [2, 1])
    expected = [-0.0031261525, 0.6323711756, 0.9704544586, 0.7426878715, 0.2088185128, -0.4232614553]
    np.testing.assert_allclose(y[0, 0], expected, **EXACT)
    np.testing.assert_allclose(y.sum(), 4.029570503095717, **EXACT)


def test_c_poly_with_outputs_is_the_sum_over_common_and_specific_pairs():
    made = cpoly()
    set_pairs(made, fill(1, 5, 4, 2, phi=0.2), fill(1, 5, 2, 6, phi=0.3))
    x, ids = fill(2, 3, 4, phi=0.1), [2, 1]
    s = 1 / (1 + np.exp(-made.adapter.router.common.logits.data[ids, 0]))
    w = np.concatenate([s / s.sum(1, keepdims=True), made.adapter.router.specific.data[ids]], axis=1)
    A, B = (p.data for p in (made.adapter.experts.lora_A, made.adapter.experts.lora_B))
    expected = 0.5 * np.einsum("be,bld,erd,ero->blo", w, x, A, B)
    np.testing.assert_allclose(made.forward(x, ids)[0], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("specific", ["diagonal", "fixed"])
@pytest.mark.parametrize("mixing", ["outputs", "factors"])
def test_c_poly_starts_alike_whatever_of_v_is_learnt(specific, mixing):
    fields = {"r": 2, "init_weights": False, "mixing": mixing, "n_specific": 2}
    x, ids = fill(4, 3, 6, phi=0.1), [2, 0, 2, 1]
    learned, other = (layer("c-poly", 6, 4, 3, specific=kind, **fields) for kind in ("learned_row", specific))
    np.testing.assert_allclose(other.forward(x, ids)[0], learned.forward(x, ids)[0], rtol=1e-11, atol=1e-13)


def test_c_poly_never_touches_what_a_task_does_not_have():
    made = layer("c-poly", 6, 4, 100, specific="fixed", init_weights=False)
    absent = np.ones(103, bool)
    absent[[0, 1, 2, 3 + 17, 3 + 40]] = False
    for part in (made.adapter.experts.lora_A, made.adapter.experts.lora_B):
        part.data[absent] = np.nan
    y, saved = made.forward(fill(4, 3, 6, phi=0.1), [17, 40, 17, 17])
    assert np.isfinite(y).all()
    assert np.isfinite(made.backward(saved, y)).all()
    assert not made.adapter.experts.lora_B.grad[absent].any()


def test_factors_and_outputs_agree_for_one_skill_each():
    fields = {"router": "given", "n_skills": 3, "task_skills": ("100", "001"), "init_weights": False}
    x, ids = fill(3, 2, 6, phi=0.1), [1, 0, 1]
    made = [layer("poly", 6, 4, 2, mixing=mixing, **fields) for mixing in ("factors", "outputs")]
    np.testing.assert_allclose(*(m.forward(x, ids)[0] for m in made), rtol=1e-12)
    A, B = (p.data for p in (made[0].adapter.experts.lora_A, made[0].adapter.experts.lora_B))
    np.testing.assert_allclose(made[0].forward(x, ids)[0][0], x[0] @ A[2].T @ B[2] / 8, rtol=1e-12)


def test_mhr_mu_is_lora_with_the_mean_of_the_pairs():
    made, x = layer("mhr-mu", 6, 4, init_weights=False), fill(3, 2, 6, phi=0.1)
    A, B = (p.data.mean(0) for p in (made.adapter.experts.lora_A, made.adapter.experts.lora_B))
    np.testing.assert_allclose(made.forward(x)[0], x @ A.T @ B / 8, rtol=1e-12)


def orchmoe(monkeypatch, **fields):
    made = layer("orchmoe", 5, 4, r=2, n_latent_tasks=3, n_skills=4, **fields).train()
    router, experts = made.adapter.router, made.adapter.experts
    router.weight.data[...], router.bias.data[...] = fill(3, 5, phi=0.4), fill(3, phi=0.5)
    router.logits.data[...] = fill(3, 4, phi=0.7)[:, None]
    router.query.data[...] = fill(5, phi=1.1)
    experts.lora_A.data[...] = fill(4, 2, 5, phi=0.2)
    experts.lora_B.data[...] = fill(4, 4, 2, phi=0.3).transpose(0, 2, 1)
    u = 1 / (1 + np.exp(-fill(3, 4, phi=0.9)))
    monkeypatch.setattr("polymoe.random.uniform", lambda *args: np.tile(u.reshape(1, 12), (len(args[4]), 1)))
    return made


@pytest.mark.parametrize("noise", ["per_step", "per_example"])
def test_orchmoe(monkeypatch, noise):
    made = orchmoe(monkeypatch, noise=noise)
    x, mask = fill(3, 4, 5, phi=0.1), np.arange(4) < np.array([4, 3, 2])[:, None]
    y, _ = made.forward(x, attention_mask=mask)
    expected = [-0.294545231, 0.3832030284, 0.4248090788, -0.2387958576]
    np.testing.assert_allclose(y[0, 0], expected, **EXACT)
    np.testing.assert_allclose(y[mask].sum(), 0.03389059490902557, **EXACT)
    offsets = np.array([0, 4, 7, 9])
    w = np.asarray(made.adapter.router(Batch(offsets), x[mask]).weights)[:, 0]
    expected = [[0.2180952429, 0.2676301323, 0.2736835038, 0.240591121],
                [0.1999981180, 0.2613728717, 0.2771544353, 0.2614745750],
                [0.2271784354, 0.2614908338, 0.2663922200, 0.2449385111]]  # fmt: skip
    np.testing.assert_allclose(w, expected, **EXACT)


def test_orchmoe_is_its_double_sum_over_latent_tasks_and_skills():
    made, x = layer("orchmoe", 5, 4, n_skills=3, init_weights=False), fill(2, 3, 5, phi=0.1)
    router, (A, B) = made.adapter.router, (p.data for p in parts(made))
    logits = x.mean(1) @ router.weight.data.T + router.bias.data
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    s = 1 / (1 + np.exp(-router.logits.data[:, 0]))
    s /= s.sum(1, keepdims=True)
    expected = 0.5 * np.einsum("bi,ij,bld,jrd,jro->blo", p, s, x, A, B)
    np.testing.assert_allclose(made.forward(x)[0], expected, rtol=1e-11)


def parts(made):
    return made.adapter.experts.lora_A, made.adapter.experts.lora_B


def test_orchmoe_can_keep_the_gradient_from_x():
    x, dy, dx = fill(2, 3, 5, phi=0.1), fill(2, 3, 4, phi=0.6), []
    for stop in (False, True):
        made = layer("orchmoe", 5, 4, init_weights=False, stop_router_gradient=stop)
        _, saved = made.forward(x)
        dx.append(made.backward(saved, dy))
        assert np.abs(made.adapter.router.weight.grad).max() > 0
    w = np.asarray(made.adapter.router(Batch(np.array([0, 3, 6])), x.reshape(6, 5)).weights.data)[:, 0]
    A, B = (p.data for p in parts(made))
    np.testing.assert_allclose(dx[1], 0.5 * np.einsum("bj,blo,jro,jrd->bld", w, dy, B, A), rtol=1e-11)
    assert not np.allclose(dx[0], dx[1])


def test_smear_averages_pairs_by_a_softmax_over_normalised_means():
    made, x = layer("smear", 6, 4, n_skills=3, init_weights=False), fill(2, 3, 6, phi=0.1)
    router, (A, B) = made.adapter.router, (p.data for p in parts(made))
    router.row_scale.data[...] = 0.7

    def ln(v):
        return (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5)

    logits = ln(x.mean(1)) @ (0.7 * ln(router.weight.data)).T
    w = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.einsum("bld,bs,srd,bt,tro->blo", x, w, A, w, B) / 8
    np.testing.assert_allclose(made.forward(x)[0], expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("edge", "first", "total"),
    [
        (-0.3, [8.9560145647, 5.0420594739, -7.2420456785], -4.8756950428491646),
        (-0.6, [5.8755521650, 5.5261957032, -3.9970087754], 17.56441471793426),
    ],
)
def test_mosld(monkeypatch, edge, first, total):
    made = layer("mosld", 4, 3, r=2, n_skills=4, balance_loss=1.0).train()
    made.adapter.router.weight.data[...] = fill(4, 4, phi=0.4)
    A, B = parts(made)
    A.data[...], B.data[...] = fill(1, 2, 4, phi=0.2), fill(4, 3, 2, phi=0.3).transpose(0, 2, 1)
    u = np.where(fill(2, 4, phi=0.9) > edge, 0.5, 0.05)  # dropped below 0.1
    monkeypatch.setattr("polymoe.random.uniform", lambda *args: u.reshape(1, 8))
    y, saved = made.forward(fill(1, 5, 4, phi=0.1))
    np.testing.assert_allclose(y[0, 0], first, **EXACT)
    np.testing.assert_allclose(y.sum(), total, **EXACT)
    np.testing.assert_allclose(saved.tape.auxiliary_loss(), 1.025827358678616, **EXACT)
    assert made.eval().forward(fill(1, 5, 4, phi=0.1))[1].tape.auxiliary_loss() == 0


def test_one_expert_without_dropout_is_lora():
    fields, x = {"r": 2, "lora_alpha": 16, "init_weights": False}, fill(2, 3, 6, phi=0.1)
    one = {"mosld": {"top_k": 1, "lora_A_dropout": 0.0}, "mola": {"top_k": 1}, "hydralora": {}, "molora": {}}
    lora = layer("lora", 6, 4, **fields)
    for method, own in one.items():
        made = layer(method, 6, 4, n_skills=1, **fields, **own)
        np.testing.assert_allclose(made.forward(x)[0], lora.forward(x)[0], rtol=1e-11, err_msg=method)


@pytest.mark.parametrize(("sparse", "dense"), [("mola", "molora"), ("mosld", "hydralora")])
def test_all_experts_kept_is_the_dense_mixture(sparse, dense):
    fields, x = {"r": 2, "n_skills": 4, "init_weights": False}, fill(2, 3, 6, phi=0.1)
    made = [layer(sparse, 6, 4, top_k=4, **fields), layer(dense, 6, 4, **fields)]
    np.testing.assert_allclose(*(m.forward(x)[0] for m in made), rtol=1e-11)


def test_dropout_on_a_has_the_mean_of_a():
    made = layer("mosld", 64, 4, r=8, lora_A_dropout=0.25, init_weights=False).train()
    masked = [
        made.adapter.experts.factors(None, Batch(np.array([0, 1]), step=step))[0].data for step in range(200)
    ]
    kept = np.stack(masked) / made.adapter.experts.lora_A.data
    assert set(np.unique(kept.round(12))) == {0.0, np.round(1 / 0.75, 12)}
    assert abs(kept.mean() - 1) < 0.01


def roots(method, order, d_out):
    made = layer(method, 7, d_out, 4, r=2, n_skills=3, order=order)
    m = [next(k for k in range(1, d + 1) if k**order >= d) for d in (7, d_out)]
    leaves = [0.5 * fill(order, 3, 2, k, phi=phi) for k, phi in zip(m, (0.2, 0.3), strict=True)]
    experts = made.adapter.experts
    for part, values in zip((experts.leaves_A, experts.leaves_B), leaves, strict=True):
        part.data[...] = values.transpose(1, 2, 0, 3).reshape(part.shape)  # [N, R, r, m] -> side by side
    logits = made.adapter.router.logits
    logits.data[...] = fill(*logits.shape, phi=0.4)
    return made.train().forward(fill(2, 3, 7, phi=0.1), [1, 3])[0]


@pytest.mark.parametrize(
    ("method", "order", "d_out", "total"),
    [
        ("tensorpoly-i", 2, 6, 0.6425129196422271),
        ("tensorpoly-i", 4, 6, 0.40684459111769555),
        ("tensorpoly-ii", 2, 6, -0.19604469795762325),
        ("tensorpoly-ii", 4, 6, -1.4683205803517685),
        ("tensorpoly-i", 2, 17, -1.3337104192628928),
        ("tensorpoly-i", 4, 17, -2.989214014412805),
        ("tensorpoly-ii", 2, 17, 3.094434540074171),
        ("tensorpoly-ii", 4, 17, -4.088591891946889),
    ],
)
def test_tensor_poly(method, order, d_out, total):
    np.testing.assert_allclose(roots(method, order, d_out).sum(), total, **EXACT)


def test_tensor_poly_rows():
    expected = [0.0119068828, 0.0686862027, 0.1409878475, 0.0627056707, 0.0218914632, 0.0186078778]
    np.testing.assert_allclose(roots("tensorpoly-i", 2, 6)[0, 0], expected, **EXACT)
    expected = [0.1130231579, 0.0668692485, -0.175707498, -0.1262779275, 0.6622563617, 0.2118150066]
    np.testing.assert_allclose(roots("tensorpoly-ii", 4, 6)[0, 0], expected, **EXACT)


@pytest.mark.parametrize("order", [2, 4, 8])
@pytest.mark.parametrize("method", ["tlora", "tensorpoly-i", "tensorpoly-ii"])
def test_tensors_can_start_from_exactly_nothing(method, order):
    x = fill(2, 3, 300, phi=0.1)
    started = layer(method, 300, 260, 2, r=2, order=order).forward(x, 0)[0]
    assert np.abs(started).max() > 0
    made = layer(method, 300, 260, 2, r=2, order=order, zero_start=True)
    y, saved = made.forward(x, 0)
    assert not y.any()
    made.backward(saved, np.ones_like(y))
    assert made.adapter.experts.leaves_B.grad.any()


def test_the_prior_is_the_auxiliary_loss_of_its_tables():
    made = layer("poly", 6, 4, 4, n_skills=3, ibp_prior=0.5).train()
    Z = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 0]])
    made.adapter.router.logits.data[...] = (20.0 * Z - 10)[:, None]
    y, saved = made.forward(fill(2, 3, 6, phi=0.1), [0, 1])
    np.testing.assert_allclose(saved.tape.auxiliary_loss(), 0.5 * -2.0794415416798, **EXACT)
    made.backward(saved, np.zeros_like(y))
    p = 1 / (1 + np.exp(-made.adapter.router.logits.data[:, 0]))
    slope = 0.5 * np.array([-0.5, 0.5, 0.5]) * p * (1 - p)
    np.testing.assert_allclose(made.adapter.router.logits.grad[:, 0], slope, rtol=1e-9)
