# make demo   install into .venv; films of two agents -> a world -> a judged simulation, in out/demo
# make test   install everything and run every check
# Needs Python >= 3.10. PyTorch's CPU-only builds: make test TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
NPM_FLAGS := --no-audit --no-fund --no-package-lock --loglevel=error
START := $(shell date +%s)
TOOK = $$(( $$(date +%s) - $(START) )) s, installation included
SOURCES := pyproject.toml constraints.txt $(wildcard cuda_ext/* assets/recording/* assets/refiner/* assets/dynamics/*) assets/expected_scores.json

.PHONY: demo test check install dev peers clean

demo: $(VENV)/.installed
	@$(BIN)/gworld demo --out out/demo --overwrite && echo "make demo: ok in $(TOOK)"

test: dev peers
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report=
	@$(BIN)/coverage report --skip-covered --sort=cover | tail -n 40
	@echo "make test: ok in $(TOOK)"

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

# torch first and alone, from the constraints file, so that no resolver picks a build with gigabytes of CUDA.
$(VENV)/.torch: constraints.txt
	@scripts/bootstrap.sh $(PYTHON) $(VENV)
	$(PIP) install -c constraints.txt $(INDEX) torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) install -c constraints.txt $(INDEX) ".[demo]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch $(SOURCES)
	$(PIP) install -c constraints.txt $(INDEX) -e ".[dev]"
	@touch $@ $(VENV)/.installed

# Other people's readers and validators; tests that need them skip where there is no npm.
peers: $(VENV)/peers/.installed
$(VENV)/peers/.installed: tests/peers/package.json
	@mkdir -p $(VENV)/peers && cp tests/peers/package.json $(VENV)/peers/
	@if command -v npm >/dev/null; then npm install --prefix $(VENV)/peers $(NPM_FLAGS) >/dev/null && touch $@; \
	else echo "npm is not here: conformance tests against other tools will be skipped"; fi

clean:
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
