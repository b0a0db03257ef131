"""The command line: `qwen2vl run`, `info`, `build`, `eval`, `bench`. One module a command."""

from qwen2vl_rt.cli.main import main

__all__ = ["main"]
