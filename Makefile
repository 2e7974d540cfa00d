# `make demo` and `make test` do everything on a fresh machine: environment, then the job.
PYTHON ?= python3
VENV   ?= .venv
RUN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: demo test lint format docs comparison speed slow clean

demo: $(STAMP)
	mkdir -p out
	$(RUN)/prune2drive demo --report out/demo.html

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n auto

# Every method at equal budgets: hours on two cores, and it goes on where it was stopped.
comparison: $(STAMP)
	mkdir -p out
	$(RUN)/prune2drive compare --scenes 200 --positions keep --out out/comparison
	$(RUN)/python benchmarks/comparison.py out/comparison

# All speed figures, on a CUDA GPU if there is one: about ten minutes, and it goes on where it was stopped.
speed: $(STAMP)
	$(RUN)/python benchmarks/gpu_suite.py

docs: $(STAMP)
	$(RUN)/python docs/build.py

slow: $(STAMP)
	$(RUN)/python -m pytest -m slow

lint: $(STAMP)
	$(RUN)/ruff check src tests benchmarks docs/build.py
	$(RUN)/ruff format --check src tests benchmarks docs/build.py
	$(RUN)/mypy

format: $(STAMP)
	$(RUN)/ruff check --fix src tests benchmarks docs/build.py
	$(RUN)/ruff format src tests benchmarks docs/build.py

# torch first and alone: a later package may not replace the build that is there.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet -c constraints.txt torch
	$(RUN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) out
