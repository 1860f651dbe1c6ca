# Everything runs in .venv, made from python3 with the exact versions of constraints.txt.
# `make install PIP_TORCH="--index-url URL"` takes torch from another index, for example one with CUDA or CPU builds.

PYTHON ?= python3
PIP_TORCH ?=
PYTEST_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
CODE := cropl datamodules recipes notebooks tests $(wildcard docs/*.py) setup.py
# One thread per process: the tests run in parallel, and tiny models are slower on many threads.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: install quickstart test test-all lint format docs notebooks testbed clean

install: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	# torch first and on its own, so that no dependency pulls in another build of it
	$(BIN)/python -m pip install -q -c constraints.txt $(PIP_TORCH) torch
	$(BIN)/python -m pip install -q -c constraints.txt setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev,docs]'
	touch $(STAMP)

quickstart: install
	$(BIN)/cropl quickstart

test: install
	$(TEST) -m "not slow" $(PYTEST_ARGS)

test-all: install
	$(TEST) $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy cropl datamodules

format: install
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# The site, in build/site; a warning is an error. Tutorials show their outputs once `make notebooks` has run.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

notebooks: install
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/run.py

# Trains the testbed's shipped models anew, stage by stage (some hours on two CPU cores; a stage that was interrupted
# continues with `cropl fit -c testbed/STAGE --ckpt_path last`). The exports land in runs/testbed/*/export.
testbed: install
	for stage in llava_tower llava_coarse llava qwen2_vl_tower qwen2_vl; do $(BIN)/cropl fit -c testbed/$$stage || exit 1; done
	$(BIN)/cropl fit -c testbed/localizer --model.init_args.checkpoint runs/testbed/qwen2_vl/export \
	    --data.init_args.checkpoint runs/testbed/qwen2_vl/export
	for stage in plc plc_no_anchor visionzip_tuned; do $(BIN)/cropl fit -c testbed/$$stage \
	    --model.init_args.checkpoint runs/testbed/llava/export \
	    --data.init_args.checkpoint runs/testbed/llava/export || exit 1; done
	for stage in llava_next_coarse llava_next; do $(BIN)/cropl fit -c testbed/$$stage || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
