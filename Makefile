# `make demo` and `make test` need Python 3.10+ and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check lint clean

demo: $(INSTALLED)
	$(BIN)/python export/build_engine.py --out demo/bundle --force
	$(BIN)/sem-clip predict demo/bundle demo/bundle-frames/new --json demo/verdicts.jsonl --force
	$(BIN)/sem-clip evaluate demo/bundle demo/bundle-frames/new --out demo/evaluation
	@echo "Look at demo/evaluation/contact_sheet.png and demo/verdicts.jsonl"

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: lint test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
