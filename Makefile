# Two commands for a new user: `make demo` and `make test`. Both set up what they need in .venv on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := clusters/constraints.txt

.PHONY: demo test check lint types clean

demo: $(VENV)/.installed  ## from raw files to a ranked leaderboard, with nothing to download
	$(BIN)/python bench/sweep.py

test: $(VENV)/.installed-dev  ## lint, types and every test
	$(MAKE) check
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev  ## lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

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
