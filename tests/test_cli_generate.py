"""The verb generate, and the others on a run with the objective lm."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import call, training
from test_lm import folder
from tiny_llama import tiny_config, tiny_state, write_gguf, write_llama
from training_base import classes

from polymoe.models import generate, load_base


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, data, and a run of one step."""
    tmp = tmp_path_factory.mktemp("generate")
    folder(tmp)
    (tmp / "data").mkdir()
    for name, parts in classes().items():
        for part, rows in parts.items():
            lines = (json.dumps({"input": x, "output": y}) for x, y in rows)
            (tmp / "data" / f"{name}.{part}.jsonl").write_text("\n".join(lines))
    flags = "--objective lm --method poly --r 2 --max-steps 1 --max-new-tokens 3"
    assert call(*training(tmp / "base", tmp / "data", tmp / "run", flags)) == 0
    return tmp


def test_a_base_alone_prints_text_as_json(place: Path, capsys: Any) -> None:
    flags = ["--dtype", "fp32", "--max-new-tokens", "6", "--temperature", "0", "--json"]
    base = load_base(place / "base")
    expected = [texts[0].text for texts in generate(base, ["the cat", "a 19"], max_new_tokens=6)]
    assert call("generate", "--base", place / "base", "--prompt", "the cat", *flags) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["text"] == expected[0] and set(one) == {"text", "finish", "tokens", "cut"}
    for prompts in (["--prompt", "the cat", "a 19"], ["--prompt", "the cat", "--prompt", "a 19"]):
        assert call("generate", "--base", place / "base", *prompts, *flags) == 0
        assert [text["text"] for text in json.loads(capsys.readouterr().out)] == expected


def test_text_streams_and_stdin_is_a_prompt(
    place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(load_base(place / "base"), "the cat\nthe", max_new_tokens=6)[0][0].text
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\nthe"))
    assert call("generate", "--base", place / "base", "--max-new-tokens", "6") == 0
    assert capsys.readouterr().out == expected + "\n"


def test_several_texts_of_a_prompt(place: Path, capsys: Any) -> None:
    flags = ["--prompt", "the", "--max-new-tokens", "4", "--num-return-sequences", "2"]
    draw = ["--temperature", "1", "--top-k", "40", "--top-p", "0.9", "--seed", "3"]
    assert call("generate", "--base", place / "base", *flags, *draw, "--json") == 0
    drawn = json.loads(capsys.readouterr().out)
    assert len(drawn["texts"]) == 2 and drawn["text"] == drawn["texts"][0]
    assert call("generate", "--base", place / "base", *flags, "--num-beams", "3") == 0
    expected = generate(
        load_base(place / "base"), "the", max_new_tokens=4, num_beams=3, num_return_sequences=2
    )
    assert capsys.readouterr().out == "".join(text.text + "\n" for text in expected[0])


def test_a_chat_uses_the_template_of_the_base(place: Path, capsys: Any) -> None:
    assert (
        call("generate", "--base", place / "base", "--prompt", "the cat", "--chat", "--max-new-tokens", "5")
        == 0
    )
    base = load_base(place / "base")
    ids = base.tokenizer.prompts(["[user] the cat[assistant] "])[0]
    expected = generate(base, [ids], max_new_tokens=5)[0][0].text
    assert capsys.readouterr().out == expected + "\n"


def test_a_run_writes_evaluates_and_predicts(place: Path, capsys: Any) -> None:
    flags = ["--task", "animal", "--prompt", "a cat", "the dog", "--json"]
    assert call("generate", place / "run", *flags) == 0
    texts = json.loads(capsys.readouterr().out)
    assert len(texts) == 2 and all(text["tokens"] <= 3 for text in texts)
    assert call("generate", place / "run", "--task", "animal", "--prompt", "zebra " * 60) == 0
    tokens = len(load_base(place / "base").tokenizer.prompts(["zebra " * 60 + "\n"])[0])
    assert f"prompt 1 lost {tokens - 157} tokens" in capsys.readouterr().err
    assert call("evaluate", place / "run", "--json") == 0
    assert {"exact_match", "accuracy", "loss"} <= set(json.loads(capsys.readouterr().out)["mean"])
    assert call("predict", place / "run", "--task", "animal", "--input", "a cat") == 0
    assert capsys.readouterr().out in ("cat\n", "dog\n")


def test_a_prompt_that_is_too_long_is_cut_and_told(place: Path, capsys: Any) -> None:
    flags = ["--prompt", "zebra " * 60, "--max-new-tokens", "4"]
    n = len(load_base(place / "base").tokenizer.prompts(["zebra " * 60])[0])
    assert call("generate", "--base", place / "base", *flags, "--json") == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["cut"] == n - (160 - 4) > 0
    assert f"prompt 1 lost {n - 156} tokens, so that text and prompt fit the model" in out.err


def test_a_stop_string_that_is_never_found_changes_nothing(place: Path, capsys: Any) -> None:
    found = []
    for stop in ([], ["--stop", "never found"]):
        flags = ["--prompt", "the cat", "--max-new-tokens", "6", *stop, "--json"]
        assert call("generate", "--base", place / "base", *flags) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] and found[1]["finish"] == "length"


