# `make demo` and `make test` set up .venv by themselves and then run. Nothing but packages is downloaded.

PYTHON ?= python3
# That run the tests, a file of them at a time; each takes about a core and 2 GiB.
PROCESSES ?= 2
VENV := .venv
# For test-triton: what PyTorch 2.13 for CUDA brings. (3.6 interprets kernels with a NumPy before 2.4 alone.)
TRITON ?= 3.7.1
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint typecheck test-slow test-triton docs mutants bench setup clean FORCE

demo: setup
	$(BIN)/ds2ds generate "# Incremental linker" --seed 2 --temperature 0.7 --top-k 50

test: setup lint typecheck
	$(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile -m "not slow and not gpu"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: setup
	$(BIN)/mypy -p ds2ds

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

# What kernels are compiled and interpreted for by another Triton than the one that is installed.
test-triton: OTHER = $(CURDIR)/$(VENV)/triton-$(TRITON)
test-triton: setup
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(OTHER) triton==$(TRITON)
	PYTHONPATH=$(OTHER) $(BIN)/python -m ds2ds.kernels compile
	PYTHONPATH=$(OTHER) $(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile -m "not slow and not gpu" \
		$(shell grep -lE "triton|ptx|by_kernels|issue_slots" tests/test_*.py)

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

mutants: setup
	$(BIN)/pip install --quiet mutmut
	$(BIN)/python tests/mutation/run.py

bench: setup $(VENV)/.bench
	$(BIN)/python bench/decode.py

setup: $(VENV)/.installed

# An editable install in strict mode is a tree of links that mypy and IDEs can follow. It does not see files that are
# added later, so it is made anew whenever the list of files changes.
$(VENV)/.installed: setup.py constraints.txt $(VENV)/files.txt
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	rm -rf build
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation \
		--editable ".[test,lint,docs]" --config-settings editable_mode=strict
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt "transformers>=5" "scipy>=1.11"
	touch $@

$(VENV)/files.txt: FORCE | $(VENV)/bin/python
	@find runtime kernels -type f -not -path '*/__pycache__/*' | sort > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ds2ds needs Python 3.11 or later; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build *.egg-info

FORCE:
