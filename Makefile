# One command each, the same here and in CI. Each makes .venv and installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
USE := $(VENV)/.installed-use
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test check format docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(USE) ## Train a plain and a residual network for a short while, and compare them
	@$(BIN)/plainres demo

test: $(DEV) ## Run every test
	@$(BIN)/pytest

check: $(DEV) ## Formatting, lint, types, layers, and whether the docs are current
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_layers.py
	$(BIN)/python docs/render.py --check

format: $(DEV) ## Format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEV) ## Write the generated parts of the docs again
	$(BIN)/python docs/render.py

clean: ## Remove .venv, caches and build outputs; runs and data stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests docs -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "plainres needs Python 3.11 or later, and '$(PYTHON)' is not: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(USE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing plainres into $(VENV) (once; PyTorch is large)"
	@$(INSTALL) --editable .
	@touch $@

# The development install holds everything that use needs: `make demo` after it installs nothing.
$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing plainres and its development tools into $(VENV) (once; PyTorch is large)"
	@$(INSTALL) --editable '.[dev]'
	@touch $(USE) $@
