"""The command line: `qwen2vl run`, `qwen2vl info`, `qwen2vl eval`. One module a command."""

from qwen2vl_rt.cli.main import main

__all__ = ["main"]
