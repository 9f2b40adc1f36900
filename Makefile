# GNU make 3.81 or later. `make help` lists the targets. PYTHON=... chooses the interpreter, ARGS=... are passed on.

SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Each test process has servers of its own. They wait a good deal, so two cores carry four.
JOBS ?= 4

PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

# The stamps hold what was installed: `demo` needs less than `dev`, and `dev` contains it.
MADE := $(VENV)/.made
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev

# The scanner pins libraries that the rest needs in other versions, so it lives by itself.
SCAN := .venv-scan
SCANNER := $(SCAN)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint types imports scan tests soak bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make demo ARGS=--once        end after the three statements"
	@echo "  make tests ARGS='-k backfill'  some tests only"
	@echo "  make test PYTHON=python3.12  another interpreter for a new $(VENV)"

demo: $(DEMO) ## PostgreSQL and DynamoDB on this machine, an UPDATE, a DELETE and an INSERT from one to the other
	@$(BIN)/docferry demo $(ARGS)

test: lint types imports scan tests ## everything that must hold: style, types, the import rule, the scan, all tests

lint: $(DEV) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## mypy, strict
	$(BIN)/mypy

imports: $(DEV) ## the import rule of docs/architecture.md
	$(BIN)/lint-imports

scan: $(DEV) $(SCANNER) ## checkov, for security, over CloudFormation templates that docferry makes
	@rm -rf $(SCAN)/templates
	$(BIN)/python tests/scan/templates.py $(SCAN)/templates
	$(SCAN)/bin/checkov --quiet --compact --skip-download --framework cloudformation --directory $(SCAN)/templates

tests: $(DEV) ## all tests but the long ones
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m 'not soak' $(ARGS)

soak: $(DEV) ## the long tests
	$(BIN)/python -m pytest -m soak $(ARGS)

bench: $(DEV) ## the budgets, measured on this machine
	@set -e; found=; for file in $$(grep -l '__main__' benchmarks/*.py); do \
	    found=yes; echo "== $$file"; $(BIN)/python "$$file" $(ARGS); \
	done; \
	if [ -z "$$found" ]; then echo "there are no benchmarks" >&2; exit 1; fi

clean: ## remove both environments and everything that tools left
	rm -rf $(VENV) $(SCAN) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +

# An environment that is there and works is kept. An interpreter counts when it runs, is new enough and can make
# environments: a shim may be there and none of it.
$(MADE):
	@set -e; \
	if $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    touch $@; \
	    exit 0; \
	fi; \
	for python in $(PYTHON) python3.13 python3.12 python3.11 python3 python; do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "Making $(VENV) with $$("$$python" --version)" >&2; \
	        rm -rf $(VENV); \
	        "$$python" -m venv $(VENV); \
	        touch $@; \
	        exit 0; \
	    fi; \
	    if [ -n "$(PYTHON)" ]; then \
	        echo "PYTHON=$(PYTHON) is not a Python 3.11 or later with venv and ensurepip" >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "Python 3.11 or later with venv and ensurepip is needed (Debian: apt install python3-venv)." >&2; \
	echo "If it is not on the PATH, name it: make PYTHON=/path/to/python3" >&2; \
	exit 1

$(DEMO): pyproject.toml | $(MADE)
	@echo "Installing docferry and what its demo needs" >&2
	@$(PIP) install --editable '.[demo]'
	@touch $@

$(DEV): pyproject.toml | $(MADE)
	@echo "Installing docferry and what its tests need" >&2
	@$(PIP) install --editable '.[dev]'
	@touch $(DEMO) $@

$(SCANNER): tests/scan/requirements.txt | $(MADE)
	@echo "Installing the scanner into $(SCAN)" >&2
	@$(BIN)/python -m venv $(SCAN)
	@$(SCAN)/bin/python -m pip --quiet --disable-pip-version-check --no-input install --requirement $<
	@touch $@
