# Set-up on a fresh machine with Python >= 3.11, git and make: `make demo` runs the whole chain, `make test` the tests.
# `make tracker IMAGES=PHOTOS` makes a tracker of a folder of photos (EPOCHS of pre-training: 20 for about 2,000 photos).
PYTHON ?= python3
VENV ?= .venv
EDGE_VENV ?= .venv-edge
BIN := $(VENV)/bin
TESTS ?=
IMAGES ?=
EPOCHS ?= 20

.PHONY: demo tracker test test-slow test-edge test-cpp test-browser lint types imports check format clean

demo: $(VENV)/installed
	$(BIN)/edgemim quickstart

tracker: $(VENV)/installed
	test -d "$(IMAGES)" || { echo "give a folder of photos: make tracker IMAGES=PHOTOS"; exit 2; }
	$(BIN)/edgemim pretrain --data $(IMAGES) --encoder vit_tiny --encoder.image-size 128 --method feature_distill \
		--teacher efficientnet_lite0 --transform.crop-scale 0.3 1.0 --batch-size 32 --base-lr 0.008 --epochs $(EPOCHS) \
		--out runs/tracker-pretrain
	$(BIN)/edgemim finetune --config configs/finetune/tracking_photos.yaml --init runs/tracker-pretrain --data $(IMAGES) \
		--out runs/tracker
	$(BIN)/edgemim export runs/tracker --onnx --openvino --int8

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 $(TESTS)

test-slow: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --timeout 3600 $(TESTS)

# The edge wing alone, in an environment where torch was never installed.
test-edge: $(VENV)/installed $(EDGE_VENV)/installed
	tests/edge_alone.sh $(BIN) $(EDGE_VENV)/bin

# The C++ program and the browser page: both install the Debian packages that they need, and the page its npm package.
test-cpp: $(VENV)/installed
	tests/debian_packages.sh cmake make g++ libjpeg-dev nlohmann-json3-dev
	cmake -S export/cpp -B build/cpp -DPython3_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/cpp
	EDGEMIM_CPP=build/cpp $(BIN)/python -m pytest tests/test_cpp_program.py

test-browser: $(VENV)/installed
	command -v npm >/dev/null || tests/debian_packages.sh nodejs npm
	command -v chromium >/dev/null || tests/debian_packages.sh chromium
	mkdir -p build/browser && cp export/browser/package.json build/browser/
	npm install --prefix build/browser --ignore-scripts --no-audit --no-fund
	EDGEMIM_NODE_MODULES=build/browser/node_modules $(BIN)/python -m pytest tests/test_browser_page.py

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
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,quickstart,openvino,tensorrt,video,dev]'
	touch $@

$(EDGE_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EDGE_VENV)
	touch $@

clean:
	rm -rf $(VENV) $(EDGE_VENV) build *.egg-info
