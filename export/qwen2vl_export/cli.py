"""The command `qwen2vl-export`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen2vl_export.bundle_writer import check_target
from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.hub import SIZES, download
from qwen2vl_export.quantize.calibration import SHIPPED
from qwen2vl_rt.bundle import PRECISIONS
from qwen2vl_rt.cli.main import EXIT_INTERRUPTED, guarded
from qwen2vl_rt.progress import progress_bar


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 done, 1 refused or failed, 2 wrong options, 130 interrupted."""
    return guarded("qwen2vl-export", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        with _terminable():
            _export(options)
    except KeyboardInterrupt:
        print("qwen2vl-export: interrupted; no bundle was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _export(options: argparse.Namespace) -> None:
    quiet = not sys.stderr.isatty()
    name = SIZES[options.size].name if options.size else Path(os.path.realpath(options.checkpoint)).name
    output = Path(options.output or f"{name.lower()}-{options.precision}")
    check_target(output, options.force)  # before gigabytes are fetched
    checkpoint = download(options.size, quiet=quiet) if options.size else Path(options.checkpoint)
    with progress_bar(f"writing {output}", None, "B", leave=True) as bar:
        bundle = export_checkpoint(
            checkpoint,
            output,
            options.precision,
            calibration=None if options.calibration == "none" else options.calibration,
            name=name,
            force=options.force,
            on_total=bar.reset,
            progress=bar.update,
        )
    size = sum(entry.size for entry in bundle.files.values())
    print(f"{output}: {bundle.name}, {bundle.precision}, {size / 1e9:.2f} GB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen2vl-export",
        description="Write a bundle (ONNX graphs, weights, tokenizer) from a Qwen2-VL checkpoint.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--size", choices=sorted(SIZES), help="a published Instruct model, fetched from the hub"
    )
    source.add_argument(
        "--checkpoint", metavar="DIR", help="a checkpoint folder: config.json and safetensors"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="the bundle to write; by default named after the model"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="number format of the weights (default: fp32, which every backend runs)",
    )
    parser.add_argument(
        "--calibration",
        metavar="DIR",
        default=SHIPPED,
        help="conversations and pictures that a quantized precision is calibrated on, in the form that "
        "docs/precision.md describes (default: the package's own); 'none' rounds to nearest",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    return parser


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception meanwhile, so that a polite kill removes what was being written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
