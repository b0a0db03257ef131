#!/bin/sh
# Runs the tests of the compiled parts under AddressSanitizer and UndefinedBehaviorSanitizer.
#   cmake/test-sanitize.sh PYTHON [pytest arguments]
# PYTHON: an interpreter whose environment has the test dependencies. The instrumented build goes into an
# environment of its own (build/sanitize-env), which borrows those; the ordinary installation is not touched.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
env=build/sanitize-env
export CC="${CC:-gcc}" CXX="${CXX:-g++}"

test -x $env/bin/python || "$python" -m venv $env
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
# A path file read from there adds the packages, but not the path files (an editable installation) among them.
"$python" -c "import sys, sysconfig; print(*(p for p in sys.path if p.endswith('-packages')), sep='\n')" \
  > "$($env/bin/python -c "$purelib")/borrowed.pth"
$env/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall . \
  -C cmake.define.QWEN2VL_SANITIZE=ON -C build-dir=build/sanitize -C install.strip=false

# The sanitizers' runtimes come before everything else in the process, and libstdc++ with them, whose throw they wrap.
preload=
for library in libasan.so libubsan.so libstdc++.so.6; do
  preload="$preload $("$CXX" -print-file-name=$library)"
done
# Python's own allocations look like leaks at exit, so leaks are counted by the tests themselves.
# A failed large allocation must come back as an exception, as it does without the sanitizer.
test $# -gt 0 || set -- tests/core tests/processing
LD_PRELOAD="$preload" PYTHONMALLOC=malloc \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1 \
  UBSAN_OPTIONS=print_stacktrace=1 \
  exec $env/bin/python -m pytest -q -p no:cacheprovider "$@"
