"""The harness that times: what it says of known work, what it refuses to time, its files, the gate."""

from __future__ import annotations

import json

import numpy as np
import pytest
from package_of_benchmarks import benchmark
from tiny_llama import write_llama

from polymoe import _core

pytest.importorskip("threadpoolctl")
machine, results, targets = benchmark("machine"), benchmark("results"), benchmark("targets")
timing, growth, gate = benchmark("timing"), benchmark("growth"), benchmark("gate")
Candidate, Contest, Row = timing.Candidate, timing.Contest, timing.Row


@pytest.fixture(scope="module")
def roofs():
    with machine.threads(1):
        yield machine.Roofs(machine.clock(1))


def row(who="polymoe", what="n", seconds=1.0, group="layers", **more):
    fields = {"flops": 50.0, "bytes": 1.0, "limit": [0.5, 0.5], "bound": "compute", "against": "polymoe"}
    fields |= {
        "cold": [2 * seconds] * 2,
        "warm": [seconds] * 2,
        "ratio": [seconds] * 2,
        "facts": {"peak": 100.0},
    }
    return Row(group=group, what=what, who=who, **{**fields, **more})


def test_known_work_is_timed_as_what_it_is(roofs):
    four, eight = timing.race(gate.known_work(), 5, roofs, _core.get_isa())
    assert four.ratio == [1, 1] and eight.overhead == pytest.approx(eight.ratio[1] - 1)
    assert (
        1.3 < eight.ratio[1] < 3
    )  # other tests run beside this one; the gate, which runs alone, asks for more
    for each in (four, eight):
        assert 40 < each.percent[1] < 130 and each.bound == "compute"
    assert roofs.level(1 << 14) > 0.5 * roofs.limits([_core.get_isa()]).dram  # the smallest cache, and memory


def test_multiply_adds_of_pairs_are_counted_as_two(isa):
    done = _core.peak(1000, 0)
    assert done > 0 and _core.peak(1000, 1) == done * (2 if isa.endswith("bf16") else 1)


def test_limits_hold_a_peak_of_each_dtype(roofs):
    peaks = roofs.limits(_core.isas(), tries=1).peaks
    assert set(peaks) == {(isa, dtype) for isa in _core.isas() for dtype in ("float32", "bfloat16")}
    assert min(peaks.values()) > 0


@pytest.mark.parametrize("isas", [("avx512bf16", "avx512"), ("avx2", "base")])
def test_rivals_compute_in_bfloat16_where_the_cpu_does(isas):
    options = benchmark("options").Options(1, isas, 3, torch=True)
    assert options.rivals_in("float32") and options.rivals_in("bfloat16") == (isas[0] == "avx512bf16")


def test_a_product_is_judged_by_its_instruction_set(isa):
    first = row(group="products", isa=isa)
    (value,) = targets.product(isa)(targets.Results([first, row(group="products", isa="other")], []))
    assert value == (targets.of_peak(first), "n")


def test_what_is_wrong_is_not_timed(roofs):
    def wrong():
        timing.close("y", np.ones(2), np.array([1.0, 1.1]), 1e-3)

    def never():
        raise RuntimeError("timed")

    with pytest.raises(AssertionError, match=r"y is off by 0\.091 of its largest value: not timed"):
        timing.race(Contest("g", "wrong", [Candidate("a", never)], wrong), 3, roofs, _core.get_isa())


def test_results_that_depend_on_threads_are_not_timed():
    timing.same_bits(lambda: [np.ones(3), None])
    with pytest.raises(AssertionError, match="other bits with other threads"):
        timing.same_bits(lambda: [np.array(_core.get_num_threads())])


def test_the_worst_row_decides_over_a_target():
    rows = [row("polymoe r=8", f"{b} x 128, 384 -> 384, S=8", overhead=o) for b, o in ((8, 0.05), (32, 0.09))]
    rows.append(row("polymoe r=8", "32 x 8, 384 -> 384, S=8", overhead=0.9))  # short examples do not count
    target = next(t for t in targets.TARGETS if t.what == "adapter in a layer, D = 384, r = 8")
    worst, where = target.worst(targets.Results(rows))
    assert (round(worst, 9), where[:2]) == (9, "32") and not target.reached(worst) and target.reached(8)
    assert target.worst(targets.Results([])) is None


def test_rivals_count_at_their_best_and_contest_by_contest():
    rows = [
        row(group="products", what="a"), row("NumPy", "a", 3, "products"), row("torch", "a", 1.5, "products"),
        row(group="products", what="b", seconds=2), row("NumPy", "b", 4, "products"),
        row("torch bf16", "b", 1, "products"),
    ]  # fmt: skip
    values = list(targets.faster("products", "NumPy|torch")(targets.Results(rows)))
    assert values == [(1.5, "a"), (2.0, "b")]


