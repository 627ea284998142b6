"""What is shipped: the source archive holds all that a C compiler needs, and installs completely."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The tools of the build run in a plain environment, whatever build of polymoe the tests are run on.
ASIDE = ("LD_PRELOAD", "PYTHONPATH", "POLYMOE_SANITIZE")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ASIDE}

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")


def run(*command, cwd, **env):
    env = {**ENVIRONMENT, **env}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(out), cwd=ROOT)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory):
    """The archive, built without OpenMP and installed into a folder of its own, far from the source tree."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target", str(site)]
    run(*pip, str(sdist), cwd=sdist.parent, POLYMOE_NO_OPENMP="1")
    return site


def test_sdist_holds_the_sources_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.[ch]")}
    assert sources and sources <= names
    assert {"LICENSE", "pyproject.toml", "setup.py", "tests/test_build.py", "polymoe/py.typed"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


def test_install_from_the_sdist_is_whole(installed):
    def files(folder):
        return {
            str(p.relative_to(folder))
            for p in (folder / "polymoe").rglob("*")
            if p.is_file() and p.suffix in (".py", ".pyi", ".typed", ".jsonl", ".yaml", ".md", ".css", ".js")
        }

    assert files(installed) == files(ROOT)
    assert (installed / "polymoe" / "_core.pyi").exists()


def test_build_without_openmp_works_outside_the_tree(installed, tmp_path):
    code = (
        "import numpy as np, polymoe; from polymoe import _core, functional as F;"
        "y, _ = F.mix(np.ones((1, 1, 2), np.float32), np.ones((2, 3, 4), np.float32));"
        "print(polymoe.__file__, _core.openmp(), _core.get_num_threads(), y.sum())"
    )
    out = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert out == [str(installed / "polymoe" / "__init__.py"), "none", "1", "24.0"]


def test_build_files_ask_for_no_unsafe_flags():
    files = [ROOT / name for name in ("setup.py", "Makefile", "pyproject.toml", ".ci/run")]
    files += [*(ROOT / "csrc").rglob("*.[ch]"), *(ROOT / "tests").glob("*.sh")]
    unsafe = re.compile(r"-march=native|-mtune=native|-ffast-math|-Ofast|-funsafe-math|-ffinite-math")
    assert [str(f) for f in files if f.exists() and unsafe.search(f.read_text())] == []
