"""`qwen2vl bench`: how fast a bundle runs here, beside what the machine could do."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen2vl_rt.cli.output import write_json, write_text
from qwen2vl_rt.cli.values import count, output_file


def size(text: str) -> tuple[int, int]:
    """A picture size such as 448x448, both sides rounded down to multiples of 28."""
    try:
        width, height = (int(part) // 28 * 28 for part in text.split("x"))
        if width > 0 and height > 0:
            return width, height
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a picture size: write 448x448, each side 28 or more")


def answer_length(text: str) -> int:
    """Tokens of an answer whose decoding can be timed: after the first one, at least one more."""
    return count(text, 2)


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "bench",
        help="measure vision, prefill, decode, load and memory on the CPU",
        description="Measure a bundle on the CPU, each figure beside the limit that this machine's memory "
        "and matrix products set, both measured in the same run.",
    )
    parser.add_argument("bundle", type=Path, help="folder that qwen2vl-export wrote")
    parser.add_argument(
        "--growth",
        action="store_true",
        help="instead of the usual sizes: 256 to 16,384 patches, 128 to 16,384 tokens, with memory",
    )
    parser.add_argument("--pictures", type=size, nargs="+", metavar="WxH", help="224x224 448x448 1260x840")
    parser.add_argument("--lengths", type=count, nargs="+", metavar="N", help="prompt tokens (128 512)")
    parser.add_argument("--batches", type=count, nargs="+", metavar="N", help="answers side by side (1 4)")
    parser.add_argument(
        "--decode-tokens", type=answer_length, default=32, metavar="N", help="of each answer (32)"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 takes all cores")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the report as JSON")
    parser.add_argument("--markdown", type=output_file, metavar="FILE", help="also write the table")
    parser.add_argument(
        "--plot", type=output_file, metavar="FILE", help="also draw it, as PNG (needs matplotlib)"
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Measure and print the table."""
    from qwen2vl_rt.benchmark import Workload, run_benchmark, steps
    from qwen2vl_rt.benchmark.plot import require_matplotlib, write_plot
    from qwen2vl_rt.progress import progress_bar

    if options.plot:
        require_matplotlib()  # before minutes of measuring
    workload = Workload.growth() if options.growth else Workload()
    own = {name: getattr(options, name) for name in ("pictures", "lengths", "batches")}
    given = {name: value for name, value in own.items() if value is not None}
    workload = replace(workload, decode_tokens=options.decode_tokens, **given)
    with progress_bar("bench", steps(workload)) as bar:
        report = run_benchmark(options.bundle, workload, options.threads, bar.update)
    print(report.table())
    if options.json:
        write_json(options.json, report.to_json())
    if options.markdown:
        write_text(options.markdown, report.table() + "\n")
    if options.plot:
        write_plot(report, options.plot)
    return 0
