# The project's tasks. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test check bench picture docs dist constraints image test-image test-apptainer test-slurm clean

VENV ?= .venv
IMAGE ?= precondqsm_bids
PYTEST_ARGS ?=
BENCH_ARGS ?=
export VENV

bin := $(VENV)/bin
ready := $(VENV)/.ready
usable := $(VENV)/.usable
, := ,
pip := $(bin)/python -m pip --disable-pip-version-check

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(ready)  ## the virtual environment in .venv (PYTHON=... chooses the Python)

# An environment whose Python is gone is made anew; any other is only brought up to date.
define installed
	@if ! $(bin)/python -c '' 2>/dev/null; then \
	    python=$$(scripts/find_python.sh) || exit 1; \
	    echo "Making $(VENV) with $$python"; \
	    "$$python" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo 'Installing the package and what it needs ...'
	@$(pip) install --quiet --editable '.[$(1)]'
	@touch $@
endef

$(ready): setup.cfg pyproject.toml Makefile
	$(call installed,test$(,)style$(,)docs)
	@touch $(usable)

# Enough for the demo: no linter, no test, no page.
$(usable): setup.cfg pyproject.toml Makefile
	$(call installed,demo)

demo: demo/.phantom  ## a phantom, its susceptibility map and the table of its tubes, in demo/
	@echo 'Reconstructing demo/raw into demo/derivatives ...'
	@$(bin)/precondqsm_bids demo/raw demo/derivatives participant \
	    --derivatives truth=demo/raw/derivatives/truth --work-dir demo/work
	@echo 'Again with the published form of the prior, into demo/derivatives-r2prime ...'
	@$(bin)/precondqsm_bids demo/raw demo/derivatives-r2prime participant --prior r2prime \
	    --derivatives truth=demo/raw/derivatives/truth --work-dir demo/work
	@$(bin)/python scripts/demo_table.py demo

# The file says that the phantom is whole; it is made again only when its code has changed.
demo/.phantom: $(wildcard precondqsm_bids/phantom/*.py) | $(usable)
	@echo 'Simulating the phantom into demo/raw ...'
	@rm -rf demo/raw && mkdir -p demo
	@$(bin)/precondqsm_phantom demo/raw --kind tubes
	@touch $@

test: $(ready)  ## scripts/check and the whole test suite (PYTEST_ARGS=... adds options)
	@status=0; \
	scripts/check || status=1; \
	$(bin)/python scripts/test $(PYTEST_ARGS) || status=1; \
	exit $$status

check: $(ready)  ## lint, format, types and import direction alone
	@scripts/check

bench: $(ready)  ## docs/performance.md, measured here: nothing else should run (BENCH_ARGS=... adds options)
	@$(bin)/python benchmarks/speed.py $(BENCH_ARGS)

picture: $(ready)  ## docs/figures/head_and_tubes.png, the picture of README
	@$(bin)/python scripts/picture.py

docs: $(ready)  ## the pages as HTML, in docs/_build; a warning is an error
	@$(bin)/python -m sphinx -W --keep-going -q docs docs/_build
	@echo 'docs/_build/index.html'

constraints: $(ready)  ## constraints.txt, the versions that the image is built with
	@scripts/make_constraints.sh

dist: $(ready)  ## wheel and source archive in dist/, checked, installed and run in a fresh environment
	@scripts/make_dist.sh

image:  ## the container image (IMAGE=name, BASE_IMAGE=base)
	@scripts/build_image.sh $(IMAGE)

test-image: $(ready)  ## the tests of the container image, after make image
	@PRECONDQSM_IMAGE=$(IMAGE) $(bin)/python -m pytest -m docker $(PYTEST_ARGS) tests/container

test-apptainer: $(ready)  ## the tests of the image under the real Apptainer, after make image
	@PRECONDQSM_IMAGE=$(IMAGE) $(bin)/python -m pytest -m apptainer $(PYTEST_ARGS) tests/container

test-slurm: $(ready)  ## the app on a SLURM cluster of containers, after make image
	@export PRECONDQSM_IMAGE=$(IMAGE) PRECONDQSM_CLUSTER=precondqsm_bids-slurm-$$$$; \
	trap 'tests/slurm/cluster.sh down $$PRECONDQSM_CLUSTER' EXIT; \
	$(bin)/python -m pytest -m slurm $(PYTEST_ARGS) tests/slurm

clean:  ## remove the demo, caches and build products; .venv and images stay
	@rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	    .import_linter_cache docs/_build
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
