# Two commands on a bare machine (Python >= 3.10, a C++ compiler, make; nvcc optional):
#
#   make demo    train the plain model and OLTR on the embedded icons, print the table, write a report
#   make test    every test, Python and native
#
# The first of them sets up .venv from requirements-dev.txt and builds the extension: about 3 GB
# to download (torch with its CUDA libraries is nearly all of it; CPU machines need them too, for
# that is how torch is published) and 7 GB on disk. Run again, it does only what changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Tests share the cores by process, so each process keeps to one thread.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 8 ] && echo 8 || echo $$n)
PYTEST_ARGS ?=

ENV := $(VENV)/.env-done
BUILD := $(VENV)/.build-done
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)
PRESET ?= debug

.DEFAULT_GOAL := help
.PHONY: help demo test build native-test sanitize test-oldest lint format cuda-build wheel clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(BUILD)  ## train and evaluate on the embedded icons, under 4 minutes on two cores
	$(BIN)/oltr demo

test: native-test $(BUILD)  ## native tests, then pytest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

build: $(BUILD)  ## .venv and the extension, installed in place

$(ENV): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $(PYTHON) is missing or older than 3.10; name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: this Python has no venv; Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "make: setting up $(VENV), about 3 GB to download"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(BUILD): $(ENV) setup.py pyproject.toml oltr_ext/_version.py $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	  --editable .
	@touch $@

native-test: $(ENV)  ## kernels under GoogleTest; PRESET=debug|asan|tsan
	cmake --preset $(PRESET)
	cmake --build --preset $(PRESET)
	ctest --preset $(PRESET)

sanitize:  ## native tests under ASan + UBSan, then TSan
	$(MAKE) native-test PRESET=asan
	$(MAKE) native-test PRESET=tsan

test-oldest: $(ENV)  ## one wheel, built here, under the oldest torch (3 GB more to download)
	$(BIN)/python -m pytest python_tests/oldest_torch.py -q

lint: $(ENV)  ## ruff, clang-format, mypy
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CXX_FILES)
	mypy oltr_ext

format: $(ENV)  ## rewrite in the house style
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

cuda-build: $(ENV)  ## as build, but fail where the CUDA library cannot be built; no GPU needed
	OLTR_EXT_WITH_CUDA=1 $(BIN)/python -m pip install --disable-pip-version-check \
	  --no-build-isolation --no-deps --verbose --editable .
	@touch $(BUILD)

wheel: $(ENV)  ## sdist and wheel into dist/
	$(BIN)/python -m build --no-isolation

clean:  ## everything built; .venv stays
	rm -rf build dist *.egg-info oltr_ext/*.so $(BUILD)
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
