# The two commands of the README: `make demo` and `make test`. `make setup` alone prepares .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

# one thread a process: Ray runs one worker a core, and two threads on a busy core are slower than one
export OMP_NUM_THREADS ?= 1
# without .pyc files every process of Ray starts several times slower
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo demo-full test test-all test-plain test-engine test-commands test-stores lint format clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
	  echo "setting up $(VENV) with uv" && \
	  uv venv --quiet --allow-existing --python '>=3.11' $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --group dev --editable . ; \
	else \
	  echo "setting up $(VENV) with venv and pip (several minutes)" && \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable . ; \
	fi
	@touch $@

demo: setup
	$(BIN)/mucs-ray demo

demo-full: setup
	$(BIN)/mucs-ray demo --full

# side by side, in lanes that take about equally long: those with Ray wait for processes half of the time
test: setup
	@$(MAKE) --no-print-directory -j3 lint test-engine test-commands test-plain test-stores

# what a release runs: the slow tests too, one lane after the other, since some of them wait for what is late
test-all: setup
	@$(MAKE) --no-print-directory lint test-plain test-stores test-engine test-commands SLOW=--slow

test-plain: setup
	$(BIN)/python -m pytest $(SLOW) tests/unit tests/contract tests/golden

test-stores: setup
	$(BIN)/python -m pytest $(SLOW) tests/stores tests/cluster

test-engine: setup
	$(BIN)/python -m pytest $(SLOW) tests/engine tests/chaos --ignore tests/engine/test_api.py

test-commands: setup
	$(BIN)/python -m pytest $(SLOW) tests/cli tests/engine/test_api.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry mucs_ray

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)
