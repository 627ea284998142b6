"""Texts to ids with the real tokenizer of MiniLM, and the split that training takes its batches from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from real import minilm_folder

from polymoe.batch import TaskRegistry
from polymoe.data import Tokenizer, encode_split, read_tasks

CLS, SEP = 101, 102
TEXTS = ["A house on the hill.", "", "one " * 300, "naïve café, 北京", " \t", "a [SEP] b"]


def rows(tokens: object) -> list[list[int]]:
    return [tokens.take(np.array([i]))[0].tolist() for i in range(len(tokens))]  # type: ignore[attr-defined, arg-type]


def test_long_texts_are_cut_inside_the_special_tokens() -> None:
    tokens = Tokenizer.from_folder(minilm_folder(), 16).encode(TEXTS)
    raw = tokenizers.Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    raw.no_padding()
    raw.no_truncation()
    for ids, text in zip(rows(tokens), TEXTS, strict=True):
        full = raw.encode(text).ids
        assert ids == (full if len(full) <= 16 else [*full[:15], SEP])
    assert tokens.ids.dtype == np.int32
    assert tokens.cu_seqlens.dtype == np.int64
    assert tokens.lengths.max() == 16
    assert tokens.truncated.tolist() == [False, False, True, False, False, False]
    assert tokens.empty.tolist() == [False, True, False, False, True, False]
    assert rows(tokens)[1] == rows(tokens)[4] == [CLS, SEP]


def test_the_limit_is_ours_and_not_the_one_in_the_file() -> None:
    tokens = Tokenizer.from_folder(minilm_folder(), 256).encode(["one " * 300, "one " * 200])
    assert tokens.lengths.tolist() == [256, 202]  # the file says 128


def test_a_text_that_just_fits_is_not_cut() -> None:
    tokens = Tokenizer.from_folder(minilm_folder(), 6).encode(
        ["one two three four", "one two three four five"]
    )
    assert tokens.truncated.tolist() == [False, True]
    assert rows(tokens)[0] == rows(tokens)[1]


def test_prefix_comes_before_every_text_and_does_not_fill_an_empty_one() -> None:
    plain = Tokenizer.from_folder(minilm_folder(), 32)
    prefixed = Tokenizer.from_folder(minilm_folder(), 32, prefix="query: ")
    tokens = prefixed.encode(["a house", "", "\x00"])
    assert rows(tokens) == rows(plain.encode(["query: a house", "query: ", "query: "]))
    assert tokens.empty.tolist() == [False, True, True]


def test_many_texts_are_encoded_as_one_by_one() -> None:
    tokenizer = Tokenizer.from_folder(minilm_folder(), 12)
    texts = [f"text number {i} " + "and more " * (i % 9) for i in range(2100)]
    tokens = tokenizer.encode(texts)
    for i in (0, 1023, 1024, 1025, 2047, 2099):
        assert rows(tokens)[i] == tokenizer.encode([texts[i]]).ids.tolist()


def test_no_texts_give_no_tokens() -> None:
    tokens = Tokenizer.from_folder(minilm_folder(), 16).encode([])
    assert len(tokens) == len(tokens.ids) == 0
    assert tokens.cu_seqlens.tolist() == [0]


def test_take_packs_the_asked_texts_in_the_asked_order() -> None:
    tokens = Tokenizer.from_folder(minilm_folder(), 16).encode(TEXTS)
    ids, cu_seqlens = tokens.take(np.array([3, 0, 3]))
    assert ids.dtype == cu_seqlens.dtype == np.int64
    assert ids.tolist() == rows(tokens)[3] + rows(tokens)[0] + rows(tokens)[3]
    assert np.diff(cu_seqlens).tolist() == [len(rows(tokens)[i]) for i in (3, 0, 3)]
    assert tokens.take(np.array([], dtype=np.int64))[1].tolist() == [0]
    for wrong in ([6], [-1]):
        with pytest.raises(IndexError, match=r"indices: expected 0 \.\. 5, got"):
            tokens.take(np.array(wrong))
    with pytest.raises(TypeError, match=r"indices: expected a row of integers, got shape .* of dtype bool"):
        tokens.take(np.ones(6, dtype=bool))


def test_a_tokenizer_that_adds_nothing_keeps_nothing() -> None:
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "one": 1}, unk_token="[UNK]"))
    bare.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokens = Tokenizer(bare, 3).encode(["one two one one", "", "one"])
    assert rows(tokens) == [[1, 0, 1], [], [1]]
    assert tokens.truncated.tolist() == [True, False, False]


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json: expected the tokenizer's file"):
        Tokenizer.from_folder(tmp_path, 16)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: expected a tokenizer's file"):
        Tokenizer.from_folder(tmp_path, 16)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="max_length: expected more than the 2 special tokens, got 2"):
        Tokenizer.from_folder(minilm_folder(), 2)
    tokenizer = Tokenizer.from_folder(minilm_folder(), 3)
    with pytest.raises(TypeError, match="texts: expected a sequence of strings, got a string"):
        tokenizer.encode("a house")
    with pytest.raises(TypeError, match="texts: expected strings, got tuple"):
        tokenizer.encode(["a house", ("a", "pair")])  # type: ignore[list-item]


def split() -> tuple[object, object]:
    words = ["a house", "", "the hill " * 9]
    data = {name: [(words[i % 3], str(i % 2)) for i in range(n)] for name, n in (("x", 30), ("y", 60))}
    tasks = read_tasks({**data, "z": {"test": [("only", "tested")]}})
    return tasks, encode_split(tasks, "train", Tokenizer.from_folder(minilm_folder(), 8), TaskRegistry("zyx"))


def test_encoded_split_gives_batches_of_its_examples() -> None:
    _, train = split()
    assert len(train) == 81
    assert train.sizes == {"x": 27, "y": 54}
    batches = train.epoch(1, seed=0, max_tokens=64, sampling="uniform")
    for indices in batches:
        batch = train.batch(indices, targets="what for", seed=3, step=7)
        assert (batch.n_tokens, batch.n_examples) == (train.tokens.lengths[indices].sum(), len(indices))
        assert batch.n_tokens <= 64
        assert batch.token_ids.tolist() == train.tokens.take(indices)[0].tolist()
        assert batch.task_ids.tolist() == [{"x": 2, "y": 1}[train.examples[i].task] for i in indices]
        assert batch.example_ids.tolist() == [train.examples[i].example_id for i in indices]
        assert (batch.targets, batch.seed, batch.step) == ("what for", 3, 7)
    assert sum(map(len, batches)) == 81


def test_evaluation_batches_go_through_everything_once() -> None:
    _, train = split()
    order = np.concatenate(train.in_order(batch_size=10))
    assert sorted(order.tolist()) == list(range(81))
    assert (np.diff(train.tokens.lengths[order]) >= 0).all()


def test_counts_say_what_was_cut_and_what_was_empty() -> None:
    tasks, train = split()
    for name, count in train.counts().items():
        inputs = [example.input for example in tasks[name].train]
        assert count.texts == len(inputs)
        assert count.empty == inputs.count("") > 0
        assert count.truncated == inputs.count("the hill " * 9) > 0
        assert count.tokens == 2 * count.empty + 8 * count.truncated + 4 * inputs.count("a house")


def test_a_task_that_the_registry_does_not_know_is_refused() -> None:
    tasks = read_tasks({"x": [("a", "b"), ("c", "d")]})
    with pytest.raises(KeyError, match=r"task: expected one of \['y'\], got 'x'"):
        encode_split(tasks, "train", Tokenizer.from_folder(minilm_folder(), 8), TaskRegistry("y"))
