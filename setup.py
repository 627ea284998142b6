"""Build polymoe._core, the C extension. Everything else about the package is in pyproject.toml.

Switches in the environment, each combination with objects of its own:
    POLYMOE_NO_OPENMP=1                   one thread, no OpenMP runtime
    POLYMOE_WERROR=1                      warnings are errors
    POLYMOE_SANITIZE=address,undefined    instrumented
    CC=clang-19                           another compiler
"""

import os
from glob import glob

import numpy
from setuptools import Extension, setup

no_openmp, werror, sanitize, cc = (
    os.environ.get(name, "") for name in ("POLYMOE_NO_OPENMP", "POLYMOE_WERROR", "POLYMOE_SANITIZE", "CC")
)
cflags = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden"]
cflags += ["-Wall", "-Wextra"]
openmp = ["-Wno-unknown-pragmas"] if no_openmp else ["-fopenmp"]
ldflags = [] if no_openmp else openmp
if werror:
    cflags.append("-Werror")
if sanitize:
    cflags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g", "-O1"]
    ldflags += [f"-fsanitize={sanitize}"]

variant = [os.path.basename(cc), no_openmp and "no-openmp", werror and "werror", sanitize.replace(",", "-")]
setup(
    options={"build": {"build_base": "build/" + ("-".join(filter(None, variant)) or "default")}},
    ext_modules=[
        Extension(
            "polymoe._core",
            sorted(glob("csrc/*/*.c")),
            depends=["setup.py", *glob("csrc/**/*.h", recursive=True)],
            include_dirs=[numpy.get_include()],
            extra_compile_args=cflags + openmp,
            extra_link_args=ldflags,
        )
    ],
)
