"""Writing with an encoder-decoder, beside what tests/test_generate.py asks of both kinds: the source is read
once; the objective lm, reports and the commands."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_t5
import writers
from test_cli import call
from training_base import classes, texts, write_tasks
from writers import TASK_IDS, adapted_writer, greedy, writer

from polymoe.batch import Batch, Source
from polymoe.data import read_tasks
from polymoe.models import generate, load_base
from polymoe.models.generate import next_batch, parts_of, start_batch
from polymoe.models.likelihood import likelihoods
from polymoe.models.search import log_softmax
from polymoe.report.routing import routing_statistics
from polymoe.report.texts import text_routing
from polymoe.training.objectives import Lm

PROMPTS = writers.PROMPTS["t5"]
base, model = partial(writer, "t5"), partial(adapted_writer, "t5")


def test_a_source_is_read_once_and_shared_by_the_texts_that_grow_from_it() -> None:
    _, attach, _ = parts_of(base(), None, 4)
    batch = start_batch(base(), attach, [np.array(p) for p in PROMPTS], None, [3] * 4)
    base()(batch)
    read = batch.cache.sources
    later = next_batch(batch, np.array([0, 0, 2, 2, 3]), [8, 9, 8, 9, 9])
    logits = base().logits(base()(later))
    assert later.source is None and later.cache.sources._layers is read._layers
    for i, order in enumerate([np.array([3, 0, 2]), np.array([2, 2, 0])]):  # out of order: rows are copied
        mixed = next_batch(batch, order, [8 + i] * 3)
        got = base().logits(base()(mixed))
        for row, text in zip(got, order, strict=True):
            whole = Batch(
                np.array([0, 2]), np.array([0, 8 + i]),
                source=Source(np.array(PROMPTS[text]), np.array([0, len(PROMPTS[text])])),
            )  # fmt: skip
            np.testing.assert_allclose(row, base().logits(base()(whole))[1], atol=1e-5)
            if (text, 8 + i) in ((0, 8), (2, 8)):
                at = {0: 0, 2: 2}[int(text)]
                np.testing.assert_allclose(logits[at], row, atol=1e-5)


def test_texts_are_read_to_their_end() -> None:
    (from_text,) = generate(base(), "the cat", max_new_tokens=5)[0]
    ids = base().tokenizer.encode(["the cat"]).ids
    assert ids[-1] == 1
    assert greedy(base(), [ids.tolist()], max_new_tokens=5) == [from_text.token_ids]
    long = "cat " * 90
    (text,) = generate(base(), long, max_new_tokens=50)[0]
    tokens = base().tokenizer.prompts([long], whole=True)[0]
    assert text.cut == len(tokens) - 64 and greedy(base(), [tokens[-64:]], max_new_tokens=50)
    with pytest.raises(ValueError, match="max_new_tokens: expected fewer than 64"):
        generate(base(), "the cat", max_new_tokens=64)


def test_likelihoods_are_those_of_each_text_alone() -> None:
    made = model("poly")
    candidates = [[[5, 6, 1], [9, 1]], [[7, 1], [8, 8, 8, 1], [9, 9, 1]], [[5, 1]], [[6, 1], [5, 6, 1]]]
    found = likelihoods(made, PROMPTS, candidates, TASK_IDS)
    for i, own in enumerate(candidates):
        source = Source(np.array(PROMPTS[i]), np.array([0, len(PROMPTS[i])]))
        for text, mean in zip(own, found[i], strict=True):
            read = np.array([0, *text[:-1]])
            hidden = made(Batch(np.array([0, len(read)]), read, TASK_IDS[i : i + 1], source=source))
            rows = made.base.logits(hidden)
            each = [log_softmax(row)[token] for row, token in zip(rows, text, strict=True)]
            assert mean == pytest.approx(np.mean(each), rel=1e-5)


def test_the_loss_is_that_of_the_targets_alone() -> None:
    made = model("poly")
    objective = Lm(max_new_tokens=8)
    tasks = read_tasks({"a": classes()["animal"], "c": texts()["colour"]})
    objective.prepare(made, tasks)
    split = objective.encode(made, tasks, "train")
    lengths = split.prompt_lengths
    assert all(p[-1] == 1 for p in split.prompts())
    batch = objective.batch(made, split, np.array([0, 17, 3]), 0, 0)
    assert batch.source is not None and np.array_equal(np.diff(batch.source.cu_seqlens), lengths[[0, 17, 3]])
    loss = objective.loss(made, batch)
    for i, j in enumerate([0, 17, 3]):
        ids = split.tokens.ids[split.tokens.cu_seqlens[j] : split.tokens.cu_seqlens[j + 1]]
        source, target = ids[: lengths[j]], ids[lengths[j] :].tolist()
        (mean,) = likelihoods(made, [source], [[target]], int(split.task_ids[j]))
        assert loss.per_example[i] == pytest.approx(-mean[0], rel=1e-4)
        assert target[-1] == 1


def test_prompt_and_target_have_each_the_room_of_a_text() -> None:
    made = model("poly")
    rows = [("x" * 90, "y" * 90), ("x", "y" * 40)]
    tasks = read_tasks({"a": {"train": rows, "test": rows}})
    objective = Lm()
    objective.prepare(made, tasks)
    split = objective.encode(made, tasks, "test")
    np.testing.assert_array_equal(split.prompt_lengths, [64, 3])  # a mark of a word, x, the end
    np.testing.assert_array_equal(split.tokens.lengths - split.prompt_lengths, [63, 42])
    np.testing.assert_array_equal(split.tokens.truncated, [True, False])
    assert np.isfinite(
        objective.loss(made, objective.batch(made, split, np.arange(2), 0, 0)).per_example
    ).all()
    np.testing.assert_array_equal(split.inputs.lengths, [64, 3])


def test_reports_read_the_text_in_the_encoder_and_the_start_in_the_decoder() -> None:
    made = model("molora")
    found = routing_statistics(made, {"x": ["the cat", "a"], "y": ["cat"]})
    assert len(found.routers) == len(made.adapter.layers)
    text = text_routing(made, "the cat")
    assert {len(router.weights) for router in text.routers} == {len(text.tokens)}
    assert all(r.name.startswith("encoder") or "EncDecAttention" in r.name for r in text.routers)
    assert len(routing_statistics(model("smear"), {"x": ["the cat"]}).routers) > 0


def test_the_commands_work_with_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_t5.write_t5(tmp_path / "t5", n_positions=160)
    (tmp_path / "data").mkdir()
    data, run = write_tasks(tmp_path / "data", classes()), str(tmp_path / "run")
    flags = ["--base", folder, "--data", data, "--output", run, "--objective", "lm", "--r", "4", "--json"]
    flags += ["--epochs", "4", "--batch-size", "8", "--learning-rate", "0.01", "--max-new-tokens", "4"]
    assert call("train", *flags) == 0
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
    capsys.readouterr()
    assert call("evaluate", run, "--json") == 0
    assert {"exact_match", "accuracy", "loss"} <= set(json.loads(capsys.readouterr().out)["mean"])
    assert call("predict", run, "--task", "animal", "--input", "a cat") == 0
    assert capsys.readouterr().out in ("cat\n", "dog\n")
    write = ["--prompt", "the cat", "--max-new-tokens", "5", "--json"]
    assert call("generate", run, "--task", "animal", *write) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] <= 5
    assert call("generate", "--base", folder, *write, "--num-beams", "3") == 0
    expected = generate(load_base(folder), "the cat", max_new_tokens=5, num_beams=3)[0][0]
    assert json.loads(capsys.readouterr().out)["text"] == expected.text
    assert call("inspect", run, "--json") == 0
    assert "decoder.block.1.layer.1.EncDecAttention.v" in capsys.readouterr().out
