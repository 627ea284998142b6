"""The classifier and the regressor: scikit-learn's own checks, tasks, and scikit-learn as an oracle."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn
from real import minilm_folder, real_tasks
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import make_classification, make_friedman1
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from training_base import base_folder, classes

from polymoe.batch import Batch
from polymoe.data import read_tasks
from polymoe.interop.sklearn import Embedder, PolymoeClassifier, PolymoeRegressor
from polymoe.interop.sklearn.learning import shared_base

VERSION = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
CHECKS = [
    pytest.param(estimator, check, id=f"{type(estimator).__name__}-{check.func.__name__}-{i}")
    for kind in (PolymoeClassifier, PolymoeRegressor)
    for i, (estimator, check) in enumerate(estimator_checks_generator(kind()))
]


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_estimator_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def two_tasks(n=160, seed=0):
    """Two tasks over the same features, whose labels are opposite."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    tasks = np.where(rng.random(n) < 0.5, "this", "that")
    positive = x[:, 0] + x[:, 1] > 0
    return x, np.where(positive == (tasks == "this"), "yes", "no"), tasks


def texts():
    """Two tasks of texts: X, y, tasks."""
    tasks = read_tasks(classes())
    rows = [(e.input, e.output, name) for name, task in tasks.items() for e in task.train + task.test]
    return tuple(np.array(column, dtype=object) for column in zip(*rows, strict=True))


@pytest.fixture
def tiny(tmp_path):
    return str(base_folder(tmp_path / "base"))


def head_only(kind, **settings):
    """An estimator of whose adapter nothing is learnt: a linear head on the frozen base, by full batches."""
    options = {"max_steps": 1000, "warmup_ratio": 0.0}
    frozen = {"learning_rate": 0.0, "router_learning_rate": 0.0, "weight_decay": 0.0, "random_state": 0}
    return kind(batch_size=1000, head_learning_rate=0.1, training_options=options, **frozen, **settings)


def frozen_embeddings(estimator, x):
    rows = np.asarray(x, np.float32)
    return estimator.model_.base.embed(Batch(np.arange(len(rows) + 1), rows))


def test_head_alone_is_the_logistic_regression_of_scikit_learn():
    x, y = make_classification(300, 3, n_informative=3, n_redundant=0, flip_y=0.3, random_state=0)
    ours = head_only(PolymoeClassifier, hidden_size=4).fit(x, y)
    features = frozen_embeddings(ours, x)
    assert features.shape == (300, 3 + 4)
    theirs = LogisticRegression(C=1e6, max_iter=5000).fit(features, y)
    found, best = ours.predict_proba(x), theirs.predict_proba(features)
    np.testing.assert_allclose(found, best, atol=0.03)  # the problem is nearly flat around its optimum
    assert 0 <= log_loss(y, found) - log_loss(y, best) < 5e-4


def test_head_alone_is_the_linear_regression_of_scikit_learn():
    x, y = make_friedman1(200, noise=1.0, random_state=0)
    ours = head_only(PolymoeRegressor, hidden_size=4).fit(x, y)
    features = frozen_embeddings(ours, x)
    theirs = LinearRegression().fit(features, y)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(features), atol=2e-3 * y.std())


def test_adapter_learns_what_no_head_can():
    x, y = make_friedman1(400, random_state=0)
    linear = LinearRegression().fit(x[:300], y[:300]).score(x[300:], y[300:])
    adapted = PolymoeRegressor(random_state=0).fit(x[:300], y[:300]).score(x[300:], y[300:])
    alone = PolymoeRegressor(random_state=0, learning_rate=0.0).fit(x[:300], y[:300])
    assert adapted > max(linear, alone.score(x[300:], y[300:])) + 0.02


