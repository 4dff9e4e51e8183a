# `make` lists the goals. A machine needs make and Python 3.11 or newer; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest
# PyTorch without CUDA is a tenth of the download. Its makers keep an index of such builds: make demo TORCH_CPU=URL
TORCH_CPU ?=
# One thread per test process: the processes share the cores. Tests of one file stay in one process. A process that
# dies ends the run: another in its place can leave pytest waiting for ever.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --max-worker-restart 0

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check lint hooks lowest clean

help:  ## list these goals
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUNS)  ## teach on generated frames, judge others, and evaluate: all in demo/
	$(BIN)/python export/build_engine.py --out demo/bundle --force
	$(BIN)/sem-clip predict demo/bundle demo/bundle-frames/new --json demo/verdicts.jsonl --store demo/verdicts.db --force
	$(BIN)/sem-clip evaluate demo/bundle demo/bundle-frames/new --out demo/evaluation --force
	@echo "Look at demo/evaluation/contact_sheet.png and demo/verdicts.jsonl"
	@echo "Open the page to look and correct: $(BIN)/sem-clip review demo/verdicts.db --bundle demo/bundle --data demo/bundle-frames/teach --open"

test: $(INSTALLED)  ## the fast tests: about 3 minutes on 2 cores
	$(PYTEST) -m "not slow"

test-all: test  ## all tests
	$(PYTEST) -m slow

check: lint test  ## lint, types and the fast tests: what a change must pass

lint: $(INSTALLED)  ## ruff, codespell and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

hooks: $(INSTALLED)  ## check every commit with pre-commit
	$(BIN)/pre-commit install

# On another Python than 3.11 some of the lowest versions have no wheel, so there this goal does nothing.
lowest: $(INSTALLED)  ## the runtime's tests with the lowest versions that pyproject.toml allows
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

clean:  ## remove environments, the demo and builds
	rm -rf $(VENV) $(LOWEST) demo build dist *.egg-info

# What teaching and running need.
$(RUNS): pyproject.toml
	@command -v $(PYTHON) > /dev/null || \
	{ echo "make: there is no $(PYTHON) here: install Python 3.11 or newer, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), not 3.11 or newer; name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	{ echo "make: $(PYTHON) cannot make environments: install its venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@test -z "$(TORCH_CPU)" || $(BIN)/python -m pip install --quiet --index-url $(TORCH_CPU) torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,review]'
	@touch $@

# What tests and checks need in addition.
$(INSTALLED): $(RUNS)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
