"""Every row of the table of methods: gradients through a whole encoder, files, training from the command
line."""

import numpy as np
import pytest
from tiny_bert import tiny_config, tiny_state, write_bert

from polymoe import tape
from polymoe.adapters import METHODS, adapt, configure
from polymoe.adapters.experts import EXPERTS
from polymoe.adapters.inject import sites
from polymoe.adapters.layers import formula, n_parameters
from polymoe.adapters.low_rank import LowRankExperts
from polymoe.adapters.routers import ROUTERS
from polymoe.batch import Batch
from polymoe.interop.peft import load_adapter
from polymoe.models import load_base
from polymoe.models.bert import Bert, BertConfig

TASKS = ("a", "b", "c")
# Small, and nothing random left out: B starts random, so that everything has a gradient.
FIELDS = {"r": 2, "target_modules": ("query", "dense")}
TYPES = {"task_types": ("one", "other", "one")}
NEEDED = {name: TYPES if ROUTERS[row.preset["router"]].needs_types else {} for name, row in METHODS.items()}
FEED_FORWARD = {"site": "feed_forward", "mixing": "outputs"}
LOW_RANK = [name for name, kind in EXPERTS.items() if issubclass(kind, LowRankExperts)]  # take dropout
VECTORS = {"experts": "vector"}
VARIANTS = NEEDED | {
    "alter-stage-1 renormalized": TYPES | {"top_k": 2, "renormalize": True, "n_skills": 4},
    "alter lora": TYPES | {"experts": "feed_forward_lora"},
    "alter bottleneck": TYPES | {"experts": "bottleneck", "n_shared": 1},
    "alter orchmoe": {"router": "latent_tasks", "top_k": None, "gate": "sigmoid", "noise": "per_example"},
    "molora bottleneck": FEED_FORWARD
    | {"experts": "bottleneck", "top_k": 2, "n_skills": 3, "lora_alpha": None},
    "private feed-forwards": FEED_FORWARD | {"experts": "feed_forward_lora"},
    "smear feed-forwards": FEED_FORWARD | {"experts": "feed_forward", "n_skills": 3},
    "lora bottleneck": FEED_FORWARD | {"experts": "bottleneck"},
    "poly feed-forwards": FEED_FORWARD | {"experts": "feed_forward_lora", "noise": "per_task"},
    "c-poly factors": {"mixing": "factors", "n_splits": 2},
    "c-poly diagonal": {"specific": "diagonal", "n_specific": 2},
    "c-poly fixed": {"specific": "fixed"},
    "c-poly diagonal factors": {"specific": "diagonal", "n_specific": 2, "mixing": "factors"},
    "poly given": {"router": "given", "n_skills": 3, "task_skills": ("110", "001", "111")},
    "orchmoe mean": {"pooling": "mean", "noise": "per_example"},
    "orchmoe factors": {"mixing": "factors", "noise": "per_example"},
    "poly ibp": {"ibp_prior": 0.5, "noise": "per_task"},
    "mosld balanced": {"balance_loss": 2.0, "n_skills_pattern": {r"layer\.0\..*": 3}},
    "molora sparse": {"top_k": 3, "stop_router_gradient": False},
    "private outputs": {"mixing": "outputs"},
    "orchmoe tensors": {"experts": "tensor", "mixing": "factors", "init": "mttl"},
    "tensorpoly-i 8": {"order": 8},
    "tensorpoly-ii zero": {"order": 2, "zero_start": True},
    "poly outputs": {"mixing": "outputs"},
    "arrow": {"train_experts": True},
    "lorahub": {"train_experts": True},
    "lorahub outputs": {"train_experts": True, "mixing": "outputs", "router_granularity": "linear"},
    "arrow dense": {"train_experts": True, "top_k": None, "temperature": 0.5},
    "mov sparse": {"top_k": 2},
    "mhr vectors": VECTORS,
    "private vectors": VECTORS,
    "mhr-mu vectors": VECTORS,
    "smear vectors": VECTORS,
    "orchmoe vectors": VECTORS,
    "poly given vectors": VECTORS | {"router": "given", "n_skills": 2, "task_skills": ("10", "01", "11")},
    "c-poly vectors": VECTORS | {"specific": "diagonal"},
}


@pytest.fixture(scope="module")
def base64():
    config = BertConfig.from_dict(tiny_config())
    return Bert.from_state(config, tiny_state(tiny_config()), np.float64)


@pytest.fixture(scope="module")
def base32(tmp_path_factory):
    return load_base(write_bert(tmp_path_factory.mktemp("bert") / "tiny", pooling="mean_tokens"))


def make(base, variant, **fields):
    method = variant.split()[0]
    settings = METHODS[method].preset | VARIANTS[variant]
    random_B = {} if settings.get("experts") == "tensor" else {"init_weights": False}
    if settings.get("site") == "feed_forward":
        random_B["target_modules"] = ("feed_forward",)
    if settings.get("experts", "lora") not in LOW_RANK:
        fields.pop("lora_dropout", None)
    model = adapt(base, method, TASKS, **(FIELDS | random_B | VARIANTS[variant] | fields))
    for name, p in model.adapter_parameters():  # what is all alike or 0 hides what it is used for
        if name.endswith((".coefficients", "_weight")):
            p.data += np.random.default_rng(0).normal(size=p.shape).astype(p.data.dtype) * 0.1
    return model


