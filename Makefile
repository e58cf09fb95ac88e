# setup once, then: make train | make test | make fast | make lint | make format | make docs | make clean
.DEFAULT_GOAL := help
.PHONY: help setup train test fast lint format docs clean

PYTHON ?= python3
TORCH ?= torch==2.13.0
EXPERIMENT ?= distill_t5
RUNS ?= runs
BIN := .venv/bin
READY := .venv/.ready
DOCS := .venv/.docs

# Tests reach no network; tiny models are quickest on one thread.
OFFLINE := WANDB_MODE=disabled HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## .venv with slimexp and the tools of its developers; once

# torch goes first and pinned, so that an index with a CPU build gives that one and not gigabytes of CUDA;
# TORCH="torch==2.13.0 --index-url ..." chooses another build.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

train: setup ## distil the shipped T5, then draw the report (EXPERIMENT=, ARGS=)
	$(BIN)/python -m slimexp.train +experiment=$(EXPERIMENT) runs=$(RUNS) $(ARGS)
	$(BIN)/python -m slimexp.report $(RUNS)

test: setup ## the tests, side by side on all cores (ARGS= goes to pytest)
	$(OFFLINE) $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile $(ARGS)

fast: setup ## the pure and quick tests only
	$(OFFLINE) $(BIN)/python -m pytest -m fast $(ARGS)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

docs: $(DOCS) ## the pages of docs/ as a site, in site/; a warning is an error
	rm -rf site
	$(BIN)/zensical build --clean --strict

clean: ## remove caches and builds; runs and .venv stay
	rm -rf build dist site .cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
