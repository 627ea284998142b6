"""Weights files: every float dtype, shards, and files that are not what they should be."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file
from tiny import DTYPES, write_json, write_weights
from tiny_bert import tiny_config, tiny_state

from polymoe.models import Bert, BertConfig
from polymoe.models.bert import IGNORE, RENAMES
from polymoe.models.weights import read_safetensors, read_weights, rename


def write_raw(path, header, data=b"", size=None):
    """A safetensors file byte by byte, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
    return path


def tensor(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
def test_read_weights_gives_the_values_of_every_dtype(tmp_path, dtype, shards):
    state = tiny_state(tiny_config())
    write_weights(tmp_path, state, dtype, shards)
    read = read_weights(tmp_path)
    assert read.keys() == state.keys()
    for name, expected in state.items():
        assert read[name].dtype == DTYPES[dtype]
        np.testing.assert_array_equal(
            read[name].astype(np.float32), expected.astype(DTYPES[dtype]).astype(np.float32)
        )


def test_read_weights_maps_without_a_copy(tmp_path):
    write_weights(tmp_path, {"a": np.ones((3, 4), np.float32)})
    read = read_weights(tmp_path)["a"]
    assert not read.flags.owndata
    assert not read.flags.writeable


def test_read_weights_takes_scalars_and_empty_tensors(tmp_path):
    save_file(
        {"s": np.full((), 2, np.float32), "e": np.empty((0, 3), np.float32)}, tmp_path / "model.safetensors"
    )
    read = read_weights(tmp_path)
    assert read["s"] == 2
    assert read["e"].shape == (0, 3)


def test_a_file_whose_tensors_are_not_aligned_is_read(tmp_path):
    state = tiny_state(tiny_config())
    write_weights(tmp_path, state)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    path.write_bytes(struct.pack("<Q", size + 1) + whole[8 : 8 + size] + b" " + whole[8 + size :])
    read = read_weights(tmp_path)
    assert not any(t.flags.aligned for t in read.values())
    assert from_state(read).fingerprint == from_state(state).fingerprint


@pytest.mark.parametrize("keep", [0, 3, 8, 40, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path, keep):
    write_weights(tmp_path, {"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.float32)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a whole safetensors file"):
        read_weights(tmp_path)


BROKEN = {
    "overlap": ({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"\0" * 12, None),
    "out of range": ({"a": tensor(0, 16, [4])}, b"\0" * 8, None),
    "backwards": ({"a": tensor(8, 0, [2])}, b"\0" * 8, None),
    "negative": ({"a": tensor(-8, 0, [2])}, b"\0" * 8, None),
    "shape and offsets disagree": ({"a": tensor(0, 8, [3])}, b"\0" * 8, None),
    "shape overflows": ({"a": tensor(0, 8, [2**62, 2**62])}, b"\0" * 8, None),
    "unused bytes": ({"a": tensor(0, 8, [2])}, b"\0" * 12, None),
    "no JSON": (b"not a header", b"", None),
    "no object": (b"[]", b"", None),
    "no UTF-8": (b'{"\xff": 1}', b"", None),
    "unknown dtype": ({"a": tensor(0, 8, [2], "F99")}, b"\0" * 8, None),
    "header beyond the file": ({}, b"", 2**40),
    "header beyond 64 bits": ({}, b"", 2**64 - 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path, name):
    header, data, size = BROKEN[name]
    path = write_raw(tmp_path / "x.safetensors", header, data, size)
    with pytest.raises(ValueError, match=r"x\.safetensors: expected a whole safetensors file"):
        read_safetensors(path)


GOOD = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float16)})


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(GOOD)),
)
def test_any_bytes_give_tensors_inside_of_the_file_or_a_value_error(tmp_path, changes, keep):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(data[:keep] if not changes else data)
    tensors, message = {}, str(path)
    try:
        tensors = read_safetensors(path)
    except ValueError as error:
        message = str(error)
    assert str(path) in message
    assert sum(t.nbytes for t in tensors.values()) <= len(data)
    assert all(t.tobytes() in bytes(data) for t in tensors.values())


def test_a_dtype_that_is_not_read_is_named(tmp_path):
    path = write_raw(tmp_path / "x.safetensors", {"a": tensor(0, 2, [2], "F8_E4M3")}, b"\0" * 2)
    with pytest.raises(ValueError, match=r"x\.safetensors: expected a in one of .*got F8_E4M3"):
        read_safetensors(path)


def test_missing_weights_name_the_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: expected weights in this file"):
        read_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin may hold code"):
        read_weights(tmp_path)


def test_shards_and_index_must_agree(tmp_path):
    write_weights(tmp_path, {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    write_json(index, {"weight_map": places | {"c": places["a"]}})
    with pytest.raises(ValueError, match=r"index\.json: expected these tensors in its shards, got none: c"):
        read_weights(tmp_path)
    write_json(index, {"weight_map": places | {"c": "../other.safetensors"}})
    with pytest.raises(
        ValueError, match=r"index\.json: expected weight_map from names to files of the same folder"
    ):
        read_weights(tmp_path)
    write_json(index, {"weight_map": places})
    (tmp_path / places["b"]).unlink()
    with pytest.raises(FileNotFoundError, match=places["b"]):
        read_weights(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match=r"index\.json: expected JSON"):
        read_weights(tmp_path)


@pytest.mark.parametrize("prefix", ["", "bert.", "0.auto_model."])
def test_names_of_other_heads_and_times_map_to_the_model(prefix):
    state = tiny_state(tiny_config())
    old = {
        prefix
        + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in state.items()
    }
    old[prefix + "embeddings.position_ids"] = np.arange(32).reshape(1, 32)
    old[prefix + "pooler.dense.weight"] = np.ones((24, 24), np.float32)
    old["cls.predictions.bias"] = np.ones(3, np.float32)
    assert rename(old, RENAMES, IGNORE).keys() == state.keys()
    assert from_state(old).fingerprint == from_state(state).fingerprint


def from_state(state):
    return Bert.from_state(BertConfig.from_dict(tiny_config()), state)


def test_two_tensors_for_one_name_are_refused():
    state = tiny_state(tiny_config())
    name = "embeddings.LayerNorm.bias"
    with pytest.raises(ValueError, match=f"expected one tensor for {name}, got several"):
        from_state(state | {"bert." + name: state[name]})


def test_missing_and_unexpected_weights_are_listed():
    state = tiny_state(tiny_config())
    del state["encoder.layer.1.output.dense.bias"]
    state["classifier.weight"] = np.ones((2, 24), np.float32)
    with pytest.raises(
        ValueError, match=r"missing encoder\.layer\.1\.output\.dense\.bias; unexpected classifier\.weight"
    ):
        from_state(state)
    with pytest.raises(ValueError, match=r"missing embeddings\.LayerNorm\.bias, .* and \d+ more$"):
        from_state({})


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.ones(25, np.float32), ValueError, r"expected shape \(24,\), got \(25,\)"),
        (np.ones(24, np.int64), TypeError, "expected one of .*, got dtype int64"),
        (np.full(24, np.nan, np.float32), ValueError, "expected finite weights, got NaN or infinity"),
        (np.full(24, np.inf, np.float16), ValueError, "expected finite weights, got NaN or infinity"),
    ],
)
def test_a_wrong_weight_is_named(value, error, message):
    with pytest.raises(error, match=r"^encoder\.layer\.0\.output\.LayerNorm\.weight: " + message):
        from_state(tiny_state(tiny_config()) | {"encoder.layer.0.output.LayerNorm.weight": value})
