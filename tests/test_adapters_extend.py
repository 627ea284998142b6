"""One more task for an adapter: what is new, what is trained, and that nothing else changes a bit."""

import numpy as np
import pytest
from tiny_bert import write_bert

from polymoe import load_adapter
from polymoe.adapters import METHODS, adapt
from polymoe.adapters.extend import add_task
from polymoe.batch import Batch
from polymoe.models import load_base
from polymoe.parameters import FlatParameters

TASKS = ("a", "b", "c")
OFFSETS, TOKENS = np.array([0, 3, 4, 9]), np.arange(9) + 5
ROUTERS = ("task_table", "one_hot", "common_specific")
BY_TASK = [name for name, row in METHODS.items() if row.preset["router"] in ROUTERS]
VARIANTS = [(name, {}) for name in BY_TASK] + [
    ("c-poly", {"specific": "diagonal"}),
    ("c-poly", {"specific": "fixed", "n_specific": 2}),
    ("c-poly", {"mixing": "factors", "n_splits": 2}),
    ("poly", {"router_granularity": "block"}),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(write_bert(tmp_path_factory.mktemp("bert") / "tiny", pooling="mean_tokens"))


def make(base, method="poly", **options):
    """An adapted model as training might leave it: no parameter has its first value."""
    zero = {} if METHODS[method].preset.get("experts", "lora") != "lora" else {"init_weights": False}
    settings = {"r": 2, "target_modules": "all-linear"} | zero | options
    model = adapt(base, method, TASKS, **settings)
    rng = np.random.default_rng(0)
    for _, p in model.adapter_parameters():
        p.data += 0.1 * rng.normal(size=p.shape).astype(np.float32)
    return model


def batch(*task_ids):
    return Batch(OFFSETS, TOKENS, task_ids=np.array(task_ids))


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_old_tasks_keep_every_bit_when_the_new_ones_row_is_trained(base, method, options):
    model = make(base, method, **options)
    before = model(batch(0, 2, 1))
    start = {name: p.data.copy() for name, p in model.adapter_parameters()}
    model.add_task("d")
    assert model.tasks.names == (*TASKS, "d")
    trained = [p for _, p in model.adapter_parameters() if p.n_trainable]
    assert trained
    assert np.isfinite(model(batch(3, 3, 3))).all()
    for p in trained:  # whatever training does to them
        for first, end, trainable in p.pieces():
            if trainable:
                p.data[first:end] = 3
    np.testing.assert_array_equal(model(batch(0, 2, 1)), before)
    for name, p in model.adapter_parameters():
        corner = tuple(slice(n) for n in start[name].shape)
        np.testing.assert_array_equal(p.data[corner], start[name])


def trained_rows(model):
    """By the last words of the names, rows that are trained in the first layer."""
    first = next(iter(model.adapter.layers))
    return {
        name.removeprefix(f"{first}."): [(a, b) for a, b, trainable in p.pieces() if trainable]
        for name, p in model.adapter_parameters()
        if name.startswith(f"{first}.")
    }


@pytest.mark.parametrize(
    ("method", "tune", "expected"),
    [
        ("poly", "router", {"router.logits": [(3, 4)], "experts.lora_A": [], "experts.lora_B": []}),
        ("poly", "all", {"router.logits": [(3, 4)], "experts.lora_A": [(0, 4)], "experts.lora_B": [(0, 4)]}),
        ("poly", "head", {"router.logits": [], "experts.lora_A": [], "experts.lora_B": []}),
        ("poly", "mu", {"experts.lora_A": [(0, 4)], "experts.lora_B": [(0, 4)]}),
        ("private", "router", {"experts.lora_A": [(3, 4)], "experts.lora_B": [(3, 4)]}),
        ("private", "all", {"experts.lora_A": [(3, 4)], "experts.lora_B": [(3, 4)]}),
        (
            "c-poly",  # three common pairs, then one of each task's own
            "all",
            {
                "router.specific": [(3, 4)],
                "router.common.logits": [(3, 4)],
                "experts.lora_A": [(0, 3), (6, 7)],
                "experts.lora_B": [(0, 3), (6, 7)],
            },
        ),
        ("c-poly", "mu", {"experts.lora_A": [(0, 3)], "experts.lora_B": [(0, 3)]}),
        ("smear", "mu", {"experts.lora_A": [(0, 8)], "experts.lora_B": [(0, 8)]}),
        (
            "molora",
            "all",
            {"router.weight": [(0, 10)], "experts.lora_A": [(0, 10)], "experts.lora_B": [(0, 10)]},
        ),
    ],
)  # fmt: skip
def test_what_is_trained_is_read_off_the_shapes(base, method, tune, expected):
    model = make(base, method)
    model.add_task("d", tune)
    assert trained_rows(model) == expected


def test_rows_that_are_trained_are_segments_of_their_own(base):
    model = make(base, "c-poly")
    model.add_task("d", "all")
    flat = FlatParameters(model.adapter_parameters())
    name = "encoder.layer.0.attention.self.query.experts.lora_A"
    p = flat.parameters[name]
    pieces = [s for s in flat.segments if s.name.startswith(name)]
    rows = [("[0:3]", 3, True), ("[3:6]", 3, False), ("[6:7]", 1, True)]
    assert [(s.name.removeprefix(name), s.shape[0], s.trainable) for s in pieces] == rows
    np.testing.assert_array_equal(np.concatenate([flat.view(flat.data, s) for s in pieces]), p.data)
    assert sum(s.length for s in flat.segments if s.trainable) == model.get_nb_trainable_parameters()[0]
    assert p.data.base is not None
    assert len(flat) == sum(q.data.size for q in flat.parameters.values())


def test_a_new_row_starts_as_all_rows_do(base):
    model = make(base)
    model.add_task("d")
    rows = [p.data[3] for name, p in model.adapter_parameters() if name.endswith("logits")]
    assert all(0 < np.abs(row).max() <= 1e-3 for row in rows)
    assert len({row.tobytes() for row in rows}) == len(rows)


@pytest.mark.parametrize("gate", ["sigmoid", "straight_through", "softmax"])
def test_where_only_the_head_is_trained_the_new_task_weighs_all_skills_alike(base, gate):
    model = make(base, gate=gate, noise="off")
    model.add_task("d", "head")
    mean = make(base, "mhr-mu")
    for (_, p), (_, q) in zip(
        [item for item in model.adapter_parameters() if "experts" in item[0]],
        mean.adapter_parameters(),
        strict=True,
    ):
        q.data[...] = p.data
    np.testing.assert_allclose(model(batch(3, 3, 3)), mean(batch(0, 0, 0)), rtol=1e-5, atol=1e-5)


def test_a_frozen_adapter_makes_no_noise(base):
    model = make(base)
    model.add_task("d", "head")
    quiet = model(batch(3, 0, 1))
    np.testing.assert_array_equal(model.train()(batch(3, 0, 1)), quiet)
    assert not model.adapter.training


def test_mu_starts_as_the_mean_of_the_skills_for_every_task(base):
    model = make(base, "mhr", n_splits=2)
    skills = {name: p.data.copy() for name, p in model.adapter_parameters() if "experts" in name}
    model.add_task("d", "mu")
    assert (model.config.method, model.config.router) == ("mhr-mu", "uniform")
    assert {name: p.data.tobytes() for name, p in model.adapter_parameters()} == {
        name: data.tobytes() for name, data in skills.items()
    }
    np.testing.assert_array_equal(model(batch(0, 1, 2)), model(batch(3, 3, 3)))


@pytest.mark.parametrize("method", ["tensorpoly-i", "tensorpoly-ii", "smear", "orchmoe", "mola"])
def test_mu_takes_skills_of_any_router(base, method):
    model = make(base, method)
    model.add_task("d", "mu")
    assert np.isfinite(model(batch(0, 1, 3))).all()


def test_an_extended_adapter_is_saved_in_pefts_layout(base, tmp_path):
    model = make(base, "mhr", n_splits=2)
    model.add_task("d")
    model.save_adapter(tmp_path)
    again = load_adapter(base, tmp_path)
    assert again.tasks.names == (*TASKS, "d")
    np.testing.assert_array_equal(again(batch(3, 0, 2)), model(batch(3, 0, 2)))


@pytest.mark.parametrize(
    ("method", "options", "arguments", "message"),
    [
        ("poly", {}, ("a",), r"task: expected a name besides \['a', 'b', 'c'\], got 'a'"),
        ("poly", {}, ("d", "row"), "tune: expected one of .*, got 'row'"),
        ("lora", {}, ("d", "router"), "tune: expected 'all', 'mu' or 'head' .*does not go by task"),
        ("private", {}, ("d", "mu"), "tune: .*tasks share no skills.* got 'mu'"),
        ("hydralora", {}, ("d", "mu"), "router: expected 'token_softmax' .* got 'uniform'"),
        ("poly", {"router": "given", "n_skills": 2, "task_skills": ("10", "01", "11")}, ("d",),
         "task_skills: expected a word for each of 4 tasks"),
        ("alter", {"task_types": ("x", "y", "x"), "target_modules": None, "r": 8}, ("d",),
         "task_types: expected a type for each of 4 tasks"),
    ],
)  # fmt: skip
def test_what_cannot_be_extended_is_refused_and_unchanged(base, method, options, arguments, message):
    model = make(base, method, **options)
    before = model.adapter
    with pytest.raises(ValueError, match=message):
        add_task(base, before, *arguments)
    with pytest.raises(ValueError, match=message):
        model.add_task(*arguments)
    assert model.adapter is before
    assert model.tasks.names == TASKS
