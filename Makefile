# `make run` and `make test` set themselves up: a virtual environment in .venv, pinned packages, no compiler, no GPU packages on
# a machine without a GPU if a CPU build of torch is offered (TORCH_INDEX or a wheel folder).
SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: help run test test-slow mutants lint lock clean

VENV ?= .venv
BIN := $(VENV)/bin
FIRST := .bench/first
STAMP := $(VENV)/.installed
INPUTS := pyproject.toml constraints.txt constraints-lirpa.txt
PIP := "$(BIN)/python" -m pip install --disable-pip-version-check $(PIPFLAGS)

help:
	@echo "make run        install, train and certify an l_inf-distance net on the embedded digits, write the report"
	@echo "make test       install, run the default tests (under 10 minutes on 2 cores)"
	@echo "make test-slow  the long versions of the tests"
	@echo "make mutants    seeded faults, each of which a test must notice (a half an hour)"
	@echo "make lint       ruff and mypy"
	@echo "make lock       rewrite constraints.txt from a fresh environment"
	@echo "variables: PYTHON=/path/to/python3  TORCH_INDEX=address of a CPU wheel index  PIPFLAGS='--no-index --find-links DIR'"

# A folder of its own: results/measured holds committed records, and what is recorded there is not trained again.
run: $(STAMP)
	@"$(BIN)/bench" run --method linf_dist_v2 --dataset digits --preset quick --results $(FIRST)/results
	@"$(BIN)/bench" report --results $(FIRST)/results --out $(FIRST)/reports

test: $(STAMP)
	@"$(BIN)/python" -m pytest

test-slow: $(STAMP)
	@"$(BIN)/python" -m pytest -m slow --timeout 3600

# Seeded faults (tests/mutants/catalogue.py), each applied to a copy of the tree: exit code 1 if a test notices none of one.
mutants: $(STAMP)
	@"$(BIN)/python" tests/mutants/run.py

lint: $(STAMP)
	@"$(BIN)/ruff" check . && "$(BIN)/mypy"

# One recipe creates and fills the environment, under a lock: two makes at once, or a kill in the middle, leave no half of one.
$(STAMP): $(INPUTS)
	@mkdir -p "$(VENV)"; \
	if command -v flock >/dev/null 2>&1; then exec 9>"$(VENV)/.lock"; flock 9; fi; \
	fresh=yes; [ -e "$@" ] || fresh=no; for f in $(INPUTS); do [ "$$f" -nt "$@" ] && fresh=no; done; \
	[ "$$fresh" = yes ] && exit 0; \
	if [ ! -e "$(VENV)/.ready" ]; then \
	  python=; for p in "$(PYTHON)" python3 python3.12 python3.13 python3.11 python3.10; do \
	    [ -n "$$p" ] && "$$p" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	      && { python=$$p; break; }; done; \
	  if [ -z "$$python" ]; then echo "error: no Python 3.10-3.13 with venv and pip found. Install one (Debian: apt install python3 python3-venv) or run: make run PYTHON=/path/to/python3" >&2; exit 2; fi; \
	  echo "creating $(VENV) with $$("$$python" --version)"; \
	  rm -rf "$(VENV)/bin" "$(VENV)/lib" "$(VENV)/lib64" "$(VENV)/include"; \
	  { "$$python" -c 'import ensurepip' 2>/dev/null && "$$python" -m venv "$(VENV)" 2>/dev/null; } \
	    || { "$$python" -m venv --without-pip "$(VENV)" && "$$python" -m pip --python "$(BIN)/python" install -q pip; } \
	    || { echo "error: could not create $(VENV); is pip installed for $$python? (Debian: apt install python3-pip)" >&2; exit 2; }; \
	  touch "$(VENV)/.ready"; \
	fi; \
	echo "installing into $(VENV) (once; a few minutes)"; \
	{ $(PIP) -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch torchvision \
	  && $(PIP) -q -c constraints.txt -e '.[test]' \
	  && $(PIP) -q --no-deps -r constraints-lirpa.txt; } \
	|| { echo "error: the installation failed (see the lines above). Without a network, put the wheels in a folder and run: make run PIPFLAGS='--no-index --find-links /that/folder'" >&2; exit 2; }; \
	touch "$@"

# Pins of THIS Python and platform; merge by hand with markers for other versions (see CONTRIBUTING.md).
lock:
	@rm -rf .venv-lock && python3 -m venv .venv-lock && .venv-lock/bin/python -m pip install -q torch==2.13.0 torchvision==0.28.0 '.[test]' \
	  && .venv-lock/bin/python -m pip list --format=freeze | grep -v -i -E '^(pip|setuptools|certbench|auto-lirpa|wheel)==' | sed 's/+cpu//' > constraints.new \
	  && rm -rf .venv-lock build && echo "wrote constraints.new; compare with constraints.txt"

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
