# `make demo` and `make test` work from a fresh clone; a second run rebuilds nothing.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
OUT    := out
TINY   := $(OUT)/tiny-fp32

SOURCES := $(shell find csrc -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inl')
LINTED  := $(shell git ls-files '*.h' '*.cc' '*.cu' '*.cuh' '*.inl' 2>/dev/null)

# Where `make bench-2b` keeps its checkpoint and bundles (11 GB), and where its results go.
BENCH_2B     ?= $(OUT)/bench-2b
BENCH_RESULT ?= $(OUT)/cpu-2b

.PHONY: demo eval bench bench-2b test test-emulated test-ptx test-null-gpu test-gpu bench-gpu gpu-wheels lint format test-sanitize kernel-report clean

# --- environments: a stamp file stands for "installed, and nothing it was built from has changed" -----------

BUILT_FROM := pyproject.toml CMakeLists.txt $(wildcard cmake/*.cmake) $(SOURCES)

$(VENV)/installed: $(BUILT_FROM)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu]'
	touch $@

# With what tests or plots need, too. Not built upon the one above: that would compile everything twice.
$(VENV)/installed-test $(VENV)/installed-plot: $(VENV)/installed-%: $(BUILT_FROM)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,$*]'
	touch $(VENV)/installed $@

$(VENV)/installed-lint: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $$($(BIN)/python -c "import tomllib; \
	  print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['lint'])")
	touch $@

# --- the two commands of README; eval scores the tiny checkpoint by task -------------------------------------

$(TINY)/manifest.json: $(VENV)/installed $(wildcard models/tiny/*.*)
	$(BIN)/qwen2vl-export --checkpoint models/tiny --precision fp32 --output $(TINY) --force

demo: $(TINY)/manifest.json
	$(BIN)/python models/demo.py $(TINY) --output $(OUT)/demo

eval: $(TINY)/manifest.json
	$(BIN)/qwen2vl eval $(TINY) --set models/tiny/eval --json $(OUT)/eval.json

# The tiny checkpoint, in less than two minutes; and the 2B shapes with random weights.
bench: $(VENV)/installed-plot $(TINY)/manifest.json
	$(BIN)/qwen2vl bench $(TINY) --json $(OUT)/bench.json
	$(BIN)/qwen2vl bench $(TINY) --growth --json $(OUT)/bench-growth.json --plot $(OUT)/bench-growth.png

bench-2b: $(VENV)/installed-plot
	$(BIN)/python -m bench.cpu --work $(BENCH_2B) --output $(BENCH_RESULT) $(BENCH_FLAGS)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

# The GPU's kernels and all around them, on a GPU that the CPU emulates.
test-emulated: $(VENV)/installed-test
	cmake/test-emulated.sh $(BIN)/python

# The same with what nvcc makes of the kernels for one architecture: with early starts (90), without (80).
PTX ?= 90
test-ptx: $(VENV)/installed-test
	PTX=$(PTX) cmake/test-emulated.sh $(BIN)/python

# ONNX Runtime's CUDA provider on a GPU that does nothing; fetches it (255 MB) once, needs the toolkit's headers.
test-null-gpu: $(VENV)/installed-test
	cmake/test-null-gpu.sh $(BIN)/python

# --- on a machine with an NVIDIA GPU, no network needed: docs/cuda.md ----------------------------------------
# PYTHON's own packages and the wheels in WHEELS. Each stage's result is kept in out/gpu-report, the report of all
# is RESULT.json and RESULT.md, with RESULT.logs.tar.gz. Some stages only: STAGES="build 2b-bf16 peer-2b"; LIMIT=540:
# seconds for the call.

WHEELS ?= wheels
RESULT ?= bench/results/gpu
LIMIT  ?= 0
GPU_REPORT := $(PYTHON) bench/gpu_report.py --wheels $(WHEELS) --output $(RESULT) --limit $(LIMIT) --stages

test-gpu:
	$(GPU_REPORT) $(or $(STAGES),build tests memcheck racecheck accuracy)

bench-gpu:
	$(GPU_REPORT) $(or $(STAGES),build limits 2b-bf16 2b-int4 2b-operations 2b-int4-operations peer-2b 2b-variants 2b-int4-variants 72b-int4 2b-bf16-tensorrt 2b-int4-tensorrt 7b-bf16 7b-int4 peer-7b)

# Wheels for it, on a machine with a network; GPU_PYTHON: its Python; GPU_WHEELS: what it lacks.
GPU_PYTHON ?= 3.12
GPU_WHEELS ?= onnxruntime-gpu==1.31.1
gpu-wheels:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) --dest $(WHEELS) \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
	  $(GPU_WHEELS)

# --- checks ---------------------------------------------------------------------------------------------------

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(LINTED)

format: $(VENV)/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(LINTED)

# What the compiler says of every kernel for every architecture; needs nvcc, no GPU.
kernel-report:
	$(PYTHON) cmake/kernel_report.py --output bench/results/kernels-cuda.md

test-sanitize: $(VENV)/installed-test
	cmake/test-sanitize.sh $(BIN)/python

clean:
	rm -rf $(VENV) $(OUT) build
