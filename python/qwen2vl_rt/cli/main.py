"""Entry point of `qwen2vl`: picks the command, turns the project's errors into one line and an exit code.

The commands' modules are light; each imports what it runs when it runs. So `--help` is quick, and Ctrl-C
during the long imports ends in the handler here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from qwen2vl_rt import __version__
from qwen2vl_rt.cli import bench, build, info, output, run
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
    """Run one command; the exit code is `guarded`'s. A wrong command line exits with 2."""

    def work() -> int:
        options = build_parser().parse_args(arguments)
        return options.execute(options)

    return guarded("qwen2vl", work)


def guarded(program: str, work: Callable[[], int]) -> int:
    """Do the work of a command line, its errors turned into one line on standard error.

    Args:
        program: how the line names the command.
        work: prints what it has to say and returns the exit code.

    Returns:
        What `work` returned, 1 after an error of the project's own or of the output, 130 after Ctrl-C.
    """
    output.accept_any_text()
    try:
        code = work()
        output.flush()
        return code
    except Qwen2VLError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `qwen2vl run ... | head`: the reader has seen enough
        output.discard()
        return 0
    except OSError as error:
        if error.filename is not None:
            raise  # of a file, whose own handler it got past
        print(f"{program}: cannot write the output: {error.strerror}", file=sys.stderr)
        output.discard()
        return EXIT_ERROR
