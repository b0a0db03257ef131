#!/bin/sh
# An installation for a machine with a GPU and no network: the project built from source, with the machine's own
# Python packages and whatever lies as wheels in a folder.
#   cmake/gpu-env.sh PYTHON SITE [WHEELS]
# SITE: the folder to install into; use it as PYTHONPATH. WHEELS: a folder of wheels, default wheels/.
set -eu
cd "$(dirname "$0")/.."
python=$1 site=$2 wheels=${3:-wheels}
mkdir -p "$site"

cmake/join-wheels.sh "$wheels"
if ls "$wheels"/*.whl > /dev/null 2>&1; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheels"/*.whl
fi

# Kernels for the GPU that is here, 9.0 without one to ask; ARCHITECTURES="80;90" builds for others.
architectures=${ARCHITECTURES:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1 | tr -d '. ')}
architectures=${architectures:-90}
# Settings in the environment: pip's option for them is younger than many a pip.
CMAKE_ARGS="-DQWEN2VL_CUDA=ON -DQWEN2VL_CUDA_ARCHITECTURES=$architectures" SKBUILD_BUILD_DIR=build/gpu \
  PYTHONPATH="$site" "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --no-compile --upgrade \
  --target "$site" .
PYTHONPATH="$site" "$python" -m qwen2vl_rt info
