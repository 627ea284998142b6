"""The report as a page: one file, everything in it, every name escaped, at any size."""

import json
import shutil
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from test_cli import call
from training_base import base_folder, make_trainer

from polymoe.adapters import adapt
from polymoe.adapters.statistics import RouterStatistics
from polymoe.models import load_base
from polymoe.report import (
    Inspection,
    RoutingStatistics,
    gradient_similarity,
    inspect,
    page,
    text_routing,
    write_page,
)
from polymoe.report.curves import Curve, read_curves
from polymoe.report.html import fragment
from polymoe.tape import Tape
from polymoe.training import load_run

NASTY = ["<script>alert(1)</script>", "a\"b'c & d", "</td></script><img src=x>", "plain"]
VOID = {"meta", "link", "input", "wbr", "path", "polyline", "img", "br"}
OPTIONAL = {"li", "dt", "dd", "th", "td", "tr", "thead", "tbody", "option", "p"}


class Reader(HTMLParser):
    """Elements with their attributes and texts; checks that what must be closed is closed, in order."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.open, self.blocks = [], [], [], {"script": [], "style": []}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, text):
        self.blocks.get(self.open[-1] if self.open else "", self.texts).append(text.strip())

    def tags(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    def data(self):
        """The JSON that the page's script reads."""
        return [json.loads(text) for text in self.blocks["script"] if text.startswith("{")]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return load_base(base_folder(tmp_path_factory.mktemp("base")))


def make(small, method, tasks, **overrides):
    model = adapt(small, method, tasks, target_modules="all-linear", n_skills=4, r=2, **overrides)
    rng = np.random.default_rng(0)
    for name, p in model.adapter_parameters():
        if ".router." in name:
            p.data[...] += rng.normal(size=p.shape)
    return model.eval()


def invented(n_tasks, n_routers, n_skills, n_heads=1):
    """Statistics of a large adapter."""
    rng = np.random.default_rng(0)
    tasks = tuple(f"task-{i}" for i in range(n_tasks))
    routers = []
    for i in range(n_routers):
        w = rng.dirichlet(np.ones(n_skills), size=(n_tasks, n_heads))
        rows = np.ones(n_tasks, np.int64)
        chosen = (w == w.max(-1, keepdims=True)).astype(np.int64)
        entropy = rng.random((n_tasks, n_heads))
        routers.append(RouterStatistics(f"layer.{i}", (f"layer.{i}",), "group", rows, w, chosen, entropy))
    return RoutingStatistics("mhr", "task_table", tasks, np.zeros(n_tasks, np.int64), tuple(routers))


FACTS = {
    "method": "mhr", "router": "task_table", "experts": "lora", "mixing": "factors", "site": "linear", "r": 4,
    "n_skills": 32, "n_splits": 1, "top_k": None, "scale": 1.0, "router_granularity": "linear",
    "base": "tiny", "tasks": [], "parameters": 10, "layers": {},
}  # fmt: skip


def assert_self_contained(read):
    for tag, attributes in read.elements:
        assert tag not in ("iframe", "object", "embed", "base", "img")
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert attributes.get(name, "#").startswith("#") or attributes[name] == "data:,"
        assert not any(name.startswith("on") for name in attributes)
    for text in read.blocks["style"]:
        assert "url(" not in text and "@import" not in text
    for text in read.blocks["script"]:
        assert "http" not in text and "fetch(" not in text
    assert any(a.get("http-equiv") == "Content-Security-Policy" for a in read.tags("meta"))


def test_a_page_has_every_task_and_skill_and_needs_nothing_else(small):
    found = inspect(make(small, "mhr", NASTY, n_splits=2), name="<i>run</i>")
    read = Reader(page([found]))
    assert_self_contained(read)
    assert len(read.tags("script")) == 2 and not read.tags("i")
    assert len(read.tags("table")) >= 5
    for name in (*NASTY, "<i>run</i>"):
        assert name in read.texts
    (carried,) = read.data()
    assert sorted(carried["tasks"]) == sorted(NASTY)
    assert [view["heads"] for view in carried["views"]] == [2] * 13
    statistics = found.statistics
    order = [statistics.tasks.index(name) for name in carried["tasks"]]
    shown = np.reshape(carried["views"][3]["w"], (4, 2, 4)) / 1000
    np.testing.assert_allclose(shown, statistics.routers[2].weights[order], atol=0.0005)
    names = [a["aria-label"] for a in read.tags("div") if a.get("role") == "region"]
    assert len(names) == len([a for a in read.tags("div") if a.get("tabindex") == "0"])
    assert all(a.get("aria-label") for a in read.tags("svg") if a.get("role") == "img")


def test_ids_are_unique_and_links_lead_somewhere(small):
    model = make(small, "mola", ["one", "other"])
    texts = {"one": ["the cat sees"], "other": ["a red dog"]}
    both = [inspect(model, texts, text="the cat", name=name) for name in ("a", "b")]
    read = Reader(page(both))
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for a in read.tags("a")}
    assert links <= set(ids)
    assert {"adapter", "skills", "tasks", "routers", "text"} <= links


