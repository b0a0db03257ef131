#!/bin/sh
# Runs ONNX Runtime's CUDA provider on a GPU that does nothing (tests/null_gpu).
#   cmake/test-null-gpu.sh PYTHON [pytest arguments]
# PYTHON: an interpreter whose environment has the test dependencies. Needs the CUDA toolkit's headers, and fetches
# onnxruntime-gpu (255 MB) once.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
headers=${CUDA_HOME:-/usr/local/cuda}/include
folder=build/null-gpu
mkdir -p $folder/lib
test -d $folder/site/onnxruntime ||
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target $folder/site onnxruntime-gpu==1.31.1
if test ! $folder/lib/libnullgpu.so -nt tests/null_gpu/null_cuda.cc; then
  ${CXX:-g++} -std=c++17 -O1 -fPIC -shared -I"$headers" tests/null_gpu/null_cuda.cc -o $folder/lib/libnullgpu.so \
    -Wl,-soname,libnullgpu.so
  # The provider's libraries, by the names that it asks for: all are that one.
  for name in libcudart.so.13 libcublas.so.13 libcublasLt.so.13 libcurand.so.10 libcufft.so.12 libcudnn.so.9 libcuda.so.1; do
    ${CXX:-g++} -shared -fPIC -x c++ /dev/null -o $folder/lib/$name -Wl,-soname,$name -Wl,--no-as-needed \
      -L$folder/lib -lnullgpu -Wl,-rpath,'$ORIGIN'
  done
fi
CMAKE_ARGS=-DQWEN2VL_CUDA=EMULATED cmake/borrowed-env.sh "$python" emulated
test $# -gt 0 || set -- tests/null_gpu
LD_LIBRARY_PATH="$PWD/$folder/lib" PYTHONPATH="$PWD/$folder/site" \
  exec build/emulated-env/bin/python -m pytest -q -p no:cacheprovider "$@"
