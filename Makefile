# The tasks of this repository; each recipe line is a plain command that works without make.
PYTHON ?= python3
# Which releases .venv gets: locked, those of constraints.txt; lowest-direct or highest, what pyproject.toml allows.
RESOLUTION ?= locked
BIN    := .venv/bin
STAMP  := .venv/.installed

.DEFAULT_GOAL := help
CONSTRAINTS := $(if $(filter locked,$(RESOLUTION)),constraints.txt,.venv/constraints.txt)
# Wheels only: a release that has none for a Python is not for it.
COMPILED := --no-build --strip-extras --no-annotate --no-emit-index-url
# A file or two of every room.
QUICK := geometry/test_grids operators/test_joseph operators/test_matrix operators/test_image_operators \
	recon/test_fbp recon/test_recon samplers/test_conjugate priors/test_files test_problem test_metrics test_nifti \
	dicom/test_read dicom/test_write dicom/test_pacs rawdata/test_sources rebinning/test_rebinning \
	evidence/test_support runs/test_protocol runs/test_report experiments/test_run experiments/test_executors \
	experiments/test_tuning training/test_training benchmarks/test_bench testing/test_testing cli/test_cli \
	system/test_files system/test_cache system/test_version house/test_import_time

.PHONY: help demo test test-quick conformance lint types docs links picture generated lock

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## reconstruct a toy series with four methods; DICOM series and report.html in out/demo
	$(BIN)/ctflow demo -o out/demo

# One thread each: the tests' problems are so small that threads would wait for each other.
test: $(STAMP)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

test-quick: $(STAMP)  ## run some tests of every room, in minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 $(QUICK:%=tests/%.py)

# The constraints keep torch as it is; torchvision comes in its build for that torch.
conformance: $(STAMP)  ## install deepinv, PyLops, ODL and MONAI, and run their tests on our operators
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[conformance]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/conformance tests/operators/test_interop.py -ra

lint: $(STAMP)  ## check style, format, floors, and that generated files are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python .ci/generate.py --check

types: $(STAMP)  ## check types
	$(BIN)/mypy --strict -p ctflow
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP)  ## build the pages of docs/ in docs/_build/html, with the tutorials run; warnings are errors
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[docs]"
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

# Not part of the merge check: what others take from the net breaks no build of ours. Tutorials are not run for it.
links: $(STAMP)  ## ask every address that the pages link to whether it is still there; needs a network
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[docs]"
	$(BIN)/python -m sphinx -q -b linkcheck -D nb_execution_mode=off -D suppress_warnings=myst-nb.lexer docs docs/_build/links

picture: $(STAMP)  ## draw the README's picture anew
	$(BIN)/python docs/draw.py

generated: $(STAMP)  ## write the stubs and the tables of README and docs anew
	$(BIN)/python .ci/generate.py

# torch stays what the file says: one may change it there, and run this.
lock: $(STAMP)  ## resolve constraints.txt anew, the newest releases for every Python
	grep "^torch==" constraints.txt > .venv/torch.txt
	$(BIN)/uv pip compile --quiet $(COMPILED) --upgrade --universal --python-version 3.11 --all-extras \
	  --custom-compile-command "make lock" --constraint .venv/torch.txt pyproject.toml -o constraints.txt

# torch goes first, so that the pinned build is there before another package asks for a range.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("ctflow needs Python 3.11 or later and $(PYTHON) is %d.%d; give another one: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv .venv
ifneq ($(RESOLUTION),locked)
	$(BIN)/python -m pip install --quiet "uv>=0.9"
	$(BIN)/uv pip compile --quiet $(COMPILED) --python $(BIN)/python --resolution $(RESOLUTION) \
	  --extra dev --extra conformance pyproject.toml -o $(CONSTRAINTS)
endif
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[dev]"
	@touch $@
