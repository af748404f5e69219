# The verbs of this repository. `make` alone lists them. Continuous integration calls `make test`.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help quickstart setup setup-dev test check format bench docs docs-config clean

BIN := .venv/bin
# Handed on: make quickstart ARGS="--minutes 2", make test ARGS="tests/functional"
ARGS ?=

help:  ## list these verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-19s%s\n", $$1, $$2 }'

quickstart: setup  ## set up, then demonstrations, fine-tuning, PPO, evaluation and the report
	$(BIN)/vla-rl quickstart $(ARGS)

setup:  ## install into .venv what the quickstart needs (the second time: at once)
	@bash scripts/setup.sh quickstart

setup-dev:  ## the same with the tools for development
	@bash scripts/setup.sh dev

test: check  ## set up, lint, type-check, check the layers, run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

check: setup-dev  ## ruff, formatting, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup-dev  ## let ruff mend and format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup-dev  ## simulator frames/s and memory; decoding against transformers
	$(BIN)/python benchmarks/envs.py
	$(BIN)/python benchmarks/decode.py

docs-config:  ## write docs/configuration.md again, after a change to an option
	@$(BIN)/python -m vla_rl.cli.reference docs/configuration.md

docs:  ## build the documentation into site/
	@bash scripts/setup.sh docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove caches and build products; .venv and runs/ stay
	rm -rf site dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
