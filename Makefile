# `make demo` and `make test` need Python 3.11+ and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest

.PHONY: demo test lowest check lint clean

demo: $(INSTALLED)
	$(BIN)/python export/build_engine.py --out demo/bundle --force
	$(BIN)/sem-clip predict demo/bundle demo/bundle-frames/new --json demo/verdicts.jsonl --force
	$(BIN)/sem-clip evaluate demo/bundle demo/bundle-frames/new --out demo/evaluation --force
	@echo "Look at demo/evaluation/contact_sheet.png and demo/verdicts.jsonl"

test: $(INSTALLED)
	$(BIN)/python -m pytest

# The lowest versions that pyproject.toml allows, on the lowest Python: the runtime's tests, and a bundle made by the
# newest. On another Python some of them have no wheel, so there it says so and does nothing.
lowest: $(INSTALLED)
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then $(MAKE) --no-print-directory .lowest; \
	else echo "make lowest: left out, it needs Python 3.11: make lowest PYTHON=python3.11"; fi

.PHONY: .lowest
.lowest:
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --quiet --requirement $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --editable .
	$(LOWEST)/bin/python -m pytest
	$(BIN)/python -c 'from pathlib import Path; from export.synthetic import write_dataset; \
	write_dataset(Path("$(LOWEST)/frames"), per_class=3, size=(96, 96))'
	$(BIN)/sem-clip build --arch toy --random-weights --data $(LOWEST)/frames --shots 2 --out $(LOWEST)/bundle
	$(LOWEST)/bin/sem-clip predict $(LOWEST)/bundle $(LOWEST)/frames --backend cpu --json $(LOWEST)/verdicts.jsonl

check: lint test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) demo build dist *.egg-info
