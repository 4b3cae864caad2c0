# Everything runs from .venv, which `make setup` builds from requirements.lock; no other step.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

# A dozen processes would each compile a gigabyte of libraries anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup run test check bench lock

setup: $(INSTALLED)

# uv installs ten times as fast as pip. It does not read pip's configuration, so it is told of pip's
# index; where that is not enough (find-links, a proxy that asks for a password) pip does the work.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	$(BIN)/pip install -q --require-hashes -r .venv/uv.lock
	index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/pip config get global.index-url 2>/dev/null)}}; \
	export VIRTUAL_ENV=$(CURDIR)/.venv $${index:+UV_DEFAULT_INDEX=$$index}; \
	$(BIN)/uv pip install -q --require-hashes -r requirements.lock \
	  || $(BIN)/pip install -q --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	touch $@

run: setup
	$(BIN)/llmopt up --demo

test: setup
	$(BIN)/pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	for policy in linucb thompson static random; do \
	  $(BIN)/llmopt replay paretobandit --policy $$policy || exit 1; \
	done

lock: setup
	printf 'setuptools>=77\nuv\n' | $(BIN)/uv pip compile -q pyproject.toml - --group dev \
	  --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" -o requirements.lock
