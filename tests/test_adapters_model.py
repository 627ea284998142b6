"""Adapters in a whole base: add, switch, disable, remove; the base stays as it is."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_bert import write_bert
from tiny_llama import write_llama

from polymoe import tape
from polymoe.adapters import AdaptedModel, adapt
from polymoe.adapters.model import count_parameters
from polymoe.batch import Batch, TaskRegistry
from polymoe.models import load_base
from polymoe.parameters import FlatParameters

QUERY = "encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(write_bert(tmp_path_factory.mktemp("bert") / "tiny", pooling="mean_tokens"))


def make(base, method="poly", tasks=("a", "b", "c"), **options):
    """An adapted model that differs from its base."""
    return adapt(base, method, tasks, **({"r": 2, "init_weights": False} | options))


def batch(task_ids=(2, 0, 1), **fields):
    return Batch(
        np.array([0, 3, 4, 9]),
        np.arange(9) + 5,
        task_ids=None if task_ids is None else np.array(task_ids),
        **fields,
    )


def test_adapt_targets_query_and_value_by_default(base):
    model = make(base)
    names = [f"encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value")]
    assert list(model.adapter.layers) == names
    assert model.config.target_modules == ("query", "value")
    assert model.tasks == TaskRegistry(["a", "b", "c"])
    parts = ("router.logits", "experts.lora_A", "experts.lora_B")
    assert [n for n, _ in model.adapter_parameters()] == [f"{n}.{part}" for n in names for part in parts]
    assert {p.group for _, p in model.adapter_parameters()} == {"router", "skills"}


def test_all_linear_takes_every_linear_layer(base):
    model = make(base, "lora", target_modules="all-linear", n_skills=1)
    assert len(model.adapter.layers) == 2 * 6
    assert set(model.config.target_modules) == set(model.adapter.layers)


def test_ranks_and_scales_follow_their_patterns(base):
    model = make(base, "lora", rank_pattern={"value": 3}, alpha_pattern={r"layer\.1\..*": 4})
    found = {
        name: (layer.experts.lora_A.shape[1], layer.experts.scale)
        for name, layer in model.adapter.layers.items()
    }
    assert list(found.values()) == [(2, 4.0), (3, 8 / 3), (2, 2.0), (3, 4 / 3)]


def test_the_base_is_not_changed(base):
    before, fingerprint = base(batch(None)), base.fingerprint
    model = make(base)
    adapted = model(batch())
    assert np.abs(tape.data_of(adapted) - before).max() > 1e-3
    np.testing.assert_array_equal(base(batch(None)), before)
    del base.fingerprint  # computed once
    assert base.fingerprint == fingerprint


def test_a_fresh_adapter_starts_as_the_base(base):
    model = adapt(base, "mhr", ["a"], r=2).train()
    np.testing.assert_allclose(model(batch([0, 0, 0])), base(batch(None)), rtol=0, atol=2e-6)


def test_adapters_are_added_switched_and_removed(base):
    model = make(base, adapter_name="first")
    one = model(batch())
    model.add_adapter("second", "lora", r=3, init_weights=False)
    assert (model.adapter_names, model.active_adapter) == (["first", "second"], "first")
    np.testing.assert_array_equal(model(batch()), one)
    model.set_adapter("second")
    assert (model.config.method, model.tasks) == ("lora", TaskRegistry([]))
    assert not np.allclose(model(batch(None)), one)
    with pytest.raises(KeyError, match=r"adapter_name: expected one of \['first', 'second'\], got 'third'"):
        model.set_adapter("third")
    model.set_adapter("first")
    model.delete_adapter("second")
    np.testing.assert_array_equal(model(batch()), one)
    with pytest.raises(KeyError, match="got 'second'"):
        model.delete_adapter("second")
    with pytest.raises(ValueError, match=r"adapter_name: expected one besides \['first'\], got 'first'"):
        model.add_adapter("first")
    with pytest.raises(ValueError, match="adapter_name: expected a name without dots"):
        model.add_adapter("a.b")


def test_a_deleted_active_adapter_is_never_silently_the_base(base):
    model = make(base)
    model.delete_adapter("default")
    with pytest.raises(RuntimeError, match=r"adapter: expected an active one of \[\], got none"):
        model(batch())
    with model.disable_adapter():
        np.testing.assert_array_equal(model(batch(None)), base(batch(None)))
    model.add_adapter("again", "lora")
    assert model.active_adapter == "again"


def test_a_refused_adapter_leaves_the_model_as_it_was(base):
    model = make(base)
    with pytest.raises(ValueError, match="which match none"):
        model.add_adapter("other", "lora", target_modules=["nothing"])
    assert model.adapter_names == ["default"]


def test_disable_adapter_nests_and_survives_exceptions(base):
    model = make(base)
    adapted, plain = model(batch()), base(batch(None))

    def fail():
        with model.disable_adapter():
            raise ZeroDivisionError

    with model.disable_adapter():
        np.testing.assert_array_equal(model(batch(None)), plain)
        with model.disable_adapter():
            np.testing.assert_array_equal(model(batch()), plain)
        with pytest.raises(ZeroDivisionError):
            fail()
        np.testing.assert_array_equal(model(batch()), plain)
    np.testing.assert_array_equal(model(batch()), adapted)


def test_two_models_share_a_base(base):
    one, two = make(base, seed=1), make(base, seed=2)
    first = one(batch())
    assert not np.allclose(two(batch()), first)
    np.testing.assert_array_equal(one(batch()), first)


@pytest.mark.parametrize(
    ("task_ids", "error", "message"),
    [
        (None, ValueError, r"task_ids: expected one of \['a', 'b', 'c'\] per example, got None"),
        ([0, 1, -1], IndexError, r"\(0 = a, 1 = b, 2 = c\), got -1"),
        ([0, 1, 3], IndexError, "got 3"),
        ([0, 1], ValueError, r"task_ids: expected shape \(3,\), got \(2,\)"),
    ],
)
@pytest.mark.parametrize("method", ["poly", "private"])
def test_task_ids_are_checked(base, method, task_ids, error, message):
    with pytest.raises(error, match=message):
        make(base, method)(batch(task_ids))


def test_task_ids_are_checked_once_for_a_batch(base, monkeypatch):
    calls, check = [], TaskRegistry.check
    monkeypatch.setattr(TaskRegistry, "check", lambda self, *args: calls.append(0) or check(self, *args))
    make(base)(batch())
    assert len(calls) == 1


def test_lora_needs_no_task_but_refuses_a_wrong_one(base):
    model = make(base, "lora")
    np.testing.assert_array_equal(model(batch(None)), model(batch()))
    with pytest.raises(IndexError, match="got 7"):
        model(batch([0, 0, 7]))


def test_an_adapter_that_goes_by_task_needs_tasks(base):
    with pytest.raises(ValueError, match=r"tasks: expected at least one \(private goes by task\), got none"):
        adapt(base, "private")


def test_encode_takes_a_task_for_all_or_for_each(base):
    model, texts = make(base), ["the cat sees a dog", "a red house", "walking"]
    each = model.encode(texts, ["c", "a", "b"])
    assert each.shape == (3, base.hidden_size)
    np.testing.assert_allclose(model.encode(texts, "c")[0], each[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        model.encode(texts, [0, 0, 0], batch_tokens=8)[1], each[1], rtol=1e-5, atol=1e-6
    )
    with model.disable_adapter():
        np.testing.assert_array_equal(model.encode(texts), base.encode(texts))
    with pytest.raises(ValueError, match="task_ids: expected one of"):
        model.encode(texts)
    with pytest.raises(KeyError, match="got 'd'"):
        model.encode(texts, "d")


def test_gradients_reach_every_parameter_and_a_checkpoint_recomputes_the_same(base):
    model = make(base, "mhr", n_splits=4, noise="per_example").train()
    flat = FlatParameters(model.adapter_parameters())
    given = model.attach(batch(seed=3, step=5))

    def embed(x):
        for layer in base.encoder.layer:
            x = layer(x, given)
        return base.pool(x, given)

    grads = []
    for run in (embed, lambda x: tape.checkpoint(embed, x)):
        flat.zero_grad()
        with tape.Tape() as recorded:
            y = run(tape.Node(base.embeddings(given)))
        recorded.backward(y, np.ones(y.shape, np.float32))
        grads.append(flat.grad.copy())
    assert all(np.abs(p.grad).max() > 0 for p in flat.parameters.values())
    np.testing.assert_array_equal(*grads)


def test_training_mode_reaches_adapters_that_come_later(base):
    model = make(base).train()
    model.add_adapter("second", tasks=["a"])
    assert model.adapters["second"].layers[QUERY].router.training
    model.eval()
    assert not model.adapters["second"].layers[QUERY].router.training


def test_parameters_are_counted(base, capsys):
    model = make(base)
    trainable = 4 * (4 * 2 * (24 + 24) + 3 * 4)
    frozen = sum(int(np.prod(s)) for s in base.config.shapes().values())
    assert count_parameters(base) == frozen
    assert model.get_nb_trainable_parameters() == (trainable, trainable + frozen)
    model.add_adapter("second", "lora", r=1, target_modules=[QUERY])
    total = trainable + frozen + 48
    model.print_trainable_parameters()
    percent = f"{100 * trainable / total:.4f}"
    assert capsys.readouterr().out == (
        f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {percent}\n"
    )


def test_heads_that_do_not_divide_name_the_module(base):
    with pytest.raises(
        ValueError, match=rf"n_splits: expected a divisor of in_features 24 of {QUERY}, got 5"
    ):
        make(base, "mhr", n_splits=5)


def test_what_has_no_effect_is_warned_about(base):
    with pytest.warns(UserWarning, match="exclude_modules: .*'nothing'.* excludes nothing"):
        make(base, exclude_modules=["nothing"])
    with pytest.warns(UserWarning, match="rank_pattern: no adapted module matches key"):
        make(base, rank_pattern={"key": 4})


def test_a_batch_is_not_changed_by_a_model(base):
    given = batch()
    make(base)(given)
    assert given == replace(given)
    assert given.adapters is None


def test_repr_names_adapters_and_layers(base):
    text = repr(make(base, "mhr", n_splits=2))
    assert "AdaptedModel(active_adapter='default'\n  (base): Bert(" in text
    assert "(adapters.default): Adapter(method=mhr, r=2, mixing=factors, tasks=['a', 'b', 'c']" in text
    assert "4 x (TaskTable(3 tasks, 2 heads, 4 skills, noise=per_example), LoraExperts(4 x rank 2" in text
    assert QUERY in text
    assert isinstance(make(base), AdaptedModel)


def test_a_table_that_the_head_shares_counts_once(tmp_path):
    counts = [
        count_parameters(load_base(write_llama(tmp_path / str(tied), tie_word_embeddings=tied)))
        for tied in (False, True)
    ]
    config = json.loads((tmp_path / "True/config.json").read_text())
    assert counts[0] - counts[1] == config["vocab_size"] * config["hidden_size"]