def test_two_stand_side_by_side(small):
    pair = [inspect(make(small, m, ["one", "other"]), name=f"run-{m}") for m in ("poly", "mhr")]
    read = Reader(page(pair))
    assert read.texts.count("run-poly") == read.texts.count("run-mhr") >= 4
    assert len(read.data()) == 2
    with pytest.raises(ValueError, match="inspections: expected one or two, got 3"):
        page([*pair, pair[0]])


def test_a_text_is_shown_token_by_token_and_escaped(small):
    model = make(small, "mola", ["one"])
    text = "the <b>cat</b> & a dog"
    found = inspect(model, text=text, task="one")
    read = Reader(page([found]))
    assert text in read.texts and not read.tags("b")
    routing = text_routing(model, text)
    (carried,) = read.data()
    assert len(carried["views"]) == len(routing.routers)
    weights = np.reshape(carried["views"][1]["w"], (len(routing.tokens), 4)) / 1000
    np.testing.assert_allclose(weights, routing.routers[1].weights[:, 0], atol=0.0005)
    buttons = read.tags("button")
    assert len(buttons) == len(routing.tokens)
    assert [b["tabindex"] for b in buttons] == ["0"] + ["-1"] * (len(buttons) - 1)
    assert "goes by text, and none was given: --data, or --text" in read.texts


def test_a_router_by_task_shows_a_text_as_weights_of_each_router(small):
    read = Reader(page([inspect(make(small, "poly", ["one", "two"]), text="a cat", task="two")]))
    assert "a cat" in read.texts and "as two" in read.texts
    assert not read.tags("button")


def test_a_large_adapter_stays_below_a_megabyte_and_two_seconds():
    found = Inspection("large", FACTS, invented(100, 36, 32))
    started = time.process_time()
    html = page([found])
    assert time.process_time() - started < 2  # seconds; a quarter of it is usual
    assert len(html.encode()) < 1_100_000
    (carried,) = Reader(html).data()
    assert len(carried["views"]) == 37
    many = page([Inspection("larger", FACTS, invented(100, 36, 32, n_heads=4))])
    assert len(many.encode()) < 1_500_000
    read = Reader(many)
    kept = len(read.data()[0]["views"]) - 1
    assert 1 <= kept < 36
    assert any(f"{kept} of 36 routers" in text for text in read.texts)


