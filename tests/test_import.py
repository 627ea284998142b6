"""Importing polymoe: from anywhere, with any instruction set, leaving the process as it was."""

import importlib.metadata
import os
import subprocess
import sys
import threading

import pytest

import polymoe
from polymoe import _core

PARALLEL_OP = """
import numpy as np
from polymoe import _core, functional as F
weights = np.random.default_rng(0).random((64, 2, 4), dtype=np.float32)
bank = np.random.default_rng(1).random((4, 8, 4096), dtype=np.float32)
_core.set_num_threads(2)
y, _ = F.mix(weights, bank)
"""


def run_python(code, cwd, **env):
    """Run code in a process of its own that starts in an empty folder."""
    command, env = [sys.executable, "-c", code], {**os.environ, **env}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def test_version_is_the_one_of_the_metadata():
    assert polymoe.__version__ == importlib.metadata.version("polymoe")


def test_import_works_outside_the_tree(tmp_path):
    done = run_python("import polymoe; print(polymoe.__version__)", tmp_path)
    assert (done.stdout.strip(), done.returncode) == (polymoe.__version__, 0), done.stderr


@pytest.mark.parametrize("isa", _core.isas())
def test_environment_forces_the_instruction_set(isa, tmp_path):
    done = run_python("from polymoe import _core; print(_core.get_isa())", tmp_path, POLYMOE_ISA=isa)
    assert done.stdout.strip() == isa, done.stderr


def test_unknown_instruction_set_lists_the_known(tmp_path):
    done = run_python("import polymoe._core", tmp_path, POLYMOE_ISA="mmx")
    assert done.returncode != 0
    assert f"ImportError: POLYMOE_ISA: expected one of {_core.isas()}, got 'mmx'" in done.stderr


def test_import_leaves_subnormal_numbers_alone(tmp_path):
    check = "import sys; print(sys.float_info.min / 4 > 0, np.float32(1e-38) / np.float32(8) > 0)"
    done = run_python(PARALLEL_OP + check, tmp_path)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_computes_on_one_thread(tmp_path):
    code = (
        PARALLEL_OP
        + """
import os, signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)    # fork while OpenMP's threads live: what is tested here
child = os.fork()
if child == 0:
    signal.alarm(30)    # a child that waits for threads that it has not must end
    again, _ = F.mix(weights, bank)
    os._exit(0 if again.tobytes() == y.tobytes() and _core.get_num_threads() == 1 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    done = run_python(code, tmp_path)
    assert done.stdout.strip() == "0"
    assert done.stderr.count("forked after OpenMP ran: it computes on one thread") <= 1


@pytest.mark.skipif(_core.openmp() == "none", reason="built without OpenMP")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_says_once_that_it_is_alone(tmp_path):
    code = (
        "from polymoe import _core\n_core.set_num_threads(2)\n"
        + PARALLEL_OP
        + """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
if os.fork() == 0:
    F.mix(weights, bank), F.mix(weights, bank)
    os._exit(0)
os.wait()
"""
    )
    done = run_python(code, tmp_path)
    assert done.stderr.count("forked after OpenMP ran: it computes on one thread") == 1, done.stderr


@pytest.mark.skipif(_core.openmp() == "none", reason="built without OpenMP")
def test_threads_can_be_limited_for_one_thread():
    everywhere, seen = _core.get_num_threads(), []
    with polymoe.num_threads(5):
        other = threading.Thread(target=lambda: seen.append(_core.get_num_threads()))
        other.start()
        other.join()
        assert (_core.get_num_threads(), seen) == (5, [everywhere])
        with polymoe.num_threads(0):
            assert _core.get_num_threads() == everywhere
    assert _core.get_num_threads() == everywhere
    with (
        pytest.raises(ValueError, match=r"^n: expected 0 \(as elsewhere\) to 4096, got -1$"),
        polymoe.num_threads(-1),
    ):
        pass


@pytest.mark.skipif(_core.openmp() == "none", reason="built without OpenMP")
def test_threadpoolctl_limits_the_threads(tmp_path):
    pytest.importorskip("threadpoolctl")
    code = """
from polymoe import _core
from threadpoolctl import threadpool_limits
before = _core.get_num_threads()
with threadpool_limits(1):
    print(_core.get_num_threads())
print(_core.get_num_threads() == before)
"""
    assert run_python(code, tmp_path).stdout.split() == ["1", "True"]


@pytest.mark.skipif(_core.openmp() == "none", reason="built without OpenMP")
def test_threadpoolctl_sees_the_openmp_runtime(tmp_path):
    pytest.importorskip("threadpoolctl")
    code = "import polymoe._core, threadpoolctl as t; print(*[p['prefix'] for p in t.threadpool_info()])"
    done = run_python(code, tmp_path)
    assert _core.openmp() in done.stdout.split(), done.stderr
