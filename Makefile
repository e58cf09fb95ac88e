# setup once, then: make train | make test | make fast | make coverage | make package | make lint | make format | make docs |
# make clean
.DEFAULT_GOAL := help
.PHONY: help setup train test coverage fast package lint lint-page format docs clean

PYTHON ?= python3
TORCH ?= torch==2.13.0
EXPERIMENT ?= distill_t5
RUNS ?= runs
BIN := .venv/bin
READY := .venv/.ready
DOCS := .venv/.docs
BIOME := tools/node_modules/.bin/biome

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

# Files in their order, not those with the most tests first: of the longest ones some have few, and one of them that
# starts last would keep one core busy and the others idle.
test: setup ## the tests, side by side on all cores (ARGS= goes to pytest)
	$(OFFLINE) $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: setup ## the tests again, with the lines and branches that none runs; also build/coverage/index.html
	$(OFFLINE) $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
		--cov --cov-report=term-missing --cov-report=html $(ARGS)

fast: setup ## the pure and quick tests only
	$(OFFLINE) $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile -m "fast and not gpu" $(ARGS)

package: setup ## build sdist and wheel, install them apart, train from another folder (reaches the package index)
	$(OFFLINE) $(BIN)/python -m pytest -m package $(ARGS)

lint: setup ## ruff, mypy, and biome on the page's script where npm is (under CI=true it must be)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory lint-page; \
	elif test "$$CI" = true; then echo "npm is not on PATH: the page's script is linted under CI=true; install Node.js" >&2; exit 1; \
	else echo "npm is not on PATH: the page's script is not linted"; fi

# The files of the page run as one script, in one scope: what they declare and use is checked in all of them together.
lint-page: $(BIOME)
	$(BIOME) format --config-path=tools slimexp/page/*.js
	mkdir -p build
	$(BIN)/python -c 'from slimexp.page import html; print(html.script())' >build/page.cjs
	$(BIOME) lint --config-path=tools --error-on-warnings build/page.cjs

$(BIOME): tools/package-lock.json
	cd tools && npm ci --silent --no-audit --no-fund
	touch $@

format: setup ## let ruff, and biome where it is, rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@if test -x $(BIOME); then $(BIOME) format --write --config-path=tools slimexp/page/*.js; fi

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

docs: $(DOCS) ## the pages of docs/ as a site, in site/; a warning is an error
	rm -rf site
	$(BIN)/zensical build --clean --strict

clean: ## remove caches and builds; runs and .venv stay
	rm -rf build dist site .cache .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
