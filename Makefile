# Two commands on a bare machine (Python >= 3.10, a C++ compiler, make; nvcc optional):
#
#   make demo    train plain and OLTR on the embedded icons, print the table, write a report
#   make test    every test, Python and native
#
# The first of them sets up .venv from requirements-dev.txt and builds the extension: about 3 GB
# to download (torch with its CUDA libraries is nearly all of it; CPU machines need them too, for
# that is how torch is published) and 7 GB on disk. Run again, it does only what changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Containers like to set it; then every process would compile torch's Python anew.
unexport PYTHONDONTWRITEBYTECODE
# Tests share the cores by process, so each process keeps to one thread.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 8 ] && echo 8 || echo $$n)
PYTEST_ARGS ?=
PRESET ?= debug
ARM_PRESET ?= arm
# Nothing, where they have just run.
NATIVE_TESTS ?= native-test
BENCH_ARGS ?=
OLDEST_TORCH := 2.11.0
OLDEST_VISION := 0.26.0
OP_TESTS := test_ops.py test_precision.py test_op_arguments.py test_nearest_centroid.py test_meta_embedding.py \
  test_cosine_cross_entropy.py test_disc_centroids_loss.py test_sharded_ops.py

TOOLS := $(VENV)/.tools-done
ENV := $(VENV)/.env-done
BUILD := $(VENV)/.build-done
PEERS := $(VENV)/.peers-done
SUITES ?= $(patsubst benchmarks/bench_%.py,%,$(wildcard benchmarks/bench_*.py))
NATIVE := $(shell find csrc examples -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help demo test tools env build native-test sanitize arm-test desk-test test-oldest bench bench-full lint format \
  cuda-build gpu-check wheel clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# Passive: idle threads sleep, where spinning ones would starve a busy machine.
demo: $(BUILD)  ## train and evaluate on the embedded icons, about 4 minutes on two cores
	OMP_WAIT_POLICY=PASSIVE $(BIN)/oltr demo

test: $(BUILD) $(NATIVE_TESTS)  ## every test: native, then pytest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  $(PYTEST_ARGS)

build: $(BUILD)  ## .venv and the extension, installed in place

tools: $(TOOLS)

env: $(ENV)

# What the native tests need.
$(TOOLS): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $(PYTHON) is missing or older than 3.10; name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: this Python has no venv; Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $$(grep -E '^(cmake|ninja)==' requirements-dev.txt)
	@touch $@

# Byte code comes with the first import, of a tenth of these files.
$(ENV): $(TOOLS)
	@echo "make: setting up $(VENV), about 3 GB to download"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-dev.txt
	@touch $@

$(BUILD): $(ENV) setup.py pyproject.toml oltr_ext/_version.py $(filter-out csrc/testing/% examples/%,$(NATIVE))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	  --editable .
	@touch $@

native-test: $(TOOLS)  ## kernels under GoogleTest; PRESET=debug|asan|tsan
	$(BIN)/cmake --preset $(PRESET)
	$(BIN)/cmake --build --preset $(PRESET)
	$(BIN)/ctest --preset $(PRESET)

sanitize:  ## native tests under ASan + UBSan, then TSan
	$(MAKE) --no-print-directory native-test PRESET=asan
	$(MAKE) --no-print-directory native-test PRESET=tsan

arm-test: $(TOOLS)  ## CPU kernels for 64-bit Arm: Debian's cross compiler, run by qemu
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || { \
	  echo "make: no aarch64-linux-gnu-g++ or no qemu-aarch64 here; Debian and Ubuntu: apt-get install" \
	    "g++-aarch64-linux-gnu qemu-user"; exit 1; }
	$(MAKE) --no-print-directory native-test PRESET=$(ARM_PRESET)

# `make test` runs it too where there is a Chromium, and installs none.
desk-test: $(BUILD)  ## the page of oltr desk in headless Chromium, installed by apt-get where that is
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
	  command -v apt-get >/dev/null || { echo "make: no chromium and no apt-get here"; exit 1; }; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get install -y -q --no-install-recommends chromium chromium-driver; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(wildcard python_tests/test_desk*.py) $(PYTEST_ARGS)

# Built against the pinned torch, installed beside the oldest one, tested from another folder; and
# the sources compile against the oldest one too.
test-oldest: wheel  ## wheel and sources under the oldest torch; about 3 GB more to download
	test -x build/oldest/bin/python || $(PYTHON) -m venv build/oldest
	build/oldest/bin/pip install --quiet torch==$(OLDEST_TORCH) torchvision==$(OLDEST_VISION) pytest hypothesis
	build/oldest/bin/pip install --quiet --no-deps --force-reinstall dist/*.whl
	build/oldest/bin/pip install --quiet torch==$(OLDEST_TORCH) dist/*.whl
	cd build/oldest && OMP_NUM_THREADS=1 OLTR_EXT_BACKEND=native bin/pytest -q -p no:cacheprovider \
	  $(addprefix ../../python_tests/,$(OP_TESTS))
	build/oldest/bin/pip install --quiet "setuptools>=77,<82" ninja pybind11
	build/oldest/bin/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/oldest/dist dist/*.tar.gz

# On all cores of a machine left alone; each suite in a process of its own, which keeps what is freed:
# benchmarks/README.md says why.
define run-bench
	rm -rf build/bench && mkdir -p build/bench
	set -e; for suite in $(SUITES); do \
	  MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000 OLTR_EXT_BACKEND=native \
	  $(BIN)/python -m pytest -q benchmarks/bench_$$suite.py $(1) $(BENCH_ARGS) \
	    --benchmark-columns=median,iqr,rounds --benchmark-json=build/bench/$$suite.json; \
	done
	$(BIN)/python benchmarks/plots.py $$($(BIN)/python benchmarks/collect.py build/bench/*.json)
endef

bench: $(BUILD) $(PEERS)  ## ops against their peers, about 10 minutes; benchmarks/README.md
	$(call run-bench,--quick)

bench-full: $(BUILD) $(PEERS)  ## every case, torch.compile and peak memory too: hours
	$(call run-bench,--compile --memory)

$(PEERS): benchmarks/requirements.txt $(ENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $< || \
	  echo "make: not all peers could be installed; their rows will say so"
	@touch $@

lint: $(ENV)  ## ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)
	$(BIN)/mypy oltr_ext

format: $(ENV)  ## rewrite in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

cuda-build: $(ENV)  ## as build, but fail where the CUDA library cannot be built; no GPU needed
	OLTR_EXT_WITH_CUDA=1 $(BIN)/python -m pip install --no-build-isolation --no-deps --editable .
	@touch $(BUILD)

# Where there is no GPU, what can be checked without one: every architecture compiles, and the same
# kernels run on the host (native-test). PARTS: tests sanitizer bench train.
PARTS ?=
gpu-check: cuda-build  ## on a GPU: tests, sanitizers, benchmarks, training; writes the evidence
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(BIN)/python benchmarks/gpu_check.py $(PARTS); \
	else \
	  echo "make: no GPU here; checking what needs none"; \
	  $(MAKE) --no-print-directory native-test && \
	  $(BIN)/python -m pytest -q python_tests/test_cuda.py; \
	fi

wheel: $(ENV)  ## sdist and wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean:  ## everything built; .venv stays
	rm -rf build dist *.egg-info oltr_ext/*.so $(BUILD)
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
