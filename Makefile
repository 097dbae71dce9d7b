# Set-up on a fresh machine with Python >= 3.11, git and make: `make demo` runs the whole chain, `make test` the tests.
PYTHON ?= python3
VENV ?= .venv
EDGE_VENV ?= .venv-edge
BIN := $(VENV)/bin
TESTS ?=

.PHONY: demo test test-slow test-edge lint types imports check format clean

demo: $(VENV)/installed
	$(BIN)/edgemim quickstart

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 $(TESTS)

test-slow: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --timeout 3600 $(TESTS)

# The edge wing alone, in an environment where torch was never installed.
test-edge: $(VENV)/installed $(EDGE_VENV)/installed
	tests/edge_alone.sh $(BIN) $(EDGE_VENV)/bin

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/basedpyright --pythonpath $(BIN)/python

imports: $(VENV)/installed
	$(BIN)/lint-imports

check: lint types imports test

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,quickstart,openvino,dev]'
	touch $@

$(EDGE_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EDGE_VENV)
	touch $@

clean:
	rm -rf $(VENV) $(EDGE_VENV) build *.egg-info
