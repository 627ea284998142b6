"""Atomic files: whole or not at all."""

import os
import stat

import ml_dtypes
import numpy as np
import pytest

from polymoe import files


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 1, "a": [2]})
    assert path.read_text() == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'
    files.write_json(path, {"b": 2})
    assert files.read_json(path) == {"b": 2}
    assert os.listdir(tmp_path) == ["a.json"]


def test_atomic_write_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")

    def fail():
        with files.atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_atomic_write_gives_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    files.write_bytes(tmp_path / "a", b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    os.chmod(tmp_path / "a", 0o600)
    files.write_bytes(tmp_path / "a", b"y")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_write_files_replaces_none_when_one_cannot_be_written(tmp_path):
    files.write_files(tmp_path / "new", {"a": b"1", "b": b"2"})
    with pytest.raises(FileNotFoundError):
        files.write_files(tmp_path / "new", {"a": b"3", "no/such/folder": b"4"})
    assert (tmp_path / "new/a").read_bytes() == b"1"
    assert sorted(os.listdir(tmp_path / "new")) == ["a", "b"]


def test_safetensors_round_trip_keeps_bits_and_dtype(tmp_path):
    tensors = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "half": np.ones(3, np.float16),
        "brain": np.array([1.5, -2], ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float64),
    }
    files.write_safetensors(tmp_path / "w", tensors, {"format": "pt"})
    back = files.read_safetensors(tmp_path / "w")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)


@pytest.mark.parametrize("length", [0, 3, 8, 20, -1])
def test_truncated_safetensors_is_an_error_that_names_the_file(tmp_path, length):
    data = files.safetensors_bytes({"x": np.ones(4, np.float32)})
    (tmp_path / "w.safetensors").write_bytes(data[:length])
    with pytest.raises(ValueError, match=r"w\.safetensors: expected a complete safetensors file"):
        files.read_safetensors(tmp_path / "w.safetensors")


def test_broken_json_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "c.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"c\.json: expected JSON"):
        files.read_json(tmp_path / "c.json")
    with pytest.raises(ValueError):
        files.json_bytes({"loss": float("nan")})


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "some/where/target"

    def write(folder):
        (folder / "file").write_text("new")

    def fail(folder):
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.replace_folder(target, fail)
    assert not list(tmp_path.iterdir())
    files.replace_folder(target, lambda folder: (folder / "file").write_text("old"))
    with pytest.raises(OSError, match="disk full"):
        files.replace_folder(target, fail)
    assert (target / "file").read_text() == "old"
    files.replace_folder(target, write)
    assert (target / "file").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["target"]
