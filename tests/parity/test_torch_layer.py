"""Layers of torch with adapters: every method against our own layer, Poly against PEFT's, what is refused."""

import copy
import re

import numpy as np
import pytest

import polymoe
from polymoe.adapters import METHODS

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
bridge = pytest.importorskip("polymoe.interop.torch")

D, O, B, L = 24, 16, 4, 5
TASKS, IDS = ["a", "b", "c"], [2, 0, 2, 1]
LINEAR = [name for name, row in METHODS.items() if row.preset.get("site", "linear") == "linear"]
OPTIONS = {"arrow": {"n_skills": 3}, "lorahub": {"n_skills": 3}}


def one_layer(method, seed=0, **options):
    """A model of one linear layer, called "0", with the adapter; values of ours that start as 0 are drawn."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(D, O))
    options = {"target_modules": ["0"], **OPTIONS.get(method, {}), **options}
    bridge.inject(model, method, TASKS, **options)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for p in model[0].parameters():
            if p is not model[0].weight and p is not model[0].bias:
                p += torch.from_numpy(rng.normal(size=p.shape).astype(np.float32)) * 0.3
    return model.eval()


def own_layer(model):
    """The same layer and adapter without torch."""
    adapter, layer = bridge.get_adapter(model), model[0]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    own = polymoe.adapt_linear(weight, bias, adapter.config, adapter.tasks.names, name="0")
    theirs = dict(adapter.layers["0"].named_parameters())
    for name, parameter in own.adapter.named_parameters():
        parameter.data[...] = theirs[name].data
    return own


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("method", LINEAR)
def test_every_method_computes_what_our_layer_does(method, training):
    """Outputs and all gradients, noise and auxiliary losses included."""
    model = one_layer(method).train(training)
    own = own_layer(model)
    rng = np.random.default_rng(1)
    x, dy = (rng.normal(size=(B, L, n)).astype(np.float32) for n in (D, O))
    learns = any(p.requires_grad for p in model.parameters())
    own.train(training and learns)
    expected, saved = own.forward(x, IDS, step=1)
    given = torch.tensor(x, requires_grad=True)
    y = model(given, task_ids=IDS)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=0, atol=1e-6)
    loss = (y * torch.tensor(dy)).sum() + bridge.auxiliary_loss(model)
    loss.backward()
    dx = own.backward(saved, dy)
    np.testing.assert_allclose(given.grad.numpy(), dx, rtol=0, atol=1e-5)
    got = {name: p.grad for name, p in model[0].named_parameters()}
    for name, parameter in own.adapter.named_parameters():
        if parameter.trainable:
            np.testing.assert_allclose(got[name].numpy(), parameter.grad, rtol=0, atol=1e-5, err_msg=name)
        else:
            assert got[name] is None


def pefts_layer(splits, **sizes):
    from peft.tuners.poly.layer import Linear

    torch.manual_seed(1)
    linear = torch.nn.Linear(D, O)
    config = peft.PolyConfig(
        r=3, n_skills=3, n_splits=splits, n_tasks=3, init_weights=False, target_modules=["0"], **sizes
    )
    theirs = Linear(linear, "default", config)
    linear.requires_grad_(False)
    theirs.poly_router.eval()
    torch.nn.init.normal_(theirs.poly_router["default"].module_logits)
    return linear, theirs


def in_place_of(linear, theirs, splits):
    """Our layer with the values of PEFT's."""
    model = torch.nn.Sequential(copy.deepcopy(linear))
    sizes = {"r": 3, "n_skills": 3, "n_splits": splits}
    bridge.inject(model, "mhr", TASKS, ["0"], noise="off", **sizes)
    ours = model[0]
    A, B_ = theirs.poly_lora_A["default"], theirs.poly_lora_B["default"]
    with torch.no_grad():
        ours.experts.lora_A.copy_(A.permute(1, 3, 0, 2).reshape(3, 3, D))
        ours.experts.lora_B.copy_(B_.permute(1, 2, 0, 3).reshape(3, 3, O))
        ours.router.logits.copy_(theirs.poly_router["default"].module_logits.reshape(3, splits, 3))
    return model


