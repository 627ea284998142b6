"""Build polymoe._core, the C extension. Everything else about the package is in pyproject.toml.

Switches (environment): POLYMOE_NO_OPENMP=1 one thread, no OpenMP runtime; POLYMOE_WERROR=1 warnings are errors;
POLYMOE_SANITIZE=address,undefined instrumented build.
"""

import os
from glob import glob

import numpy
from setuptools import Extension, setup

cflags = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra"]
ldflags = []
if not os.environ.get("POLYMOE_NO_OPENMP"):
    cflags.append("-fopenmp")
    ldflags.append("-fopenmp")
else:
    cflags.append("-Wno-unknown-pragmas")
if os.environ.get("POLYMOE_WERROR"):
    cflags.append("-Werror")
if sanitize := os.environ.get("POLYMOE_SANITIZE"):
    cflags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g", "-O1"]
    ldflags += [f"-fsanitize={sanitize}"]

setup(
    ext_modules=[
        Extension(
            "polymoe._core",
            sorted(glob("csrc/*/*.c")),
            depends=glob("csrc/**/*.h", recursive=True) + glob("csrc/ops/*.c"),
            include_dirs=[numpy.get_include()],
            extra_compile_args=cflags,
            extra_link_args=ldflags,
        )
    ],
)
