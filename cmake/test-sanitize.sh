#!/bin/sh
# Runs the tests of the compiled parts under AddressSanitizer and UndefinedBehaviorSanitizer.
#   cmake/test-sanitize.sh PYTHON [pytest arguments]
# PYTHON: an interpreter whose environment has the test dependencies.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
export CC="${CC:-gcc}" CXX="${CXX:-g++}"
CMAKE_ARGS=-DQWEN2VL_SANITIZE=ON cmake/borrowed-env.sh "$python" sanitize

# The sanitizers' runtimes come before everything else in the process, and libstdc++ with them, whose throw they wrap.
preload=
for library in libasan.so libubsan.so libstdc++.so.6; do
  preload="$preload $("$CXX" -print-file-name=$library)"
done
# What Python itself never frees would count as leaked, so leaks are left to the tests' own reference counts.
# A failed large allocation must come back as an exception, as it does without the sanitizer.
# The use of a function's variables after its return is not looked for: on the stack that this takes, GCC before 13.3
# puts vectors of 64 bytes where they can't be stored (its bug 110027).
# A report ends the process: pytest captures Python's own streams only, or reports would be lost with what it captured.
test $# -gt 0 || set -- tests/core tests/lowering tests/processing tests/gpu
LD_PRELOAD="$preload" PYTHONMALLOC=malloc UBSAN_OPTIONS=print_stacktrace=1 \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
  exec build/sanitize-env/bin/python -m pytest -q --capture=sys -p no:cacheprovider "$@"
