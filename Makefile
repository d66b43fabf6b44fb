# The tasks of this repository; each recipe line is a plain command that works without make.
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test conformance lint types generated

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP)  ## reconstruct a toy series with every method; DICOM series and report.html in out/demo
	$(BIN)/ctflow demo -o out/demo

# One thread each: the tests' problems are so small that threads would wait for each other.
test: $(STAMP)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

# The constraints keep torch as it is; torchvision comes in its build for that torch.
conformance: $(STAMP)  ## install deepinv, PyLops, ODL and MONAI, and run their tests on our operators
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[conformance]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/conformance tests/operators/test_interop.py -ra

lint: $(STAMP)  ## check style, format, floors, and that generated files are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python .ci/generate.py --check

types: $(STAMP)  ## check types
	$(BIN)/mypy --strict -p ctflow

generated: $(STAMP)  ## write the stubs and the README's tables anew
	$(BIN)/python .ci/generate.py

# torch goes first, so that the pinned build is there before another package asks for a range.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("ctflow needs Python 3.11 or later and $(PYTHON) is %d.%d; give another one: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
