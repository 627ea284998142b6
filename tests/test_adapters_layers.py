"""One adapted linear layer: golden values, gradients, identities, the shapes it takes, and bad input."""

import numpy as np
import pytest

from polymoe.adapters import AdaptedLinear, adapt_linear
from polymoe.batch import Batch

METHODS = ["lora", "private", "poly", "mhr"]


def fill(*shape, phi):
    return np.sin(0.7 * np.arange(np.prod(shape)) + phi).reshape(shape)


def make(method="poly", D=12, O=8, dtype=np.float64, seed=3, tasks=3, **fields):
    """A layer whose B is not zero, so that everything has a gradient."""
    rng = np.random.default_rng(7)
    weight, bias = rng.normal(size=(O, D)).astype(dtype), rng.normal(size=O).astype(dtype)
    fields = {"r": 2, "init_weights": False} | fields
    return adapt_linear(weight, bias, method, n_tasks=tasks, seed=seed, **fields)


def inputs(*shape, dtype=np.float64, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def parameters(layer):
    return dict(layer.named_parameters())


def expected(layer, x, task_ids):
    """The formula, for x [B, L, D] in evaluation."""
    w, (A, B) = (
        layer.linear.weight.unpack(),
        (p.data for p in (layer.adapter.experts.lora_A, layer.adapter.experts.lora_B)),
    )
    y = x @ w.T + layer.linear.bias
    router = layer.adapter.router
    for b, task in enumerate(task_ids):
        if hasattr(router, "logits"):
            s = 1 / (1 + np.exp(-router.logits.data[task]))
            weights = s / (s.sum(-1, keepdims=True) + 1e-12)  # [Q, S]
        else:
            weights = np.eye(len(A))[[task if router.needs_tasks else 0]]

        def mixed(bank, weights=weights):
            blocks = bank.reshape(*bank.shape[:2], len(weights), -1)
            return np.einsum("qs,srqd->rqd", weights, blocks).reshape(bank.shape[1], -1)

        y[b] += layer.adapter.experts.scale * (x[b] @ mixed(A).T) @ mixed(B)
    return y


def test_golden_value_of_mhr_with_noise(monkeypatch):
    x, z = fill(3, 4, 6, phi=0.1), fill(5, 6, phi=0.4).reshape(5, 2, 3)
    u = 1 / (1 + np.exp(-fill(3, 2, 3, phi=0.5)))
    layer = adapt_linear(
        np.zeros((4, 6)), None, "mhr", n_tasks=5, r=2, n_skills=3, n_splits=2, temperature=0.8
    ).train()
    layer.adapter.router.logits.data[...] = z
    A, B = fill(2, 3, 3, 2, phi=0.2), fill(2, 3, 2, 2, phi=0.3)  # [Q, S, D/Q, r], [Q, S, r, O/Q]
    layer.adapter.experts.lora_A.data[...] = A.transpose(1, 3, 0, 2).reshape(3, 2, 6)
    layer.adapter.experts.lora_B.data[...] = B.transpose(1, 2, 0, 3).reshape(3, 2, 4)
    monkeypatch.setattr("polymoe.random.uniform", lambda *args: u.reshape(3, 6))
    y, _ = layer.forward(x, [2, 0, 2])
    np.testing.assert_allclose(y.sum(), 0.24561020209295326, atol=1e-9, rtol=0)
    np.testing.assert_allclose(
        y[0, 0], [0.0358827531, 0.0429178887, 0.0020160816, -0.0407898479], atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_is_the_formula(method):
    layer, x = make(method), inputs(5, 3, 12)
    ids = [0, 2, 0, 1, 2]
    np.testing.assert_allclose(layer.forward(x, ids)[0], expected(layer, x, ids), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("noise", ["per_example", "per_task", "off"])
@pytest.mark.parametrize("method", METHODS)
def test_backward_is_the_derivative_of_forward(method, noise, dropout):
    layer, x = make(method, noise=noise, lora_dropout=dropout).train(), inputs(4, 3, 12)
    ids, dy = [0, 2, 0, 1], inputs(4, 3, 8, seed=5)

    def loss():
        return float((layer.forward(x, ids, step=9)[0] * dy).sum())

    dx = layer.backward(layer.forward(x, ids, step=9)[1], dy)
    values = {"x": (x, dx)} | {name: (p.data, p.grad) for name, p in parameters(layer).items()}
    for name, (value, grad) in values.items():
        direction, eps = inputs(*value.shape, seed=11), 1e-6
        start = value.copy()
        value[...] = start + eps * direction
        up = loss()
        value[...] = start - eps * direction
        down = loss()
        value[...] = start
        np.testing.assert_allclose((grad * direction).sum(), (up - down) / (2 * eps), rtol=1e-7, err_msg=name)


@pytest.mark.parametrize("noise", ["per_example", "per_task", "off"])
@pytest.mark.parametrize(
    "fields",
    [
        {"gate_dropout": 0.3},
        {"average_correction": True, "gate_dropout": 0.3},
        {"gate": "softmax", "noise": "off", "temperature": 0.5},
        {"gate": "l2", "noise": "off", "gate_dropout": 0.3},
    ],
    ids=str,
)
def test_backward_is_the_derivative_with_other_gates(fields, noise):
    layer, x = make("mhr", n_splits=2, **({"noise": noise} | fields)).train(), inputs(4, 3, 12)
    ids, dy, logits = [0, 2, 0, 1], inputs(4, 3, 8, seed=5), layer.adapter.router.logits
    start, direction, eps = inputs(*logits.shape, seed=8), inputs(*logits.shape, seed=11), 1e-6
    logits.data[...] = start
    layer.backward(layer.forward(x, ids, step=9)[1], dy)
    losses = []
    for h in (eps, -eps):
        logits.data[...] = start + h * direction
        losses.append(float((layer.forward(x, ids, step=9)[0] * dy).sum()))
    np.testing.assert_allclose(
        (logits.grad * direction).sum(), (losses[0] - losses[1]) / (2 * eps), rtol=1e-6
    )


def test_gate_dropout_drops_that_share_in_training_alone():
    layer = make("poly", n_skills=500, tasks=1, gate_dropout=0.3, noise="off")
    batch = Batch(np.array([0, 1]), task_ids=np.array([0]), step=4)
    assert (layer.adapter.router(batch, None).weights != 0).all()
    dropped = (layer.train().adapter.router(batch, None).weights == 0).mean()
    assert 0.25 < dropped < 0.35


def test_one_skill_is_lora_and_its_router_gets_no_gradient():
    poly, lora = make("poly", n_skills=1), make("lora", lora_alpha=1)
    x, dy = inputs(3, 2, 12), inputs(3, 2, 8, seed=2)
    y, saved = poly.forward(x, [0, 1, 2])
    np.testing.assert_allclose(y, lora.forward(x)[0], rtol=1e-11)
    poly.backward(saved, dy)
    np.testing.assert_allclose(poly.adapter.router.logits.grad, 0, atol=1e-11)


def test_private_with_one_task_is_lora_bit_for_bit():
    private, lora = make("private", tasks=1), make("lora")
    x = inputs(3, 2, 12)
    np.testing.assert_array_equal(private.forward(x, 0)[0], lora.forward(x)[0])


def test_equal_rows_of_heads_are_poly():
    mhr, poly = make("mhr", n_splits=4), make("poly")
    for part in ("lora_A", "lora_B"):
        getattr(mhr.adapter.experts, part).data[...] = getattr(poly.adapter.experts, part).data
    mhr.adapter.router.logits.data[...] = poly.adapter.router.logits.data
    x, ids = inputs(3, 2, 12), [2, 0, 1]
    np.testing.assert_allclose(mhr.forward(x, ids)[0], poly.forward(x, ids)[0], rtol=1e-12)


def test_the_first_step_moves_only_b():
    layer = make("poly", init_weights=True)
    y, saved = layer.forward(inputs(3, 2, 12), [2, 0, 1])
    layer.backward(saved, y)
    grads = {name: np.abs(p.grad).max() for name, p in parameters(layer).items()}
    assert grads["adapter.router.logits"] == 0
    assert grads["adapter.experts.lora_A"] == 0
    assert grads["adapter.experts.lora_B"] > 0


def test_private_leaves_absent_tasks_without_gradient():
    layer = make("private")
    y, saved = layer.forward(inputs(2, 2, 12), [2, 0])
    layer.backward(saved, y)
    touched = np.abs(layer.adapter.experts.lora_B.grad).max((1, 2)) > 0
    assert touched.tolist() == [True, False, True]


def test_gradients_add_up_over_calls():
    layer, x = make("poly"), inputs(3, 2, 12)
    for _ in range(2):
        y, saved = layer.forward(x, [2, 0, 1])
        layer.backward(saved, np.ones_like(y))
    twice = {name: p.grad.copy() for name, p in parameters(layer).items()}
    once = make("poly")
    _, saved = once.forward(x, [2, 0, 1])
    once.backward(saved, np.ones_like(y))
    for name, p in parameters(once).items():
        np.testing.assert_allclose(twice[name], 2 * p.grad, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_every_layout_gives_the_same(method):
    layer, x, ids = make(method, dtype=np.float32), inputs(4, 6, 12, dtype=np.float32), [1, 0, 1, 2]
    y, saved = layer.forward(x, ids)
    dx = layer.backward(saved, y)
    transposed = np.asfortranarray(x)
    for shaped, ids_, options in (
        (x.reshape(24, 12), ids, {"cu_seqlens": [0, 6, 12, 18, 24]}),
        (x.reshape(4, 2, 3, 12), ids, {}),
        (x.reshape(24, 12), np.repeat(ids, 6), {}),  # 24 examples of one token
        (transposed, ids, {}),
        (np.repeat(x, 2, axis=2)[..., ::2], ids, {"attention_mask": np.ones((4, 6), bool)}),
    ):
        y_, saved = layer.forward(shaped, ids_, **options)
        assert y_.shape == (*shaped.shape[:-1], 8)
        np.testing.assert_allclose(y_.reshape(y.shape), y, rtol=2e-6, atol=1e-6)
        dx_ = layer.backward(saved, y_)
        assert dx_.shape == shaped.shape
        np.testing.assert_allclose(dx_.reshape(x.shape), dx, rtol=2e-5, atol=1e-5)


def test_masked_tokens_get_the_base_layer_and_change_nothing_else():
    layer, x, ids = make("mhr"), inputs(3, 5, 12), [0, 1, 2]
    mask = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]])
    dy = inputs(3, 5, 8, seed=4)
    y, saved = layer.forward(x, ids, attention_mask=mask)
    dx = layer.backward(saved, dy)
    whole, saved = layer.forward(x, ids)
    dwhole = layer.backward(saved, dy)
    w, inside = layer.linear.weight.unpack(), mask.astype(bool)
    np.testing.assert_allclose(y[inside], whole[inside], rtol=1e-12)
    np.testing.assert_allclose(dx[inside], dwhole[inside], rtol=1e-12)
    np.testing.assert_allclose(y[~inside], (x @ w.T + layer.linear.bias)[~inside], rtol=1e-12)
    np.testing.assert_allclose(dx[~inside], (dy @ w)[~inside], rtol=1e-12)
    other, x2 = np.where(inside[..., None], x, 1e3), layer.forward(x, ids, attention_mask=mask)[0]
    np.testing.assert_array_equal(layer.forward(other, ids, attention_mask=mask)[0][inside], x2[inside])


def test_noise_goes_by_example_and_step_not_by_place():
    layer, x = make("poly", lora_dropout=0.2).train(), inputs(3, 2, 12)
    y, _ = layer.forward(x, [0, 0, 1], example_ids=[7, 8, 9], step=4)
    back, _ = layer.forward(x[::-1], [1, 0, 0], example_ids=[9, 8, 7], step=4)
    np.testing.assert_array_equal(back[::-1], y)
    assert not np.allclose(layer.forward(x, [0, 0, 1], example_ids=[7, 8, 9], step=5)[0], y)
    layer.eval()
    np.testing.assert_array_equal(*(layer.forward(x, [0, 0, 1], step=step)[0] for step in (4, 5)))


def test_steps_are_counted_in_training():
    layer, x = make("poly").train(), inputs(2, 2, 12)
    first, second = (layer.forward(x, 1)[0] for _ in range(2))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(layer.forward(x, 1, step=0)[0], first)
    np.testing.assert_array_equal(layer.forward(x, 1, step=1)[0], second)


def test_noise_per_task_is_one_draw_for_a_task():
    layer, x = make("poly", noise="per_task").train(), np.broadcast_to(inputs(1, 2, 12), (3, 2, 12))
    y, _ = layer.forward(x, [1, 0, 1], step=0)
    np.testing.assert_array_equal(y[0], y[2])
    assert not np.allclose(y[0], y[1])


def test_dropout_keeps_the_mean_and_drops_whole_entries():
    layer = make("lora", D=64, lora_dropout=0.25, dtype=np.float32).train()
    batch = Batch(np.array([0, 300, 300, 1000]), seed=1)
    mask = layer.adapter._mask(np.zeros((1000, 64), np.float32), batch)
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(mask.mean() - 1) < 0.01
    assert mask.dtype == np.float32


@pytest.mark.parametrize(
    ("init", "n_splits", "bound"), [("peft", 1, 64**-0.5), ("peft", 4, 16**-0.5), ("mttl", 4, 192**-0.5)]
)
def test_initial_values_have_their_bounds(init, n_splits, bound):
    layer = make("mhr", D=64, O=64, n_splits=n_splits, init=init, init_weights=True, n_skills=16)
    A, logits = layer.adapter.experts.lora_A.data, layer.adapter.router.logits.data
    assert not layer.adapter.experts.lora_B.data.any()
    assert 0.99 * bound < np.abs(A).max() <= bound
    np.testing.assert_allclose(A.std(), bound / 3**0.5, rtol=0.05)
    assert 0.9e-3 < np.abs(logits).max() <= 1e-3


def test_initial_values_depend_on_seed_and_name_alone():
    def start(**given):
        return adapt_linear(
            np.eye(8), None, **({"method": "poly", "n_tasks": 2} | given)
        ).adapter.experts.lora_A.data

    np.testing.assert_array_equal(start(), start(n_tasks=5, n_splits=1, noise="off"))
    assert not np.array_equal(start(), start(seed=1))
    assert not np.array_equal(start(), start(name="other"))
    with pytest.raises(ValueError, match=r"seed: expected 0 <= seed < 2\*\*64, got -1"):
        start(seed=-1)


def test_an_empty_batch_gives_nothing():
    for method in METHODS:
        layer = make(method)
        y, saved = layer.forward(np.zeros((0, 3, 12)), np.zeros(0, np.int64))
        assert y.shape == (0, 3, 8)
        assert layer.backward(saved, y).shape == (0, 3, 12)


X = np.zeros((2, 3, 12))


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (
            (X,),
            {},
            ValueError,
            r"task_ids: expected one of \['task_0', 'task_1', 'task_2'\] per example, got None",
        ),
        ((X, [0, -1]), {}, IndexError, r"task_ids: .*0 = task_0, 1 = task_1, 2 = task_2\), got -1"),
        ((X, [0, 3]), {}, IndexError, "got 3"),
        ((X, [0, 1, 2]), {}, ValueError, r"task_ids: expected shape \(2,\), got \(3,\)"),
        ((X, [0.0, 1.0]), {}, TypeError, "task_ids: expected integers or task names"),
        ((X, ["task_0", "task_9"]), {}, KeyError, "expected one of .*, got 'task_9'"),
        ((X.astype(np.float32), 0), {}, TypeError, "x: expected dtype float64, got float32"),
        ((X.astype(int), 0), {}, TypeError, "x: expected dtype float64, got int64"),
        ((X[..., :5], 0), {}, ValueError, r"x: expected shape \(B, ..., 12\), got \(2, 3, 5\)"),
        ((X[0, 0], 0), {}, ValueError, r"x: expected shape \(B, ..., 12\), got \(12,\)"),
        ((X, 0), {"cu_seqlens": [0, 3, 6]}, ValueError, "cu_seqlens: expected x .N, D."),
        ((X[0], 0), {"cu_seqlens": [0.0, 3.0]}, ValueError, "cu_seqlens: expected B . 1 integers"),
        ((X[0], 0), {"cu_seqlens": [0, 4]}, ValueError, "cu_seqlens"),
        ((X[0], 0), {"cu_seqlens": [0, 2, 1, 3]}, ValueError, "cu_seqlens"),
        ((X, 0), {"attention_mask": np.ones((2, 2))}, ValueError, r"attention_mask: expected shape \(2, 3\)"),
        (
            (X, 0),
            {"attention_mask": np.full((2, 3), 0.5)},
            ValueError,
            "attention_mask: expected zeros and ones",
        ),
        ((X, 0), {"example_ids": [1]}, ValueError, r"example_ids: expected shape \(2,\), got \(1,\)"),
    ],
)
def test_bad_input_is_refused(args, options, error, message):
    with pytest.raises(error, match=message):
        make("poly").forward(*args, **options)


