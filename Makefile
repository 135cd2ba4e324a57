# `make` alone lists the targets. PIP_FLAGS lets you choose a wheel, e.g. PIP_FLAGS="--index-url https://..." for CUDA.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS ?=
PYTEST_FLAGS ?=
STAMP := $(VENV)/.installed

# The larger real data sets, where they lie beside the project.
ifneq ($(wildcard ../shared/data/SHA256SUMS),)
export WHENCE_DATA ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench bench-peers clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## install into .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"whence needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt $(PIP_FLAGS) torch
	$(BIN)/pip install -q -c constraints.txt $(PIP_FLAGS) -e '.[dev]'
	@touch $(STAMP)

demo: setup  ## attribute real data, check the scores against further training, write a report
	$(BIN)/whence demo

test: setup  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_FLAGS)

lint: setup  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## published recipe on UCI Energy: agreement with further training, and speed; learned weights
	$(BIN)/python -m benchmarks.fimoda --dataset energy --seeds 3 --final-models 3 --out benchmarks/results/energy.json
	$(BIN)/python -m benchmarks.fimoda --dataset energy --seeds 5 --points 1,5,20,50,100,500 --out benchmarks/results/energy-five-seeds.json
	$(BIN)/python -m benchmarks.fimoda --dataset energy --compare-loop --out benchmarks/results/energy-speed.json
	$(BIN)/python -m benchmarks.weights --out benchmarks/results/weights.json
	for bench in digits adult fashion_mnist cifar10 gpt2; do $(BIN)/python -m benchmarks.weights --bench $$bench || exit 1; done
	$(BIN)/python -m benchmarks.unrolled --out benchmarks/results/unrolled.json
	$(BIN)/python -m benchmarks.projections --out benchmarks/results/projections.json
	$(BIN)/python -m benchmarks.tables

bench-peers:  ## our methods beside existing tools, in an environment of their own
	PIP_FLAGS="$(PIP_FLAGS)" benchmarks/peers/install.sh .venv-peers $(PYTHON)
	for task in mlp cnn bert gpt2; do .venv-peers/bin/python -m benchmarks.peers --task $$task --threads 1 --out benchmarks/results/peers-$$task.json || exit 1; done

clean:  ## remove what was installed and cached
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
