"""Writing text: token by token is the whole text at once, for every method; a text does not depend on its
batch; the searches; what is refused."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np
import pytest
import writers
from cases import lengths_to_cu_seqlens
from test_methods_invariance import adapted
from writers import CASES, TASK_IDS, adapted_writer, greedy, writer

import polymoe
from polymoe.batch import Batch, Routings
from polymoe.models import GenerationConfig, generate
from polymoe.models.cache import KeyValueCache
from polymoe.models.generate import next_batch, start_batch
from polymoe.models.search import Beams, largest, log_softmax

PROMPTS = writers.PROMPTS["llama"]
base, model = partial(writer, "llama"), partial(adapted_writer, "llama")


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_token_by_token_is_the_whole_text_at_once(family: str, variant: str) -> None:
    made, prompts = adapted_writer(family, variant), [np.array(p) for p in writers.PROMPTS[family]]
    later = np.random.default_rng(0).integers(5, 250, size=(5, 4))
    lengths = np.array([len(p) for p in prompts])
    whole = np.concatenate([text for i, p in enumerate(prompts) for text in (p, later[:, i])])
    together = Batch(lengths_to_cu_seqlens(lengths + 5), whole, TASK_IDS, prompt_lengths=lengths)
    full, rows = made.base.follow(together)
    expected = made.base.logits(made(full)[rows]).reshape(4, 5, -1)
    batch = start_batch(made.base, made.attach, prompts, TASK_IDS, [4] * 4)
    for i in range(5):
        got = made.base.logits(made.base(batch)[batch.cu_seqlens[1:] - 1])
        np.testing.assert_allclose(got, expected[:, i], rtol=0, atol=2e-5 * np.abs(expected).max())
        if i < 4:
            batch = next_batch(batch, np.arange(4), later[i])


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_a_text_does_not_depend_on_its_batch(family: str, variant: str) -> None:
    made, prompts = adapted_writer(family, variant), writers.PROMPTS[family]
    together = greedy(made, prompts, TASK_IDS)
    assert together == [greedy(made, [p], [t])[0] for p, t in zip(prompts, TASK_IDS, strict=True)]
    order = [2, 0, 3, 1]
    assert [together[i] for i in order] == greedy(made, [prompts[i] for i in order], TASK_IDS[order])
    assert together == greedy(made, prompts, TASK_IDS, batch_tokens=20)


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("variant", ["poly", "smear", "molora", "alter", "tensorpoly-i"])
def test_tasks_follow_beams_and_returns(family: str, variant: str) -> None:
    made, prompts = adapted_writer(family, variant), writers.PROMPTS[family]
    many: list[dict[str, Any]] = [
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
        {"temperature": 1.0, "num_return_sequences": 3, "seed": 4, "top_k": 50, "top_p": 0.9},
    ]
    for options in many:
        together = generate(made, prompts, TASK_IDS, max_new_tokens=7, **options)
        assert all(len(texts) == options["num_return_sequences"] for texts in together)
        for i in (3, 0, 2, 1):
            alone = generate(made, [prompts[i]], int(TASK_IDS[i]), max_new_tokens=7, **options)
            assert alone[0] == together[i]
    other = generate(made, prompts, 1, max_new_tokens=7, **many[0])
    if variant != "smear" and variant != "molora":  # those read the text, not the task
        assert other[0] != generate(made, prompts, TASK_IDS, max_new_tokens=7, **many[0])[0]


@pytest.mark.parametrize(("variant", "pairs"), [("poly", 3), ("smear", 4)])  # of the tasks, of the prompts
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_factors_are_mixed_once_for_a_text(
    variant: str, pairs: int, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, mixed = model(variant), []
    mix = polymoe.tape.mix
    monkeypatch.setattr(polymoe.tape, "mix", lambda w, bank: mixed.append(w.shape) or mix(w, bank))
    greedy(made, PROMPTS, TASK_IDS, max_new_tokens=6, **options)
    layers = len(made.adapter.layers)
    assert len(mixed) == 2 * layers  # A and B of every layer, all of the batch together
    assert {shape[0] for shape in mixed} == {pairs}


@pytest.mark.parametrize(
    ("family", "variant"),
    [("llama", "poly"), ("llama", "smear"), ("llama", "orchmoe"), ("t5", "smear"), ("llama", "molora")],
)
def test_routers_decide_on_the_prompt_once(
    family: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = adapted_writer(family, variant), []
    routers = {layer.router.name: layer.router for layer in made.adapter.layers.values()}
    (kind,) = {type(router) for router in routers.values()}
    decide = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, b, x: asked.append(self.name) or decide(self, b, x))
    generate(made, writers.PROMPTS[family], TASK_IDS, max_new_tokens=4, num_beams=2)
    assert set(asked) == set(routers)
    times = 4 if kind.axis == "token" else 1  # those go by the token, written or given
    assert len(asked) == times * len(routers)


def test_routings_follow_texts() -> None:
    made = model("smear")
    routings = Routings()
    batch = Batch(np.array([0, 3, 4]), np.array([5, 9, 11, 7]), routings=routings)
    made(batch)
    taken = routings.take(np.array([1, 1, 0]))
    assert taken.stand and not routings.stand
    for name, routing in routings.items():
        np.testing.assert_array_equal(
            taken[name].weights[taken[name].adapter_ids], routing.weights[[1, 1, 0]]
        )
    assert len(taken) == len(routings) > 0


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_greedy_is_the_likeliest_token_each_time(family: str) -> None:
    base, prompt = writer(family), writers.PROMPTS[family][0]
    (text,) = generate(base, [prompt], max_new_tokens=10)[0]
    score, n, end = 0.0, len(prompt), base.eos_token_ids[0]
    for i, token in enumerate(text.token_ids):
        ids = np.array([*prompt, *text.token_ids[: i + 1]])
        batch, rows = base.follow(Batch(np.array([0, len(ids)]), ids, prompt_lengths=np.array([n])))
        log_p = log_softmax(base.logits(base(batch)[rows[-1:]])[0])
        assert token == log_p.argmax()
        score += log_p[token]
    assert text.score == pytest.approx(score / len(text.token_ids), rel=1e-5)
    assert text.finish == ("eos" if text.token_ids[-1] == end else "length")


def test_as_many_beams_as_texts_find_them_all() -> None:
    rng = np.random.default_rng(1)
    steps, vocabulary = 3, 3
    table = rng.normal(size=(vocabulary, vocabulary)) * 2  # logits of the next token after each

    def all_texts(tokens: list[int]) -> list[tuple[float, list[int]]]:
        if len(tokens) == steps + 1:
            return [(0.0, [])]
        found = []
        for token, p in enumerate(log_softmax(table[tokens[-1]])):
            found += [(p + q, [token, *rest]) for q, rest in all_texts([*tokens, token])]
        return found

    config = GenerationConfig(num_beams=27, num_return_sequences=27, max_new_tokens=steps)
    beams = Beams(config, lambda tokens: "length" if len(tokens) == steps else None, 0)
    _, tokens = beams.advance(table[[0]])
    while tokens:
        _, tokens = beams.advance(table[tokens])
    best = sorted(all_texts([0]), reverse=True)
    assert sorted(found.tokens for found in beams.found) == sorted(text for _, text in best)
    np.testing.assert_allclose([f.score for f in beams.found], [p / steps for p, _ in best])


def test_the_largest_are_those_of_a_sort() -> None:
    rng = np.random.default_rng(0)
    for size, n in ((5000, 12), (5000, 1), (64, 1), (63, 5), (1000, 200), (7, 9)):
        for x in (rng.normal(size=size), rng.integers(0, 5, size).astype(float), np.full(size, -np.inf)):
            np.testing.assert_array_equal(largest(x, n), np.argsort(-x, kind="stable")[:n])


def test_draws_follow_the_distribution() -> None:
    prompt = PROMPTS[2]
    hidden = base()(Batch(np.array([0, len(prompt)]), np.array(prompt)))
    p = np.exp(log_softmax(base().logits(hidden[-1:])[0] / 1.5))
    texts = generate(base(), [prompt], max_new_tokens=1, temperature=1.5, num_return_sequences=2000, seed=1)[
        0
    ]
    drawn = np.bincount([t.token_ids[0] for t in texts], minlength=len(p))
    best = np.argsort(-p)[:5]
    np.testing.assert_allclose(drawn[best] / 2000, p[best] / p.sum(), atol=0.04)
    few = generate(base(), [prompt], max_new_tokens=1, temperature=1.5, top_k=3, num_return_sequences=200)[0]
    assert {t.token_ids[0] for t in few} == set(np.argsort(-p)[:3])
    fewest = int(np.searchsorted(np.cumsum(np.sort(p)[::-1]) / p.sum(), 0.5)) + 1
    half = generate(base(), [prompt], max_new_tokens=1, temperature=1.5, top_p=0.5, num_return_sequences=500)[
        0
    ]
    assert {t.token_ids[0] for t in half} <= set(np.argsort(-p)[:fewest])


def test_a_seed_gives_the_same_text_and_another_another() -> None:
    def draw(prompts: Any, seed: int) -> list[tuple[int, ...]]:
        return greedy(base(), prompts, temperature=1.0, seed=seed)

    assert draw(PROMPTS, 1) == draw(PROMPTS, 1) != draw(PROMPTS, 2)
    twice = draw([PROMPTS[0], PROMPTS[0]], 1)
    assert twice[0] != twice[1] and twice[0] == draw(PROMPTS, 1)[0]


def test_stop_strings_end_a_text_and_pieces_make_it() -> None:
    (text,) = generate(base(), "the cat", max_new_tokens=30)[0]
    assert len(text.text) > 8
    stop = text.text[5:8]
    at = text.text.find(stop)
    pieces: list[str] = []
    (stopped,) = generate(
        base(), "the cat", max_new_tokens=30, stop=(stop, "never found"),
        on_text=lambda i, piece: pieces.append(piece),
    )[0]  # fmt: skip
    assert stopped.finish == "stop" and stopped.text == text.text[:at] == "".join(pieces)
    pieces.clear()
    (whole,) = generate(
        base(), "the cat", max_new_tokens=30, stop=("never found",),
        on_text=lambda i, piece: pieces.append(piece),
    )[0]  # fmt: skip
    assert whole.finish in ("length", "eos") and whole.text == text.text == "".join(pieces)


def test_a_prompt_that_is_too_long_loses_its_beginning() -> None:
    long = "the cat " * 40
    (text,) = generate(base(), long, max_new_tokens=8)[0]
    tokens = base().tokenizer.prompts([long])[0]
    assert text.cut == len(tokens) - 40 > 0
    assert greedy(base(), [[1, *tokens[-39:]]], max_new_tokens=8) == [text.token_ids]


def test_the_model_goes_back_to_training_and_the_adapter_may_be_off() -> None:
    made = adapted(base(), "poly", 0.5).train()
    first = greedy(made, PROMPTS, TASK_IDS)
    assert made.training and first == greedy(made, PROMPTS, TASK_IDS)
    with made.disable_adapter():
        assert greedy(made, PROMPTS) == greedy(base(), PROMPTS)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((base, [[]]), {}, ValueError, r"prompts: expected at least one token in each, got \[\]"),
        ((base, [[1.5]]), {}, TypeError, "prompts: expected texts or lists of token ids"),
        ((base, "a", "b"), {}, ValueError, "task: expected None .a base without adapters"),
        ((lambda: model("poly"), "a"), {}, ValueError, "task_ids: expected one of .'a', 'b', 'c'. per"),
        ((lambda: model("poly"), "a", "d"), {}, KeyError, "task: expected one of"),
        ((base, "a"), {"max_new_tokens": 48}, ValueError, "max_new_tokens: expected fewer than 47"),
        ((base, "a"), {"max_new_tokens": 0}, ValueError, "max_new_tokens: expected an integer from 1"),
        ((base, "a"), {"top_k": 1.5}, TypeError, "top_k: expected an integer, got 1.5"),
        ((base, "a"), {"temperature": -1}, ValueError, "temperature: expected 0 or more, got -1"),
        ((base, "a"), {"temperature": float("nan")}, ValueError, "temperature: expected a finite number"),
        ((base, "a"), {"top_p": 0}, ValueError, "top_p: expected more than 0 and at most 1, got 0"),
        ((base, "a"), {"stop": "x"}, TypeError, "stop: expected a tuple of non-empty strings, got 'x'"),
        ((base, "a"), {"stop": ("",)}, TypeError, "stop: expected a tuple of non-empty strings"),
        ((base, "a"), {"num_return_sequences": 2}, ValueError, "num_return_sequences: expected at most 1"),
        (
            (base, "a"), {"num_return_sequences": 4, "num_beams": 3},
            ValueError, "num_return_sequences: expected at most 3 .num_beams=3., got 4",
        ),
        ((base, "a"), {"num_beams": 2, "temperature": 1.0}, ValueError, "temperature: expected 0 with num_b"),
        (
            (base, "a"), {"num_beams": 2, "on_text": print}, ValueError, "on_text: expected None with",
        ),
        ((base, "a"), {"beams": 2}, TypeError, "beams"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(args: Any, options: Any, error: Any, message: str) -> None:
    which, *rest = args
    with pytest.raises(error, match=message):
        generate(which(), *rest, **{"max_new_tokens": 8} | options)


def test_a_base_that_writes_no_text_is_refused() -> None:
    from tiny_bert import tiny_config, tiny_state

    from polymoe.models import Bert, BertConfig

    bert = Bert.from_state(BertConfig.from_dict(tiny_config()), tiny_state(tiny_config()))
    with pytest.raises(TypeError, match="model: expected one that writes text, got Bert"):
        generate(bert, [[5]])


def test_a_cache_follows_texts_that_part() -> None:
    rng = np.random.default_rng(0)
    cache, new = KeyValueCache([9, 9, 12]), np.array([3, 1, 2])
    texts = [np.empty((0, 4))] * 3
    for parents in ([0, 1, 2], [1, 0, 2], [0, 0, 2], [2, 0, 1, 0], [1, 3], [1, 0], [0, 0], [1, 1], [0, 1]):
        offsets = lengths_to_cu_seqlens(new)
        rows = rng.normal(size=(int(offsets[-1]), 4))
        texts = [np.concatenate([text, rows[offsets[i] : offsets[i + 1]]]) for i, text in enumerate(texts)]
        for layer in (1, -1):
            keys, values, lengths = cache.extend(layer, layer * rows, -layer * rows, offsets)
            for start, length, text in zip(cache.cu_seqlens, lengths, texts, strict=False):
                np.testing.assert_array_equal(keys[start : start + length], layer * text)
                np.testing.assert_array_equal(values[start : start + length], -layer * text)
        cache.advance(offsets)
        cache, texts, new = cache.take(np.array(parents)), [texts[i] for i in parents], np.ones(len(parents))


def test_a_cache_copies_only_rows_that_differ() -> None:
    """Texts that were copied from one another share their rows until they part."""
    cache, rows = KeyValueCache([6, 6]), np.ones((4, 1))
    offsets = np.array([0, 4, 4])
    keys, _, _ = cache.extend(0, rows, rows, offsets)
    cache.advance(offsets)
    cache = cache.take(np.array([0, 0]))  # rooms are alike: the second text becomes the first
    keys, _, _ = cache.extend(0, rows[:2], rows[:2], np.array([0, 1, 2]))
    cache.advance(np.array([0, 1, 2]))
    keys[6:10] = 7  # what the first has too is not copied again
    assert cache.take(np.array([0, 0])) is cache
    np.testing.assert_array_equal(keys[6:11, 0], [7, 7, 7, 7, 1])


def test_texts_of_a_task_lie_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = model("poly"), []
    module = importlib.import_module("polymoe.models.generate")  # the package has a function of this name
    run = module._run
    monkeypatch.setattr(module, "_run", lambda *args: seen.append(args[3]) or run(*args))
    generate(made, PROMPTS, [1, 0, 1, 0], max_new_tokens=2)
    np.testing.assert_array_equal(seen[0], [0, 0, 1, 1])


def test_a_cache_has_room_for_so_many_tokens() -> None:
    full = KeyValueCache([3, 1])
    batch = Batch(np.array([0, 3, 4]), np.array([5, 9, 11, 7]), cache=full)
    base()(batch)
    np.testing.assert_array_equal(full.lengths, [3, 1])
    with pytest.raises(ValueError, match=r"cache: expected at most \[3, 1\] tokens of each text"):
        base()(next_batch(batch, np.arange(2), [5, 5]))
    with pytest.raises(ValueError, match=r"cache: expected at most .* got 1 texts"):
        full.extend(base(), np.ones((1, 4)), np.ones((1, 4)), np.array([0, 1]))
