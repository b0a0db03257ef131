# `make demo` and `make test` work from a fresh clone; a second run rebuilds nothing.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
OUT    := out
TINY   := $(OUT)/tiny-fp32

SOURCES := $(shell find csrc -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')
LINTED  := $(shell git ls-files '*.h' '*.cc' '*.cu' '*.cuh' 2>/dev/null)

.PHONY: demo eval test lint format test-sanitize clean

# --- environments: a stamp file stands for "installed, and nothing it was built from has changed" -----------

$(VENV)/installed: pyproject.toml CMakeLists.txt $(wildcard cmake/*.cmake) $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,test]'
	touch $@

$(VENV)/installed-lint: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check clang-format==19.1.7 ruff==0.17.6
	touch $@

# --- the two commands of README; eval scores the tiny checkpoint by task -------------------------------------

$(TINY)/manifest.json: $(VENV)/installed $(wildcard models/tiny/*.*)
	$(BIN)/qwen2vl-export --checkpoint models/tiny --precision fp32 --output $(TINY) --force

demo: $(TINY)/manifest.json
	$(BIN)/python models/demo.py $(TINY) --output $(OUT)/demo

eval: $(TINY)/manifest.json
	$(BIN)/qwen2vl eval $(TINY) --set models/tiny/eval --json $(OUT)/eval.json

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

# --- checks ---------------------------------------------------------------------------------------------------

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(LINTED)

format: $(VENV)/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(LINTED)

test-sanitize: $(VENV)/installed-test
	cmake/test-sanitize.sh $(BIN)/python

clean:
	rm -rf $(VENV) $(OUT) build
