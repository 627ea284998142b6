"""Small random bases that write, with a decoder alone and with an encoder, and every method on them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tiny_llama
import tiny_t5
from test_methods import FEED_FORWARD, TYPES, VARIANTS
from test_methods_invariance import adapted

from polymoe.data import Tokenizer
from polymoe.models import T5, Llama, LlamaConfig, T5Config, generate

PROMPTS = {
    "llama": [[5, 9, 11], [7], [6, 6, 19, 8, 30, 31, 5, 44], [12, 40]],
    "t5": [[5, 9, 11, 1], [7, 1], [6, 6, 19, 8, 30, 31, 5, 44, 1], [12, 40, 1]],  # to their ends
}
TASK_IDS = np.array([2, 0, 1, 0])
DENSE = {"target_modules": r".*\.DenseReluDense"}
BOTH_STACKS = {  # feed-forwards, and routers that layers share
    "alter all": TYPES | DENSE,
    "smear all feed-forwards": DENSE | FEED_FORWARD | {"experts": "bottleneck"},
    "smear by block": {"router_granularity": "block", "target_modules": ["q", "k", "v"]},
    "orchmoe by model": {"router_granularity": "model", "target_modules": ["q", "k", "v", "wi_0"]},
}
DECODER = {name: fields for name, fields in VARIANTS.items() if "n_skills_pattern" not in fields}  # BERT's
METHODS = {"llama": DECODER, "t5": DECODER | BOTH_STACKS}
CASES = [(family, variant) for family, own in METHODS.items() for variant in own]


@cache
def writer(family: str) -> Any:
    """A base that knows where texts end."""
    if family == "llama":
        config, tokenizer = tiny_llama.tiny_config(), Tokenizer(tiny_llama.tiny_tokenizer(), 48)
        sizes, state = LlamaConfig.from_dict(config), tiny_llama.tiny_state(config)
        return Llama.from_state(sizes, state, tokenizer=tokenizer, eos_token_ids=(2,))
    config, tokenizer = tiny_t5.tiny_config(), Tokenizer(tiny_t5.tiny_tokenizer(), 64)
    return T5.from_state(
        T5Config.from_dict(config), tiny_t5.tiny_state(config), tokenizer=tokenizer, eos_token_ids=(1,)
    )


@cache
def adapted_writer(family: str, variant: str) -> Any:
    """It with a method's adapter, nothing of which is 0."""
    return adapted(writer(family), variant, 0.0, METHODS[family]).eval()


def greedy(which: Any, *args: Any, **options: Any) -> list[tuple[int, ...]]:
    """The tokens that it writes after each prompt."""
    return [texts[0].token_ids for texts in generate(which, *args, **{"max_new_tokens": 9} | options)]
