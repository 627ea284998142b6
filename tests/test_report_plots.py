"""The report as figures."""

import json
import sys

import numpy as np
import pytest
from test_report_html import invented

from polymoe.report import plots


@pytest.fixture(autouse=True)
def _needs_matplotlib():
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install 'polymoe[plots]'")


def test_a_heatmap_shows_the_weights_of_what_is_asked(tmp_path):
    found = invented(5, 3, 4, n_heads=2)
    for router, head, expected in (
        (None, None, found.weights.mean(axis=(1, 2))),
        ("layer.1", None, found.routers[1].weights.mean(axis=1)),
        ("layer.2", 1, found.routers[2].weights[:, 1]),
    ):
        figure = plots.heatmap(found, router, head)
        axes = figure.axes[0]
        np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), expected, rtol=1e-12)
        assert [label.get_text() for label in axes.get_yticklabels()] == list(found.tasks)
        assert len(axes.texts) == 20
        figure.savefig(tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(KeyError, match=r"router: expected one of \['layer.0'"):
        plots.heatmap(found, "layer.9")
    with pytest.raises(IndexError, match="head: expected 0 to 1, got 2"):
        plots.heatmap(found, "layer.0", 2)


def test_a_dendrogram_has_a_leaf_for_each_task(tmp_path):
    pytest.importorskip("scipy")
    found = invented(5, 3, 4)
    axes = plots.dendrogram(found).axes[0]
    assert sorted(label.get_text() for label in axes.get_yticklabels()) == sorted(found.tasks)
    assert len(axes.lines) == 4
    with pytest.raises(ValueError, match="expected at least two tasks, got 1"):
        plots.dendrogram(invented(1, 3, 4))


def test_curves_are_those_of_the_run(tmp_path):
    lines = [{"step": s, "loss": 1.0 / s} for s in (1, 2, 3)]
    lines.append({"step": 3, "split": "valid", "evaluation": {"tasks": {}, "mean": {"accuracy": 0.5}}})
    lines.append({"step": 3, "split": "valid", "routing": {"mean": {"entropy": 0.9, "usage": 1.0}}})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    figure = plots.curves(tmp_path)
    assert [axes.get_title() for axes in figure.axes] == ["training loss", "validation", "routing"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [1, 1 / 2, 1 / 3]
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 2]
    with pytest.raises(ValueError, match="run: expected curves"):
        plots.curves(tmp_path / "none")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"polymoe\[plots\]"):
        plots.heatmap(invented(2, 1, 2))