def batch(step=3):
    ids = np.array([2, 0, 1, 0])
    return Batch(np.array([0, 3, 4, 9, 11]), np.arange(11) + 5, ids, np.arange(4) + 20, seed=5, step=step)


# The prior's gradient passes a threshold, and Arrow's routing is taken as it is: no derivatives of the whole.
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "poly ibp" and not v.startswith("arrow")])
def test_gradients_through_two_layers_are_the_derivatives(base64, variant):
    model = make(base64, variant, lora_dropout=0.2, seed=4).train()
    dy, rng = np.random.default_rng(1).normal(size=(4, 24)), np.random.default_rng(6)
    for _, p in model.adapter_parameters():  # away from the zeros of the start, behind which gradients are 0
        p.data += 0.05 * rng.normal(size=p.shape)

    def loss():
        with tape.Tape() as recorded:
            y = model.embed(batch())
        return recorded, y

    recorded, y = loss()
    recorded.backward(y, dy)
    groups = {}
    for name, p in model.adapter_parameters():
        if not p.trainable:
            assert p.grad is None, name
            continue
        groups.setdefault(name.split(".layer.")[1].split(".", 1)[1].split("dense.")[-1], []).append(p)
    for name, parameters in groups.items():
        rng, values, slope = np.random.default_rng(2), [], 0.0
        steps = [rng.normal(size=p.shape) for p in parameters]
        slope = sum(
            float((p.grad * v).sum()) for p, v in zip(parameters, steps, strict=True) if p.grad is not None
        )
        for h in (2e-6, -4e-6):
            for p, v in zip(parameters, steps, strict=True):
                p.data += h * v
            recorded, y = loss()
            values.append(float((tape.data_of(y) * dy).sum()) + recorded.auxiliary_loss())
        for p, v in zip(parameters, steps, strict=True):
            p.data += 2e-6 * v
        np.testing.assert_allclose(slope, (values[0] - values[1]) / 4e-6, rtol=2e-5, atol=1e-6, err_msg=name)
        assert abs(slope) > 1e-8, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_adapter_gives_the_same_bits_in_a_fresh_model(base32, variant, tmp_path):
    model = make(base32, variant, seed=4)
    for _, p in model.adapter_parameters():
        p.data += np.random.default_rng(3).normal(size=p.shape).astype(np.float32) * 0.1
    model.save_adapter(tmp_path)
    loaded = load_adapter(base32, tmp_path)
    assert loaded.config == model.config
    np.testing.assert_array_equal(*(tape.data_of(m.embed(batch())) for m in (model, loaded)))
    assert np.abs(tape.data_of(model.embed(batch())) - base32.embed(batch())).max() > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_without_weights(base32, variant):
    model = make(base32, variant)
    found = sites(base32, model.config, len(TASKS))
    assert [site.name for site in found] == list(model.adapter.layers)
    assert n_parameters(model.config, found) == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_examples_do_not_depend_on_their_batch(base32, variant):
    model, whole = make(base32, variant), batch()
    together = tape.data_of(model.embed(whole))
    for b, (start, end) in enumerate(zip(whole.cu_seqlens, whole.cu_seqlens[1:], strict=False)):
        one = Batch(np.array([0, end - start]), whole.token_ids[start:end], whole.task_ids[b : b + 1])
        np.testing.assert_allclose(tape.data_of(model.embed(one))[0], together[b], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputing_gives_the_same_gradients(base64, variant):
    grads = []
    for run in (lambda fn, *args: fn(*args), tape.checkpoint):
        model = make(base64, variant, seed=4).train()
        given = model.attach(batch())
        with tape.Tape() as recorded:
            x = tape.Node(np.asarray(model.base.embeddings(given)))
            for layer in model.base.encoder.layer:
                x = run(lambda x, layer=layer, given=given: layer(x, given), x)
        value = recorded.auxiliary_loss()
        recorded.backward(x, np.ones_like(x.data))
        grads.append((value, {name: p.grad for name, p in model.adapter_parameters()}))
    assert grads[0][0] == grads[1][0]
    for name, grad in grads[0][1].items():
        np.testing.assert_array_equal(grads[1][1][name], grad, err_msg=name)


def test_formulas_are_written_as_people_do():
    assert formula(configure("lora")) == "r (D + O)"
    assert formula(configure("private")) == "T r (D + O)"
    assert formula(configure("poly")) == "S r (D + O) + T S"
    assert formula(configure("mhr")) == "S r (D + O) + T Q S"
    assert formula(configure("c-poly")) == "(S + T n_B) r (D + O) + T S + T T n_B"
    assert formula(configure("tlora")) == "order r (m_D + m_O)"
    assert formula(configure("mosld")) == "r D + S r O + S D"
    assert formula(configure("tensorpoly-ii")) == "order S r (m_D + m_O) + T order S"
