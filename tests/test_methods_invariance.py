"""What a method makes of an example does not depend on its batch: in any order, in parts, alone. Bit for bit
in batch-invariant mode, within a bound otherwise; gradients, which are sums over the batch, within a bound.
Every row of the table through a whole encoder; then a run."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_llama
from cases import lengths_to_cu_seqlens
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import call
from test_methods import LOW_RANK, NEEDED, VARIANTS
from tiny_bert import tiny_config, tiny_state
from training_base import make_trainer

import polymoe
from polymoe import functional as F
from polymoe import tape
from polymoe.adapters import adapt, configure
from polymoe.adapters.experts import EXPERTS
from polymoe.batch import Batch
from polymoe.models import BertConfig, LlamaConfig
from polymoe.models.bert import Bert
from polymoe.models.llama import Llama
from polymoe.training import load_run

BOUND = 1e-5
"""Of the largest value of an example's output: how far two batches may be apart in the normal mode."""
GRADIENT_BOUND = (1e-4, 1e-5)
"""Of the largest gradient of the parameter, and of the largest in its layer (some are 0 but for rounding);
gradients of examples are added by their absolute values for that."""

TASKS = ("a", "b", "c")
LONGEST = 200


class Example(NamedTuple):
    """``key``: of its tokens, of the gradient of its output, and of its noise."""

    length: int
    task: int
    key: int


class Regrouped(NamedTuple):
    """Batches that together hold each of the examples once, in an order of their own."""

    examples: list[Example]
    parts: list[list[int]]


@st.composite
def regrouped(draw: Any) -> Regrouped:
    lengths = st.one_of(st.integers(1, 3), st.integers(1, 40), st.sampled_from((127, 128, 129, LONGEST)))
    n = draw(st.integers(1, 6))
    examples = [
        Example(draw(lengths), draw(st.integers(0, 2)), draw(st.integers(0, 2**40))) for _ in range(n)
    ]
    order = draw(st.permutations(range(n)))
    cuts = [*sorted(draw(st.sets(st.integers(1, n - 1), max_size=2)) if n > 1 else ()), n]
    return Regrouped(examples, [list(order[a:b]) for a, b in pairwise([0, *cuts])])


@cache
def model(variant: str, dropout: float = 0.0) -> Any:
    config = tiny_config(max_position_embeddings=LONGEST)
    return adapted(Bert.from_state(BertConfig.from_dict(config), tiny_state(config)), variant, dropout)


def adapted(base: Any, variant: str, dropout: float, variants: Any = VARIANTS) -> Any:
    """Every parameter random, so that nothing is 0 and no two experts are alike."""
    method = variant.split()[0]
    config = configure(method, **variants[variant])
    fields = {"target_modules": EXPERTS[config.experts].usual_targets}
    if config.experts in LOW_RANK:  # others have no dropout
        fields["lora_dropout"] = dropout
    made = adapt(base, method, TASKS, **fields | variants[variant])
    rng = np.random.default_rng(1)
    for _, p in made.adapter_parameters():
        p.data += 0.1 * rng.normal(size=p.shape).astype(np.float32)
    return made


def batch(examples: list[Example]) -> Batch:
    tokens = [np.random.default_rng(e.key).integers(5, 20, size=e.length) for e in examples]
    return Batch(
        lengths_to_cu_seqlens([e.length for e in examples]),
        np.concatenate(tokens),
        np.array([e.task for e in examples]),
        np.array([e.key for e in examples]),
        seed=3,
        step=4,
    )


def outputs(variant: str, examples: list[Example]) -> np.ndarray:
    return np.asarray(tape.data_of(model(variant).eval().embed(batch(examples))))


def gradients(variant: str, examples: list[Example]) -> dict[str, np.ndarray]:
    """Of the sum over examples of <its output, numbers of its own>, with all noise; auxiliary losses, which
    are functions of a whole batch, left out."""
    made = model(variant, dropout=0.1).train()
    for _, p in made.adapter_parameters():
        p.grad = np.zeros_like(p.data)
    dy = np.array([np.random.default_rng(e.key + 1).normal(size=24) for e in examples])
    with tape.Tape() as recorded:
        y = made.embed(batch(examples))
    recorded.backward(y, dy, dlosses=0.0)
    return {name: p.grad for name, p in made.adapter_parameters()}


