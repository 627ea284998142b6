"""The table of methods, on a tiny base: what is run, what is not run twice, and what a failure does."""

import contextlib
import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import pytest
from package_of_benchmarks import benchmark


@pytest.fixture(scope="module")
def methods():
    """The module benchmarks.methods."""
    pytest.importorskip("sklearn")
    return benchmark("methods")


@pytest.fixture(scope="module")
def table(methods, data, base, tmp_path_factory):
    """Of a table that takes seconds: the options, with which it was made, and what was printed."""
    options = methods.Options(
        data=(data,),
        output=str(tmp_path_factory.mktemp("table") / "out"),
        methods=("lora", "poly"),
        seeds=(0, 1),
        grid=(0.5, 2.0),
        extend=0,
        rank=2,
        base=base,
        train_examples=12,
        valid_examples=6,
        epochs=1,
        max_length=16,
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert methods.main(options) == 0
    return options, printed.getvalue()


@pytest.fixture
def options(methods, table, tmp_path):
    """Those of the table, for another folder, and the least of runs."""
    return methods.replace(table[0], output=str(tmp_path / "out"), seeds=(0,), grid=(1.0,))


def content(options):
    return json.loads((Path(options.output) / "methods.json").read_text())["tables"]


def test_table_is_made_once_and_goes_on(methods, table):
    options, printed = table
    out = Path(options.output)
    same, budget = content(options)["same rank"], content(options)["same budget"]
    assert [row["method"] for row in same["rows"]] == ["lora", "poly"]
    for row in same["rows"] + budget["rows"]:
        assert len(row["scores"]) == 2 and row["mean"] is not None and not row["failures"]
    assert {row["size"]["r"] for row in same["rows"]} == {2}
    lora, poly = budget["rows"]
    assert lora["size"]["r"] == 8 and abs(lora["size"]["parameters"] - poly["size"]["parameters"]) < 100
    heads = 2 * 2 * (24 + 1)  # two labels for each of two tasks, a row and a bias each
    assert all(row["trained"] == row["size"]["parameters"] + heads for row in same["rows"])
    names = sorted(path.name for path in (out / "runs").iterdir())
    # two methods with a grid of two and another seed; at the budget poly is the same run again, lora is not
    assert len(names) == 2 * 3 + 3
    assert "| poly |" in printed
    if importlib.util.find_spec("matplotlib"):
        assert {"poly", "lora"} <= set(re.findall(r">([\w-]+)</text>", (out / "methods.svg").read_text()))

    times = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.json")}
    assert methods.main(options) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.json")} == times

    more = methods.replace(options, methods=("lora", "poly", "private"))
    assert methods.main(more) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(content(more)["same rank"]["rows"]) == 3


def test_a_method_of_two_stages_counts_the_larger(methods, options):
    some = methods.replace(options, methods=("mhr", "mhr-z"))
    assert methods.main(some) == 0
    for mhr, after in (table["rows"] for table in content(some).values()):
        assert after["size"] == mhr["size"] and after["mean"] is not None
        assert after["trained"] < mhr["trained"]
    assert not list((Path(options.output) / "runs").rglob("checkpoints"))


def test_test_parts_are_read_for_the_chosen_rate_alone(table):
    options, _ = table
    out = Path(options.output)
    assert not list((out / "data").rglob("*.test.jsonl"))
    read = {path.parent.name for path in (out / "runs").glob("*/test.json")}
    for row in content(options)["same rank"]["rows"]:
        best = max(row["tried"], key=lambda rate: (row["tried"][rate], -float(rate)))
        assert row["multiple"] == float(best)
        tried = {name for name in read if name.startswith(f"{row['method']}-r2-x")}
        assert tried == {f"{row['method']}-r2-x{best}-seed{seed}" for seed in (0, 1)}


def test_a_method_that_fails_does_not_stop_the_others(methods, options, capsys):
    some = methods.replace(options, methods=("lora", "no-such-method", "poly"))
    assert methods.main(some) == 1
    assert "Failed: no-such-method-r2-x1-seed0: ValueError: method: expected" in capsys.readouterr().out
    rows = {row["method"]: row for row in content(some)["same rank"]["rows"]}
    assert rows["no-such-method"]["mean"] is None
    assert rows["lora"]["mean"] is not None and rows["poly"]["mean"] is not None


def test_other_settings_need_another_folder(methods, options):
    methods.main(methods.replace(options, methods=("lora",)))
    with pytest.raises(
        ValueError, match=r"output: expected a folder for these settings, got .* {'epochs': 1}"
    ):
        methods.main(methods.replace(options, epochs=2))


class Known:
    """Validation accuracies by multiple, where a ladder would read them from its runs."""

    def __init__(self, values):
        self.validation = lambda job: values.get(job.multiple)
        self.done = lambda job: job.multiple in values
        self.size = lambda method, r: None


def test_grid_grows_while_the_best_is_at_its_edge(methods, options):
    plan = sys.modules["benchmarks.plan"]

    def tried(values, extend):
        some = methods.replace(options, grid=(3.0, 1.0), extend=extend)
        return [job.multiple for job in plan.grid(Known(values), some, "lora", None)], plan.chosen(
            Known(values), some, "lora", None
        )

    values = {1.0: 0.3, 3.0: 0.5, 9.0: 0.6, 27.0: 0.6}
    assert tried(values, 5) == ([1.0, 3.0, 9.0, 27.0], 9.0)
    assert tried(values, 1) == ([1.0, 3.0, 9.0], 9.0)
    assert tried(values | {1.0: 0.7}, 1) == ([1 / 3, 1.0, 3.0], None)  # a third is still to be tried


def test_a_run_is_in_one_hand_at_a_time(methods, options):
    methods.main(methods.replace(options, methods=("lora",)))
    ladder = sys.modules["benchmarks.ladder"]
    settings = json.loads((Path(options.output) / "settings.json").read_text())
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    ours = ladder.Ladder(options.output, ladder.Settings(**settings))
    job = ladder.Job("poly", ours.size("poly", 2), 1.0, 0)
    with ours.claim(job.name) as mine:
        assert mine
        assert not ours.run(job, print) and not ours.done(job)
    assert ours.run(job, print) and ours.done(job)


def test_nearest_size_to_a_budget(methods):
    nearest = sys.modules["benchmarks.sizes"].nearest

    def count(r, skills):
        return 100 * r * (skills or 4)

    assert nearest(count, 1300, 4) == (3, None)
    assert nearest(count, 10**9, 4) == (128, None)
    assert nearest(count, 290, 4) == (1, 3)
    assert nearest(count, 1, 4) == (1, 2)
    assert nearest(lambda r, skills: 50, 1300, 4, rank=16) == (16, None)
    assert nearest(lambda r, skills: count(r, skills) if r % 2 == 0 else None, 1300, 4) == (4, None)
    with pytest.raises(ValueError, match="rank: expected one that the method takes"):
        nearest(lambda r, skills: None, 1300, 4)


def test_differences_are_judged_by_the_larger_error(methods):
    report = sys.modules["benchmarks.report"]
    values = {"lora": (0.50, 0.52, 0.54), "up": (0.60, 0.62, 0.64), "noisy": (0.40, 0.80, 0.60)}
    rows = [report.Row(name, scores={i: {"a": v} for i, v in enumerate(x)}) for name, x in values.items()]
    assert report.compare(rows[:2], 3) == pytest.approx(0.0, abs=1e-12)
    assert rows[1].verdict == "above" and rows[1].gain == pytest.approx(0.1)
    pooled = report.compare(rows, 3)
    assert pooled > 0.03 and [row.verdict for row in rows] == ["", "not above", "not above"]
