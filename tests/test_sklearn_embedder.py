"""The embedder: frozen, from a run, trained; in pipelines, and called as sentence embeddings are."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from real import minilm_folder, real_tasks
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from training_base import base_folder, classes, make_trainer

from polymoe.adapters import adapt
from polymoe.data import read_tasks
from polymoe.interop.sklearn import Embedder
from polymoe.models import load_base
from polymoe.training import load_run

TEXTS = ["a red house", "the cat sees a big blue house", "dog", "the dog sleeps", "blue"]
TASKS = ["colour", "animal", "animal", "animal", "colour"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(base_folder(tmp_path_factory.mktemp("tiny") / "base"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    make_trainer(folder, "classify", max_length=8, epochs=12, learning_rate=2e-2).train()
    return folder / "run"


def samples():
    """X, y, tasks."""
    tasks = read_tasks(classes())
    rows = [(e.input, e.output, name) for name, task in tasks.items() for e in task.train]
    return tuple(np.array(column, dtype=object) for column in zip(*rows, strict=True))


def test_base_alone_embeds_as_the_base_does(base):
    frozen = Embedder(base, method=None)
    expected = load_base(base).encode(TEXTS)
    np.testing.assert_array_equal(frozen.encode(TEXTS), expected)
    np.testing.assert_array_equal(frozen.fit(TEXTS, [0] * 5).transform(np.array(TEXTS)), expected)
    np.testing.assert_allclose(frozen.encode(TEXTS, batch_size=1), expected, atol=1e-6)
    np.testing.assert_array_equal(frozen.encode(TEXTS[1]), frozen.encode(TEXTS[1:2])[0])
    assert frozen.encode([]).shape == (0, frozen.get_sentence_embedding_dimension())


def test_run_embeds_each_text_by_its_own_task(run):
    embedder = Embedder(adapter=run)
    model = load_run(run).model
    cut = [" ".join(text.split()[:6]) for text in TEXTS]  # max_length 8 leaves six words
    found = embedder.encode(TEXTS, task=TASKS)
    np.testing.assert_allclose(found, model.encode(cut, TASKS), atol=1e-6)
    for text, task, row in zip(TEXTS, TASKS, found, strict=True):
        np.testing.assert_allclose(embedder.encode(text, task=task), row, atol=1e-6)
    assert np.abs(embedder.encode(TEXTS[0], task="animal") - found[0]).max() > 1e-3
    np.testing.assert_array_equal(embedder.transform(TEXTS, task_ids=TASKS), found)
    table = np.column_stack([TASKS, TEXTS]).astype(object)
    np.testing.assert_array_equal(Embedder(adapter=run, task_column=0).transform(table), found)
    np.testing.assert_array_equal(Embedder(adapter=run / "adapter").encode(TEXTS, task=TASKS), found)


def test_names_of_sentence_transformers(base, capsys):
    embedder = Embedder(base, method=None)
    embedder.model_.prompts = {"query": "the big "}
    try:
        expected = embedder.encode(["the big cat", "the big dog"])
        np.testing.assert_array_equal(embedder.encode(["cat", "dog"], prompt_name="query"), expected)
        np.testing.assert_array_equal(embedder.encode(["cat", "dog"], prompt="the big "), expected)
        with pytest.raises(KeyError, match=r"prompt_name: expected one of \['query'\], got 'passage'"):
            embedder.encode(TEXTS, prompt_name="passage")
    finally:
        embedder.model_.prompts = {}
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="convert_to_numpy: expected True"):
        embedder.encode(TEXTS, convert_to_numpy=False)
    unit = embedder.encode(TEXTS, show_progress_bar=True, batch_size=2, normalize_embeddings=True)
    assert "Batches: 100%" in capsys.readouterr().err
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("objective", ["match", "classify"])
def test_fit_brings_labels_apart_and_saves_what_it_learnt(base, objective, tmp_path):
    x, y, tasks = samples()
    frozen = Embedder(base, method=None).transform(x)
    settings = {"r": 2, "epochs": 12, "batch_size": 8, "learning_rate": 2e-2, "random_state": 0}
    embedder = Embedder(base, objective=objective, **settings).fit(x, y, task_ids=tasks)
    found = embedder.transform(x, task_ids=tasks)
    assert separation(found, y) > separation(frozen, y) + 0.1
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(embedder)).transform(x, tasks), found)
    np.testing.assert_array_equal(clone(embedder).fit(x, y, tasks).transform(x, tasks), found)
    embedder.save(tmp_path / "saved")
    np.testing.assert_array_equal(Embedder(adapter=tmp_path / "saved").encode(x, task=tasks), found)


def separation(vectors, y):
    """Mean cosine of texts with one label, less that of texts with two."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines, same = unit @ unit.T, y[:, None] == y[None]
    return cosines[same].mean() - cosines[~same].mean()


