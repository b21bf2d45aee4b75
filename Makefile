# Everything here sets up what it needs inside this checkout: .tools (uv), .venv, .venv-sdk0.
# The machine needs python3 (3.11 or later) with pip, make and git.

PYTHON ?= python3
BIN := .venv/bin
UV := .tools/bin/uv
UV_ENV := UV_PYTHON_DOWNLOADS=never UV_NO_CONFIG=1 PYTHONPATH=

.PHONY: setup demo test check format bench lock clean
.DELETE_ON_ERROR:

setup: .venv/.ready

$(UV): requirements/tools.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "batchyard needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@rm -rf .tools
	@echo "setting up uv"
	@$(PYTHON) -m pip install --quiet --root-user-action ignore --disable-pip-version-check --no-warn-script-location --require-hashes --target .tools -r $<
	@touch $@

.venv/.ready: $(UV) requirements/dev.lock pyproject.toml
	@echo "setting up .venv"
	@$(UV_ENV) $(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	@$(UV_ENV) $(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.lock
	@$(UV_ENV) $(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# The oldest generation of the official client that we hold ourselves to, beside the current one.
.venv-sdk0/.ready: $(UV) requirements/sdk0.lock
	@echo "setting up .venv-sdk0"
	@$(UV_ENV) $(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-sdk0
	@$(UV_ENV) $(UV) pip sync --quiet --python .venv-sdk0/bin/python --require-hashes requirements/sdk0.lock
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

test: .venv/.ready .venv-sdk0/.ready
	$(BIN)/python -m pytest

check: .venv/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Figures of this machine; ratios are measured side by side in one run.
bench: .venv/.ready
	@$(BIN)/python -c 'import sys; sys.path.insert(0, "bench"); import yard; print(yard.machine())'
	@$(BIN)/python bench/dispatch.py
	@$(BIN)/python bench/dispatch.py --requests 100000 --rounds 1
	@$(BIN)/python bench/dispatch.py --requests 10000 --latency 0.2 --rounds 1
	@$(BIN)/python bench/create.py

# New locks from pyproject.toml, with hashes and without registry addresses.
lock: $(UV)
	$(UV_ENV) $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --group dev -o requirements/dev.lock pyproject.toml
	$(UV_ENV) $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -o requirements/run.lock pyproject.toml
	echo 'anthropic==0.75.0' | $(UV_ENV) $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -o requirements/sdk0.lock -
	echo 'uv' | $(UV_ENV) $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -o requirements/tools.lock -

clean:
	rm -rf .venv .venv-sdk0 .tools demo
