# Every target sets up what it needs first: the environment .venv with exactly the packages of requirements.lock.

PYTHON ?= python3
CORES ?= all
# Of each kind of damage that `make stress` tries.
CASES ?= 500
# What `make report` runs and describes.
CONFIG ?= config/demo.yaml
TARGETS ?= results/demo/metrics.csv results/report.html

BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.complete
export PATH := $(BIN):$(PATH)

.PHONY: setup demo test coverage stress lint docs bench report

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tokenunify needs Python 3.11 or newer, but $(PYTHON) is missing or older: make setup PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/snakemake results/demo/metrics.csv results/report.html --cores $(CORES) --configfile config/demo.yaml

test: setup
	$(BIN)/python -m pytest

coverage: setup
	$(BIN)/python -m pytest --cov --cov-report term --cov-report html:coverage tests/unit tests/stages

stress: setup
	$(BIN)/python -m pytest -n 0 -s tests/workflow/stress.py
	TOKENUNIFY_CASES=$(CASES) $(BIN)/python -m pytest -n 0 -s tests/stages/test_fuzz.py

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint --configfile config/demo.yaml
	$(BIN)/mypy

docs: setup
	$(BIN)/mkdocs build --strict

bench: setup
	for file in $(filter-out benchmarks/pretraining.py benchmarks/costs.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

report: setup
	$(BIN)/snakemake $(TARGETS) --cores $(CORES) --configfile $(CONFIG)
	$(BIN)/snakemake $(TARGETS) --configfile $(CONFIG) --report results/snakemake-report.html