@pytest.mark.parametrize("splits", [1, 4])
def test_outputs_and_gradients_are_those_of_pefts_poly_layer(splits):
    linear, theirs = pefts_layer(splits)
    model = in_place_of(linear, theirs, splits)
    x, dy = torch.randn(B, L, D), torch.randn(B, L, O)
    mine, his = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = model(mine, task_ids=torch.tensor(IDS)), theirs(his, task_ids=torch.tensor(IDS))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    y.backward(dy)
    expected.backward(dy)
    A, B_ = (p["default"].grad for p in (theirs.poly_lora_A, theirs.poly_lora_B))
    pairs = {
        "x": (mine.grad, his.grad),
        "A": (model[0].experts.lora_A.grad, A.permute(1, 3, 0, 2).reshape(3, 3, D)),
        "B": (model[0].experts.lora_B.grad, B_.permute(1, 2, 0, 3).reshape(3, 3, O)),
        "logits": (
            model[0].router.logits.grad.reshape(3, -1),
            theirs.poly_router["default"].module_logits.grad,
        ),
    }
    for name, (got, want) in pairs.items():
        scale = want.abs().max()
        torch.testing.assert_close(got / scale, want / scale, rtol=0, atol=1e-5, msg=name)


def test_gradients_are_right_by_differences():
    """Along a random direction, of x and of all parameters together."""
    model = one_layer("poly", noise="off")
    x, dy = torch.randn(B, L, D, requires_grad=True), torch.randn(B, L, O)
    inputs = [x, *(p for p in model.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(model(x, task_ids=IDS), inputs, dy)
    directions = [torch.randn_like(t) for t in inputs]
    slope = sum((g * v).sum().item() for g, v in zip(grads, directions, strict=True))
    values = []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            for t, v in zip(inputs, directions, strict=True):
                t += step * v
            values.append((model(x, task_ids=IDS).double() * dy).sum().item())
            for t, v in zip(inputs, directions, strict=True):
                t -= step * v
    assert abs((values[0] - values[1]) / 2e-2 - slope) < 2e-3 * abs(slope) + 1e-2


@pytest.mark.parametrize("shape", [(B,), (B, L), (B, 2, 3), (B, 0)], ids=str)
def test_activations_have_any_number_of_extents(shape):
    """PEFT's layer takes three alone."""
    model = one_layer("poly")
    x = torch.randn(*shape, D)
    y = model(x, task_ids=IDS)
    assert y.shape == (*shape, O)
    rows = [model(x[b : b + 1], task_ids=IDS[b]) for b in range(B)]
    torch.testing.assert_close(y, torch.cat(rows), rtol=0, atol=1e-6)


def test_activations_in_another_order_of_memory():
    model = one_layer("poly")
    x = torch.randn(D, B, L).permute(1, 2, 0).requires_grad_()
    y = model(x, task_ids=IDS)
    torch.testing.assert_close(y, model(x.detach().contiguous(), task_ids=IDS))
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32_and_returned_as_it_came(dtype):
    model = one_layer("poly")
    x = torch.randn(B, L, D).to(dtype).requires_grad_()
    y = model(x, task_ids=IDS)
    assert y.dtype == dtype
    torch.testing.assert_close(y, model(x.detach().float(), task_ids=IDS).to(dtype))
    y.float().sum().backward()
    assert x.grad.dtype == dtype
    assert model[0].experts.lora_A.grad.dtype == torch.float32


def test_a_model_in_bfloat16_keeps_its_weights():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(D, O)).to(torch.bfloat16)
    x = torch.randn(B, L, D)
    expected = torch.nn.functional.linear(x, model[0].weight.float(), model[0].bias.float())
    bridge.inject(model, "poly", TASKS, ["0"])
    torch.testing.assert_close(model(x, task_ids=IDS), expected)
    assert model(x.bfloat16(), task_ids=IDS).dtype == torch.bfloat16


def test_autocast():
    model = one_layer("poly")
    x = torch.randn(B, L, D)
    with torch.autocast("cpu", torch.bfloat16):
        y, z = model(x, task_ids=IDS), model(x.bfloat16(), task_ids=IDS)
        (y.sum() + z.sum()).backward()
    assert (y.dtype, z.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(y, model(x, task_ids=IDS))


def test_parameters_share_memory_and_gradients_accumulate():
    model = one_layer("poly", noise="off")
    x = torch.randn(B, L, D)
    adapter = bridge.get_adapter(model).layers["0"]
    assert np.shares_memory(adapter.experts.lora_A.data, model[0].experts.lora_A.detach().numpy())
    for _ in range(2):
        model(x, task_ids=IDS).sum().backward()
    twice = model[0].experts.lora_A.grad.clone()
    model.zero_grad()
    model(x, task_ids=IDS).sum().backward()
    torch.testing.assert_close(2 * model[0].experts.lora_A.grad, twice)
    assert adapter.experts.lora_A.grad is None


def test_graph_can_be_kept_and_is_gone_otherwise():
    model = one_layer("poly", noise="off")
    y = model(torch.randn(B, L, D), task_ids=IDS).sum()
    y.backward(retain_graph=True)
    first = model[0].experts.lora_A.grad.clone()
    y.backward()
    torch.testing.assert_close(model[0].experts.lora_A.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_what_was_written_to_since_the_forward_is_noticed():
    model = one_layer("poly", noise="off")
    x = torch.randn(B, L, D)
    y = model(x, task_ids=IDS).sum()
    with torch.no_grad():
        model[0].experts.lora_B += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_base_weight_that_changes_is_packed_again():
    model = one_layer("poly")
    x = torch.randn(B, L, D)
    before = model(x, task_ids=IDS)
    with torch.no_grad():
        model[0].weight *= 2
    bias = model[0].bias
    with bridge.disable_adapter(model):
        term = before - (model(x) - bias) / 2 - bias
        base = model(x)
    torch.testing.assert_close(model(x, task_ids=IDS), base + term, rtol=0, atol=1e-5)


def test_released_weights_come_back_bit_for_bit():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(D, O))
    state, x = copy.deepcopy(model.state_dict()), torch.randn(B, L, D)
    weight = model[0].weight
    bridge.inject(model, "poly", TASKS, ["0"], release_base=True)
    assert model[0].weight is None
    assert "0.weight" not in model.state_dict()
    with bridge.disable_adapter(model):
        torch.testing.assert_close(model(x), torch.nn.functional.linear(x, weight, model[0].bias))
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(x, task_ids=IDS), model(x, task_ids=IDS))
    for m in (copied, model):
        bridge.eject(m)
        assert all(torch.equal(v, m.state_dict()[k]) for k, v in state.items())
        assert all(p.requires_grad for p in m.parameters())


def test_weights_packed_in_bfloat16_round_as_the_cast_does():
    """Of a model in bfloat16 no bit is lost, so that it can be released and restored."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(D, O)).eval()
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    x = torch.randn(B, L, D)
    weight = rounded[0].weight.detach().clone()
    expected = x.bfloat16().float() @ weight.float().T  # x is rounded where the CPU multiplies pairs of them
    bridge.inject(model, "poly", TASKS, ["0"], dtype="bfloat16", init_weights=False)
    bridge.inject(rounded, "poly", TASKS, ["0"], dtype="bfloat16", init_weights=False, release_base=True)
    assert model[0].frozen.weight.nbytes == D * O * 2
    with bridge.disable_adapter(rounded):
        y = rounded(x) - rounded[0].bias.float()
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    model[0].bias.data = rounded[0].bias.data.float()
    torch.testing.assert_close(model(x, task_ids=IDS), rounded(x, task_ids=IDS))
    assert torch.equal(bridge.eject(rounded)[0].weight, weight)
    with pytest.raises(ValueError, match="release_base: expected False"):
        bridge.inject(bridge.eject(model), "poly", TASKS, ["0"], dtype="bfloat16", release_base=True)
    with pytest.raises(ValueError, match="dtype: expected one of"):
        bridge.inject(model, "poly", TASKS, ["0"], dtype="int8")


def test_ejecting_gives_the_model_back():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Linear(D, O)).eval()
    model[0].bias.requires_grad_(False)
    modules, keys, forward = list(model), list(model.state_dict()), model.forward
    bridge.inject(model, "poly", TASKS, ["0", "1"])
    assert type(model[0]) is bridge.InjectedLinear
    trained = [
        f"{i}.{name}" for i in (0, 1) for name in ("router.logits", "experts.lora_A", "experts.lora_B")
    ]
    assert sorted(n for n, p in model.named_parameters() if p.requires_grad) == sorted(trained)
    assert bridge.eject(model) is model
    assert list(model) == modules
    assert list(model.state_dict()) == keys
    assert model.forward == forward
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    with pytest.raises(ValueError, match="model: expected one with an adapter"):
        bridge.eject(model)


def test_state_dict_round_trip_and_copies():
    model, other = one_layer("mhr"), one_layer("mhr", seed=5)
    x = torch.randn(B, L, D)
    expected = model(x, task_ids=IDS)
    copied = copy.deepcopy(model)
    for assign in (False, True):
        other.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
        torch.testing.assert_close(other(x, task_ids=IDS), expected)
    with torch.no_grad():
        model[0].experts.lora_B.zero_()
    torch.testing.assert_close(copied(x, task_ids=IDS), expected)  # shares nothing
    copied(x, task_ids=IDS).sum().backward()
    assert copied[0].experts.lora_A.grad is not None
    assert model[0].experts.lora_A.grad is None


def test_task_ids_by_name_by_number_for_all_and_in_blocks():
    model = one_layer("poly")
    x = torch.randn(B, L, D)
    expected = model(x, task_ids=IDS)
    for ids in (torch.tensor(IDS), np.array(IDS), [TASKS[i] for i in IDS], tuple(IDS)):
        torch.testing.assert_close(model(x, task_ids=ids), expected)
    with bridge.task_ids(model, IDS):
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(model[0](x), expected)
        with bridge.disable_adapter(model):
            base = model(x)
        torch.testing.assert_close(model(x, task_ids="b")[3], expected[3])
    assert (base - expected).abs().max() > 0.1
    torch.testing.assert_close(model(x, task_ids=1)[3], expected[3])
    with pytest.raises(ValueError, match="task_ids: expected one of"):
        model(x)


def test_methods_without_tasks_need_no_ids():
    model = one_layer("molora")
    x = torch.randn(B, L, D)
    torch.testing.assert_close(model(x), model(x, task_ids=IDS))
    torch.testing.assert_close(model[0](x[0, 0]), model(x)[0, 0])


def test_masked_tokens_change_nothing():
    """They enter no pooling and no count; the base alone answers for them."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(D, O)

        def forward(self, x, attention_mask=None):
            return self.linear(x)

    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    for method in ("smear", "orchmoe", "mola"):
        torch.manual_seed(0)
        model = bridge.inject(
            Model(), method, TASKS, ["linear"], init_weights=False, **OPTIONS.get(method, {})
        )
        torch.nn.init.normal_(model.linear.router.weight)
        model.train(method == "mola")
        x = torch.randn(B, L, D)
        others = torch.where(mask[..., None].bool(), x, torch.randn(B, L, D))
        results = []
        for given in (x, others):
            model.zero_grad()
            y = model(given, attention_mask=mask)
            aux = bridge.auxiliary_loss(model)
            ((y * mask[..., None]).sum() + aux).backward()
            grads = [p.grad.clone() for p in model.parameters() if p.requires_grad]
            results.append([y[mask.bool()], aux, *grads])
            masked = ~mask.bool()
            base = torch.nn.functional.linear(given, model.linear.weight, model.linear.bias)
            torch.testing.assert_close(y[masked], base[masked])
            assert (y - base)[mask.bool()].abs().max() > 0.01
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=method)


