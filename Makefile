# Two commands: `make demo` and `make test`. Each sets itself up; Python 3.11 or later, pip, venv and make are enough.
# A GPU machine brings its own build of torch: README, "On a GPU".

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
DOCS := .venv-docs
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-isa lint format docs docs-serve clean

help:
	@echo "make demo      turn the digits into a registered int8 model"
	@echo "make test      lint, types and the tests"
	@echo "make test-all  the same with the tests that take longest, then make test-isa"
	@echo "make test-isa  tests that compare numbers, as on CPUs with fewer instructions"
	@echo "make lint      lint, types and import contracts only"
	@echo "make format    format the code"
	@echo "make docs      build the documents into build/site, in an environment of their own"
	@echo "make docs-serve  serve them on http://localhost:8000, and follow edits"
	@echo "make clean     remove the environment and caches; .kdq/, the results, stays"

demo: $(INSTALLED)
	$(BIN)/kdq run recipes/digits.yaml

test: lint
	$(PYTEST) -m "not rare"

test-all: lint
	$(PYTEST)
	$(BIN)/python tests/isa.py

test-isa: $(INSTALLED)
	$(BIN)/python tests/isa.py

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(DOCS)/.installed
	$(DOCS)/bin/zensical build --strict --clean
	$(DOCS)/bin/python docs/check_site.py build/site

docs-serve: $(DOCS)/.installed
	$(DOCS)/bin/zensical serve

clean:
	rm -rf $(VENV) $(DOCS) build .cache dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "KDQ needs Python 3.11 or later, and $(PYTHON) is older; say: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes the first time"
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(DOCS)/.installed: constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt zensical
	@touch $@
