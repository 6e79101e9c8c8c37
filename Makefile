# Two commands do all the set-up on a machine with Python and make: `make quickstart` and `make test`. Both can be called again.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTHON ?=
TORCH ?= auto
TORCH_VERSION ?= 2.13.0
WORKERS ?= 2
MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help install quickstart bench soak test lint format docs lock licences sbom audit-deps clean

help:  ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=/path/to/python3   the Python to build .venv from (3.11 or newer; the first one found on PATH)"
	@echo "  TORCH=auto|cpu|cuda       the build of torch (auto: cpu where pip finds that build, see docs/dependencies.md)"
	@echo "  WORKERS=2                 processes that run the tests"
	@echo "  MINUTES=30                how long make soak goes on"

install: $(STAMP)  ## make .venv with what requirements.lock names, and clinpeft itself

quickstart: $(STAMP)  ## train small adapters on synthetic notes and a synthetic textbook, and print the results
	$(BIN)/clinpeft adapt recipes/quickstart.toml --home runs
	$(BIN)/clinpeft embed recipes/quickstart-embed.toml --home runs

test: lint  ## everything that must hold: formatting, lint, types, tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(STAMP)  ## formatting, lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: $(STAMP)  ## half an hour of random kills, full disks and damaged files over the smoke recipes, ending in nothing lost
	OMP_NUM_THREADS=1 $(BIN)/python scripts/soak.py --minutes $(MINUTES)

bench: $(STAMP)  ## measure beside the peers on this machine, about half an hour (wants clinpeft[peers])
	$(BIN)/python benchmarks/adapt.py --out bench/small --workload small-notes --rounds 1
	$(BIN)/python benchmarks/adapt.py --out bench/60M --workload 60M-notes --rounds 1 --only padded --only "groups, bfloat16" --only clinpeft
	$(BIN)/python benchmarks/classify.py --out bench --workload adapters --rounds 1
	$(BIN)/python benchmarks/embed_train.py --out bench --workload pairs-64 --rounds 1
	$(BIN)/python benchmarks/encode.py --out bench --workload mixed --rounds 1
	$(BIN)/python benchmarks/trials.py --out bench --workload batch-8 --rounds 1

docs: $(STAMP)  ## write what is generated from the code, and build the site into docs/_build
	$(BIN)/python scripts/write_docs.py
	$(BIN)/sphinx-build -q -W -b html docs docs/_build

lock: $(STAMP)  ## resolve the newest versions into requirements.lock (wants the network)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python scripts/lock.py --torch $(TORCH_VERSION) --uv $(BIN)/uv --wheels $(PIP_FIND_LINKS)

licences: $(STAMP)  ## the licence of every package of a default installation; fails on GPL and AGPL
	$(BIN)/python scripts/licences.py

sbom: $(STAMP)  ## write dist/sbom.cdx.json: the bill of materials, CycloneDX 1.6
	$(BIN)/python scripts/sbom.py dist/sbom.cdx.json

audit-deps: $(STAMP)  ## known vulnerabilities of what the lock names, by pip-audit (wants the network)
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip

clean:  ## remove the environment and the caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml requirements.lock scripts/install.py scripts/lock.py
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for candidate in python3 python3.13 python3.12 python3.11 python; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "no Python of version 3.11 or newer is on PATH; install one, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 1; \
	fi; \
	$$python -m venv $(VENV) || \
	  { echo "$$python cannot make a virtual environment; on Debian and Ubuntu the package python3-venv is missing" >&2; exit 1; }
	@$(BIN)/python scripts/install.py $(TORCH)
	@touch $@
