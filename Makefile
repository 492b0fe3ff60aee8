# Everything runs in a local virtual environment, .venv, made once and renewed when the
# dependencies change. PYTHON chooses the interpreter it is made with; ARGS is passed on; JOBS is the number of
# processes that run the tests.

PYTHON ?= python3
ARGS ?=
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.ready

# Without bytecode each process compiles our modules again: a quarter of the CPU of a server's imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test serve bench lint clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything installed (the other targets do this by themselves)

demo: $(READY) ## run a real job durably, kill it half way, watch it finish
	@$(BIN)/heliograph demo $(ARGS)

test: $(READY) ## run the tests (ARGS="tests/runtime -k cancel" for some of them)
	@$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

serve: $(READY) ## start the server
	@$(BIN)/heliograph serve $(ARGS)

bench: $(READY) ## measure, and print JSON
	@$(BIN)/python -m bench $(ARGS)

# All three run, so one pass shows everything there is to mend.
lint: $(READY) ## style, formatting and strict types
	@failed=0; \
	echo 'lint: ruff check'; $(BIN)/ruff check . || failed=1; \
	echo 'lint: ruff format --check'; $(BIN)/ruff format --check . || failed=1; \
	echo 'lint: pyright (strict)'; PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python || failed=1; \
	exit $$failed

clean: ## remove .venv, caches and builds
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# pip runs unsilenced: its lines are the progress a waiting person sees.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "heliograph needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.12" >&2; exit 1; }
	@echo 'setup: making .venv (once)'
	@$(PYTHON) -m venv .venv || { \
	  echo "setup: '$(PYTHON) -m venv' failed; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	@echo 'setup: installing about 110 packages (Ray is the large one, 70 MB), a minute or two'
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[postgres,objectstores,otel,parquet,dev]'
	@touch $@
	@echo 'setup: ready'
