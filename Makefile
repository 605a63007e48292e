# make demo   a program on the shipped model: few-shot evaluation, agent, tree of thought
# make test   the tests
# make docs   the documentation as a site in build/site
# make lint   formatting, lint and types
# Each sets up .venv first; nothing but Python and a C++ compiler is needed.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs lint format clean

demo: .venv/ready
	$(BIN)/python examples/demo.py

test: .venv/ready
	$(BIN)/python -m pytest $(ARGS)

docs: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints/cpu.txt --constraint constraints/docs.txt mkdocs-material 'mkdocstrings[python]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Rebuilt when what it is made of changes: the pins, the package's metadata, the native code.
.venv/ready: pyproject.toml constraints/cpu.txt CMakeLists.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints/cpu.txt --editable '.[runtime,redis,dev]'
	touch $@

clean:
	rm -rf .venv build
