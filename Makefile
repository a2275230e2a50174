# Five verbs. Each sets up what it needs first; nothing else has to be typed on a bare machine with Python 3.11 or 3.12.
PYTHON ?= python3
VENV   := .venv
BIN    := $(abspath $(VENV))/bin

export PATH := $(BIN):$(PATH)
export DS_ACCELERATOR ?= cpu
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The walk's dataset, batch and number of steps on a smaller model: starting again is what takes the time.
CHAOS := jobs/walk/pretrain.yaml model.width=64 model.depth=1 checkpoints.every_pairs=1280

.PHONY: run test check chaos setup
.NOTPARALLEL:

run: setup       ## the walk: build, pretrain, evaluate, scale on the sample crawl
	@jobs/walk/walk.sh

test: setup      ## every test, real parts only; two files at a time, for each waits for processes most of its time
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

chaos: setup     ## kills builds, then a run, then a run on an S3 that fails: all end as the undisturbed ones
	@test -e runs/walk/build/manifest.json || ./jobs/walk/build.yaml
	@$(BIN)/python -m benchmarks.chaos_build jobs/walk/build.yaml
	@$(BIN)/python -m benchmarks.chaos $(CHAOS)
	@$(BIN)/python -m benchmarks.chaos --s3 --seed 1 $(CHAOS)

check: setup     ## format, lint, types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else "expected Python 3.11 or 3.12, found %d.%d; name another with make PYTHON=..." % v[:2])'
	@echo "setup: installing into $(VENV)"; date +%s > .setup_began
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q -c constraints.txt torch==2.13.0 2> .setup_log || { cat .setup_log; exit 1; }
	@$(BIN)/pip install -q -c constraints.txt -e ".[dev]" 2> .setup_log || { cat .setup_log; exit 1; }
	@echo $$(( $$(date +%s) - $$(cat .setup_began) )) > $@; rm -f .setup_began .setup_log
	@echo "setup: done in $$(cat $@) s"
