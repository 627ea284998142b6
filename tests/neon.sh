#!/usr/bin/env bash
# Run tests on aarch64: Debian's Python for that machine in the emulator qemu-user, the extension cross-compiled by
# gcc-aarch64-linux-gnu (the emulated Python drives the compiler, so the flags are setup.py's). All is kept in .neon/.
# usage: tests/neon.sh TEST_FILE... [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in qemu-aarch64 aarch64-linux-gnu-gcc apt-get dpkg; do
    command -v "$tool" >/dev/null || { echo "neon: $tool is missing here: untested"; exit 0; }
done
here=$PWD/.neon
export OMP_WAIT_POLICY=passive    # emulated threads that spin would starve the others
python() {
    PYTHONSAFEPATH=1 PYTHONPATH=$here/lib:$here/site \
        qemu-aarch64 -L "$here/root" "$here/root/usr/bin/python3.11" "$@"
}

if [ ! -e "$here/ready" ]; then
    mkdir -p "$here"/{lists/partial,cache/archives/partial,debs,root}
    apt() {    # the system's sources, but package lists of our own: the system's stay as they are
        apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User="$(id -un)" \
            -o Dir::State::Lists="$here/lists" -o Dir::Cache="$here/cache" -o Dir::State::Status=/dev/null "$@"
    }
    apt update
    (cd "$here/debs" && apt download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libpython3.11-dev \
        libc6 libgcc-s1 libstdc++6 libgomp1 libexpat1 zlib1g libbz2-1.0 liblzma5 libffi8 libssl3 libsqlite3-0 libuuid1)
    for deb in "$here"/debs/*.deb; do dpkg -x "$deb" "$here/root"; done
    platforms=(--platform=manylinux_2_{34,31,28,27,26,17}_aarch64 --platform=manylinux2014_aarch64)
    .venv/bin/pip install --quiet --upgrade --target "$here/site" --python-version 3.11 --only-binary=:all: \
        "${platforms[@]}" numpy safetensors tokenizers ml_dtypes tqdm rich pyyaml tyro setuptools pytest hypothesis \
        threadpoolctl
    touch "$here/ready"
fi

CFLAGS="-I$here/root/usr/include/python3.11 -I$here/root/usr/include" python setup.py --quiet build --build-lib "$here/lib"
python -c 'from polymoe import _core; print("aarch64:", _core.isas()); assert _core.get_isa() == "neon"'
# Emulation is slow: what does not depend on the machine's arithmetic is not run again.
python -m pytest -p no:cacheprovider -k 'not unchanged and not do_not_change_bits and not leak' "$@"
