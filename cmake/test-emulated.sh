#!/bin/sh
# Runs the GPU's tests on one that the CPU emulates (tests/emulated_cuda).
#   cmake/test-emulated.sh PYTHON [pytest arguments]
# PYTHON: an interpreter whose environment has the test dependencies.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
CMAKE_ARGS=-DQWEN2VL_CUDA=EMULATED cmake/borrowed-env.sh "$python" emulated
test $# -gt 0 || set -- tests/gpu
exec build/emulated-env/bin/python -m pytest -q -p no:cacheprovider "$@"