def tuned(**options):
    return lambda: one_layer("poly", **options)


def call(change, **given):
    def attempt():
        model = one_layer("poly")
        x, ids = change(model)
        return model(x, task_ids=ids, **given)

    return attempt


def model_of(change):
    def attempt():
        model = torch.nn.Sequential(torch.nn.Linear(D, O), torch.nn.ReLU())
        return bridge.inject(change(model) or model, "poly", TASKS, ["0"])

    return attempt


X = torch.zeros(B, L, D)
REFUSED = {
    "unknown name": (call(lambda m: (X, ["a", "b", "x", "c"])), KeyError, "task: expected one of"),
    "negative id": (call(lambda m: (X, [0, 1, -1, 0])), IndexError, "task_ids: expected ids of known tasks"),
    "large id": (call(lambda m: (X, [0, 1, 3, 0])), IndexError, "0 = a, 1 = b, 2 = c.*got 3"),
    "too few ids": (call(lambda m: (X, [0, 1])), ValueError, r"task_ids: expected shape \(4,\), got \(2,\)"),
    "no ids": (call(lambda m: (X, None)), ValueError, "task_ids: expected one of .* per example, got None"),
    "float ids": (call(lambda m: (X, torch.zeros(B))), TypeError, "task_ids: expected integers"),
    "float64 activations": (call(lambda m: (X.double(), IDS)), TypeError, "x: expected .*, got float64"),
    "another width": (call(lambda m: (X[..., :9], IDS)), ValueError, r"x: expected shape \(B, ..., 24\)"),
    "another device": (call(lambda m: (X.to("meta"), IDS)), ValueError, "x: expected a tensor on the CPU"),
    "trained bias": (
        call(lambda m: m[0].bias.requires_grad_() is None or (X, IDS)),
        ValueError,
        "0.bias: expected requires_grad False",
    ),
    "parameters in float64": (
        call(lambda m: m[0].experts.double() is None or (X, IDS)),
        TypeError,
        "lora_A: expected a float32 parameter on the CPU, got float64 on cpu",
    ),
    "float64 model": (model_of(lambda m: m.double()), TypeError, "0.weight: expected .*, got float64"),
    "model elsewhere": (
        model_of(lambda m: m.to("meta")),
        ValueError,
        "0.weight: expected a tensor on the CPU",
    ),
    "twice": (
        model_of(lambda m: bridge.inject(m, "poly", TASKS, ["0"])),
        ValueError,
        "model: expected one without an adapter",
    ),
    "no model": (model_of(lambda m: "bert"), TypeError, "model: expected a torch.nn.Module, got str"),
    "no module": (
        tuned(target_modules=["query"]),
        ValueError,
        "target_modules: .*match none; candidates:\n  0",
    ),
    "no targets": (tuned(target_modules=None), ValueError, "target_modules: expected names or a pattern"),
    "heads": (tuned(n_splits=7), ValueError, "n_splits: expected a divisor of in_features 24 of 0, got 7"),
    "unknown option": (tuned(skills=3), TypeError, "skills: expected a field of AdapterConfig"),
    "feed-forward": (
        lambda: bridge.inject(
            torch.nn.Sequential(torch.nn.Linear(D, O)), "alter", TASKS, task_types=["x"] * 3
        ),
        ValueError,
        "site: expected 'linear'",
    ),
    "not linear": (
        lambda: bridge.inject(torch.nn.Sequential(torch.nn.LayerNorm(D)), "poly", TASKS, ["0"]),
        ValueError,
        "target_modules: expected linear layers, got 0",
    ),
    "never called": (
        lambda: bridge.inject(torch.nn.MultiheadAttention(D, 2), "poly", TASKS, ["out_proj"]),
        ValueError,
        "target_modules: expected linear layers, got out_proj",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused(case):
    attempt, error, message = REFUSED[case]
    with pytest.raises(error, match=re.compile(message, re.S)):
        attempt()


def test_a_refused_injection_leaves_the_model_alone():
    model = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Linear(D, O).double())
    modules = list(model)
    with pytest.raises(TypeError, match=r"1\.weight"):
        bridge.inject(model, "poly", TASKS, ["0", "1"])
    assert list(model) == modules
    assert "forward" not in vars(model)
    assert all(p.requires_grad for p in model.parameters())


def test_two_rates_for_the_optimiser():
    model = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Linear(D, 2))
    bridge.inject(model, "poly", TASKS, ["0"])
    model[1].requires_grad_(True)
    groups = bridge.parameter_groups(model, learning_rate=2e-3)
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups if group["weight_decay"]}
    assert found == {"skills": (2e-3, 0.01), "heads": (1e-2, 0.01)}
    assert {g["name"]: g["lr"] for g in groups}["router"] == 0.1
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, trained)) == sorted(id(p) for g in groups for p in g["params"])
    torch.optim.AdamW(groups).step()
