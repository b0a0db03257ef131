set -e
cd /work/wt/cuda
git rebase -q main
nice -n 10 /work/venv/bin/ruff check . && /work/venv/bin/ruff format --check . | tail -1
/work/venv/bin/clang-format --dry-run -Werror $(git ls-files '*.h' '*.cc' '*.cu' '*.cuh')
flock /work/run/land.lock git -C /work/main merge --ff-only cuda | tail -1
