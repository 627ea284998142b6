"""Files that are there whole or not at all: write beside, fsync, rename. Adapters and checkpoints use it.

with atomic_write(path) as file:            one file
    file.write(data)
write_files(folder, {name: data, ...})      several: none is replaced before all of them are on disk
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

PathLike = str | os.PathLike[str]

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # some systems cannot open a folder; the rename has happened all the same
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced, or what the umask gives (a temporary file is private)."""
    with suppress(FileNotFoundError):
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


@contextmanager
def atomic_write(path: PathLike) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of ``path`` when the block ends, and leaves no trace when it fails.

    The folder must exist. Raises OSError as ``open`` does (read-only folder, full disk); an earlier file is
    then untouched.
    """
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            _sync(file)
            os.chmod(file.name, _mode(path))
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise
    _flush_folder(path.parent)


def write_files(folder: PathLike, files: Mapping[str, bytes]) -> None:
    """Write several files into a folder (made when it is missing): all, or none when one cannot be written.

    They are renamed in the given order once all of them are on disk, so the last one can vouch for the rest.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving.") as beside:
        for name, data in files.items():
            with open(Path(beside, name), "wb") as file:
                file.write(data)
                _sync(file)
        for name in files:
            os.replace(Path(beside, name), folder / name)
    _flush_folder(folder)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder beside ``target`` (folders above it are made) and put it in its place; when
    it fails, everything is as it was.
    """
    made = [folder for folder in target.parents if not folder.exists()]  # the innermost first
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    fresh, old = beside / "new", beside / "old"
    try:
        fresh.mkdir()
        write(fresh)
        if target.exists():
            os.rename(target, old)
        os.rename(fresh, target)
    finally:
        if old.exists() and not target.exists():
            os.rename(old, target)
        shutil.rmtree(beside, ignore_errors=True)
        if not target.exists():
            for folder in made:
                folder.rmdir()


def json_bytes(value: Any) -> bytes:
    """JSON as PEFT writes it: two spaces, keys sorted; but within a key's value the order stays, for that of
    a rank_pattern means something. NaN and inf are a ValueError (no JSON)."""
    value = dict(sorted(value.items())) if isinstance(value, Mapping) else value
    return (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def safetensors_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file; the same tensors give the same bytes."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return safetensors.numpy.save(contiguous, dict(metadata) if metadata else None)


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write a file, atomically."""
    with atomic_write(path) as file:
        file.write(data)


def write_json(path: PathLike, value: Any) -> None:
    """Write a JSON file, atomically."""
    write_bytes(path, json_bytes(value))


def write_safetensors(
    path: PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, atomically."""
    write_bytes(path, safetensors_bytes(tensors, metadata))


def read_json(path: PathLike) -> Any:
    """The value in a JSON file. ValueError that names file and place when it is broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None


def parse_safetensors(data: bytes, name: PathLike) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file's content (bfloat16 by ``ml_dtypes``).

    ValueError that names the file when the content is broken or cut short.
    """
    try:
        entries = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        message = f"{name}: expected a complete safetensors file, got {len(data)} bytes ({error})"
        raise ValueError(message) from None
    tensors = {}
    for key, entry in entries:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"{name}: {key}: expected a dtype out of {[*_DTYPES]}, got {entry['dtype']}")
        tensors[key] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"]).copy()
    return tensors


def read_safetensors(path: PathLike) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as arrays of their own."""
    return parse_safetensors(Path(path).read_bytes(), path)
