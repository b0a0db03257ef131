"""Entry point of `qwen2vl`: picks the command, turns the project's errors into one line and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from qwen2vl_rt import __version__
from qwen2vl_rt.cli import bench, build, info, run
from qwen2vl_rt.cli import eval as eval_command
from qwen2vl_rt.errors import Qwen2VLError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The argument parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="qwen2vl", description="Run Qwen2-VL bundles written by qwen2vl-export."
    )
    parser.add_argument("--version", action="version", version=f"qwen2vl_rt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (run, info, eval_command, bench, build):
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, 1 after an error of the project's own (one line on standard error), 130 after Ctrl-C. A wrong
        command line exits with 2.
    """
    options = build_parser().parse_args(arguments)
    try:
        return options.execute(options)
    except Qwen2VLError as error:
        print(f"qwen2vl: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `qwen2vl run ... | head`: the reader has seen enough
        sys.stderr.close()
        return 0
