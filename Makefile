# The first of these on this machine; `make setup PYTHON=python3.13` chooses another one. pyenv's shims run only
# the selected version unless PYENV_VERSION names one.
RUN_PYTHON = PYENV_VERSION=$$(pyenv whence $(1) 2> /dev/null | tail -n 1) $(1)
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13,$(shell $(call RUN_PYTHON,$(name)) -c '' 2> /dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
# A PYTHON that was asked for has a stamp of its own, so that another version builds the environment anew.
READY := $(VENV)/.ready$(if $(filter file,$(origin PYTHON)),,-$(notdir $(PYTHON)))

PIP := $(BIN)/pip install --quiet --disable-pip-version-check
TORCH := 2.13.0

.PHONY: setup demo test browser chaos lint bench gpu-train scale-out schemas reference lock sbom clean

setup: $(READY)

# PyTorch and what it requires have two locks: its build for CPUs, where the configured index has it, or the general one.
$(READY): requirements.lock torch.lock torch-cpu.lock pyproject.toml
	$(if $(PYTHON),,$(error Python 3.11, 3.12 or 3.13 is required))
	$(call RUN_PYTHON,$(PYTHON)) -m venv --clear $(VENV)
	if $(PIP) --dry-run --no-deps 'torch==$(TORCH)+cpu' > /dev/null 2>&1; then \
	  $(PIP) --require-hashes -r torch-cpu.lock; else $(PIP) --require-hashes -r torch.lock; fi
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $(VENV)/.ready $@

demo: setup
	$(BIN)/dnf-worker demo

# Most tests wait for servers and workers, so there is one process more than there are cores. A file stays in one
# process, so that its tests share a worker; long files of few tests come first, not last. Some hundred processes start
# from the same modules, so their bytecode is kept, whatever the environment says.
test: setup
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/coverage run -m pytest \
	  -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 5 --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report

# The tests of the review page in a browser, with twenty moderators and two hundred reviews, and the README's picture of the page.
browser: setup
	DNF_TEST_MODERATORS=20 DNF_TEST_SCREENSHOT=docs/images/review-page.webp $(BIN)/pytest tests/browser

# `make chaos SEEDS=1,2,3` injects the random faults of each seed, for five minutes each.
SEEDS ?= 1
chaos: setup
	rm -f chaos.jsonl
	DNF_CHAOS_SCALE=42 DNF_CHAOS_SEEDS=$(SEEDS) DNF_CHAOS_SECONDS=300 DNF_CHAOS_REPORT=chaos.jsonl $(BIN)/pytest tests/chaos --timeout=0 && $(BIN)/python -m tests.chaos.report chaos.jsonl docs/explanation/reliability.md

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive detector worker
	$(BIN)/codespell && $(BIN)/validate-pyproject pyproject.toml

bench: setup
	$(BIN)/dnf-detector bench && $(BIN)/python -m tests.benchmarks path && $(BIN)/python -m tests.benchmarks detector

# `make gpu-train CORPUS=FOLDER SPLITS=train,more` trains U-Net and classifier on one CUDA card in at most ten minutes;
# the same command continues. Without a card it prints what it would run. DEVICE=cpu and few minutes try it out.
CORPUS ?= corpus
SPLITS ?= train
GPU_OUT ?= gpu-train
DEVICE ?= cuda
UNET_MINUTES ?= 2.5
CLASSIFIER_MINUTES ?= 5
LOADERS ?= 14
DETECTOR ?= $(BIN)/dnf-detector
comma := ,
GPU_SPLITS = $(foreach split,$(subst $(comma), ,$(SPLITS)),--split $(split))
GPU_UNET = $(DETECTOR) train unet $(CORPUS) $(GPU_SPLITS) --out $(GPU_OUT)/unet --patch 2 --channels 32,48,64 \
  --low-share 1 --size 128 --batch 96 --minutes $(UNET_MINUTES) --device $(DEVICE) --loaders $(LOADERS)
# A checkpoint of this width has 14 MB.
GPU_CLASSIFIER = $(DETECTOR) train classifier $(CORPUS) $(GPU_SPLITS) --feature dnf+npr --unet $(GPU_OUT)/unet \
  --timesteps 10 --width 16 --chain uploads --twins upsampled --twins noisy --batch 128 \
  --minutes $(CLASSIFIER_MINUTES) --device $(DEVICE) --loaders $(LOADERS) --work $(GPU_OUT)/work --out $(GPU_OUT)/bundle
gpu-train: setup
	@if [ $(DEVICE) = cuda ] && ! $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  echo 'no CUDA device; with one this would run:'; echo '$(GPU_UNET)'; echo '$(GPU_CLASSIFIER)'; \
	else $(GPU_UNET) && $(GPU_CLASSIFIER); fi

# All figures of a GPU, in at most eight minutes; without one it prints the plan. --rehearse runs it on the CPU.
gpu-bench: setup
	$(BIN)/python -m tests.benchmarks.gpu gpu-bench

scale-out: setup
	$(BIN)/python -m tests.chaos.scale_out scale-out

schemas: setup
	$(BIN)/python -m deploy.generators.schemas deploy/schemas

reference: setup
	$(BIN)/python -m deploy.generators.metrics_page docs/reference/metrics.md
	$(BIN)/python -m deploy.generators.settings_page docs/reference/settings.md

# TORCH_WHEELS is a folder or a page with PyTorch's wheels for CPUs; without it their lock stays as it is.
COMPILE := uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header
lock:
	$(COMPILE) --universal requirements.in -o requirements.lock
	echo 'torch==$(TORCH)' | $(COMPILE) --universal --constraint requirements.lock - -o torch.lock
	$(if $(TORCH_WHEELS),echo 'torch==$(TORCH)+cpu' | $(COMPILE) --python-platform x86_64-manylinux_2_28 --find-links $(TORCH_WHEELS) --constraint requirements.lock - -o torch-cpu.lock)

# The bill of materials of the image, on standard output.
sbom:
	@python3 deploy/image_contents.py sbom

clean:
	rm -rf $(VENV) demo .coverage .coverage.*
