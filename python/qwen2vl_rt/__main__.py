"""`python -m qwen2vl_rt` is the command line `qwen2vl`."""

import sys

from qwen2vl_rt.cli import main

sys.exit(main())
