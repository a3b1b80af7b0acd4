# The first of these on this machine; `make setup PYTHON=python3.13` chooses another one. pyenv's shims run only
# the selected version unless PYENV_VERSION names one.
RUN_PYTHON = PYENV_VERSION=$$(pyenv whence $(1) 2> /dev/null | tail -n 1) $(1)
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13,$(shell $(call RUN_PYTHON,$(name)) -c '' 2> /dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
# A PYTHON that was asked for has a stamp of its own, so that another version builds the environment anew.
READY := $(VENV)/.ready$(if $(filter file,$(origin PYTHON)),,-$(notdir $(PYTHON)))

.PHONY: setup demo test chaos lint bench scale-out schemas reference lock clean

setup: $(READY)

# torch is not in the lock: one version is a CPU build on one machine and a CUDA build on another.
$(READY): requirements.lock pyproject.toml
	$(if $(PYTHON),,$(error Python 3.11, 3.12 or 3.13 is required))
	$(call RUN_PYTHON,$(PYTHON)) -m venv --clear $(VENV)
	sed -nE 's/^([a-z0-9._-]+==.*[^ ]) *\\$$/\1/p' requirements.lock > $(VENV)/pins.txt
	$(BIN)/pip install --quiet --disable-pip-version-check 'torch==2.13.0' -c $(VENV)/pins.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(VENV)/.ready $@

demo: setup
	$(BIN)/dnf-worker demo

# Most tests wait for servers and workers; a file stays in one process, so that its tests share a worker.
test: setup
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n auto --maxprocesses 4 --dist loadfile
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report

chaos: setup
	rm -f chaos.jsonl
	DNF_CHAOS_SCALE=42 DNF_CHAOS_REPORT=chaos.jsonl $(BIN)/pytest tests/chaos --timeout=0 && $(BIN)/python -m tests.chaos.report chaos.jsonl docs/explanation/reliability.md

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive detector worker
	$(BIN)/codespell && $(BIN)/validate-pyproject pyproject.toml

bench: setup
	$(BIN)/dnf-detector bench && $(BIN)/python -m tests.benchmarks

scale-out: setup
	$(BIN)/python -m tests.chaos.scale_out scale-out

schemas: setup
	$(BIN)/python -m deploy.generators.schemas deploy/schemas

reference: setup
	$(BIN)/python -m deploy.generators.metrics_page docs/reference/metrics.md
	$(BIN)/python -m deploy.generators.settings_page docs/reference/settings.md

lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header requirements.in -o requirements.lock

clean:
	rm -rf $(VENV) demo .coverage .coverage.*
