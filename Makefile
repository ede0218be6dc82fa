# make demo: from a teacher of real digits to a report, the first picture at once
# (FULL=1: trains the teacher first; QUICK=1: few steps)
# make test: everything that is checked before a change lands; tests of what a machine lacks skip and say so
# make oldest: the runtime's tests with the oldest packages that pyproject.toml allows, without torch
# All set up their own virtual environment first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := $(VENV)-oldest

# What needs the runtime, its server and its command alone.
RUNTIME_TESTS := $(wildcard tests/test_runtime_*.py) \
	$(addprefix tests/test_,bundle.py examples.py external.py extras.py guidance.py imports.py schedule.py signature.py) \
	$(addprefix tests/test_cli.py::test_,help_names_every_verb_and_each_has_its_own labels_of_an_unknown_option_are_clicks_own_refusal \
		generate_writes_the_same_png_for_the_same_seed check_passes_on_the_shipped_bundle_and_inspect_lists_it times_are_finite)

.PHONY: demo test oldest check format
.DELETE_ON_ERROR:

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fewstep needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): 2 GB or more, a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/fewstep demo $(if $(FULL),--full) $(if $(QUICK),--quick) --out demo$(if $(FULL),-full)$(if $(QUICK),-quick)

# One thread each: most of the time goes to tracing and loading graphs, which knows one thread only. A third worker uses what the
# others leave while they wait for servers and processes.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

$(OLDEST)/.ready: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv --clear $(OLDEST)
	$(PYTHON) .ci/lowest.py > $(OLDEST)/lowest.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLDEST)/lowest.txt -e ".[bench,cpu,serve,triton]" \
		httpx onnx pytest pytest-xdist "tritonclient[http]"
	touch $@

oldest: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(RUNTIME_TESTS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