def test_backward_refuses_another_shape_and_a_second_use():
    layer = make("poly")
    y, saved = layer.forward(X, 0)
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 3, 8\), got \(2, 3\)"):
        layer.backward(saved, y[..., 0])
    layer.backward(saved, y)
    with pytest.raises(RuntimeError, match="saved: expected a forward that was not gone back through"):
        layer.backward(saved, y)


def test_sizes_that_do_not_fit_name_the_module():
    with pytest.raises(ValueError, match="n_splits: expected a divisor of in_features 6 of linear, got 4"):
        adapt_linear(np.zeros((8, 6)), None, "mhr", n_tasks=2)
    with pytest.raises(ValueError, match="n_splits: expected a divisor of out_features 6 of q, got 4"):
        adapt_linear(np.zeros((6, 8)), None, "mhr", n_tasks=2, name="q")
    with pytest.raises(ValueError, match=r"tasks: expected at least one \(poly goes by task\), got none"):
        adapt_linear(np.eye(4))
    with pytest.raises(TypeError, match="n_tasks: expected names or a number of tasks, got both"):
        adapt_linear(np.eye(4), tasks=["a"], n_tasks=2)


def test_inputs_are_not_changed():
    layer, x, dy = make("mhr").train(), inputs(2, 3, 12), inputs(2, 3, 8)
    before = x.copy(), dy.copy(), layer.linear.weight.unpack()
    layer.backward(layer.forward(x, [0, 1], attention_mask=[[1, 1, 0], [1, 1, 1]])[1], dy)
    for was, now in zip(before, (x, dy, layer.linear.weight.unpack()), strict=True):
        np.testing.assert_array_equal(now, was)


def test_repr_shows_parts_and_sizes():
    assert repr(make("mhr")) == (
        "AdaptedLinear(\n"
        "  (linear): Linear(in_features=12, out_features=8, bias=True)\n"
        "  (adapter): AdapterLayer(\n"
        "    (router): TaskTable(3 tasks, 4 heads, 4 skills, noise=per_example)\n"
        "    (experts): LoraExperts(4 x rank 2, 12 -> 8, scale=0.5)\n"
        "  )\n"
        ")"
    )
    assert isinstance(make("lora"), AdaptedLinear)
