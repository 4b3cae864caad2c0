# Everything runs from .venv, which `make setup` builds from requirements.lock; no other step.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

# A dozen processes would each compile a gigabyte of libraries anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup run test test-slow check bench bench-policies bench-serving lock lock-bench

setup: $(INSTALLED)

# uv installs ten times as fast as pip. It does not read pip's configuration, so it is told of pip's
# index; where that is not enough (find-links, a proxy that asks for a password) pip does the work.
# The lock is whole, so pip need not look for dependencies (and stumbles over an extra if it does).
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	$(BIN)/pip install -q --require-hashes -r .venv/uv.lock
	index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/pip config get global.index-url 2>/dev/null)}}; \
	export VIRTUAL_ENV=$(CURDIR)/.venv $${index:+UV_DEFAULT_INDEX=$$index}; \
	$(BIN)/uv pip install -q --require-hashes -r requirements.lock \
	  || $(BIN)/pip install -q --no-deps --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	touch $@

run: setup
	$(BIN)/llmopt up --demo

test: setup
	$(BIN)/pytest -n 2 --dist loadfile

test-slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/llmopt replay paretobandit --policy randucb --policy linucb --policy squarecb \
	  --policy thompson --policy static --policy random
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.decision_speed

# Peers live in an environment of their own that sees ours behind it: one process times everybody,
# and what peers need never reaches a user's .venv. One of them must be compiled; it may be left out.
PEERS := .venv-bench
DATA ?= paretobandit
SEEDS ?= 10
DELAY ?= 0
MISSING ?= 0
ONLY ?=

$(PEERS)/.installed: requirements-bench.lock $(INSTALLED)
	$(BIN)/python -m venv --clear $(PEERS)
	echo '*' > $(PEERS)/.gitignore
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $(PEERS)/lib/python3.11/site-packages/ours.pth
	sed '/^contextualbandits==/,/[^\\]$$/d' requirements-bench.lock > $(PEERS)/wheels.lock
	sed -n '/^contextualbandits==/,/[^\\]$$/p' requirements-bench.lock > $(PEERS)/source.lock
	$(PEERS)/bin/pip install -q --require-hashes -r $(PEERS)/wheels.lock
	$(PEERS)/bin/pip install -q --require-hashes --no-deps --no-build-isolation \
	  -r $(PEERS)/source.lock || echo "contextualbandits could not be compiled: it is left out"
	touch $@

bench-policies: setup $(PEERS)/.installed
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(PEERS)/bin/python -m benchmarks.policies $(DATA) \
	  --seeds $(SEEDS) --delay $(DELAY) --missing $(MISSING) $(if $(ONLY),--only $(ONLY))

# LiteLLM's proxy needs another FastAPI than we do, so it lives alone. A peer that cannot be installed
# is left out, and the report says so.
LITELLM := .venv-bench-litellm
SECONDS ?= 8
ROUNDS ?= 3
RATE ?= 8000

$(LITELLM)/.installed: $(INSTALLED)
	$(BIN)/python -m venv --clear $(LITELLM)
	echo '*' > $(LITELLM)/.gitignore
	$(LITELLM)/bin/pip install -q --only-binary :all: 'litellm[proxy]==1.106.2'
	touch $@

bench-serving: setup
	@command -v wrk > /dev/null || { echo "bench-serving needs wrk: apt-get install wrk"; exit 2; }
	-@$(MAKE) -s -k $(PEERS)/.installed $(LITELLM)/.installed
	$(BIN)/python -m benchmarks.serving --seconds $(SECONDS) --rounds $(ROUNDS) --rate $(RATE) \
	  $(if $(ONLY),--only $(ONLY))

lock-bench: setup
	$(BIN)/uv pip compile -q --group bench -c requirements.lock --python-version 3.11 \
	  --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock-bench" -o requirements-bench.lock

lock: setup
	printf 'setuptools>=77\nuv\n' | $(BIN)/uv pip compile -q pyproject.toml - --group dev \
	  --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" -o requirements.lock
