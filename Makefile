# Everything runs in a virtual environment of its own, .venv, which the first target makes.
# It takes Python 3.11 or newer with its venv module, and nothing else: servers come as wheels.

.DEFAULT_GOAL := help
SHELL := /bin/sh
.SUFFIXES:
.DELETE_ON_ERROR:

PYTHON ?= $(shell for one in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$one -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$one && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= auto
STATE ?= sqlite
CYCLES ?= 1000
STATES ?= 100000
ARGS ?=

.PHONY: help
help: ## show this
	@echo "make TARGET [STATE=sqlite|file|valkey] [PYTHON=python3.12] [ARGS='further arguments']"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		echo "making $(VENV) with $(PYTHON)"; \
		$(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 \
		|| $(PYTHON) -m virtualenv --quiet $(VENV) >/dev/null 2>&1 \
		|| { echo "$(PYTHON) can't make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }; }
	@echo "installing into $(VENV), once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --editable '.[valkey,testing]' --group dev
	@touch $@

.PHONY: setup
setup: $(READY) ## make the virtual environment that all other targets use

.PHONY: demo
demo: $(READY) ## a real agent is killed in mid-conversation and goes on: make demo [STATE=valkey]
	@$(BIN)/python examples/demo/run.py --state $(STATE) $(ARGS)

.PHONY: test
test: $(READY) ## all tests, servers included: make test [ARGS='-k sqlite']
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -q -r fE $(ARGS)

.PHONY: test-crash
test-crash: $(READY) ## the tests that kill processes, with many cycles: make test-crash [CYCLES=1000]
	@AGENTSTATE_CRASH_CYCLES=$(CYCLES) $(BIN)/python -m pytest -n $(JOBS) -m crash -q $(ARGS)

FERRETDB := .venvs/ferretdb
$(FERRETDB): $(wildcard tests/ferretdb/*)
	@command -v go >/dev/null || { echo "Go 1.24 or newer builds FerretDB; or name a server: AGENTSTATE_TEST_MONGODB_URL=mongodb://host make test-mongodb" >&2; exit 1; }
	@echo "building FerretDB into $@, once"
	@mkdir -p $(@D)
	@cd tests/ferretdb && go build -trimpath -o ../../$@ .

.PHONY: test-mongodb
test-mongodb: $(READY) $(if $(AGENTSTATE_TEST_MONGODB_URL),,$(FERRETDB)) ## the MongoDB backend, on a FerretDB built with Go or AGENTSTATE_TEST_MONGODB_URL
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -q -r fE tests/storage/test_conformance_mongodb.py tests/storage/test_mongodb_*.py $(ARGS)

.PHONY: test-large
test-large: $(READY) ## listings of very many states: make test-large [STATES=100000] [ARGS=tests/storage/test_conformance_sqlite.py]
	@AGENTSTATE_LISTED_STATES=$(STATES) $(BIN)/python -m pytest -q -k test_very_many --durations=0 $(or $(ARGS),tests/storage)

.PHONY: test-matrix
test-matrix: $(READY) ## hidden parameters in the agent frameworks, in an environment of their own
	@tests/matrix/run $(ARGS)

.PHONY: check
check: $(READY) ## format, lint, types and layers
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/pyright
	@$(BIN)/lint-imports

.PHONY: format
format: $(READY) ## let ruff format and mend what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: docs-check
docs-check: $(READY) ## run every snippet of README.md and docs/
	@$(BIN)/python -m pytest -q tests/docs $(ARGS)

.PHONY: bench
bench: $(READY) ## every backend beside its floor and its peers
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf $(VENV) .venvs .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
