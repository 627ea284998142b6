#!/usr/bin/env bash
# Run tests on the other Pythons of this machine, the oldest with the oldest NumPy that is supported.
# usage: tests/pythons.sh TEST_FILE... [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
for version in 3.10 3.12 3.13; do
    python=$(command -v "$(ls -d ~/.pyenv/versions/"$version".*/bin/python 2>/dev/null | tail -1)" || command -v "python$version") ||
        { echo "pythons: no Python $version here: untested"; continue; }
    venv=build/python$version
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    numpy=numpy
    [ "$version" != 3.10 ] || numpy='numpy==1.26.*'
    "$venv/bin/pip" install --quiet . "$numpy" pytest pytest-xdist hypothesis threadpoolctl
    echo "pythons: $("$venv/bin/python" -V), NumPy $("$venv/bin/python" -c 'import numpy; print(numpy.__version__)')"
    PYTHONSAFEPATH=1 "$venv/bin/pytest" "$@"
done