def test_fit_learns_pairs_of_texts(base):
    x = [f"the {size} {what}" for size in ("big", "small", "red") for what in ("cat", "dog", "house", "walk")]
    pairs = [" ".join(text.split()[::-1]) for text in x]
    embedder = Embedder(base, r=2, epochs=30, learning_rate=2e-2, random_state=0).fit(x, pairs)

    def distances(model):
        return np.linalg.norm(model.encode(x) - model.encode(pairs), axis=1).mean()

    assert distances(embedder) < 0.9 * distances(Embedder(base, method=None))


def test_pipeline_with_the_run_in_front(run):
    x, y, _ = samples()
    keep = [i for i, label in enumerate(y) if label in ("cat", "dog")]
    table = np.column_stack([x, ["animal"] * len(x)])[keep]
    pipeline = make_pipeline(Embedder(adapter=run, task_column=1), LogisticRegression(C=100, max_iter=1000))
    assert pipeline.fit(table, y[keep]).score(table, y[keep]) > 0.8
    assert pipeline[:-1].get_feature_names_out()[:2].tolist() == ["embedder0", "embedder1"]


def test_untrained_adapter_is_the_base(base):
    x, y, tasks = samples()
    embedder = Embedder(base, epochs=0, random_state=0).fit(x, y, tasks)
    np.testing.assert_allclose(embedder.transform(x, tasks), load_base(base).encode(list(x)), atol=1e-6)


def test_adapter_without_tasks_needs_none(base, tmp_path):
    model = adapt(load_base(base), "lora", r=2)
    model.save_adapter(tmp_path / "plain")
    embedder = Embedder(adapter=tmp_path / "plain")
    assert embedder.encode(TEXTS).shape == (5, 24)
    with pytest.raises(KeyError, match="task: expected"):
        embedder.encode(TEXTS, task="animal")


def test_wrong_use_is_told(base, run, tmp_path):
    with pytest.raises(
        NotFittedError, match="Embedder: expected a call of fit, or an adapter, or method=None"
    ):
        Embedder(base).encode(TEXTS)
    with pytest.raises(ValueError, match="y: expected what each text should give, got None"):
        Embedder(base).fit(TEXTS)
    embedder = Embedder(adapter=run)
    with pytest.raises(
        ValueError, match=r"task_ids: expected one of \['animal', 'colour'\] per example, got None"
    ):
        embedder.encode(TEXTS)
    with pytest.raises(KeyError, match=r"task: expected one of \['animal', 'colour'\], got 'shape'"):
        embedder.encode(TEXTS, task="shape")
    with pytest.raises(ValueError, match=r"task_ids: expected shape \(5,\), got \(2,\)"):
        embedder.transform(TEXTS, task_ids=TASKS[:2])
    with pytest.raises(TypeError, match=r"X\[0\]: expected a text, got int 3"):
        embedder.encode([3], task="animal")
    with pytest.raises(FileNotFoundError):
        Embedder(adapter=tmp_path).encode(TEXTS)
    with pytest.raises(ValueError, match="save: expected an adapter, got the base alone"):
        Embedder(base, method=None).save(tmp_path / "out")
    with pytest.raises(TypeError, match="base: expected a name or a path, got Bert"):
        Embedder(load_base(base), method=None).encode(TEXTS)


def test_minilm_learns_real_tasks():
    minilm_folder()
    data = read_tasks(real_tasks("superglue"), ["cb", "wic"])
    rows = [(e.input[:120], e.output, name) for name, task in data.items() for e in task.train[:24]]
    x, y, tasks = (np.array(column) for column in zip(*rows, strict=True))
    embedder = Embedder(objective="classify", r=4, epochs=4, batch_size=16, max_length=24, random_state=0)
    embedder.set_params(learning_rate=5e-3).fit(x, y, task_ids=tasks)
    found, frozen = embedder.transform(x, tasks), Embedder(method=None).transform(x)
    for name in data:
        own = tasks == name
        assert separation(found[own], y[own]) > separation(frozen[own], y[own])
