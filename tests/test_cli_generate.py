"""The verb generate, and the others on a run with the objective lm."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import call
from test_lm import folder
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
    flags = ["--objective", "lm", "--method", "poly", "--r", "2", "--max-steps", "1", "--max-new-tokens", "3"]
    assert call("train", "--base", tmp / "base", "--data", tmp / "data", *flags, "--output", tmp / "run") == 0
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
    ],
)
def test_what_cannot_be_written_is_told(place: Path, flags: list[str], message: str, capsys: Any) -> None:
    where = {"RUN": place / "run", "BASE": place / "base"}
    assert call("generate", *(where.get(flag, flag) for flag in flags)) == 1
    assert message in capsys.readouterr().err


def test_another_objective_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    from training_base import make_trainer

    make_trainer(tmp_path, max_steps=1).train()
    assert call("generate", tmp_path / "run", "--task", "animal", "--prompt", "a") == 1
    assert "run: expected one with the objective lm, got classify" in capsys.readouterr().err
