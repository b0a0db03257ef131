"""`qwen2vl bench`: how fast a bundle runs here, beside what the machine could do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from qwen2vl_rt.progress import progress_bar


def size(text: str) -> tuple[int, int]:
    """A picture size such as 448x448, both sides rounded down to multiples of 28."""
    try:
        width, height = (int(part) // 28 * 28 for part in text.split("x"))
        if width > 0 and height > 0:
            return width, height
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a picture size: write 448x448, each side 28 or more")


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser("bench", help="measure vision, prefill, decode, load and memory")
    parser.add_argument("bundle", type=Path, help="folder that qwen2vl-export wrote")
    parser.add_argument("--pictures", type=size, nargs="+", default=[(224, 224), (448, 448)], metavar="WxH")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[128, 512], metavar="N", help="prompt tokens"
    )
    parser.add_argument("--decode-tokens", type=int, default=32, metavar="N")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 takes all cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Measure and print the table."""
    from qwen2vl_rt.benchmark import Workload, run_benchmark, steps

    workload = Workload(options.pictures, options.lengths, options.decode_tokens)
    with progress_bar("bench", steps(workload)) as bar:
        report = run_benchmark(options.bundle, workload, options.threads, bar.update)
    print(report.table())
    if options.json:
        options.json.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    return 0
