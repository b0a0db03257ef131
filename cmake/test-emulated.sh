#!/bin/sh
# Runs the GPU's tests on one that the CPU emulates (tests/emulated_cuda).
#   [PTX=90] cmake/test-emulated.sh PYTHON [pytest arguments]
# PYTHON: an interpreter whose environment has the test dependencies. PTX: run what nvcc makes of the kernels for this
# architecture, not what the C++ compiler does.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
if test -z "${PTX:-}"; then
  env=emulated arguments=
else
  env=emulated-ptx$PTX arguments=-DQWEN2VL_EMULATED_PTX=$PTX
fi
CMAKE_ARGS="-DQWEN2VL_CUDA=EMULATED $arguments" cmake/borrowed-env.sh "$python" "$env"
test $# -gt 0 || set -- tests/gpu
exec "build/$env-env/bin/python" -m pytest -q -p no:cacheprovider "$@"
