# Every target has a ## line; `make` alone prints them.
.DEFAULT_GOAL := help
.PHONY: help demo demo-bert test test-fast check bench up up-native contracts fmt env requirements clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := deploy/requirements
# The installed profiles leave a stamp, so that a second run installs nothing.
LIGHT := $(VENV)/.installed-light
DEV := $(VENV)/.installed-dev
TORCH := $(VENV)/.installed-torch
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes

help: ## Show this list.
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z-]*:.*## / {printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(LIGHT) ## The main job, end to end, on the embedded column: publish, optimize, deploy, predict, audit.
	@$(BIN)/modelworks demo

demo-bert: $(TORCH) ## The same with a real BERT: export, int8, embeddings, semantic search (needs 6 GB of disk for torch).
	@$(BIN)/modelworks demo --bert

test: $(DEV) ## All checks and all tests, on the embedded column and on the real servers.
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest

test-fast: $(DEV) ## The tests that need no server.
	@$(BIN)/python -m pytest -m "not real and not slow and not torch"

check: $(DEV) ## Format, lint, types, imports, contracts: under a minute.
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/repo

bench: $(DEV) ## Speed and memory, each figure beside a baseline of the same run.
	@$(BIN)/python -m tests.bench

up: $(LIGHT) ## Run the suite on this machine, data in ./modelworks-data.
	@$(BIN)/modelworks up

up-native: $(DEV) ## Kafka, OpenSearch, MinIO and Redis as native processes; prints their endpoints and stays.
	@$(BIN)/python -m tests.stack up

contracts: $(DEV) ## Write the OpenAPI documents again (contracts/http).
	@$(BIN)/python -m tests.repo.openapi

fmt: $(DEV) ## Format and mend what ruff can mend.
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

env: ## Write .env with random secrets for docker compose; keeps an existing one.
	@$(PYTHON) deploy/make_env.py

requirements: $(DEV) ## Pin all dependencies again, with hashes.
	@$(REQUIREMENTS)/compile.sh $(BIN)/uv $(BIN)/python

clean: ## Remove what the build made; the cache of real servers stays.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(BIN)/uv: $(REQUIREMENTS)/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "modelworks needs Python 3.11 or newer; this is %d.%d. Name another: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "installing into $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(REQUIREMENTS)/uv.txt
	@touch $@

$(LIGHT): $(BIN)/uv $(REQUIREMENTS)/light.txt $(REQUIREMENTS)/demo.txt pyproject.toml
	@$(INSTALL) -r $(REQUIREMENTS)/light.txt
	@$(INSTALL) --no-deps -r $(REQUIREMENTS)/demo.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(LIGHT) $(REQUIREMENTS)/dev.txt
	@echo "installing the tools and the real column's clients ..."
	@$(INSTALL) -r $(REQUIREMENTS)/dev.txt
	@touch $@

$(TORCH): $(LIGHT) $(REQUIREMENTS)/torch.txt $(REQUIREMENTS)/demo-bert.txt
	@echo "installing torch (5 GB) ..."
	@$(INSTALL) -r $(REQUIREMENTS)/torch.txt
	@$(INSTALL) --no-deps -r $(REQUIREMENTS)/demo-bert.txt
	@touch $@