def test_without_scipy_the_page_says_so(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.cluster", None)
    read = Reader(page([inspect(make(small, "poly", ["one", "two"]))]))
    assert any("No dendrogram" in text for text in read.texts)
    assert [d["tasks"] for d in read.data()] == [["one", "two"]]


def test_faults_are_named_with_the_remedy(small):
    tasks = [f"task {i}" for i in range(8)]
    model = make(small, "poly", tasks)
    for name, p in model.adapter_parameters():
        if name.endswith("layer.0.output.dense.router.logits"):
            p.data[..., 2] = -9
    found = inspect(model)
    (complaint,) = found.complaints
    assert complaint.where == (
        *(place for place in complaint.where if "attention" in place),
        "encoder.layer.0.output.dense: skill 2",
    )
    assert complaint.remedy == "Try a lower router_learning_rate, gate_dropout (now 0) or fewer n_skills."
    read = Reader(page([found]))
    assert complaint.remedy in "".join(read.texts)
    assert len([a for a in read.tags("td") if "dead" in a.get("class", "")]) == len(complaint.where)
    assert inspect(make(small, "mhr-mu", tasks)).complaints == ()


def test_lora_has_no_routing_to_show(small):
    model = adapt(small, "lora", ["one"])
    read = Reader(page([inspect(model)]))
    assert "none, one pair for everybody" in read.texts
    assert [a["href"] for a in read.tags("a")][1:] == ["#adapter"]


def test_a_run_has_its_curves(run):
    found = inspect(load_run(run))
    assert len(found.curves.loss) and "accuracy" in found.curves.metrics and "entropy" in found.curves.routing
    read = Reader(page([found]))
    labels = [a["aria-label"] for a in read.tags("svg") if a.get("role") == "img"]
    assert any(label.startswith("Training loss: loss from ") for label in labels)
    assert any(label.startswith("Validation: accuracy ") for label in labels)
    short = fragment(found)
    assert short == load_run(run)._repr_html_() == found._repr_html_()
    assert not Reader(short).tags("script")
    assert "animal" in Reader(found.statistics._repr_html_()).texts


def test_curves_pass_over_what_is_no_line_and_thin_out(tmp_path):
    lines = [json.dumps({"step": s, "loss": 1 / s}) for s in (1, 2, 3)] + ['{"step": 4, "lo']
    lines.insert(1, json.dumps({"step": 2, "split": "test", "evaluation": {"mean": {"accuracy": 1}}}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = read_curves(tmp_path / "metrics.jsonl")
    assert found.loss.steps.tolist() == [1, 2, 3]
    assert found.metrics == {} and found.routing == {}
    assert not read_curves(tmp_path / "none.jsonl")
    long = Curve(np.arange(1, 1001), np.arange(1000.0))
    thin = long.thin(10)
    assert thin.steps.tolist() == list(range(100, 1001, 100))
    assert thin.values.tolist() == [49.5 + 100 * i for i in range(10)]


def test_the_cli_writes_a_page_and_replaces_only_pages(run, tmp_path, capsys):
    target, other = tmp_path / "report.html", tmp_path / "notes.html"
    capsys.readouterr()
    assert call("inspect", run, "--html", target) == 0
    assert capsys.readouterr().out.startswith(f"page: {target} (")
    assert_self_contained(Reader(target.read_text(encoding="utf-8")))
    assert call("inspect", run, "--html", target, "--against", f"{run}/adapter", "--gradients") == 1
    assert "gradients: expected a run, got the adapter" in capsys.readouterr().err
    assert call("inspect", run, "--html", target, "--against", run, "--gradients") == 0
    assert "Cosine of two tasks' gradients" in Reader(target.read_text(encoding="utf-8")).texts
    other.write_text("my notes")
    for argv, message in (
        (["--html", other], "html: expected a new file or an earlier page"),
        (["--html", tmp_path], "html: expected a file to write, got the folder"),
        (["--html", tmp_path / "none" / "a.html"], "html: expected a file in a folder that is there"),
        (["--against", run], "against: expected a page to show both on"),
    ):
        capsys.readouterr()
        assert call("inspect", run, *argv) == 1
        assert message in capsys.readouterr().err
    assert other.read_text() == "my notes"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.html", "report.html"]
    assert call("inspect", run, "--html", other, "--overwrite") == 0
    assert other.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_gradients_of_tasks_are_those_of_their_losses(tmp_path):
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.train()
    run = load_run(tmp_path / "run", trainer.model.base)
    before = {name: p.data.tobytes() for name, p in run.model.adapter_parameters()}
    found = gradient_similarity(run, trainer.data, n_texts=20)
    assert found.tasks == ("animal", "colour")
    np.testing.assert_allclose(np.diag(found.cosines), 1, atol=1e-5)
    np.testing.assert_array_equal(found.cosines, found.cosines.T)
    assert abs(found.cosines[0, 1]) < 1
    assert before == {name: p.data.tobytes() for name, p in run.model.adapter_parameters()}
    assert all(p.grad is None for _, p in run.model.adapter_parameters())
    # the slope of one task's loss along the other's gradient is their product
    split = run.objective.encode(run.model, trainer.data, "train")
    rows = {"animal": np.arange(20), "colour": split.sizes["animal"] + np.arange(20)}

    def gradient(task):
        with Tape() as tape:
            loss = run.objective.loss(run.model, run.objective.batch(run.model, split, rows[task], 0, 0))
        tape.backward(loss.mean)
        experts = [p for name, p in run.model.adapter_parameters() if ".experts." in name]
        flat = np.concatenate([np.zeros(p.data.size) if p.grad is None else p.grad.ravel() for p in experts])
        for _, p in [*run.model.adapter_parameters(), *run.objective.named_parameters()]:
            p.grad = None
        return flat / np.linalg.norm(flat)

    assert found.cosines[0, 1] == pytest.approx(gradient("animal") @ gradient("colour"), abs=1e-4)
    with pytest.raises(ValueError, match="data: expected tasks"):
        gradient_similarity(run)
    with pytest.raises(ValueError, match="n_texts: expected 1 or more"):
        gradient_similarity(run, trainer.data, n_texts=0)


def test_a_page_that_cannot_be_made_leaves_the_file(small, tmp_path):
    found = inspect(make(small, "poly", ["one"]))
    target = write_page(tmp_path / "a.html", [found])
    before = target.read_bytes()
    with pytest.raises(ValueError, match="inspections"):
        write_page(target, [])
    assert target.read_bytes() == before


def test_a_browser_shows_it_without_a_request_by_keyboard_on_a_phone(small, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser: apt install chromium")
    long = ["x" * 80, *NASTY]
    model = make(small, "mola", long)
    texts = {task: ["the cat sees"] for task in long}
    target = write_page(tmp_path / "a.html", [inspect(model, texts, text="the cat " * 40, task="plain")])
    said, asked = [], []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 360, "height": 700})
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(target.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        first = tab.inner_text(".weights caption")
        tab.focus(".weights select")
        tab.keyboard.press("ArrowDown")
        assert tab.inner_text(".weights caption") != first
        assert "encoder.layer.0" in tab.inner_text(".weights caption")
        tab.focus(".chips button")
        before = tab.inner_text(".said")
        tab.keyboard.press("ArrowRight")
        assert tab.inner_text(".said") != before
        assert tab.inner_text(".said").startswith("1 the: skill ")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
