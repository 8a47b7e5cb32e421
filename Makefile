# make demo       install, then train a region proposal network on synthetic scenes
# make test       linters, types, floors, doctests, every test that is not slow
# make test-slow  the slow tests
# make venv       .venv with everything that developing needs
# make clean      remove .venv, caches and builds

PYTHON ?= python3
BIN := .venv/bin

# Compiled programs are kept between runs, for the demo and the tests alike.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: demo test test-slow venv clean

# Large arrays in pages of 2 MB: up to a fifth less time a step where Linux has them.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: .venv/.stamp-run
	$(BIN)/python -m experiments.train shapes --workdir runs/demo

venv: .venv/.stamp-dev

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: venv
	$(BIN)/python -m pytest -n auto -m slow

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis dist build

# Two stamps, so that the demo does not wait for the developer's tools.
.venv/.stamp-run: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "rpn_jax needs Python 3.11 or newer, and '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[experiments]"
	touch $@

.venv/.stamp-dev: .venv/.stamp-run
	$(BIN)/python -m pip install --quiet --editable ".[experiments,export]" --group dev
	touch $@
