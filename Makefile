# Celadon. `make` says what there is; `make run` is the quickest way to a picture.
PROMPT ?= a red apple
VENV := .venv
BIN := $(VENV)/bin
# A machine with an NVIDIA driver gets torch, any other OpenVINO; EXTRA=cpu or EXTRA=gpu decides otherwise.
EXTRA ?= $(if $(wildcard /dev/nvidiactl),gpu,cpu)
INSTALLED := $(VENV)/.installed-$(EXTRA)
INSTALLED_DEV := $(VENV)/.installed-dev
UP_FLAGS ?=
PYTEST_FLAGS ?=

# The first of these that is Python 3.11 or newer; PYTHON=... chooses another. The default python3 comes first.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; break; }; done)

# One thread per test process: the same result on every machine, and no fight for cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
TEST_PROCESSES ?= 2
LAWS := tests/test_import_law.py tests/test_docs.py tests/test_kubernetes.py

.DEFAULT_GOAL := help
.PHONY: help install install-gpu run test test-full check bench bench-gpu bench-queue chaos clean

help: ## Say what there is
	@echo "Celadon: prompts into pictures, as a service."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  make run PROMPT="a blue car on a yellow background"'

install: $(INSTALLED) ## Set up .venv with everything the service needs; then .venv/bin/celadon works
	@echo "Celadon is installed: $(BIN)/celadon --help"

install-gpu: ## The same with torch, for a GPU or for checkpoints that OpenVINO has no graph for
	@$(MAKE) --no-print-directory install EXTRA=gpu

run: $(INSTALLED) ## Start the whole service and draw PROMPT; Ctrl-C stops it
	@exec $(BIN)/celadon up --first-prompt "$$FIRST_PROMPT" $(UP_FLAGS)

test: $(INSTALLED_DEV) ## Run the tests (minutes)
	$(TEST_ENV) $(BIN)/python -m pytest -m "not slow and not gpu" -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_FLAGS)

test-full: $(INSTALLED_DEV) ## Run every test, the slow ones too, and those of a GPU where there is one
	$(TEST_ENV) $(BIN)/python -m pytest $(if $(wildcard /dev/nvidiactl),,-m "not gpu") $(PYTEST_FLAGS)

check: $(INSTALLED_DEV) ## Lint, format, types, import law, docs in step, container and Kubernetes files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TEST_ENV) $(BIN)/python -m pytest -q $(LAWS)
	$(BIN)/hadolint docker/*.Dockerfile
	$(BIN)/yamllint --strict docker-compose.yml deploy
	$(BIN)/docker-compose --file docker-compose.yml --profile gpu config --quiet

bench: $(INSTALLED_DEV) ## Measure in a quarter of an hour; writes benchmarks/RESULTS.md and benchmarks/LOAD.md
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.load

bench-gpu: $(INSTALLED_DEV) ## Measure U-Nets of Stable Diffusion's sizes on a GPU; writes benchmarks/GPU.md
	$(BIN)/python -m benchmarks.gpu

bench-queue: $(INSTALLED_DEV) ## Measure the queue: fairness, a million jobs, told times; writes benchmarks/QUEUE.md (half an hour)
	$(TEST_ENV) $(BIN)/python -m benchmarks.queue

chaos: $(INSTALLED_DEV) ## Kill and stop everything at random while 2,000 jobs run (under five minutes)
	$(TEST_ENV) $(BIN)/python -m benchmarks.chaos

clean: ## Remove what was built and cached (not .celadon, which holds pictures)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PROMPT travels by environment and unexpanded, so that quotes and dollars in it mean nothing to the shell or to make.
export FIRST_PROMPT = $(value PROMPT)

$(INSTALLED): pyproject.toml constraints.txt bootstrap.py
	@$(MAKE) --no-print-directory .python
	@$(PYTHON) bootstrap.py $(VENV) $(EXTRA)
	@touch $@

$(INSTALLED_DEV): pyproject.toml constraints.txt bootstrap.py
	@$(MAKE) --no-print-directory .python
	@$(PYTHON) bootstrap.py $(VENV) dev
	@touch $(VENV)/.installed-cpu $(VENV)/.installed-gpu $@

.PHONY: .python
.python:
	@test -n "$(PYTHON)" || { \
	echo "Python 3.11 or newer is missing. Debian, Ubuntu: sudo apt install python3.11 python3.11-venv; macOS: brew install python@3.12" >&2; \
	exit 1; }