def test_an_empty_prompt_needs_a_token_that_begins_a_text(
    place: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("generate", "--base", place / "base", "--prompt", "", "--max-new-tokens", "2") == 0
    base = shutil.copytree(place / "base", tmp_path / "base")
    change(base / "tokenizer.json", post_processor=None)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for flags in (["--prompt", ""], ["--prompt", "a", ""], []):
        assert call("generate", "--base", base, *flags) == 1
        assert "prompts: expected at least one token in each, got ''" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "run: expected the folder of a run, or --base, got neither"),
        (["RUN", "--prompt", "a"], "task: expected one of ['animal', 'colour'], got None"),
        (["RUN", "--prompt", "a", "--task", "x"], "task: expected one of ['animal', 'colour'], got 'x'"),
        (["RUN", "--prompt", "a", "--task", "animal", "--chat"], "chat: expected none with a run"),
        (["--base", "BASE", "--prompt", "a", "--task", "x"], "task: expected None"),
        (["--base", "BASE", "--prompt", "a", "--temperature", "-1"], "temperature: expected 0 or more"),
        (["--base", "BASE", "--prompt", "a", "--max-new-tokens", "160"], "max_new_tokens: expected fewer"),
        (["--base", "BASE", "--prompt", "a", "--stop", ""], "stop: expected a tuple of non-empty strings"),
    ],
)
def test_what_cannot_be_written_is_told(place: Path, flags: list[str], message: str, capsys: Any) -> None:
    where = {"RUN": place / "run", "BASE": place / "base"}
    assert call("generate", *(where.get(flag, flag) for flag in flags)) == 1
    assert message in capsys.readouterr().err


def model_type(base: Path) -> str:
    change(base / "config.json", model_type="gpt2")
    return "model_type: expected one of ['bert', 'llama', 'mistral', 'qwen2', 't5', 'mt5'], got 'gpt2'"


def shard(base: Path) -> str:
    write_llama(base, shards=3)
    (base / "model.safetensors").unlink()
    gone = base / "model-00002-of-00003.safetensors"
    gone.unlink()
    return f"{gone}: expected a file, got none"


def no_tokenizer(base: Path) -> str:
    (base / "tokenizer.json").unlink()
    return "tokenizer.json: expected the tokenizer's file, got nothing there"


def small_vocabulary(base: Path) -> str:
    (base / "model.safetensors").unlink()
    write_llama(base, vocab_size=200)
    return "tokenizer.json: expected at most vocab_size = 200 tokens, got 266"


def no_template(base: Path) -> str:
    (base / "tokenizer_config.json").unlink()
    return "template: expected a base with a chat template ('chat'), got one without"


@pytest.mark.parametrize("spoil", [model_type, shard, no_tokenizer, small_vocabulary, no_template])
def test_a_base_that_does_not_fit_is_told_before_a_run_begins(
    place: Path, tmp_path: Path, spoil: Any, capsys: Any
) -> None:
    base = shutil.copytree(place / "base", tmp_path / "base")
    message = spoil(base)
    train = training(base, place / "data", tmp_path / "run", "--objective lm --template chat --method poly")
    for command in (train, ["generate", "--base", base, "--chat", "--prompt", "a"]):
        assert call(*command) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "tensors", "message"),
    [
        (
            {"general.architecture": "gemma"}, None,
            "general.architecture: expected one of ['llama', 'qwen2'], got 'gemma'",
        ),
        (
            None, {"blk.0.attn_norm.bias": np.zeros(24, np.int32)},
            "blk.0.attn_norm.bias: expected a quantization that gguf decodes, got I32",
        ),
    ],
)  # fmt: skip
def test_a_gguf_file_that_is_not_read_is_told(
    tmp_path: Path, fields: Any, tensors: Any, message: str, capsys: Any
) -> None:
    pytest.importorskip("gguf")
    path = write_gguf(
        tmp_path / "x.gguf", tiny_config(), tiny_state(tiny_config()), fields=fields, tensors=tensors
    )
    assert call("generate", "--base", path, "--prompt", "a") == 1
    assert f"{path}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--template instruction",
            "template: expected tasks with a definition ('instruction'), got animal without one",
        ),
        (
            "--template chat --demonstrations 2",
            "demonstrations: expected at most the 0 that animal has, got 2",
        ),
    ],
)
def test_a_template_that_does_not_fit_the_task_is_told(
    place: Path, tmp_path: Path, flags: str, message: str, capsys: Any
) -> None:
    train = training(place / "base", place / "data", tmp_path / "run", "--objective lm " + flags)
    assert call(*train) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_another_tokenizer_than_in_training_is_refused(place: Path, tmp_path: Path, capsys: Any) -> None:
    """The same tokens, cut in another way, which the weights do not tell."""
    base = shutil.copytree(place / "base", tmp_path / "base")
    texts = ["--task", "animal", "--prompt", "the cat"]
    assert call("generate", place / "run", "--base", base, *texts) == 0
    model = json.loads((base / "tokenizer.json").read_text())["model"]
    change(base / "tokenizer.json", model=model | {"merges": model["merges"][:2]})
    capsys.readouterr()
    for verb in (["generate", *texts], ["evaluate"]):
        assert call(verb[0], place / "run", "--base", base, *verb[1:]) == 1
        assert "tokenizer: expected the one that this was trained with (digest " in capsys.readouterr().err


def change(path: Path, **values: Any) -> None:
    """Other values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_another_objective_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    from training_base import make_trainer

    make_trainer(tmp_path, max_steps=1).train()
    assert call("generate", tmp_path / "run", "--task", "animal", "--prompt", "a") == 1
    assert "run: expected one with the objective lm, got classify" in capsys.readouterr().err
