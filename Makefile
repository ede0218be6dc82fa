# make demo: from a teacher of real digits to a report, at most ten minutes on two cores, the first picture at once
# (FULL=1: trains the teacher first; QUICK=1: few steps)
# make test: everything that is checked before a change lands
# Both set up their own virtual environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check format
.DELETE_ON_ERROR:

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fewstep needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): 2 GB or more, a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/fewstep demo $(if $(FULL),--full) $(if $(QUICK),--quick) --out demo$(if $(FULL),-full)$(if $(QUICK),-quick)

# Two workers with one thread each: most of the time goes to tracing and loading graphs, which knows one thread only.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