def worst(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of a row, over the largest value of that row."""
    return float((np.abs(a - b).max(axis=1) / np.abs(b).max(axis=1)).max())


# Which label is best, for twelve labels that look at the output as a head does.
HEAD = np.random.default_rng(2).normal(size=(12, 24)).astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(deadline=None, max_examples=8)
@given(case=regrouped())
def test_outputs_do_not_depend_on_the_batch(variant: str, case: Regrouped) -> None:
    examples, parts = case
    order = [i for part in parts for i in part]
    alone = [[i] for i in range(len(examples))]
    with polymoe.batch_invariant():
        expected = outputs(variant, examples)
        for grouping, places in ((parts, order), ([order], order), (alone, slice(None))):
            got = np.concatenate([outputs(variant, [examples[i] for i in part]) for part in grouping])
            np.testing.assert_array_equal(got, expected[places])
    normal = outputs(variant, examples)
    assert worst(normal, expected) < BOUND
    got = np.concatenate([outputs(variant, [examples[i] for i in part]) for part in parts])
    assert worst(got, normal[order]) < BOUND
    scores, same = F.dense(normal[order], HEAD)[0], F.dense(got, HEAD)[0]
    best = np.sort(scores, axis=1)
    sure = best[:, -1] - best[:, -2] > 24 * BOUND * np.abs(normal).max() * np.abs(HEAD).max()
    np.testing.assert_array_equal(same.argmax(axis=1)[sure], scores.argmax(axis=1)[sure])


@pytest.mark.parametrize("variant", VARIANTS)
@settings(deadline=None, max_examples=4)
@given(case=regrouped())
def test_gradients_of_a_batch_are_the_sum_of_those_of_its_examples(variant: str, case: Regrouped) -> None:
    examples, parts = case
    whole = gradients(variant, examples)
    each = [gradients(variant, [e]) for e in examples]
    split = [gradients(variant, [examples[i] for i in part]) for part in parts]
    size = {name: sum(np.abs(g[name]) for g in each).max() for name in whole}
    for name, grad in whole.items():
        layer = name.split(".experts.")[0].split(".router.")[0] + "."
        bound = GRADIENT_BOUND[0] * size[name] + GRADIENT_BOUND[1] * max(
            size[other] for other in size if other.startswith(layer)
        )
        for other in (each, split):
            np.testing.assert_allclose(sum(g[name] for g in other), grad, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("method", NEEDED)
def test_a_decoder_gives_the_same_bits_in_any_batch(method: str) -> None:
    config = tiny_llama.tiny_config(max_position_embeddings=LONGEST)
    base = Llama.from_state(LlamaConfig.from_dict(config), tiny_llama.tiny_state(config))
    made = adapted(base, method, 0.0).eval()
    examples = [Example(length, task, task) for task, length in enumerate((3, 150, 1))]
    with polymoe.batch_invariant():
        together = tape.data_of(made(batch(examples)))
        alone = [tape.data_of(made(batch([e]))) for e in examples]
    np.testing.assert_array_equal(np.concatenate(alone), together)


def test_a_run_predicts_the_same_bits_for_a_text_alone(tmp_path: Any, capsys: Any) -> None:
    texts = ["cat", "the dog sees", "a cat sleeps , a small dog sees the big red house", "dog dog"]
    make_trainer(tmp_path, output="normal", epochs=1).train()
    make_trainer(tmp_path, output="invariant", epochs=1, batch_invariant=True).train()
    assert not polymoe.get_batch_invariant()

    def scores(name: str) -> tuple[list[Any], list[Any]]:
        run = load_run(tmp_path / name)
        together = run.predict(texts, "animal")
        return together, [run.predict([text], "animal")[0] for text in texts]

    assert worst(*(np.array([[p.score] for p in some]) for some in scores("normal"))) < BOUND
    with polymoe.batch_invariant():
        together, alone = scores("normal")
    assert together == alone
    together, alone = scores("invariant")
    assert together == alone

    def predicted(*argv: str) -> list[str]:
        assert call("predict", tmp_path / "normal", "--task", "animal", *argv, "--json") == 0
        return capsys.readouterr().out.splitlines()

    together = predicted("--batch-invariant", "--input", *texts)
    assert together == [predicted("--batch-invariant", "--input", text)[0] for text in texts]
