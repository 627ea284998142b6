"""The machine that a run meets: what it is, what it can do at most, and who else is busy on it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from polymoe import _core

MISLEADING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables that slow OpenBLAS down: a run starts itself again without them."""

PEAK_ROUNDS = 300_000  # about a millisecond
READ_BYTES = 1 << 26  # of one probe of a cache
PRIVATE = ("L1", "L2")  # caches that each thread has for itself
ASLEEP = 0.01  # seconds after which libgomp and OpenBLAS wait quietly
PACKAGES = ("polymoe", "numpy", "torch", "transformers", "peft", "threadpoolctl")
Clock = Callable[[], float]


def clock(threads: int) -> Clock:
    """On one thread its processor time, which other processes hardly touch; else the time on the wall."""
    return time.thread_time if threads == 1 else time.perf_counter


@contextmanager
def threads(n: int) -> Iterator[int]:
    """So many threads for us and for every pool in the process; 0: our default. Yields their number."""
    _core.set_num_threads(n)
    n = _core.get_num_threads()
    try:
        with threadpool_limits(n):
            yield n
    finally:
        _core.set_num_threads(0)


def describe() -> dict[str, Any]:
    """Processor, caches, instruction sets, versions and thread pools, as JSON can hold them."""
    return {
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": _caches(),
        "isas": _core.isas(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "versions": _versions(),
        "commit": _commit(),
        "openmp": _core.openmp(),
        "pools": [
            {k: pool.get(k) for k in ("user_api", "internal_api", "version", "architecture", "num_threads")}
            for pool in threadpool_info()
        ],
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    fields = dict(
        [part.strip() for part in line.split(":", 1)]
        for line in (info.read_text().splitlines() if info.exists() else [])
        if ":" in line
    )
    name = fields.get("model name", platform.processor() or platform.machine())
    where = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return f"{name} ({', '.join(where)})" if where else name


def _caches() -> dict[str, str]:
    """Size of each level of data cache of the first processor."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def cache_bytes() -> int:
    """Bytes of the largest cache; 32 MiB where the machine does not say."""
    return max(map(_bytes, _caches().values()), default=32 << 20)


def _bytes(size: str) -> int:
    """Of "32K"."""
    return int(size[:-1]) << {"K": 10, "M": 20, "G": 30}[size[-1]]


class Elsewhere:
    """Processor time that others took since this object was made, as a share of the machine."""

    def __init__(self) -> None:
        self.busy, self.own, self.wall = _busy(), sum(os.times()[:4]), time.perf_counter()

    def share(self) -> float:
        """0 where the machine does not say."""
        busy, own = _busy() - self.busy, sum(os.times()[:4]) - self.own
        return max(0.0, busy - own) / (time.perf_counter() - self.wall) / (os.cpu_count() or 1)


def _busy() -> float:
    """Seconds that all processors were busy or stolen."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _idle, _wait, *others = map(int, path.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


class Limits(NamedTuple):
    """Flops a second by (instruction set, dtype), and bytes a second from memory."""

    peaks: dict[tuple[str, str], float]
    dram: float

    def differ(self, other: Limits) -> float:
        """The largest relative difference."""
        pairs = [(self.dram, other.dram), *((v, other.peaks[k]) for k, v in self.peaks.items())]
        return max(abs(a - b) / max(a, b) for a, b in pairs)

    def best(self, other: Limits) -> Limits:
        """The higher of each."""
        return Limits({k: max(v, other.peaks[k]) for k, v in self.peaks.items()}, max(self.dram, other.dram))


class Roofs:
    """Measures limits with the clock and the threads of the run."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.array = _core.empty((max(READ_BYTES, 2 * cache_bytes()) // 4,), np.float32)
        self.array.fill(1.0)
        self.levels: dict[int, float] = {}  # log2 of bytes -> bytes a second

    def settle(self) -> None:
        """Nothing is in a cache after this, and with several threads the pools, which wait for more work in a
        busy loop, are asleep: they would slow down whoever comes next."""
        threads = _core.get_num_threads()
        _core.set_num_threads(1)
        _core.read(self.array, 1)
        _core.set_num_threads(threads)
        if threads > 1:
            time.sleep(ASLEEP)

    def limits(self, isas: Iterable[str], tries: int = 3) -> Limits:
        """Multiply-adds of these instruction sets, and the memory, now."""
        before, peaks = _core.get_isa(), {}
        for isa in isas:
            _core.set_isa(isa)
            for bf16, dtype in enumerate(("float32", "bfloat16")):
                work = partial(_core.peak, PEAK_ROUNDS, bf16)
                peaks[isa, dtype] = max(self._rate(work) for _ in range(tries))
        _core.set_isa(before)
        return Limits(peaks, max(self._read(self.array, 1) for _ in range(tries)))

    def level(self, n_bytes: float) -> float:
        """Bytes a second of reading an array of about this size again and again, measured once."""
        log = min(max(int(np.ceil(np.log2(max(n_bytes, 1)))), 14), int(np.log2(self.array.nbytes)))
        if log not in self.levels:
            part = self.array[: (1 << log) // 4]
            _core.read(part, 1)
            self.levels[log] = max(self._read(part, max(1, READ_BYTES >> log)) for _ in range(3))
        return self.levels[log]

    def _rate(self, work: Callable[[], float]) -> float:
        start = self.clock()
        done = work()
        return done / (self.clock() - start)

    def _read(self, array: np.ndarray, times: int) -> float:
        def work() -> float:
            _core.read(array, times)
            return float(times * array.nbytes)

        return self._rate(work)

    def summary(self, isa: str) -> dict[str, Any]:
        """The peaks of an instruction set, and reading speed in the middle of each level, for plots."""
        limits = self.limits([isa])
        levels = {"memory": limits.dram}
        for name, size in _caches().items():
            levels[name] = self.level(_bytes(size) * (_core.get_num_threads() if name in PRIVATE else 1) / 2)
        return {"peaks": {dtype: peak for (_, dtype), peak in limits.peaks.items()}, "levels": levels}
