# Needs Python >= 3.11 with venv, nothing else; every target installs what it needs, once.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# A file or two of every room.
QUICK := $(addprefix tests/test_,$(addsuffix .py,config groups features modulator online window lookahead uncertainty \
	checkpoint recording online_preset)) tests/kernels/test_products.py bench/tests/test_summary.py bench/tests/test_stopping.py
DECLARED := pyproject.toml bench/pyproject.toml constraints.txt

.PHONY: help install demo test test-quick lint docs dist clean

help:      ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

install: .venv/.dev   ## create .venv with the library, the bench and the developer tools

demo: .venv/.bench    ## AdamW against MetaAdamW on two real data sets: a table and a picture
	$(BIN)/metaadamw demo $(ARGS)

test: .venv/.dev      ## run the test suite; ARGS="tests/test_groups.py -k tied" narrows it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-quick: .venv/.dev   ## a part of the suite in under a minute, some tests of every room
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(QUICK) $(ARGS)

lint: .venv/.dev      ## ruff (rules and format) and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.dev      ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: .venv/.dev      ## build wheels and sdists into dist/, check them, and use them in an empty environment
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist bench
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m tools.check_dist dist

.PHONY: bench gpu-bench
bench: .venv/.bench   ## measure step, meta-update, memory, epochs on the CPU; write docs/performance.md
	$(PIP_INSTALL) --requirement benchmarks/requirements.txt
	$(BIN)/python -m benchmarks.report $(ARGS)

gpu-bench: .venv/.bench   ## measure step, memory, host syncs, CUDA graphs, training on CUDA; add them to the page
	$(BIN)/python -m benchmarks.gpu $(ARGS)
	$(BIN)/python -m benchmarks.report --page-only

.PHONY: gpu-paper
gpu-paper: .venv/.bench   ## the paper's five tasks, full size, all arms, on CUDA: packed runs and report into results/
	$(PIP_INSTALL) --editable . --editable "./bench[peers]"
	$(BIN)/metaadamw data fetch
	$(BIN)/metaadamw sweep sweeps/paper.toml --out runs/gpu $(ARGS); failed=$$?; \
	$(BIN)/metaadamw pack runs/gpu --out results/gpu.tar.xz && \
	$(BIN)/metaadamw report runs/gpu --out results/gpu-report && exit $$failed

clean:                ## remove .venv and everything built
	rm -rf .venv site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.bench: $(DECLARED) | $(BIN)/python
	$(PIP_INSTALL) --editable . --editable ./bench
	@touch $@

.venv/.dev: $(DECLARED) | $(BIN)/python
	$(PIP_INSTALL) --editable ".[dev]" --editable "./bench[peers,ray]"
	@touch .venv/.bench $@
