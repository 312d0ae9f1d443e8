# Needs Python >= 3.11 with pip, and make. Everything lives in one environment, .venv.
#   make demo    train a small ViT on embedded images and show what it learned
#   make test    the whole test suite

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
ARGS   ?=

BIN    := $(VENV)/bin
# Two test processes with one thread each beat one process with two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Nothing selected is an error (5), unless ARGS did the selecting.
NONE_OK = $(if $(ARGS),|| [ $$? -eq 5 ])
# Tests last from milliseconds to a minute: a process that is done takes some from the other.
SPLIT  := $(if $(filter-out 0 1,$(JOBS)),-n $(JOBS) --dist worksteal)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick lint types doctest docs wheel-smoke clean

help:
	@echo "make demo         train on embedded images (a few minutes on 2 cores)"
	@echo "make test         all tests; ARGS='-k masking' picks some"
	@echo "make quick        tests that are not marked slow"
	@echo "make lint types doctest docs wheel-smoke   the other checks of .ci/run"
	@echo "make clean        remove what was built; .venv stays"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"jepakit needs Python >= 3.11, this is {sys.version}: make PYTHON=python3.12")'
	@# Some Linux distributions ship Python without ensurepip; their pip can still fill .venv.
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip; }

# The stamps are newer than pyproject.toml once its dependencies are in.
$(VENV)/.examples: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[examples]"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	@touch $(VENV)/.examples $@

demo: $(VENV)/.examples
	$(BIN)/python examples/ijepa.py $(ARGS)

test: $(VENV)/.dev
	JEPAKIT_TYPECHECK=1 $(PYTEST) $(SPLIT) -m "not no_hook" $(ARGS) $(NONE_OK)
	JEPAKIT_TYPECHECK=0 $(PYTEST) $(SPLIT) -m no_hook $(ARGS) $(NONE_OK)

quick: $(VENV)/.dev
	JEPAKIT_TYPECHECK=1 $(PYTEST) $(SPLIT) -m "not no_hook and not slow" $(ARGS) $(NONE_OK)
	JEPAKIT_TYPECHECK=0 $(PYTEST) $(SPLIT) -m "no_hook and not slow" $(ARGS) $(NONE_OK)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Without the hook: doctest does not see the docstrings of functions that beartype has wrapped.
doctest: $(VENV)/.dev
	JEPAKIT_TYPECHECK=0 $(PYTEST) --doctest-modules --ignore=docs/_build --ignore-glob="docs/*.py" src/jepakit docs $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

wheel-smoke: $(VENV)/.dev
	$(BIN)/python .ci/smoke_wheel.py

clean:
	rm -rf build dist docs/_build docs/_pictures .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find src tests docs examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
