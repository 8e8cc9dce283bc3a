# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# tests side by side, each on one thread
JOBS ?= 2

.PHONY: demo test lint docs fuzz clean

demo: $(VENV)/.demo
	$(BIN)/turbovlm demo

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# random trials for TURBOVLM_FUZZ_SECONDS (an hour), from TURBOVLM_FUZZ_SEED (0)
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz.run

lint: $(VENV)/.dev
	$(BIN)/ruff check src lab tests benchmarks examples docs/scripts
	$(BIN)/ruff format --check src lab tests benchmarks examples docs/scripts
	$(BIN)/pyright

# the manual as a site in site/; built and read without a network
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# torch and torchvision come in one pip command: installed apart they can fail to match
$(VENV)/.demo: pyproject.toml lab/pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[all]' -e ./lab
	touch $@

$(VENV)/.dev: pyproject.toml lab/pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[dev]' -e ./lab
	touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml lab/pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[all,docs]' -e ./lab
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "turbovlm needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist site lab/dist .pytest_cache .ruff_cache .hypothesis
