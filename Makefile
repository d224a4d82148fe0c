# Everything a newcomer needs: `make run` starts the proxy, `make test` runs what CI runs.

PYTHON ?= python3
ARGS ?=
BENCH ?= ../shared/proxybench
BENCH_WORK ?= .bench
BENCH_ARGS ?= --rounds 4 --nice -8

TUNNELS ?= 10000
# Much of a test is waiting for processes to start and for timers, so there are more than cores. A
# file stays together: its tests share a running proxy.
JOBS ?= 4

VENV := .venv
BIN := $(VENV)/bin
# Apart, because it pins the versions of what we depend on too.
MITMPROXY := $(BENCH_WORK)/mitmproxy
# Debian packages by the command each provides: the tests start a real Redis, make certificates, and
# run an application under Node.
TOOLS := redis-server:redis-server curl:curl openssl:openssl node:nodejs npm:npm
NODE_APP := tests/e2e/node

.DEFAULT_GOAL := help
.PHONY: help run install dev node tools lint types imports unit test readme \
  bench bench-admission bench-connect bench-tunnels clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## the proxy with its demo provider; no key, no network needed (ARGS="--listen 127.0.0.1:9000")
	$(BIN)/lunar-proxy serve --demo $(ARGS)

install: $(VENV)/.installed ## only make .venv and install the package into it

dev: $(VENV)/.dev ## also install what the tests need

node: tools $(NODE_APP)/node_modules/.installed ## what the tests run under Node, from npm

test: $(VENV)/.dev node lint types imports unit ## everything .ci/run runs

lint: $(VENV)/.dev ## ruff: rules and layout
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy

imports: $(VENV)/.dev ## import-linter: who may import whom
	$(BIN)/lint-imports

unit: $(VENV)/.dev ## pytest with branch coverage (ARGS="-k stream"; JOBS=0: in one process, for a debugger)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  --cov --cov-branch --cov-report=term --durations=15 $(ARGS)

readme: $(VENV)/.installed ## write the settings table of README.md
	$(BIN)/python .ci/readme.py

bench: $(VENV)/.installed ## ratios to a bare aiohttp relay and nginx (BENCH=DIR, BENCH_ARGS="--rounds 1 --scale 0.4")
	@test -f $(BENCH)/run.py || { echo "no proxybench in $(BENCH): give BENCH=DIR"; exit 2; }
	@mkdir -p $(BENCH_WORK)
	$(BIN)/python $(BENCH)/run.py --work $(BENCH_WORK) $(BENCH_ARGS) \
	  --contestants direct,nginx,aiohttp-uvloop,lunar \
	  --start 'lunar=env UPSTREAM={upstream} $(abspath $(BIN))/lunar-proxy serve --config $(CURDIR)/tests/bench.yaml --listen 127.0.0.1:{port} --admin 127.0.0.1:0'

bench-admission: $(VENV)/.dev tools ## what keys, limits and settlement cost a call, in memory and with Redis
	$(BIN)/python tests/bench_admission.py $(ARGS)

bench-connect: $(VENV)/.installed $(MITMPROXY)/bin/mitmdump ## HTTPS_PROXY: opened and blind connections, and mitmproxy's (BENCH=DIR)
	$(BIN)/python tests/bench_https_proxy.py --proxybench $(BENCH) --mitmdump $(MITMPROXY)/bin/mitmdump --rounds 8

bench-tunnels: $(VENV)/.installed ## what idle tunnels cost (TUNNELS=10000)
	$(BIN)/python tests/bench_tunnels.py $(TUNNELS)

clean: ## remove .venv and all caches
	rm -rf $(VENV) $(NODE_APP)/node_modules $(BENCH_WORK) .coverage* .hypothesis .*_cache build *.egg-info

tools:
	@.ci/packages $(TOOLS)

$(BIN)/python:
	@.ci/python $(PYTHON) $(VENV)

# Editable, so that a change to the source or a `git pull` is in force at the next start.
$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	@echo "installing lunar-proxy into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "installing the development tools into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(NODE_APP)/node_modules/.installed: $(NODE_APP)/package-lock.json
	@echo "installing what the tests run under Node"
	@npm ci --silent --no-audit --no-fund --ignore-scripts --prefix $(NODE_APP)
	@touch $@

$(MITMPROXY)/bin/mitmdump:
	@.ci/python $(PYTHON) $(MITMPROXY)
	@$(MITMPROXY)/bin/pip install --quiet --disable-pip-version-check mitmproxy
