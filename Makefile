# Each target makes what it needs: a virtual environment in $(VENV) with the extras it uses.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet
PYTEST ?= -n 2 --dist worksteal
PACKAGE_TESTS := tests/coupled_and_decoupled tests/package tests/explain tests/watch tests/sweep

.PHONY: run test test-slow test-package gpu lint format docs build clean

run: $(VENV)/.bench  ## the cost of tuning decay and rate apart, on digits; figure and JSON in ./runs
	$(BIN)/python -m benchmarks.figures.figure2_digits --parts "batch norm" --stride 2 --seeds 16 --out $(OUT)

test: $(VENV)/.test  ## the fast tests, with README and doctests
	$(BIN)/python -m pytest $(PYTEST) -m "not slow"

test-slow: $(VENV)/.test  ## the long tests that `make test` leaves out
	$(BIN)/python -m pytest $(PYTEST) -m slow

test-package: $(VENV)/.test  ## the fast tests of the package alone, for another Python or JAX
	$(BIN)/python -c "import sys, jax; print('Python', sys.version.split()[0], 'with JAX', jax.__version__)"
	$(BIN)/python -m pytest $(PYTEST) -m "not slow" $(PACKAGE_TESTS)

gpu: $(VENV)/.gpu  ## on a machine with an NVIDIA GPU: what differs there; JSON in ./runs/gpu
	$(BIN)/python -c "import jax; assert jax.default_backend() == 'gpu', jax.devices()"
	for cost in step_cost additions recorder sweep_speed; do \
	  $(BIN)/python -m benchmarks.cost.$$cost --out $(OUT)/gpu || exit 1; done
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -m "not slow" $(PACKAGE_TESTS)
	$(BIN)/python -m benchmarks.figures.figure2_mnist1d --out $(OUT)/gpu

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## the site in docs/_build/html; a few minutes, as it runs the examples
	$(BIN)/python -m sphinx -E -W --keep-going -b html docs docs/_build/html

build: $(VENV)/.build
	rm -rf dist
	$(BIN)/python -m build --outdir dist

$(VENV)/.build: | $(BIN)/python
	$(INSTALL) build
	touch $@

$(VENV)/.%: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable ".[$*]"
	touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; pass PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) dist docs/_build docs/generated docs/gallery .pytest_cache .jax_cache .ruff_cache
