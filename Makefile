PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test chaos lint bench scale-out schemas metrics lock clean

setup: $(VENV)/.ready

# torch stands apart from the lock: one version is a CPU build here and a CUDA build there.
$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	grep -oE '^[a-z0-9._-]+==[^ ;]+' requirements.lock | grep -vE '^numpy==' > $(VENV)/pins.txt
	$(BIN)/pip install --quiet --disable-pip-version-check 'torch==2.13.0' -c $(VENV)/pins.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/dnf-worker demo

# Most tests wait for servers and workers; a file stays in one process, so its worker serves all of its tests.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

chaos: setup
	rm -f chaos.jsonl
	DNF_CHAOS_SCALE=42 DNF_CHAOS_REPORT=chaos.jsonl $(BIN)/pytest tests/chaos --timeout=0 && $(BIN)/python -m tests.chaos.report chaos.jsonl docs/reliability.md

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive detector worker

bench: setup
	$(BIN)/dnf-detector bench && $(BIN)/python -m tests.benchmarks

scale-out: setup
	$(BIN)/python -m tests.chaos.scale_out scale-out

schemas: setup
	$(BIN)/python -m deploy.generators.schemas deploy/schemas

metrics: setup
	$(BIN)/python -m deploy.generators.metrics_page docs/metrics.md

lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header requirements.in -o requirements.lock

clean:
	rm -rf $(VENV) demo
