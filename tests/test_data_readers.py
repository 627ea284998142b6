"""Reading tasks: every kind of source gives the same tasks, and what is wrong is said with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real import real_tasks

from polymoe.data import read_tasks

ROWS = [{"input": f"text {i}", "output": "yes" if i % 2 else "no"} for i in range(20)]
PAIRS = [(row["input"], row["output"]) for row in ROWS]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(examples: Any) -> list[str]:
    return [example.input for example in examples]


def whole(task: Any) -> set[tuple[str, str]]:
    """Train and validation together, in no order."""
    return {(example.input, example.output) for example in task.train + task.valid}


class ClassLabel(NamedTuple):
    names: list[str]


class Dataset:
    """What a `datasets.Dataset` is to a reader: an iterable of dicts that has features."""

    def __init__(self, rows: list[dict[str, Any]], output: Any = None) -> None:
        self.rows, self.features = rows, {"output": output}

    def __iter__(self) -> Any:
        return iter(self.rows)


class DatasetDict(dict[str, Dataset]):
    pass


def test_folder_of_jsonl_reads_every_task_with_its_splits(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.train.jsonl", ROWS)
    jsonl(tmp_path / "b.test.jsonl", ROWS[:3])
    jsonl(tmp_path / "a.c.train.jsonl", ROWS[:5])
    jsonl(tmp_path / "a.c.valid.jsonl", ROWS[5:7])
    (tmp_path / "README.md").write_text("not a task")
    (tmp_path / ".hidden.json").write_text("not a task")
    tasks = read_tasks(tmp_path)
    assert list(tasks) == ["a.c", "b"]
    assert texts(tasks["a.c"].train) == ["text 0", "text 1", "text 2", "text 3", "text 4"]
    assert texts(tasks["a.c"].valid) == ["text 5", "text 6"]
    assert texts(tasks["b"].test) == ["text 0", "text 1", "text 2"]
    assert whole(tasks["b"]) == set(PAIRS)
    assert tasks["b"].test[1].where == f"{tmp_path / 'b.test.jsonl'}:2"


def test_natural_instructions_gives_definition_and_all_references(tmp_path: Path) -> None:
    instances = [{"id": f"x-{i}", "input": f"text {i}", "output": [f"first {i}", "second"]} for i in range(8)]
    instances[3]["output"] = "plain"
    content = {"Definition": ["Do this.", "Then that."], "Positive Examples": [], "Instances": instances}
    (tmp_path / "task1_x.json").write_text(json.dumps(content))
    for source in (tmp_path, tmp_path / "task1_x.json"):
        task = read_tasks(source)["task1_x"]
        assert task.definition == "Do this.\nThen that."
        assert texts(task.test) == ["text 6", "text 7"]
        examples = {example.input: example for example in task.train + task.valid}
        assert examples["text 0"].outputs == ("first 0", "second")
        assert examples["text 0"].output == "first 0"
        assert examples["text 3"].outputs == ("plain",)


def test_every_kind_of_source_gives_the_same_tasks(tmp_path: Path) -> None:
    test = ROWS[:4]
    named = [{"task": "t", "split": "train", **row} for row in ROWS]
    named += [{"task": "t", "split": "test", **row} for row in test]
    jsonl(tmp_path / "t.train.jsonl", ROWS)
    jsonl(tmp_path / "t.test.jsonl", test)
    sources = [
        tmp_path,
        [str(tmp_path)],
        jsonl(tmp_path.parent / "one.jsonl", named),
        named,
        iter(named),
        Dataset(named),
        {"train": [{"task": "t", **row} for row in ROWS], "test": [{"task": "t", **row} for row in test]},
        DatasetDict(train=Dataset(named[:20]), test=Dataset(named[20:])),
        {"t": {"train": ROWS, "test": test}},
        {"t": {"train": iter(PAIRS), "test": [list(pair) for pair in PAIRS[:4]]}},
        {"t": DatasetDict(train=Dataset(ROWS), test=Dataset(test))},
    ]
    expected = read_tasks(tmp_path)
    for source in sources:
        assert read_tasks(source) == expected


def test_class_labels_of_a_dataset_become_their_names() -> None:
    rows = [{"input": "x", "output": i} for i in (0, 1, 1, 0)]
    splits = {"train": Dataset(rows, ClassLabel(["bad", "good"])), "valid": [("x", "bad")]}
    assert [e.output for e in read_tasks({"t": splits})["t"].train] == ["bad", "good", "good", "bad"]
    rows[2]["output"] = -1
    with pytest.raises(
        TypeError, match=r"data\['t'\]\['train'\]\[2\]: output: expected a string or a number"
    ):
        read_tasks({"t": splits})


def test_hub_names_of_the_validation_split_are_understood() -> None:
    for name in ("valid", "validation", "dev"):
        task = read_tasks({"t": {"train": PAIRS[:10], name: PAIRS[10:]}})["t"]
        assert texts(task.valid) == [f"text {i}" for i in range(10, 20)]
        assert len(task.train) == 10


def test_only_the_selected_files_are_opened_and_the_order_is_the_asked_one(tmp_path: Path) -> None:
    for name in "abc":
        jsonl(tmp_path / f"{name}.train.jsonl", ROWS)
    (tmp_path / "b.train.jsonl").write_text("broken")
    assert list(read_tasks(tmp_path, ["c", "a"])) == ["c", "a"]
    assert list(read_tasks(tmp_path, "a")) == ["a"]
    with pytest.raises(KeyError, match=r"expected one of \['a', 'b', 'c'\], got 'd'"):
        read_tasks(tmp_path, ["a", "d"])
    for wrong in (["a", "a"], []):
        with pytest.raises(ValueError, match="tasks: expected distinct names of tasks"):
            read_tasks(tmp_path, wrong)


def test_example_ids_are_distinct_and_do_not_depend_on_what_else_is_read() -> None:
    data = {name: {"train": PAIRS, "test": PAIRS} for name in "abc"}
    together = read_tasks(data)
    ids = [e.example_id for t in together.values() for e in t.train + t.valid + t.test]
    assert len(set(ids)) == len(ids) == 120
    assert min(ids) >= 0
    assert np.array(ids, dtype=np.int64).tolist() == ids
    alone = read_tasks({"b": data["b"]}, seed=5)["b"]
    row = {e.input: e.example_id for e in together["b"].train + together["b"].valid}
    assert {e.input: e.example_id for e in alone.train + alone.valid} == row


def test_numbers_and_white_space_of_outputs_become_plain_text() -> None:
    outputs = ["POS\n", 3, 2.5, np.float32(0.1), np.int64(-4), [" a ", "b"], ""]
    rows = [("x", output) for output in outputs]
    examples = read_tasks({"t": {"train": rows, "valid": rows}})["t"].train
    assert [example.output for example in examples] == ["POS", "3", "2.5", "0.1", "-4", "a", ""]
    assert examples[5].outputs == ("a", "b")


def test_blank_lines_crlf_byte_order_mark_and_line_separators_are_read(tmp_path: Path) -> None:
    lines = [
        json.dumps(row, ensure_ascii=False) for row in [{"input": "é\u2028ü", "output": "ja"}, *ROWS[:2]]
    ]
    (tmp_path / "t.train.jsonl").write_bytes(b"\xef\xbb\xbf" + ("\r\n\r\n".join(lines) + "\r\n\n").encode())
    task = read_tasks(tmp_path)["t"]
    assert whole(task) == {("é\u2028ü", "ja"), *PAIRS[:2]}
    assert {e.where.rpartition(":")[2] for e in task.train + task.valid} == {"1", "3", "5"}


GOOD = b'{"input": "a", "output": "b"}\n'


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", ValueError, r"t.train.jsonl: expected at least one example, got an empty file"),
        (b"\n \n", ValueError, r"t.train.jsonl: expected at least one example, got an empty file"),
        (
            GOOD + b'{"input": "a", "out',
            ValueError,
            r"t.train.jsonl:2: expected JSON, got an error at column",
        ),
        (GOOD + b"[" * 100_000, ValueError, r"t.train.jsonl:2: expected JSON"),
        (GOOD + b'{"input": "a"}', ValueError, r"jsonl:2: expected fields input and output, got \['input'\]"),
        (GOOD + b'"text"', TypeError, r"jsonl:2: expected an object with input and output, got str 'text'"),
        (GOOD + b"null", TypeError, r"jsonl:2: expected an object with input and output, got NoneType None"),
        (GOOD + b'{"input": 3, "output": "b"}', TypeError, r"jsonl:2: input: expected a string, got int 3"),
        (
            GOOD + b'{"input": "a", "output": true}',
            TypeError,
            r"jsonl:2: output: expected a .* got bool True",
        ),
        (GOOD + b'{"input": "a", "output": null}', TypeError, r"jsonl:2: output: expected a .* got NoneType"),
        (GOOD + b'{"input": "a", "output": {"b": 1}}', TypeError, r"jsonl:2: output: expected a .* got dict"),
        (GOOD + b'{"input": "a", "output": []}', ValueError, r"jsonl:2: output: expected at least one"),
        (GOOD + b'{"input": "a", "output": NaN}', ValueError, r"jsonl:2: output: expected a finite number"),
        (GOOD + b'{"input": "a", "output": 1e999}', ValueError, r"jsonl:2: output: expected a finite number"),
        (
            GOOD + b'{"input": "\xff", "output": "b"}',
            ValueError,
            r"jsonl:2: expected UTF-8 text, got byte 0xff",
        ),
        (
            GOOD + b'{"input": "\\ud800", "output": ""}',
            ValueError,
            r"jsonl:2: expected Unicode text, got half",
        ),
        (GOOD, ValueError, r"t: expected at least 2 training examples .* got 1"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, error: type[Exception], message: str) -> None:
    (tmp_path / "t.train.jsonl").write_bytes(content)
    with pytest.raises(error, match=message):
        read_tasks(tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"{\n\n oops}", ValueError, r"t.json:3: expected JSON, got an error at column 2"),
        (b'{\n "a": "\xff"}', ValueError, r"t.json:2: expected UTF-8 text, got byte 0xff"),
        (b'{"Definition": "x"}', ValueError, r"t.json: expected a Natural Instructions file"),
        (b"[]", ValueError, r"t.json: expected a Natural Instructions file"),
        (b'{"Instances": []}', ValueError, r"t.json: expected at least one example, got no Instances"),
        (
            b'{"Instances": [{"input": "a"}]}',
            ValueError,
            r"t.json: instance 0: expected fields input and output",
        ),
        (
            b'{"Definition": 3, "Instances": [1]}',
            TypeError,
            r"t.json: Definition: expected a string or a list",
        ),
    ],
)
def test_a_broken_natural_instructions_file_is_named(
    tmp_path: Path, content: bytes, error: type[Exception], message: str
) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(error, match=message):
        read_tasks(tmp_path)


def test_a_folder_that_is_no_folder_of_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: expected a folder of tasks"):
        read_tasks(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"expected NAME.train.jsonl or Natural Instructions .json files, got none"
    ):
        read_tasks(tmp_path)
    with pytest.raises(ValueError, match=r"notes.txt: expected a folder of tasks, a .jsonl or a .json file"):
        read_tasks(tmp_path / "notes.txt")
    jsonl(tmp_path / "t.eval.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"t.eval.jsonl: expected NAME.train.jsonl"):
        read_tasks(tmp_path)


def test_a_task_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        jsonl(tmp_path / folder / "t.train.jsonl", ROWS)
    with pytest.raises(ValueError, match="expected distinct names of tasks, got 't' twice"):
        read_tasks([tmp_path / "x", tmp_path / "y"])
    (tmp_path / "x" / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"t.train.jsonl: expected one source for each task, got 't' twice"):
        read_tasks(tmp_path / "x")
    jsonl(tmp_path / "y" / "t.valid.jsonl", ROWS)
    jsonl(tmp_path / "y" / "t.dev.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"t.valid.jsonl: expected one source for each task, got 't' twice"):
        read_tasks(tmp_path / "y")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ({}, ValueError, "data: expected at least one task, got an empty mapping"),
        ([], ValueError, "data: expected at least one example, got none"),
        (3, TypeError, "data: expected an iterable of examples, got int"),
        ({"t": []}, ValueError, r"data\['t'\]: expected at least one example, got none"),
        ({"t": {}}, ValueError, r"data\['t'\]: expected at least one split, got none"),
        ({"t": "text"}, TypeError, r"data\['t'\]: expected an iterable of examples, got str"),
        (
            {"t": {"trian": PAIRS}},
            ValueError,
            r"data\['t'\]\['trian'\]: split: expected one of .* got 'trian'",
        ),
        ({"t": {"dev": PAIRS, "valid": PAIRS}}, ValueError, r"expected each split once, got 'valid' twice"),
        ({"t": [("a", "b", "c")]}, TypeError, r"data\['t'\]\[0\]: expected an object with input and output"),
        ({3: PAIRS}, TypeError, "data: task: expected a string, got int 3"),
        ({"": PAIRS}, ValueError, "data: task: expected a name, got ''"),
        (
            [("a", "b")],
            ValueError,
            r"data\[0\]: expected an object with fields task, input and output, got tuple",
        ),
        ([{"task": None, "input": "a", "output": "b"}], TypeError, r"data\[0\]: task: expected a string"),
        (
            [{"task": "t", "split": "x", "input": "a", "output": "b"}],
            ValueError,
            r"data\[0\]: split: expected one",
        ),
        ({"train": PAIRS}, ValueError, r"data\['train'\]\[0\]: expected an object with fields task, input"),
    ],
)
def test_wrong_python_objects_are_named(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_tasks(source)


def test_require_refuses_a_task_without_that_split() -> None:
    data = {"t": {"test": PAIRS}}
    assert len(read_tasks(data, require=["test"])["t"].test) == 20
    with pytest.raises(ValueError, match=r"t: expected train examples, got TaskData\('t', train=0"):
        read_tasks(data, require=["train", "test"])


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda t: json.dumps([t, t]).encode()))
def test_any_bytes_are_read_or_refused_with_the_file_named(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    for name in ("fuzz.jsonl", "fuzz.json"):
        path = path.with_name(name)
        path.write_bytes(content)
        with pytest.raises((ValueError, TypeError), match=name):
            read_tasks(path)


def test_real_folders_are_read_whole() -> None:
    superglue = read_tasks(real_tasks("superglue"), require=("train", "valid", "test"))
    assert {n: len(t.train) + len(t.valid) for n, t in superglue.items()} == {
        "boolq": 2000, "cb": 250, "copa": 400, "multirc": 1600, "rte": 2000, "wic": 2000,
    }  # fmt: skip
    superni = read_tasks(real_tasks("superni"), require=("train", "valid", "test"))
    assert all(task.definition for task in superni.values())
    assert len(superni["task639_multi_woz_user_utterance_generation"].test) == 40
    assert len(superni["task363_sst2_polarity_classification"].test) == 100
