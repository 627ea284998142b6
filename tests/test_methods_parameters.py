"""Numbers of trained parameters that papers print or that follow from their sizes; no weights are made."""

import json

import pytest
from test_cli import call
from training_base import base_folder, make_model

from polymoe.adapters import METHODS, configure
from polymoe.adapters.catalog import catalog
from polymoe.adapters.layers import formula, n_parameters
from polymoe.adapters.parts import Site

# T5-XL: 24 + 24 blocks of width 2048; q, k, v, o of three attentions, wi_0, wi_1, wo.
T5_XL = [Site(f"attention.{i}", 2048, 2048) for i in range(24 * 3 * 4)]
T5_XL += [Site(f"wi.{i}", 2048, 5120) for i in range(48 * 2)] + [
    Site(f"wo.{i}", 5120, 2048) for i in range(48)
]
# FLAN-T5-XL, q and v alone.
T5_XL_QV = [Site(f"attention.{i}", 2048, 2048) for i in range(24 * 3 * 2)]
# LLaMA2-7B: 32 layers of width 4096, q and v.
LLAMA2 = [Site(f"layers.{i}.{part}", 4096, 4096) for i in range(32) for part in ("q", "v")]
QUARTERS = {rf"layers\.({'|'.join(map(str, range(8 * k, 8 * k + 8)))})\..*": 8 - 2 * k for k in range(4)}


def count(sites, n_tasks, method, **fields):
    sites = [Site(s.name, s.n_in, s.n_out, n_tasks) for s in sites]
    return n_parameters(configure(method, **fields), sites)


@pytest.mark.parametrize(
    ("sites", "n_tasks", "method", "fields", "expected"),
    [
        (T5_XL, 0, "lora", {"r": 1}, 2_211_840),
        (T5_XL, 0, "lora", {"r": 16}, 35_389_440),
        (T5_XL, 313, "poly", {"r": 1, "n_skills": 8}, 17_694_720 + 1_081_728),
        (T5_XL, 1, "poly", {"r": 1, "n_skills": 8}, 17_694_720 + 3_456),
        (T5_XL, 313, "mhr", {"r": 1, "n_skills": 8, "n_splits": 64}, 17_694_720 + 69_230_592),
        (T5_XL, 1, "mhr", {"r": 1, "n_skills": 8, "n_splits": 64}, 17_694_720 + 221_184),
        (T5_XL_QV, 4, "mhr", {"r": 8, "n_skills": 2, "n_splits": 4}, 9_441_792),
        (LLAMA2, 0, "lora", {"r": 8}, 4_194_304),
        (LLAMA2, 0, "mola", {"r": 8, "n_skills_pattern": QUARTERS}, 22_282_240),
        (LLAMA2, 0, "mosld", {"r": 8, "n_skills_pattern": QUARTERS}, 13_893_632),
    ],
)
def test_published_counts(sites, n_tasks, method, fields, expected):
    assert count(sites, n_tasks, method, **fields) == expected


@pytest.mark.parametrize(
    ("method", "order", "skills", "millions"),
    [
        ("tensorpoly-i", 2, 8, 11.13),
        ("tensorpoly-i", 4, 8, 3.24),
        ("tlora", 2, 1, 1.39),
        ("tlora", 4, 1, 0.41),
    ],
)
def test_counts_of_tensors(method, order, skills, millions):
    table = skills * len(T5_XL) if method == "tensorpoly-i" else 0
    made = count(T5_XL, 1, method, r=16, order=order, n_skills=skills) - table
    assert round(made / 1e6, 2) == millions


def test_c_poly_counts_tables_and_v():
    fields = {"r": 2, "n_skills": 3, "n_specific": 2}
    pairs = (3 + 7 * 2) * 2 * (2048 + 2048) + 7 * 3
    for specific, v in (("learned_row", 7 * 14), ("diagonal", 14), ("fixed", 0)):
        assert count(T5_XL_QV[:1], 7, "c-poly", specific=specific, **fields) == pairs + v


@pytest.mark.parametrize(("method", "shared"), [("alter-stage-1", 0), ("alter", 3)])
def test_alter_counts_whole_feed_forwards(method, shared):
    """Of T5-base (768, 3072, no biases): (N + N_s) feed-forwards, 3 N weights, 4 d^2 + 4 d of the gate."""
    projections = (("up", 768, 3072, False), ("down", 3072, 768, False))
    site = Site("feed_forward", 768, 768, 3, projections=projections)
    fields = {"task_types": ("classification", "nli", "generation"), "n_skills": 5}
    gate = 4 * 768 * 768 + 4 * 768 if shared else 0
    expected = (5 + shared) * 2 * 768 * 3072 + 3 * 5 + gate
    assert n_parameters(configure(method, **fields), [site]) == expected


def test_the_share_of_a_router_is_said_of_the_router_and_not_of_the_gate():
    config = configure("alter", task_types=("a",), router_granularity="block")
    assert formula(config).endswith("+ (M + 1) (D D + D) + (K S a block)")


def test_the_verb_lists_every_method(tmp_path, capsys):
    folder = base_folder(tmp_path / "base")
    assert call("methods", "--base", folder, "--n-tasks", "2", "--r", "2", "--json") == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(METHODS)
    model = make_model(folder, "poly", n_skills=4, target_modules="all-linear")
    assert rows["poly"]["parameters"] == model.get_nb_trainable_parameters()[0]
    assert rows["poly"]["needs"] == "task ids"
    assert rows["smear"]["needs"] == "nothing"
    assert rows["lora"]["formula"] == "r (D + O)"
    assert call("methods") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in METHODS)
    assert call("methods", "--n-tasks", "0") == 1


def test_the_catalog_without_a_base_counts_nothing():
    assert all("parameters" not in row for row in catalog())
