"""What notebooks show: models, adapters, task tables and finished runs, with every name escaped."""

import pytest
from test_report_html import NASTY, Reader
from training_base import base_folder, classes, make_trainer

from polymoe.adapters import AdaptedModel, adapt
from polymoe.batch import TaskRegistry
from polymoe.models import load_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(base_folder(tmp_path_factory.mktemp("tiny") / "base"))


@pytest.mark.parametrize("method", ["mhr", "lora", "smear", "ia3"])
def test_model_and_adapter_show_what_they_are(base, method):
    model = adapt(base, method, NASTY)
    for shown in (model, model.adapter):
        html = shown._repr_html_()
        read = Reader(html)
        assert method in read.texts and "prefers-color-scheme: dark" in html
        assert not read.tags("script") and not read.tags("img")
        assert any(NASTY[0] in text for text in read.texts)
        assert ("unnamed" in read.texts) == (shown is model.adapter)
        assert "No fault found" not in html  # nobody asked an untrained router
        assert ("heat" in [a.get("class") for a in read.tags("table")]) == (method == "mhr")


def test_model_without_an_active_adapter_is_shown_as_text(base):
    model = AdaptedModel(base)
    assert model._repr_html_().startswith("<pre>AdaptedModel(active_adapter=None")


def test_task_table_has_ids_and_names():
    read = Reader(TaskRegistry(NASTY)._repr_html_())
    assert read.texts == ["id", "task", *(text for i, name in enumerate(NASTY) for text in (str(i), name))]


def test_summary_shows_metrics_before_and_after(tmp_path):
    data = dict(zip(NASTY, classes().values(), strict=False))
    model = adapt(load_base(base_folder(tmp_path / "base")), "poly", list(data), r=2)
    match = make_trainer(tmp_path, "match", data, model=model, epochs=1).train()
    read = Reader(match._repr_html_())
    task, before = next(iter(match["evaluation_before"]["tasks"].items()))
    after = match["evaluation"]["tasks"][task]["accuracy"]
    assert task in NASTY and f"{before['accuracy']:.3f} → {after:.3f}" in read.texts
    assert "mean" in read.texts and not read.tags("script")
    classify = make_trainer(tmp_path, "classify", output="other", epochs=1).train()
    assert f"{classify['evaluation']['mean']['macro_f1']:.3f}" in Reader(classify._repr_html_()).texts
