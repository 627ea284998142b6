"""What the compiler made of the matrix kernels: their inner loops hold every accumulator in a register.

One spilt accumulator costs a store and a load in each step, and throughput is halved long before a result is
wrong. Compilers differ in this from version to version, so the instructions themselves are read.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

from polymoe import _core

MATRIX = re.compile(r"(gemm|product|proj|outer|expand|mix)_\w+(\.[\w.]+)?")
MULTIPLY_ADD = re.compile(r"v(fn?madd|dpbf16)")
ON_THE_STACK = re.compile(r"%[xyz]mm.*\(%r[sb]p\b")  # a store; what is read alone is a constant
TILE = 8  # multiply-adds from which on a loop is that of a tile


class Loop(NamedTuple):
    """An innermost loop of a function."""

    function: str
    multiply_adds: int
    spilt: list[str]


def loops(text: str) -> list[Loop]:
    """Of a disassembly by objdump."""
    found = []
    for part in re.split(r"^[0-9a-f]+ <", text, flags=re.M)[1:]:
        name, _, rest = part.partition(">:\n")
        lines = [line.split(":\t", 1) for line in rest.splitlines() if ":\t" in line]
        code = [instruction.strip() for _, instruction in lines]
        at = {int(address, 16): i for i, (address, _) in enumerate(lines)}
        jumps = ((i, re.match(r"j\w+ +([0-9a-f]+)", line)) for i, line in enumerate(code))
        spans = [(at.get(int(jump[1], 16), i + 1), i) for i, jump in jumps if jump]
        spans = [(a, b) for a, b in spans if a <= b]
        for a, b in spans:
            if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in spans):
                body = code[a : b + 1]
                adds = sum(bool(MULTIPLY_ADD.match(line)) for line in body)
                found.append(Loop(name, adds, [line for line in body if ON_THE_STACK.search(line)]))
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads instructions of x86-64")
def test_tiles_of_the_matrix_kernels_stay_in_registers():
    if shutil.which("objdump") is None:
        pytest.skip("no objdump here")
    command = ["objdump", "--disassemble", "--no-show-raw-insn", _core.__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "gemm_f32>:" not in text or "__asan_" in text:
        pytest.skip("built without symbols, or with sanitizers")
    tiles = [loop for loop in loops(text) if MATRIX.fullmatch(loop.function) and loop.multiply_adds >= TILE]
    assert {MATRIX.match(loop.function)[1] for loop in tiles} >= {"gemm", "proj", "outer", "expand", "mix"}
    assert max(loop.multiply_adds for loop in tiles) >= 24  # 12 rows of 2 vectors
    assert {loop.function: loop.spilt for loop in tiles if loop.spilt} == {}


def test_a_spilt_tile_is_found():
    body = ["vfmadd231ps (%rax),%zmm1,%zmm2"] * TILE + ["vmovups %zmm2,0x40(%rsp)", "jne    401000 <f+0x0>"]
    lines = "".join(f"  {0x401000 + 8 * i:x}:\t{line}\n" for i, line in enumerate(body))
    (loop,) = loops(f"0000000000401000 <gemm_f32>:\n{lines}\n")
    assert loop == Loop("gemm_f32", TILE, ["vmovups %zmm2,0x40(%rsp)"])
