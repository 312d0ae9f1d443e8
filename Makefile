# Needs Python >= 3.11 with pip, and make. Everything lives in one environment, .venv.
#   make demo    train a small ViT on embedded images and show what it learned
#   make test    the whole test suite

PYTHON      ?= python3
JOBS        ?= 2
ARGS        ?=
# COVERAGE=1 measures which lines the tests run.
COVERAGE    ?=
# CONSTRAINTS=.ci/lowest.txt tests with the lowest supported versions, in an environment of its own.
CONSTRAINTS ?=
VENV        ?= .venv$(if $(CONSTRAINTS),-$(basename $(notdir $(CONSTRAINTS))))

BIN    := $(VENV)/bin
# Two test processes with one thread each beat one process with two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Nothing selected is an error (5), unless ARGS did the selecting.
NONE_OK = $(if $(ARGS),|| [ $$? -eq 5 ])
# Tests last from milliseconds to a minute: a process that is done takes some from the other.
SPLIT  := $(if $(filter-out 0 1,$(JOBS)),-n $(JOBS) --dist worksteal)
COVER  := $(if $(filter 1,$(COVERAGE)),--cov=jepakit --cov-append --cov-report=)
REPORT := $(if $(filter 1,$(COVERAGE)),$(BIN)/python .ci/coverage_report.py)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick lint types doctest docs linkcheck wheel-smoke clean

help:
	@echo "make demo         train on embedded images (a few minutes on 2 cores)"
	@echo "make test         all tests; ARGS='-k masking' picks some"
	@echo "make quick        tests that are not marked slow; COVERAGE=1 reports the lines they run"
	@echo "make lint types doctest docs wheel-smoke   the other checks of .ci/run"
	@echo "make linkcheck    every link from the pages to the web, over the network"
	@echo "make clean        remove what was built; environments stay"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"jepakit needs Python >= 3.11, this is {sys.version}: make PYTHON=python3.12")'
	@# Some Linux distributions ship Python without ensurepip; their pip can still fill .venv.
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip; }

# The stamps are newer than pyproject.toml once its dependencies are in.
$(VENV)/.examples: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) -e ".[examples]"
	@touch $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) -e ".[dev]"
	@touch $(VENV)/.examples $@

demo: $(VENV)/.examples
	$(BIN)/python examples/ijepa.py $(ARGS)

test: $(VENV)/.dev
	@rm -f .coverage
	JEPAKIT_TYPECHECK=1 $(PYTEST) $(SPLIT) $(COVER) -m "not no_hook" $(ARGS) $(NONE_OK)
	JEPAKIT_TYPECHECK=0 $(PYTEST) $(SPLIT) $(COVER) -m no_hook $(ARGS) $(NONE_OK)
	$(REPORT)

quick: $(VENV)/.dev
	@rm -f .coverage
	JEPAKIT_TYPECHECK=1 $(PYTEST) $(SPLIT) $(COVER) -m "not no_hook and not slow" $(ARGS) $(NONE_OK)
	JEPAKIT_TYPECHECK=0 $(PYTEST) $(SPLIT) $(COVER) -m "no_hook and not slow" $(ARGS) $(NONE_OK)
	$(REPORT)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(VENV)/.dev
	$(BIN)/mypy

# Without the hook: doctest does not see the docstrings of functions that beartype has wrapped.
doctest: $(VENV)/.dev
	JEPAKIT_TYPECHECK=0 $(PYTEST) --doctest-modules --ignore=docs/_build --ignore-glob="docs/*.py" src/jepakit docs $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# Needs the network, so `.ci/run` leaves it out; links within the pages are checked by `make docs`.
linkcheck: $(VENV)/.dev
	$(BIN)/python -m sphinx --keep-going -q -b linkcheck docs docs/_build/linkcheck

wheel-smoke: $(VENV)/.dev
	$(BIN)/python .ci/smoke_wheel.py

clean:
	rm -rf build dist .coverage docs/_build docs/_pictures docs/api/generated .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find src tests docs examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
