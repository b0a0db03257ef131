"""Command-line options that build a session, shared by every command that loads one."""

from __future__ import annotations

import argparse
from typing import Any

from qwen2vl_rt.cli.values import memory_size


def add_session_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that `Session` takes, as a group that is returned."""
    group = parser.add_argument_group("session")
    group.add_argument("--backend", default="auto", help="auto (default), cpu, cuda or tensorrt")
    group.add_argument("--max-length", type=int, metavar="N", help="positions of the KV cache")
    group.add_argument(
        "--memory-limit", type=memory_size, metavar="SIZE", help="refuse to use more, such as 6.5G"
    )
    group.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 takes all cores")
    return group


def session_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The parsed options as `Session` keyword arguments."""
    names = ("backend", "max_length", "memory_limit", "threads")
    return {name: getattr(options, name) for name in names}
