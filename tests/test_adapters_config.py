"""Configurations: presets, and combinations that are refused with the reason."""

import json

import pytest

from polymoe.adapters import METHODS, AdapterConfig, configure


def test_presets_are_the_methods_parts():
    parts = {name: configure(name) for name in ("lora", "private", "poly", "mhr", "mhr-mu", "c-poly")}
    assert {n: (c.router, c.n_skills, c.n_splits, c.scale("x")) for n, c in parts.items()} == {
        "lora": ("constant", 1, 1, 1.0),
        "private": ("one_hot", 1, 1, 1.0),
        "poly": ("task_table", 4, 1, 1 / 8),
        "mhr": ("task_table", 4, 4, 1 / 8),
        "mhr-mu": ("uniform", 4, 1, 1 / 8),
        "c-poly": ("common_specific", 3, 1, 1 / 2),
    }
    assert configure("shared") == configure("lora")
    assert all(c.method == name and c.noise == "per_example" for name, c in parts.items())
    types = {"alter": {"task_types": ["a"]}, "alter-stage-1": {"task_types": ["a"]}}
    assert all(configure(name, **types.get(name, {})).method == name for name in METHODS)


def test_scale_is_alpha_over_the_rank_of_the_module():
    config = configure(
        "poly", r=4, lora_alpha=16, rank_pattern={"value": 2}, alpha_pattern={r"layer\.1\.query": 3}
    )
    assert [config.scale(n) for n in ("a.query", "a.value", "a.layer.1.query")] == [4.0, 8.0, 0.75]
    assert [config.rank(n) for n in ("a.query", "a.value")] == [4, 2]
    assert configure("poly", r=4, rank_pattern={"value": 2}).scale("a.value") == 0.5


def test_a_configuration_survives_json():
    config = configure(
        "mhr", target_modules=["query", "value"], layers_to_transform=[0, 2], rank_pattern={"a": 3}
    )
    assert AdapterConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_configure_changes_a_given_configuration():
    assert configure(configure("poly", r=4), n_splits=2) == configure("poly", r=4, n_splits=2)


