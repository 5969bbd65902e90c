# make test and make demo set up what they need in .venv; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
# Two workers with one thread each beat one worker with two threads on tiny models.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: setup test test-oldest check demo paper train-gpu bench bench-gpu table clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt scripts/fetch_terrain.py scripts/fetch_metrics.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "set-up pins packages for Python 3.11 or newer; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python scripts/fetch_terrain.py
	$(BIN)/python scripts/fetch_metrics.py || echo "no LPIPS and no FID: their tests are skipped"
	@touch $@

test: setup check
	$(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests again with the lowest versions that pyproject.toml declares; what came later is skipped.
test-oldest: setup
	$(PYTHON) -m venv .venv-oldest
	grep -oE '"[A-Za-z-]+>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/' > .venv-oldest/lowest.txt
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check --constraint .venv-oldest/lowest.txt --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2

# A draft at the size that the model was trained at, then enlarged and refined: dense, and with fewer keys.
DEMO := $(BIN)/tokendown generate "castle on a yellow background" --seed 1
demo: setup
	@rm -rf out/demo/draft
	$(DEMO) --dense --steps 12 --out out/demo/draft
	$(DEMO) --image out/demo/draft/*.png --size 512x512 --set strength=0.5 --compare --out out/demo

# The tables and figures of paper/ again, with fewer pictures than a GPU makes of them, into out/paper; under
# an hour on two cores. QUICK=--quick tries the scripts in minutes.
TUNE := $(BIN)/tokendown tune --like paper --size 512x512 --out out/paper/tune
paper: setup
	$(BIN)/python docs/figures/selection.py
	$(BIN)/python -m paper.sinks $(or $(QUICK),--rounds 3)
	$(BIN)/python -m paper.terrain_table $(QUICK)
	$(BIN)/python -m paper.once $(QUICK)
	$(BIN)/python -m paper.levels $(or $(QUICK),--count 1)
	$(BIN)/python -m paper.jitter $(or $(QUICK),--count 2)
	$(BIN)/python -m paper.builtin_table $(or $(QUICK),--count 1 --steps 10 --phases 4)
	$(BIN)/python -m paper.caches $(QUICK)
	$(BIN)/python -m paper.ceilings $(QUICK)
	$(BIN)/python -m paper.table1 $(or $(QUICK),--count 1 --kept-steps 2)
	$(BIN)/python -m paper.figure4 $(or $(QUICK),--prompts 2)
	$(if $(QUICK),,$(TUNE) --steps 6 --quick)

# The built-in model anew, on a CUDA card; what it ends with ships. Again where it was cut off.
train-gpu: setup
	$(BIN)/python -m training.fetch
	$(BIN)/python -m training.autoencoder gpu --minutes $(MINUTES)
	$(BIN)/python -m training.train gpu --minutes $(MINUTES)
	$(BIN)/python -m training.export gpu

# Both can be stopped at any time and called again: what is measured is not measured again.
bench: setup
	$(BIN)/tokendown bench --preset cpu --resume out/bench-cpu.jsonl

# The matrix on one CUDA card, in slices of nine minutes; repeat until it says that all is there.
MINUTES ?= 9
GPU_CELLS ?= benchmarks/results/gpu.jsonl
bench-gpu: setup
	$(BIN)/tokendown bench --preset gpu --minutes $(MINUTES) --resume $(GPU_CELLS)

table: setup
	$(BIN)/python scripts/compat_table.py

clean:
	rm -rf .venv .venv-oldest .cache out