def test_tasks_are_told_apart():
    x, y, tasks = two_tasks()
    model = PolymoeClassifier(random_state=0).fit(x[:120], y[:120], task_ids=tasks[:120])
    assert model.tasks_ == ["that", "this"] and list(model.classes_) == ["no", "yes"]
    assert model.score(x[120:], y[120:], task_ids=tasks[120:]) > 0.9
    one = x[120:121]
    assert model.predict(one, task_ids="this") != model.predict(one, task_ids="that")
    assert PolymoeClassifier(random_state=0).fit(x[:120], y[:120]).score(x[120:], y[120:]) < 0.75


def test_a_task_is_given_its_own_labels_alone():
    x, y, tasks = two_tasks()
    y = np.where(tasks == "this", y, np.where(y == "yes", "up", "down"))
    proba = PolymoeClassifier(epochs=1, random_state=0).fit(x, y, tasks).predict_proba(x, tasks)
    assert proba.shape == (len(x), 4) and np.allclose(proba.sum(axis=1), 1)
    assert (proba[tasks == "this"][:, [0, 2]] == 0).all() and (proba[tasks == "that"][:, [1, 3]] == 0).all()


def test_task_column_says_what_task_ids_say():
    x, y, tasks = two_tasks()
    numbers = (tasks == "this") * 1.0
    expected = PolymoeClassifier(epochs=2, random_state=0).fit(x, y, task_ids=numbers.astype(int))
    table = np.column_stack([x[:, :2], numbers, x[:, 2:]])
    model = PolymoeClassifier(epochs=2, random_state=0, task_column=2).fit(table, y)
    assert model.tasks_ == ["0", "1"] and model.n_features_in_ == 5
    np.testing.assert_array_equal(model.predict_proba(table), expected.predict_proba(x, numbers))
    with pytest.raises(ValueError, match=r"task_ids: expected None \(task_column is set\)"):
        model.predict(table, numbers)
    with pytest.raises(ValueError, match="task_column: expected one of the 5 columns of X, got 7"):
        clone(model).set_params(task_column=7).fit(table, y)
    with pytest.raises(ValueError, match=r"task_column: .* columns without names, got 'task'"):
        clone(model).set_params(task_column="task").fit(table, y)


def test_grid_search_routes_the_tasks():
    x, y, tasks = two_tasks(120)
    with config_context(enable_metadata_routing=True):
        model = (
            PolymoeClassifier(random_state=0).set_fit_request(task_ids=True).set_score_request(task_ids=True)
        )
        grid = {"epochs": np.array([1, 10]), "n_skills": [2]}
        search = GridSearchCV(model, grid, cv=3).fit(x, y, task_ids=tasks)
        assert search.best_params_["epochs"] == 10 and search.best_score_ > 0.85
        assert search.score(x, y, task_ids=tasks) > 0.9
        assert (search.best_estimator_.predict(x, task_ids=tasks) == y).mean() > 0.9


def test_pipeline_routes_the_tasks():
    x, y, tasks = two_tasks(120)
    with config_context(enable_metadata_routing=True):
        model = PolymoeClassifier(random_state=0, epochs=10)
        for request in (model.set_fit_request, model.set_predict_request, model.set_score_request):
            request(task_ids=True)
        pipeline = make_pipeline(StandardScaler(), model).fit(x, y, task_ids=tasks)
        assert (pipeline.predict(x, task_ids=tasks) == y).mean() > 0.85
        assert pipeline.score(x, y, task_ids=tasks) > 0.85


@pytest.mark.skipif(VERSION < (1, 8), reason="scikit-learn 1.7 drops them on the way")
def test_search_over_a_pipeline_routes_the_tasks():
    x, y, tasks = two_tasks(120)
    with config_context(enable_metadata_routing=True):
        model = PolymoeClassifier(random_state=0, epochs=10)
        model.set_fit_request(task_ids=True).set_score_request(task_ids=True)
        found = cross_validate(make_pipeline(StandardScaler(), model), x, y, cv=2, params={"task_ids": tasks})
        assert found["test_score"].mean() > 0.8


