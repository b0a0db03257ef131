"""Measure bundles of a published size with random weights on this CPU: `make bench-2b`.

    python -m bench.cpu --size 2b --work out/bench-2b --output bench/results/cpu-2b

Checkpoint and bundles are made first, in --work, once. Each bundle is measured by `qwen2vl bench` in a
process of its own (so that peak memory is its own), at the usual sizes and, with --growth, from the smallest
to the largest. Writes one page and one JSON with all tables, and a picture of each bundle's growth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.random_checkpoint import PUBLISHED, random_bundle


def measure(bundle: Path, arguments: list[str], plot: Path | None = None) -> tuple[str, dict[str, object]]:
    """Table and report of one `qwen2vl bench`."""
    with tempfile.TemporaryDirectory() as folder:
        report, table = Path(folder) / "report.json", Path(folder) / "table.md"
        command = [sys.executable, "-c", "import sys; from qwen2vl_rt.cli import main; sys.exit(main())"]
        command += ["bench", str(bundle), "--json", str(report), "--markdown", str(table), *arguments]
        subprocess.run([*command, *(["--plot", str(plot)] if plot else [])], check=True)
        return table.read_text(), json.loads(report.read_text())


def main() -> None:
    """Make what is missing, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(PUBLISHED), default="2b")
    parser.add_argument("--precisions", nargs="+", default=["int8", "int4", "int4-int8"])
    parser.add_argument("--growth", nargs="*", default=["int8"], help="precisions whose growth is measured")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")
    parser.add_argument("--work", type=Path, default=Path("out/bench-2b"), help="where models are kept")
    parser.add_argument("--output", type=Path, required=True, help="without suffix: .md, .json and .png")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    threads = ["--threads", str(options.threads)]
    page = [f"# Qwen2-VL {options.size} shapes, random weights", "", "Written by `python -m bench.cpu`."]
    reports: dict[str, object] = {}
    for precision in options.precisions:
        bundle = random_bundle(options.size, precision, options.work)
        table, reports[precision] = measure(bundle, threads)
        page += ["", f"## {precision}", "", table.rstrip()]
        if precision in options.growth:
            plot = options.output.with_name(f"{options.output.name}-{precision}-growth.png")
            table, reports[f"{precision} growth"] = measure(bundle, [*threads, "--growth"], plot)
            page += ["", f"## {precision}: growth", "", f"![{plot.stem}]({plot.name})", "", table.rstrip()]
        options.output.with_suffix(".md").write_text("\n".join(page) + "\n")
        options.output.with_suffix(".json").write_text(json.dumps(reports, indent=2) + "\n")


if __name__ == "__main__":
    main()