@pytest.mark.parametrize(
    ("method", "fields", "error", "message"),
    [
        (
            "ploy",
            {},
            ValueError,
            r"method: expected one of lora, .*, got 'ploy' \(did you mean poly or .*\?\)",
        ),
        (None, {}, ValueError, "method: expected one of"),
        ("poly", {"rank": 4}, TypeError, "rank: expected a field of AdapterConfig, got an unknown one"),
        ("poly", {"n_skill": 4}, TypeError, r"did you mean n_skills\?"),
        ("poly", {"r": 0}, ValueError, "r: expected at least 1, got 0"),
        ("poly", {"r": 8.0}, TypeError, "r: expected an integer, got 8.0"),
        ("poly", {"r": True}, TypeError, "r: expected an integer, got True"),
        ("poly", {"n_skills": 0}, ValueError, "n_skills: expected at least 1, got 0"),
        ("mhr", {"n_splits": -1}, ValueError, "n_splits: expected at least 1, got -1"),
        ("lora", {"n_skills": 4}, ValueError, "n_skills: expected 1 .*'constant' gives no weights.*, got 4"),
        (
            "private",
            {"n_splits": 2},
            ValueError,
            "n_splits: expected 1 .*'one_hot' gives no weights.*, got 2",
        ),
        ("poly", {"router": "token"}, ValueError, "router: expected 'constant' or 'uniform' or 'one_hot' or"),
        (
            "poly",
            {"mixing": "sums"},
            ValueError,
            "mixing: expected 'factors' or 'outputs' or 'leaves' or 'gated', got 'sums'",
        ),
        (
            "mhr",
            {"mixing": "outputs"},
            ValueError,
            r"n_splits: expected 1 \(outputs are not cut in blocks\), got 4",
        ),
        (
            "poly",
            {"pooling": "mean"},
            ValueError,
            "pooling: expected 'attention' .neither router 'task_table' nor",
        ),
        (
            "orchmoe",
            {"gate": "l2"},
            ValueError,
            "gate: expected 'sigmoid' .the router 'latent_tasks'.*, got 'l2'",
        ),
        (
            "orchmoe",
            {"noise": "per_task"},
            ValueError,
            "noise: expected 'per_step' or 'per_example' or 'off'",
        ),
        ("poly", {"noise": "per_step"}, ValueError, "noise: expected 'per_example' or 'per_task' or 'off'"),
        ("poly", {"router": "given"}, ValueError, "task_skills: expected a word of 0 and 1 .*, got None"),
        (
            "poly",
            {"router": "given", "task_skills": ["1000", "12"]},
            ValueError,
            "4 digits 0 or 1 .*, got '12'",
        ),
        ("mola", {"top_k": 6}, ValueError, "top_k: expected 1 to 5 .the fewest skills of a layer., got 6"),
        ("mola", {"top_k": 4, "n_skills_pattern": {"q": 3}}, ValueError, "top_k: expected 1 to 3 .*, got 4"),
        ("mola", {"top_k": 0}, ValueError, "top_k: expected at least 1, got 0"),
        ("molora", {"balance_loss": 0.1}, ValueError, "balance_loss: expected 0 .without top_k., got 0.1"),
        (
            "molora",
            {"mixing": "factors"},
            ValueError,
            "mixing: expected 'outputs' .the router 'token_softmax'",
        ),
        ("poly", {"experts": "shared_A"}, ValueError, "mixing: expected 'outputs' .the experts 'shared_A'"),
        (
            "c-poly",
            {"experts": "shared_A"},
            ValueError,
            "router: expected 'token_softmax' .*'common_specific'",
        ),
        ("mosld", {"lora_A_dropout": 1.0}, ValueError, "lora_A_dropout: expected 0 <= p < 1, got 1.0"),
        ("tensorpoly-i", {"order": 3}, ValueError, "order: expected 2 or 4 or 8 .*, got 3"),
        ("tensorpoly-i", {"mixing": "outputs"}, ValueError, "mixing: expected 'factors' or 'leaves'"),
        ("tensorpoly-ii", {"n_splits": 4}, ValueError, "n_splits: expected 1 .the experts 'tensor'., got 4"),
        (
            "poly",
            {"mixing": "leaves"},
            ValueError,
            "mixing: expected 'factors' or 'outputs' .the experts 'lora'",
        ),
        (
            "poly",
            {"init": "tlora"},
            ValueError,
            "init: expected 'peft' or 'mttl' .the experts 'lora'., got 'tlora'",
        ),
        ("c-poly", {"n_specific": 0}, ValueError, "n_specific: expected at least 1, got 0"),
        ("poly", {"ibp_prior": -1}, ValueError, "ibp_prior: expected a positive number, got -1"),
        ("orchmoe", {"stop_router_gradient": 1}, TypeError, "stop_router_gradient: expected a bool, got 1"),
        (
            "poly",
            {"noise": True},
            ValueError,
            "noise: expected 'per_example' or 'per_task' or 'per_step' or 'off', got True",
        ),
        ("poly", {"init": "torch"}, ValueError, "init: expected 'peft' or 'mttl' or 'tlora', got 'torch'"),
        ("poly", {"temperature": 0}, ValueError, "temperature: expected a positive number, got 0"),
        (
            "poly",
            {"temperature": float("nan")},
            ValueError,
            "temperature: expected a positive number, got nan",
        ),
        (
            "poly",
            {"gate": "relu"},
            ValueError,
            "gate: expected 'sigmoid' or 'straight_through' or 'softmax' or",
        ),
        (
            "poly",
            {"gate": "l2"},
            ValueError,
            r"noise: expected 'off' \(the gate 'l2' takes none\), got 'per_example'",
        ),
        (
            "mhr",
            {"gate": "softmax", "noise": "off", "average_correction": True},
            ValueError,
            r"average_correction: expected False \(the gate 'softmax' takes none\), got True",
        ),
        ("poly", {"gate_dropout": 1}, ValueError, "gate_dropout: expected 0 <= p < 1, got 1"),
        ("poly", {"gate_dropout": "a"}, TypeError, "gate_dropout: expected a number, got 'a'"),
        ("poly", {"average_correction": 1}, TypeError, "average_correction: expected a bool, got 1"),
        ("poly", {"lora_alpha": "8"}, TypeError, "lora_alpha: expected a number, got '8'"),
        ("poly", {"lora_dropout": 1.0}, ValueError, "lora_dropout: expected 0 <= p < 1, got 1.0"),
        ("poly", {"lora_dropout": None}, TypeError, "lora_dropout: expected a number, got None"),
        ("poly", {"rank_pattern": {"q": 0}}, ValueError, r"rank_pattern\['q'\]: expected at least 1, got 0"),
        (
            "poly",
            {"alpha_pattern": {"q": 0}},
            ValueError,
            r"alpha_pattern\['q'\]: expected a positive number",
        ),
        (
            "poly",
            {"modules_to_save": ["classifier"]},
            ValueError,
            r"modules_to_save: expected None \(the base is",
        ),
        (
            "lora",
            {"target_modules": "q", "layers_to_transform": 1},
            ValueError,
            "layers_to_transform: expected None",
        ),
        ("lora", {"target_modules": "q", "layers_pattern": "h"}, ValueError, "layers_pattern: expected None"),
        ("lora", {"layers_pattern": "h"}, ValueError, "layers_to_transform: expected numbers"),
    ],
)
def test_a_combination_that_does_not_work_is_refused_with_the_reason(method, fields, error, message):
    with pytest.raises(error, match=message):
        configure(method, **fields)