def test_validation_stops_early_and_keeps_the_best_step():
    x, y, tasks = two_tasks()
    y = np.random.default_rng(0).permutation(y)  # nothing to learn
    model = PolymoeClassifier(epochs=40, validation=True, early_stopping_patience=2, random_state=0)
    summary = model.set_params(training_options={"routing_statistics": False}).fit(x, y, tasks).summary_
    assert summary["stopped_early"] and summary["evaluated_split"] == "valid"
    assert summary["best_step"] <= summary["steps"]


@pytest.mark.parametrize("keep", [pickle, copy, joblib], ids=["pickle", "deepcopy", "joblib"])
def test_a_copy_predicts_the_same_bits(keep, tmp_path):
    x, y, tasks = two_tasks()
    model = PolymoeClassifier("features", "mhr", n_splits=2, epochs=2, random_state=0).fit(x, y, tasks)
    if keep is pickle:
        other = pickle.loads(pickle.dumps(model))
    elif keep is copy:
        other = copy.deepcopy(model)
    else:
        joblib.dump(model, tmp_path / "model")
        other = joblib.load(tmp_path / "model")
    np.testing.assert_array_equal(other.predict_proba(x, tasks), model.predict_proba(x, tasks))
    assert model.model_.base.tokenizer is None  # which held the samples


def test_texts_are_learnt_and_pickled_without_their_base(tiny):
    x, y, tasks = texts()
    model = PolymoeClassifier(tiny, "mhr", n_splits=2, r=2, epochs=12, random_state=0, head_learning_rate=0.1)
    model.fit(x, y, task_ids=tasks)
    assert model.score(x, y, task_ids=tasks) > 0.8
    assert set(model.predict(x[tasks == "colour"], task_ids="colour")) == {"red", "blue"}
    stored = pickle.dumps(model)
    assert len(stored) < 100_000
    np.testing.assert_array_equal(pickle.loads(stored).predict_proba(x, tasks), model.predict_proba(x, tasks))
    again = clone(model).fit(x, y, task_ids=tasks)
    np.testing.assert_array_equal(again.predict_proba(x, tasks), model.predict_proba(x, tasks))
    table = np.column_stack([x, tasks])
    column = clone(model).set_params(task_column=1).fit(table, y)
    np.testing.assert_array_equal(column.predict_proba(table), model.predict_proba(x, tasks))


def test_pickle_refuses_another_base(tiny):
    x, y, tasks = texts()
    stored = pickle.dumps(PolymoeClassifier(tiny, r=2, epochs=1, random_state=0).fit(x, y, tasks))
    weights = Path(tiny) / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    shared_base.cache_clear()
    with pytest.raises(ValueError, match=r"base: expected the .* that it was trained on, got another"):
        pickle.loads(stored)


def test_numbers_of_texts(tiny):
    x, _, tasks = texts()
    y = np.array(
        [
            len(text.split()) * (-10.0 if task == "colour" else 1.0)
            for text, task in zip(x, tasks, strict=True)
        ]
    )
    model = PolymoeRegressor(tiny, r=2, epochs=15, random_state=0, head_learning_rate=0.1).fit(x, y, tasks)
    assert model.score(x, y, tasks) > 0.8


def fitted():
    x, y, tasks = two_tasks()
    return PolymoeClassifier(epochs=1, random_state=0).fit(x, y, tasks), x, y, tasks


def test_unknown_and_missing_tasks_are_told():
    model, x, y, tasks = fitted()
    with pytest.raises(KeyError, match=r"task: expected one of \['that', 'this'\], got 'other'"):
        model.predict(x, task_ids="other")
    with pytest.raises(
        ValueError, match=r"task_ids: expected one of \['that', 'this'\] for each sample, got None"
    ):
        model.predict(x)
    with pytest.raises(ValueError, match=r"task_ids: expected shape \(160,\), got \(159,\)"):
        model.predict(x, task_ids=tasks[1:])
    for wrong in (None, 0.5, np.nan, True):
        with pytest.raises(TypeError, match="task_ids: expected names or whole numbers"):
            model.predict(x, task_ids=[wrong] * len(x))
    with pytest.raises(
        ValueError, match=r"y: expected at least two classes in each task, got \['no'\] in 'this'"
    ):
        model.fit(x, np.where(tasks == "this", "no", y), task_ids=tasks)


