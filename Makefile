# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
LOCK ?= requirements.txt
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Processes that run tests side by side, each with a TFF worker of its own: one more than
# two cores, since tests that kill and freeze processes wait.
TEST_PROCESSES ?= 3
# By file, in the order of tests/conftest.py: the longest first.
IN_PARALLEL := -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

DOCS_VENV := .venv-docs

.PHONY: demo test test-fast test-slow browser lint format docs dist clean

demo: $(VENV)/.installed
	$(BIN)/python scripts/demo.py

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow" $(IN_PARALLEL)

# What needs no TFF worker and no browser; under a minute. BUILD knows which.
test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow" $(IN_PARALLEL) $$(sed -n \
	    '/^LIGHT_TESTS/,/^]/s/.*"\(.*\)".*/tests\/\1.py/p' BUILD)

# Rarer layers and combinations, the tutorial, long experiments.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow $(IN_PARALLEL)

# What the test of the web page needs, on Debian and as root; without it that test is
# skipped.
browser:
	command -v chromedriver || \
	    (apt-get update -q && apt-get install -q -y chromium chromium-driver)
	npm ci --prefix scripts/web_demo

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The guides and the API reference, in build/site. Loads none of the frameworks.
docs: $(DOCS_VENV)/.installed
	$(DOCS_VENV)/bin/mkdocs build --strict

# A wheel in dist/, tried in an environment of its own, without TensorFlow.
dist: $(VENV)/.installed-dev
	rm -rf dist build/lib build/bdist.*
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	TFF_PERFEDAVG_WHEEL=$$(ls dist/*.whl) $(PYTEST) -m slow tests/test_wheel.py

$(VENV)/.packages: $(LOCK) scripts/create_venv.sh
	sh scripts/create_venv.sh $(PYTHON) $(VENV) $(LOCK)
	touch $@

# Anew when the package's own description changes: its commands, for one.
$(VENV)/.installed: $(VENV)/.packages pyproject.toml
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps --requirement requirements-dev.txt
	touch $@

$(DOCS_VENV)/.installed: requirements-docs.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps \
	    --requirement requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) build dist *.egg-info
