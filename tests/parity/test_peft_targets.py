"""Our target rules against PEFT's own function, over many configurations and names."""

import itertools

import pytest

peft = pytest.importorskip("peft")

from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists  # noqa: E402
from peft.utils.other import get_pattern_key  # noqa: E402

from polymoe.adapters import configure  # noqa: E402
from polymoe.adapters.targets import is_excluded, is_target, pattern_value  # noqa: E402

NAMES = [
    "query",
    "layer.1.query",
    "h.1.query",
    "encoder.layer.0.attention.self.query",
    "encoder.layer.1.attention.self.query",
    "encoder.layer.11.attention.self.value",
    "encoder.layer.1.output.dense",
    "encoder.layer.1.attention.output.dense",
    "model.layers.1.mlp.experts.0.query",
    "model.layers.0.mlp.experts.1.query",
    "transformer.h.2.attn.query",
    "bert.encoder.layer.1.attention.self.query.extra",
    "encoder_query",
    "1.2.query",
]
LISTS = [
    ["query"],
    ["query", "dense"],
    ["self.query"],
    ["uery"],
    [NAMES[4]],
    ["attention.output.dense", "value"],
]
TEXTS = [r".*query", r".*\.query", "query", r".*layer\.1\..*", r".*(self|attn)\.(query|value)", ""]
EXCLUDES = [None, [], ["dense"], ["query"], [NAMES[4]], r".*layer\.1\..*", "query", ""]
LAYERS = [None, [], 0, 1, [0], [1], [1, 2], [0, 11]]
PATTERNS = [None, [], "layer", "layers", ["h", "layer"], ["experts"], r"lay\w+", ""]


def configurations():
    for targets, exclude in itertools.product(LISTS + TEXTS, EXCLUDES):
        yield {"target_modules": targets, "exclude_modules": exclude}
    for targets, layers, pattern in itertools.product(LISTS, LAYERS, PATTERNS):
        if layers is not None or not pattern:
            yield {"target_modules": targets, "layers_to_transform": layers, "layers_pattern": pattern}


def test_every_pair_of_configuration_and_name_is_decided_as_peft_does():
    pairs = 0
    for fields in configurations():
        theirs, ours = peft.LoraConfig(**fields), configure("lora", **fields)
        for name in NAMES:
            expected = check_target_module_exists(theirs, name)
            excluded = isinstance(expected, _ExcludedModule)
            assert is_excluded(ours, name) == excluded, (fields, name)
            assert is_target(ours, name) == (bool(expected) and not excluded), (fields, name)
            pairs += 1
    assert pairs > 5000


@pytest.mark.parametrize(
    "keys", [["query"], ["uery"], [r"layer\.1\..*", "query"], ["^query"], ["q|query"], [".*"]]
)
def test_patterns_of_ranks_pick_the_entry_that_peft_picks(keys):
    for name in NAMES:
        pattern = {key: i for i, key in enumerate(keys)}
        assert pattern_value(pattern, name, -1) == pattern.get(get_pattern_key(keys, name), -1)


def test_bert_has_the_default_that_peft_has():
    from polymoe.models.bert import Bert

    assert (
        list(Bert.default_target_modules)
        == peft.utils.TRANSFORMERS_MODELS_TO_POLY_TARGET_MODULES_MAPPING["bert"]
    )