def test_growth_is_fitted():
    rows = [row(str(v), "tokens", 3.0 * v, "growth") for v in (1, 2, 4, 8)]
    rows += [row(str(v), "skills", 1.02 ** np.log2(v), "growth") for v in (1, 2, 4, 8)]
    tokens, skills = growth.slopes(rows)
    assert tokens.slope == pytest.approx(1) and tokens.upper == pytest.approx(1)
    assert skills.doubling == pytest.approx(0.02)


def test_changes_are_told_beyond_noise_alone():
    before = [row(), row("PEFT", seconds=2.0), row("polymoe r=8", overhead=0.10, limit=[0, 0])]
    quiet = [row(seconds=1.02), row("PEFT", seconds=2.02), row("polymoe r=8", overhead=0.11, limit=[0, 0])]
    assert list(results.changes(before, quiet)) == []
    slow = [row(seconds=1.25), row("PEFT", ratio=[1.6, 1.6]), row("polymoe r=8", overhead=0.21, limit=[0, 0])]
    found = {(c.row.who, c.quantity): c.gain for c in results.changes(before, slow)}
    assert found == {
        ("polymoe", "% of roof"): pytest.approx(0.8),
        ("PEFT", "time over that of polymoe"): pytest.approx(0.8),
        ("polymoe r=8", "% over frozen"): pytest.approx(1.10 / 1.21),
    }
    noisy = [row(seconds=1.25, warm=[1.25, 1.6]), *slow[1:]]
    assert list(results.changes(before, noisy)) == []  # what all are compared with is not sure itself


def test_a_run_is_printed_written_and_read_again(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    main, path, picture = benchmark("__main__").main, tmp_path / "run.json", tmp_path / "roofline.png"
    args = ["--quick", "--only", "experts", "growth", "--no-torch", "--threads", "1", "--rounds", "2"]
    assert main([*args, "--output", str(path), "--plot", str(picture), "--markdown", "-"]) == 0
    page = capsys.readouterr().out
    assert "### experts" in page and "| polymoe k=1 |" in page and "| tokens | 256, 512, 1024, 2048 |" in page
    assert picture.stat().st_size > 10_000
    content = json.loads(path.read_text())
    assert content["machine"]["cpu"] and content["machine"]["versions"]["numpy"] == np.__version__
    assert main(["--read", str(path), "--against", str(path)]) == 0
    assert ": 0" in capsys.readouterr().out.partition("changes beyond noise since")[2].split("\n")[0]
    both = results.together([results.read(path)] * 2)
    assert len(both.results.rows) == 2 * len(content["rows"])
    elsewhere = both._replace(machine={**both.machine, "cpu": "another"})
    with pytest.raises(ValueError, match="read: expected runs of one machine, got cpu of two"):
        results.together([both, elsewhere])
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="expected format 1, got 0"):
        main(["--read", str(path)])


def test_writing_is_timed_with_and_without_an_adapter(roofs, tmp_path):
    generation, options = benchmark("generation"), benchmark("options")
    folder = str(write_llama(tmp_path / "base"))
    contest = generation.contest(options.Options(1, ("base",), 1), folder, 2, 5, 3)
    rows = timing.race(contest, 1, roofs, _core.get_isa())
    assert {row.who for row in rows if row.overhead is not None} == {"polymoe", "polymoe bf16"}
    assert len(rows) == 4 and all(row.tokens == 6 and row.percent[0] > 0 for row in rows)
    found = targets.in_generation(2, "two texts", " bf16").worst(targets.Results(rows))
    assert found == (100 * rows[2].overhead, rows[2].what)


def test_the_gate_fails_on_what_is_slow(monkeypatch, capsys):
    monkeypatch.setattr(gate, "REACHED", {"add": 1000.0})
    monkeypatch.setattr(gate, "OF_PEAK", 1.0)
    monkeypatch.setattr(gate, "OVER_NUMPY", 0.01)
    monkeypatch.setattr(gate, "OVERHEAD", 1000.0)
    assert gate.main() == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("1 too slow: add[n=300000]")
    monkeypatch.setattr(gate, "REACHED", {"add": 0.001})
    assert gate.main() == 0


def test_the_clock_of_one_thread_is_its_own():
    clock = machine.clock(1)
    start = clock()
    with machine.threads(1) as n:
        _core.peak(50_000, 0)
    assert n == 1 and clock() > start
    assert machine.clock(2) is not clock
