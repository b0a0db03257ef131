#!/bin/sh
# An environment with another build of the package, beside the ordinary installation, which is not touched.
#   CMAKE_ARGS=... cmake/borrowed-env.sh PYTHON NAME
# PYTHON: an interpreter whose environment has the test dependencies, which build/NAME-env borrows. It is built again
# when something that it is made of has changed.
set -eu
cd "$(dirname "$0")/.."
python=$1 env=build/$2-env
changed() {
  test ! -e "$env/installed" || test -n "$(find csrc python export cmake tests/emulated_cuda CMakeLists.txt pyproject.toml \
    -newer "$env/installed" -type f -not -name '*.pyc')"
}
if changed; then
  test -x "$env/bin/python" || "$python" -m venv "$env"
  purelib=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  # A path file that is read adds folders of packages, but not the path files (editable installations) in them.
  "$python" -c "import sys; print(*(p for p in sys.path if p.endswith('-packages')), sep='\n')" > "$purelib/borrowed.pth"
  # Settings in the environment: pip's option for them is younger than many a pip.
  SKBUILD_BUILD_DIR=build/$2 SKBUILD_INSTALL_STRIP=false \
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
  touch "$env/installed"
fi
