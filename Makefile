# Every verb sets itself up: `make test` and `make demo` work as the first command on a fresh machine.
PYTHON ?= python3
SEEDS ?= 1000
JOBS ?= 2
REPEATS ?= 1
MINUTES ?= 30
BIN := .venv/bin
READY := .venv/.ready
CHECKED := --ignore=tests/architecture --ignore=tests/protocol/test_describe.py

.PHONY: help setup check quick test test-all hosts demo sim planted resilience soak bench format clean

help:            ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## a virtual environment in .venv with everything that the other verbs need

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

check: $(READY)  ## format, lint, types, architecture, generated documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/architecture tests/protocol/test_describe.py

quick: check     ## check, then the tests without processes: three minutes
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not mesh and not hosts and not processes and not deep" $(CHECKED) tests

test: check      ## check, then what guards every change; whole meshes one after another, so that none disturbs the other
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not mesh and not hosts and not deep" $(CHECKED) tests
	$(BIN)/python -m pytest -q -m "(mesh or hosts) and not deep" tests

.venv-kserve/.ready: constraints.txt
	test -x .venv-kserve/bin/python || $(PYTHON) -m venv .venv-kserve
	.venv-kserve/bin/python -m pip install --quiet --disable-pip-version-check kserve==0.21.0
	@touch $@

test-all: check .venv-kserve/.ready ## every test: what make test has and what is too deep for it, more universes, every planted bug
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not mesh and not hosts" tests
	$(BIN)/python -m pytest -q -m "mesh or hosts" tests
	$(BIN)/python -m tests.debian

hosts: $(READY)  ## as root: three booted Debian systems, installed as docs/operations.md says, lose their power and are rebooted
	$(BIN)/python -m tests.debian

demo: $(READY)   ## three nodes on this machine train a model and use it; the bytes are those of a plain run
	@$(BIN)/python examples/demo.py

sim: $(READY)    ## make sim SEEDS=1000: that many seeded universes
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --jobs $(JOBS)

planted: $(READY) ## nineteen planted bugs: at which seed, and by which checker, each is caught
	$(BIN)/python -m tests.simulation.planted

resilience: $(READY) ## make resilience REPEATS=10: kills, cuts and pauses during trainings, and a table of what came out
	$(BIN)/python -m tests.resilience --repeats $(REPEATS) $(if $(OUT),--out $(OUT)) $(if $(SCENARIOS),--scenarios $(SCENARIOS))

soak: $(READY)   ## make soak MINUTES=30: trainings, and every few seconds something is killed
	$(BIN)/python -m tests.resilience.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench: $(READY)  ## beside others in the same run: the exchange and gloo, AlexNet and the script alone, inference and a loop, serving, both side by side; models that travel
	$(BIN)/python -m bench.exchange
	$(BIN)/python -m bench.alexnet
	$(BIN)/python -m bench.inference $(if $(RAY),--ray $(RAY))
	$(BIN)/python -m bench.models
	$(BIN)/python -m bench.stages
	$(BIN)/python -m bench.shares
	$(BIN)/python -m bench.loading
	$(BIN)/python -m bench.evaluation
	$(BIN)/python -m bench.serving $(if $(STARLETTE),--starlette $(STARLETTE)) $(if $(RAY),--ray $(RAY))

format: $(READY) ## let ruff put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:           ## what the other verbs made
	rm -rf .venv .venv-kserve .hosts .mypy_cache .ruff_cache .pytest_cache .hypothesis .demo build *.egg-info
