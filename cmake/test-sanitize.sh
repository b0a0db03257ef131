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

if test ! -e $env/installed || test -n "$(find csrc python CMakeLists.txt pyproject.toml -newer $env/installed -type f \
    -not -name '*.pyc')"; then
  test -x $env/bin/python || "$python" -m venv $env
  purelib=$($env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  # A path file that is read adds folders of packages, but not the path files (editable installations) in them.
  "$python" -c "import sys; print(*(p for p in sys.path if p.endswith('-packages')), sep='\n')" > "$purelib/borrowed.pth"
  # Settings in the environment: pip's option for them is younger than many a pip.
  CMAKE_ARGS=-DQWEN2VL_SANITIZE=ON SKBUILD_BUILD_DIR=build/sanitize SKBUILD_INSTALL_STRIP=false \
    $env/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
  touch $env/installed
fi

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
  exec $env/bin/python -m pytest -q --capture=sys -p no:cacheprovider "$@"
