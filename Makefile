# Two commands for a new user: `make demo` and `make test`. Both set up what they need in .venv on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := clusters/constraints.txt

# Two workers: each is one process, and starts a Ray of two CPUs where its tests want one.
WORKERS ?= 2

# `make test` runs its three parts side by side, and all of them whatever one says.
MAKEFLAGS += --jobs=3 --keep-going

.PHONY: demo test check lint types pytest clean

demo: $(VENV)/.installed  ## from raw files to a ranked leaderboard, with nothing to download
	$(BIN)/python bench/sweep.py

test: lint types pytest  ## lint, types and every test; each fails it, and none stops another

check: lint types  ## lint and types only

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

pytest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

clean:  ## remove the environment and everything the demo wrote
	rm -rf $(VENV) .reconbench
