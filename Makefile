# Every target sets itself up: `make demo` and `make test` work as the first command on a fresh clone.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.made-from-pyproject-and-constraints
# Rivals are no dependencies of the project, and some of them contradict its pins.
RIVALS       := .venv-rivals
RIVALS_STAMP := $(RIVALS)/.made-from-requirements
RIVALS_PINS  := benchmarks/rivals/requirements.txt
# An environment that has the wheel and nothing of the source tree.
WHEEL        := .venv-wheel
# The training libraries that load through paraload are no dependencies either.
CLIENTS       := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/.made-from-requirements
CLIENTS_PINS  := tests/clients/requirements.txt
# The Azure server of the tests is a program of node's.
AZURITE := .node/.made-from-lock

comma := ,

# An environment for packages of others: its folder, extras of the project, pins of the packages.
# A package that cannot be installed must not stop the others: then each is tried alone, and the
# page that is written says which one is missing.
define make_environment
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[$(2)]'
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --requirement $(3) \
	  || grep -E '^[^#]' $(3) | xargs -n 1 $(1)/bin/python -m pip install --quiet \
	       --disable-pip-version-check --no-deps || true
	@touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help venv demo test azurite test-wheel test-clients check reliability fuzz \
  fuzz-long soak bench bench-against bench-rivals format clean \
  test-torch test-torch-smoke torch-versions

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

venv: $(STAMP) ## make .venv with pinned dependencies (the other targets do it by themselves)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "paraload needs Python 3.11 or newer; try: make venv PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[cli,zstd,test,bench,dev]'
	@touch $@

demo: $(STAMP) ## save a sharded model, load it with torch and with paraload, compare
	$(BIN)/python examples/demo.py

# Files stay whole, so that each server, checkpoint and process pool of a module is made once.
test: $(STAMP) ## the whole test suite, on up to 4 cores
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# Each torch has an environment of its own; they are made for the CPU, as the suite needs no GPU.
TORCH ?=
# The oldest and the newest version.
SMOKE_TORCH ?= 2.6.0 2.15.0
SMOKE_TESTS ?= tests/integration/test_torch_versions.py tests/integration/test_load.py \
  tests/integration/test_interface.py tests/unit/test_metadata_writers.py

.venv-torch-%/.made-from-pyproject-and-constraints: pyproject.toml constraints.txt
	$(PYTHON) tests/torch_versions/environment.py $* .venv-torch-$*
	@touch $@

test-torch: ## the whole test suite with another torch: make test-torch TORCH=2.8.0
	@test -n "$(TORCH)" \
	  || { echo "which version of torch? for example: make test-torch TORCH=2.8.0"; exit 1; }
	$(MAKE) .venv-torch-$(TORCH)/.made-from-pyproject-and-constraints
	.venv-torch-$(TORCH)/bin/python -m pytest -p tests.torch_versions.record \
	  --numprocesses logical --maxprocesses 4 --dist loadfile

test-torch-smoke: ## a few tests with the oldest and the newest torch
	for torch in $(SMOKE_TORCH); do \
	  $(MAKE) .venv-torch-$$torch/.made-from-pyproject-and-constraints \
	  && .venv-torch-$$torch/bin/python -m pytest $(SMOKE_TESTS) || exit 1; done

torch-versions: $(STAMP) ## how `make test-torch` ended with each torch; rewrites the tables in docs
	$(BIN)/python -m tests.torch_versions --write

WHEEL_TESTS ?= tests/unit/test_packaging.py tests/unit/test_cli.py tests/unit/test_docstrings.py \
  tests/contract tests/integration/test_readme.py tests/integration/test_load.py \
  tests/integration/test_interface.py

# -I keeps the current folder off sys.path: what is imported is what the wheel installed.
test-wheel: $(STAMP) ## build sdist and wheel, install the wheel in a clean environment, test it
	rm -rf dist $(WHEEL)
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt "$$(ls dist/*.whl)[cli,zstd,test]"
	$(WHEEL)/bin/python -I -c 'import paraload; assert "site-packages" in paraload.__file__'
	$(WHEEL)/bin/python -m pytest $(WHEEL_TESTS)

test-clients: $(CLIENTS_STAMP) ## real training libraries load through paraload; rewrites docs/clients.md
	$(CLIENTS)/bin/python -m tests.clients --write docs/clients.md

$(CLIENTS_STAMP): pyproject.toml constraints.txt $(CLIENTS_PINS)
	$(call make_environment,$(CLIENTS),test,$(CLIENTS_PINS))

azurite: $(AZURITE) ## install the Azure server that some tests need (with npm)

$(AZURITE): tests/node/package.json tests/node/package-lock.json
	mkdir -p $(@D)
	cp $^ $(@D)/
	npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

reliability: $(STAMP) ## every fault with every reader; rewrites docs/reliability.md
	mkdir -p docs
	$(BIN)/python -m tests.faults --write docs/reliability.md

check: $(STAMP) ## lint, format, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= unpickler metadata record checkpoint safetensors
SOAK_SECONDS ?= 600

# atheris has wheels for Python 3.11 to 3.13 on Linux alone, so it is no part of `make venv`.
fuzz: $(STAMP) ## coverage-guided fuzzing, FUZZ_SECONDS for each parser
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[fuzz]'
	for target in $(FUZZ_TARGETS); do \
	  $(BIN)/python -m tests.fuzz.targets $$target --seconds $(FUZZ_SECONDS) || exit 1; done

fuzz-long: $(STAMP) ## 200,000 mutated files of each kind, with hypothesis
	FUZZ_EXAMPLES=200000 $(BIN)/python -m pytest tests/fuzz

soak: $(STAMP) ## SOAK_SECONDS of loads with faults and cancellations; nothing may grow
	SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m tests.soak

bench: $(STAMP) ## measure against torch's reader and the raw limit; rewrites benchmarks/README.md
	$(BIN)/python -m benchmarks --readme benchmarks/README.md \
	  --front README.md --front README.zh-CN.md \
	  --front PARALLEL_READ_DATA_GUIDE.md --front PARALLEL_READ_DATA_GUIDE.zh-CN.md

REV ?=

bench-against: $(STAMP) ## what is slower now than at the revision REV=...
	@test -n "$(REV)" \
	  || { echo "which revision is the old one? for example: make bench-against REV=HEAD~10"; exit 1; }
	$(BIN)/python -m benchmarks.against --rev "$(REV)"

bench-rivals: $(RIVALS_STAMP) ## measure against every other reader; rewrites tables and plot of benchmarks/
	$(RIVALS)/bin/python -m benchmarks.rivals \
	  --plot benchmarks/rivals.png --readme benchmarks/README.md
	$(RIVALS)/bin/python -m benchmarks.rivals.s3 --readme benchmarks/README.md

$(RIVALS_STAMP): pyproject.toml constraints.txt $(RIVALS_PINS)
	$(call make_environment,$(RIVALS),bench$(comma)object-store,$(RIVALS_PINS))

clean: ## remove everything that was made here
	rm -rf $(VENV) .venv-torch-* $(RIVALS) $(WHEEL) $(dir $(AZURITE)) $(CLIENTS) \
	  .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
