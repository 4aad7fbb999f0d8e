# Sets up a virtual environment once and runs fastode in it. `make help` says what there is.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
ARGS ?=
MINUTES ?= 10

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# PYTHONWARNINGS hides setuptools' general advice on editable installs; errors are shown in full.
INSTALL := PYTHONWARNINGS=ignore $(PIP) install --quiet
# The extras contain each other, train in test in dev: what is there already is used.
DEV := $(VENV)/.ready-dev
TEST := $(or $(wildcard $(DEV)),$(VENV)/.ready-test)
TRAIN := $(or $(wildcard $(DEV)),$(wildcard $(VENV)/.ready-test),$(VENV)/.ready-train)
SOURCES := pyproject.toml setup.py $(wildcard build_support/*.py) $(shell find csrc -type f)
CXX_FILES := $(filter %.cpp %.h %.cu,$(SOURCES))

.DEFAULT_GOAL := help
.PHONY: help train test fuzz bench gpu lint format info clean FORCE
.PHONY: sanitize-address sanitize-undefined sanitize-thread
.SECONDARY:
.DELETE_ON_ERROR:

help:
	@echo "make train    train an AutoencODE on real images       ARGS=\"--help\" lists the options"
	@echo "make test     run the tests                            ARGS are given to pytest"
	@echo "make fuzz     random fields and calls, checked          MINUTES=30; ARGS=\"--seed 7 --kinds fields\""
	@echo "make sanitize-address, sanitize-undefined, sanitize-thread"
	@echo "              the kernels' tests with that sanitizer   ARGS=\"--fuzz-minutes 10 tests/test_tile_solve.py\""
	@echo "make bench    run the benchmarks                       ARGS are given to pytest"
	@echo "make gpu      check and measure on an NVIDIA GPU       under ten minutes; ARGS=\"--quick\" takes two"
	@echo "make info     what is installed, what can run here"
	@echo "make lint     ruff, mypy and clang-format, changing nothing"
	@echo "make format   let ruff and clang-format rewrite the sources"
	@echo "make clean    remove what was built (not $(VENV))"
	@echo
	@echo "Each sets up $(VENV) when needed, and again when a source of the extension has changed. Variables:"
	@echo "  PYTHON=$(PYTHON)   the Python (3.10 or newer) that makes the environment"
	@echo "  VENV=$(VENV)       where the environment is"
	@echo "  TORCH=$(TORCH)      which torch: arguments of pip install, for example"
	@echo "      TORCH='torch==2.11.0'"
	@echo "      TORCH='torch --index-url https://download.pytorch.org/whl/cpu'   small, without CUDA"
	@echo "  FASTODE_CUDA=auto|0|1, FASTODE_CUDA_ARCHS='80;90', CXX: how the extension is compiled"

train: $(TRAIN)
	$(BIN)/fastode train $(ARGS)

test: $(TEST)
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

fuzz: $(TEST)
	$(BIN)/python -W ignore -m tests.fuzz --minutes $(MINUTES) --seed $$(date +%s) $(ARGS)

sanitize-address sanitize-undefined sanitize-thread: sanitize-%: $(TEST)
	$(BIN)/python -m build_support.sanitize $* $(ARGS)

bench: $(VENV)/.ready-bench
	$(BIN)/python -m pytest bench $(ARGS)

gpu: $(VENV)/.ready-bench
	$(BIN)/python -m bench.gpu --out runs/gpu $(ARGS)

info: $(TRAIN)
	@$(BIN)/fastode info

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist *.egg-info fastode/_C.*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find build_support fastode tests -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f $(VENV)/.ready-*

# The environment, then torch, then fastode with the extras of the target. A stamp file marks each as done.
$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is missing or older than Python 3.10: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: sudo apt-get install python3-venv;" \
	         "otherwise name another one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --upgrade pip
	@touch $@

# Holds the requirement that was installed, so that another TORCH installs another torch.
ifneq ($(shell cat $(VENV)/.torch 2>/dev/null),$(TORCH))
$(VENV)/.torch: FORCE
endif
$(VENV)/.torch: | $(VENV)/.venv
	@if [ "$(TORCH)" = torch ] && [ "$$(uname)" = Linux ] && [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ]; then \
	  echo "== no NVIDIA GPU here: TORCH='torch --index-url https://download.pytorch.org/whl/cpu' would be a smaller download"; \
	fi
	@echo "== installing $(TORCH)"
	@$(INSTALL) $(TORCH)
	@printf '%s\n' "$(TORCH)" > $@

$(VENV)/.ready-%: $(VENV)/.torch $(SOURCES)
	@echo "== installing fastode[$*] (compiles its extension)"
	@$(INSTALL) --editable '.[$*]'
	@touch $@
