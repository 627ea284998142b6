"""PEFT's matching rules, case by case; tests/parity/test_peft_targets.py asks PEFT itself."""

import pytest

from polymoe.adapters import configure
from polymoe.adapters.targets import is_excluded, is_target, pattern_value, resolve, select

QUERY = "encoder.layer.1.attention.self.query"
DENSE = "encoder.layer.1.output.dense"
EXPERT = "model.layers.1.mlp.experts.7.down_proj"

# rule: fields of the configuration, module name, is it a target?
TABLE = [
    # a list: equal to an entry, or ends in "." + entry
    ({"target_modules": ["query"]}, QUERY, True),
    ({"target_modules": ["self.query"]}, QUERY, True),
    ({"target_modules": ["uery"]}, QUERY, False),
    ({"target_modules": ["query"]}, "query", True),
    ({"target_modules": ["query"]}, "encoder.query.dense", False),
    ({"target_modules": ["quer."]}, QUERY, False),  # no pattern in a list
    ({"target_modules": [QUERY]}, QUERY, True),
    ({"target_modules": []}, QUERY, False),
    # text: a pattern for the whole name
    ({"target_modules": r".*\.query"}, QUERY, True),
    ({"target_modules": "query"}, QUERY, False),
    ({"target_modules": r".*\.(query|value)"}, QUERY, True),
    ({"target_modules": r"encoder\.layer\.1\."}, QUERY, False),
    ({"target_modules": r".*\.layer\.[02]\..*"}, QUERY, False),
    # exclude_modules first, in the same two forms
    ({"target_modules": ["query"], "exclude_modules": ["query"]}, QUERY, False),
    ({"target_modules": ["query"], "exclude_modules": ["self.query"]}, QUERY, False),
    ({"target_modules": ["query"], "exclude_modules": [QUERY]}, QUERY, False),
    ({"target_modules": [QUERY], "exclude_modules": r".*layer\.1.*"}, QUERY, False),
    ({"target_modules": ["query"], "exclude_modules": "layer.1"}, QUERY, True),
    ({"target_modules": ["query"], "exclude_modules": []}, QUERY, True),
    ({"target_modules": ["query"], "exclude_modules": ""}, QUERY, True),
    # layers_to_transform: the first number, or the one after layers_pattern
    ({"target_modules": ["query"], "layers_to_transform": 1}, QUERY, True),
    ({"target_modules": ["query"], "layers_to_transform": 0}, QUERY, False),
    ({"target_modules": ["query"], "layers_to_transform": [0, 1]}, QUERY, True),
    ({"target_modules": ["query"], "layers_to_transform": [0, 2]}, QUERY, False),
    ({"target_modules": ["query"], "layers_to_transform": []}, QUERY, True),
    (
        {"target_modules": ["query"], "layers_to_transform": [1]},
        "layer.1.query",
        False,
    ),  # no name before "layer"
    (
        {"target_modules": ["query"], "layers_to_transform": [1]},
        "query",
        True,
    ),  # a full name counts in any layer
    ({"target_modules": [QUERY], "layers_to_transform": [5]}, QUERY, True),
    ({"target_modules": ["down_proj"], "layers_to_transform": [1]}, EXPERT, True),
    ({"target_modules": ["down_proj"], "layers_to_transform": [7]}, EXPERT, False),
    ({"target_modules": ["down_proj"], "layers_to_transform": 7, "layers_pattern": "experts"}, EXPERT, True),
    (
        {"target_modules": ["down_proj"], "layers_to_transform": 1, "layers_pattern": ["h", "layers"]},
        EXPERT,
        True,
    ),
    ({"target_modules": ["down_proj"], "layers_to_transform": 1, "layers_pattern": ["h"]}, EXPERT, False),
    ({"target_modules": ["down_proj"], "layers_to_transform": 1, "layers_pattern": []}, EXPERT, True),
    (
        {"target_modules": ["query"], "layers_to_transform": 1, "layers_pattern": "layer"},
        "layer.1.query",
        True,
    ),
    ({"target_modules": ["dense"], "layers_to_transform": 1, "layers_pattern": r"lay\w+"}, DENSE, True),
]


@pytest.mark.parametrize(("fields", "name", "expected"), TABLE)
def test_is_target_follows_the_rules(fields, name, expected):
    assert is_target(configure("lora", **fields), name) is expected


def test_is_target_needs_resolved_modules():
    with pytest.raises(ValueError, match="target_modules: expected a pattern or a list of names, got None"):
        is_target(configure("lora"), QUERY)


def test_nothing_is_excluded_by_default():
    assert not is_excluded(configure("lora"), QUERY)


LINEAR = (QUERY, QUERY.replace("query", "value"), DENSE, "lm_head")


def test_resolve_knows_all_linear_and_the_default():
    assert resolve("all-linear", LINEAR, head="lm_head") == LINEAR[:3]
    assert resolve("All-Linear", LINEAR) == LINEAR
    assert resolve(None, LINEAR, default=["query"]) == ("query",)
    assert resolve(r".*query", LINEAR, default=["value"]) == r".*query"
    with pytest.raises(
        ValueError, match=r"target_modules: expected names or a pattern .*no default.*, got None"
    ):
        resolve(None, LINEAR)


def test_select_lists_the_candidates_when_nothing_matches():
    config = configure("lora", target_modules=["querry"])
    message = (
        r"target_modules: expected the names of linear layers, got .*\(near: query\), which match none; "
        r"candidates:\n  encoder.layer.\*.attention.self.query\n  encoder.layer.\*.attention.self.value\n"
    )
    with pytest.raises(ValueError, match=message):
        select(config, ["", "encoder", *LINEAR], LINEAR)


def test_select_says_what_limited_the_choice():
    config = configure("lora", target_modules=["query"], layers_to_transform=[9])
    with pytest.raises(ValueError, match=r"with layers_to_transform=\(9,\), which match none"):
        select(config, LINEAR, LINEAR)


def test_select_refuses_what_is_no_linear_layer():
    config = configure("lora", target_modules=["query", "self"])
    with pytest.raises(ValueError, match="expected linear layers, got encoder"):
        select(config, ["encoder.layer.1.attention.self", *LINEAR], LINEAR)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({}, 8),
        ({"query": 4}, 4),
        ({"uery": 4}, 8),
        ({r"layer\.1\.attention.*": 2, "query": 4}, 2),
        ({"query": 4, r"layer\.1\.attention.*": 2}, 4),
        ({r"layer\.1": 2}, 8),
        ({r"^query": 4}, 8),
        ({"value|query": 3}, 3),
    ],
)
def test_pattern_value_takes_the_first_match_at_the_end(pattern, expected):
    assert pattern_value(pattern, QUERY, 8) == expected
