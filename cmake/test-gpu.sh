#!/bin/sh
# Everything that needs a GPU, tested: the tests with a `gpu` mark and their CPU twins, then the kernels under
# compute-sanitizer. Needs no network. Writes logs and gpu-tests.md into a folder.
#   cmake/test-gpu.sh PYTHON SITE FOLDER
set -u
cd "$(dirname "$0")/.."
python=$1 site=$2 folder=$3
mkdir -p "$folder"
export PYTHONPATH="$site" PYTHONUNBUFFERED=1
status=0
report="$folder/gpu-tests.md"
{
  echo "# GPU tests"
  echo
  nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader
  echo
} > "$report"

run() { # NAME COMMAND...: one line of the report, the log beside it
  name=$1
  shift
  if "$@" > "$folder/$name.log" 2>&1; then result=passed; else result=FAILED status=1; fi
  echo "$name: $result. $(grep -E '[0-9]+ passed|ERROR SUMMARY|RACECHECK SUMMARY' "$folder/$name.log" | tail -n 1)" \
    | tee -a "$report"
  test $result = passed || tail -n 40 "$folder/$name.log"
}

run tests "$python" -m pytest -q -p no:cacheprovider tests/gpu
# racecheck and memcheck slow kernels down a hundred times: fewer cases, every kernel.
cases="cuda and (rope or gather or cache or removed or patches or strided or published or overflowed or visuals_may)"
for tool in memcheck racecheck; do
  if command -v compute-sanitizer > /dev/null; then
    run $tool compute-sanitizer --tool $tool --error-exitcode 9 --target-processes all \
      "$python" -m pytest -q -p no:cacheprovider -k "$cases" tests/gpu/test_kernels.py tests/gpu/test_device_frames.py \
      tests/gpu/test_device_sampling.py tests/gpu/test_device_decoder.py
  else
    echo "$tool: not run, compute-sanitizer is not in PATH" | tee -a "$report"
  fi
done
exit $status
