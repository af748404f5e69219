# The verbs of this repository. `make` alone lists them. Continuous integration calls `make test-all`.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help quickstart setup setup-dev setup-vllm setup-maniskill test test-all test-slow test-kernels test-ray test-vllm \
    test-doors test-maniskill check format bench docs docs-config release-check clean

BIN := .venv/bin
# Handed on: make quickstart ARGS="--minutes 2", make test ARGS="tests/functional"
ARGS ?=
# Processes of pytest; each takes a core and up to 2 GB. One for a debugger: make test JOBS=0 ARGS="--pdb"
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

help:  ## list these verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "%-21s%s\n", $$1, $$2 }'

quickstart: setup  ## set up, then demonstrations, fine-tuning, PPO, evaluation and the report
	$(BIN)/vla-rl quickstart $(ARGS)

setup:  ## install into .venv what the quickstart needs (the second time: at once)
	@bash scripts/setup.sh quickstart

setup-dev:  ## the same with the tools for development
	@bash scripts/setup.sh dev

setup-vllm:  ## install vLLM into .venv-vllm, an environment of its own (parallel.engine vllm)
	@bash scripts/setup.sh vllm

setup-maniskill: setup-dev  ## install ManiSkill3 into .venv-maniskill, an environment of its own
	@bash scripts/setup.sh maniskill

test: check  ## set up, lint, type-check, check the layers, run the tests
	$(PYTEST) $(ARGS)

test-all: test test-slow test-kernels  ## the same, then what takes long, then other kernels

test-slow: setup-dev  ## the tests that take long: whole commands, every task of LIBERO
	$(PYTEST) -m slow $(ARGS)

# What PyTorch, oneDNN and MKL do on a processor without AVX: other kernels round differently.
test-kernels: setup-dev  ## the numerical tests again, with the plainest kernels
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE $(PYTEST) -m "not slow and not sim" \
	    tests/functional tests/algorithms tests/policies tests/rollout tests/rewards $(ARGS)

# One process: the tests share one small Ray cluster.
test-ray: setup-dev  ## the tests of pools, with Ray, which the others do not need
	@bash scripts/setup.sh ray
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" tests/pools $(ARGS)

test-vllm: setup-dev setup-vllm  ## the tests that start vLLM, one at a time: a few minutes
	OMP_NUM_THREADS=1 VLA_RL_ENGINE_PYTHON=.venv-vllm $(BIN)/python -m pytest tests/vllm $(ARGS)

test-doors: setup-dev  ## the tests with openpi's client and vla-evaluation-harness: a few minutes
	@bash scripts/setup.sh doors
	OMP_NUM_THREADS=1 VLA_RL_DOORS_PYTHON=.venv-doors $(BIN)/python -m pytest -m "" tests/doors $(ARGS)

# With the Python of that environment, which sees the packages of .venv as well.
test-maniskill: setup-maniskill  ## the tests that play ManiSkill: minutes on CPU cores
	OMP_NUM_THREADS=1 .venv-maniskill/bin/python -m pytest -m "" -k maniskill tests/envs $(ARGS)

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

release-check: setup-dev  ## build the wheel and the source archive into dist/, and try the wheel
	OMP_NUM_THREADS=1 $(BIN)/python scripts/release_check.py $(ARGS)

clean:  ## remove caches and build products; .venv and runs/ stay
	rm -rf site dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