def test_wrong_samples_are_told(tiny):
    model, x, y, tasks = fitted()
    bad = x.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        model.predict(bad, task_ids=tasks)
    with pytest.raises(ValueError, match="contains NaN"):
        clone(model).fit(bad, y, task_ids=tasks)
    with pytest.raises(ValueError, match="X has 3 features, but PolymoeClassifier is expecting 4"):
        model.predict(x[:, 1:], task_ids=tasks)
    with pytest.raises(NotFittedError):
        PolymoeClassifier().predict(x)
    over_texts = PolymoeClassifier(tiny)
    with pytest.raises(TypeError, match=r"X\[1\]: expected a text, got float nan"):
        over_texts.fit(["a", np.nan], [0, 1])
    with pytest.raises(TypeError, match="X: expected a sequence of texts, got a text"):
        over_texts.fit("a cat", [0])
    with pytest.raises(ValueError, match="y: expected what each text should give, got None"):
        over_texts.fit(["a", "b"], None)
    with pytest.raises(ValueError, match=r"y: expected shape \(2,\), got \(1,\)"):
        over_texts.fit(["a", "b"], [0])
    with pytest.raises(ValueError, match=r"X: expected texts, one each .* got shape \(1, 2\)"):
        over_texts.fit([["a", "b"]], [0])


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"method": "mhr-z"}, ValueError, "method: expected one that starts from nothing, got 'mhr-z'"),
        ({"method": "pony"}, ValueError, "method: expected one of .*did you mean"),
        ({"n_splits": 3, "method": "mhr"}, ValueError, "n_splits"),
        ({"epochs": -1}, ValueError, "epochs: expected an integer from 0 on, got -1"),
        ({"hidden_size": 0}, ValueError, "hidden_size: expected at least 1, got 0"),
        ({"max_length": 8}, ValueError, "max_length: expected None over features, got 8"),
        ({"early_stopping_patience": 2}, ValueError, "validation: expected True"),
        ({"adapter_options": {"r": 2}}, TypeError, "adapter_options: expected settings out of .* got 'r'"),
        ({"training_options": {"pony": 2}}, TypeError, "training_options: expected settings out of"),
        ({"base": 3}, TypeError, "base: expected a name or a path, got int"),
    ],
)
def test_wrong_settings_are_told_by_fit(settings, error, match):
    x, y, tasks = two_tasks(20)
    with pytest.raises(error, match=match):
        PolymoeClassifier(**settings).fit(list("ab") * 10 if "base" in settings else x, y, tasks)


def test_minilm_head_agrees_with_logistic_regression_on_real_texts():
    minilm_folder()
    data = read_tasks(real_tasks("superglue"), ["cb", "rte"])
    rows = [(e.input[:100], e.output, name) for name, task in data.items() for e in task.train[:30]]
    x, y, tasks = (np.array(column) for column in zip(*rows, strict=True))
    ours = head_only(PolymoeClassifier, base="minilm", max_length=24)
    ours.set_params(training_options={"max_steps": 10, "warmup_ratio": 0.0}, batch_size=24).fit(x, y, tasks)
    frozen = Embedder(method=None).set_params(base="minilm")
    vectors = frozen.transform(x)
    for name in data:
        own = tasks == name
        theirs = LogisticRegression(C=100, max_iter=1000).fit(vectors[own], y[own])
        assert (ours.predict(x[own], name) == theirs.predict(vectors[own])).mean() > 0.75


def test_import_without_scikit_learn_names_the_extra():
    code = "import sys; sys.modules['sklearn'] = None; import polymoe.interop.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "ImportError: sklearn: expected scikit-learn (pip install 'polymoe[sklearn]'), got none"
        in done.stderr
    )
