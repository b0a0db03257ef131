"""Export a checkpoint in a process of its own and record its time and peak memory.

    python bench/export_memory.py --checkpoint DIR --scratch DIR [--precision bf16] [--keep DIR] --label 2b

Quantized precisions are calibrated on the package's own set, or rounded to nearest with `--nearest`.

Adds to bench/results/export-memory.json and writes the table in bench/results/export-memory.md from it. Peak
memory is the process's largest resident set, Python and its libraries included.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qwen2vl_export.checkpoint import Checkpoint
from qwen2vl_rt.machine import physical_memory, processor_name

RESULTS = Path(__file__).parent / "results"
RUN = """
import json, resource, sys, time
from qwen2vl_export.export import export_checkpoint
from qwen2vl_export.quantize.calibration import SHIPPED
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
calibration = SHIPPED if sys.argv[4] == "calibrated" else None
export_checkpoint(sys.argv[1], sys.argv[2], sys.argv[3], calibration=calibration)
seconds, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
cpu = usage.ru_utime + usage.ru_stime
found = {"seconds": seconds, "cpu_seconds": cpu, "idle_mib": idle / 1024, "peak_mib": usage.ru_maxrss / 1024}
print(json.dumps(found))
"""


def measure(
    checkpoint: Path, precision: str, nearest: bool, scratch: Path, keep: Path | None, label: str
) -> dict[str, object]:
    """Export once; returns the row of the table."""
    source = Checkpoint.open(checkpoint)
    largest = max(source.tensors.values(), key=lambda tensor: math.prod(tensor.shape))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        bundle = Path(folder) / "bundle"
        calibration = "none" if nearest else "calibrated"
        command = [sys.executable, "-c", RUN, str(checkpoint), str(bundle), precision, calibration]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        size = sum(file.stat().st_size for file in bundle.iterdir())
        if keep:
            shutil.move(bundle, keep)
    row = {
        "label": label,
        "precision": f"{precision}, to nearest" if nearest else precision,
        "decoder_layers": source.geometry.decoder.layers,
        "checkpoint_gb": sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e9,
        "bundle_gb": size / 1e9,
        "largest_tensor": f"{largest.name} {list(largest.shape)}",
        **json.loads(result.stdout),
        "date": datetime.date.fromtimestamp(time.time()).isoformat(),
        "machine": machine(),
    }
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}


def machine() -> str:
    """Name the processor, its cores and the memory."""
    return f"{processor_name()}, {os.cpu_count()} cores, {physical_memory() / 2**30:.0f} GiB"


def write_table(rows: list[dict[str, object]]) -> None:
    """Write the Markdown table of all rows."""
    lines = [
        "# Memory and time of an export",
        "",
        "Peak memory is the exporting process's largest resident set; `idle` is what Python and libraries",
        "take before the export starts. Random or all-zero weights. Times include writing to the disk, on a",
        "machine shared with other work: take them as rough ones. `CPU, s` is all cores' time.",
        "",
        "| model | layers | precision | read, GB | written, GB | idle, MiB | **peak, MiB** | s | CPU, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["label"], row["decoder_layers"], row["precision"]]
        cells += [f"{row['checkpoint_gb']:.1f}", f"{row['bundle_gb']:.1f}", f"{row['idle_mib']:.0f}"]
        cells += [f"**{row['peak_mib']:.0f}**", f"{row['seconds']:.0f}"]
        cells += [f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    machines = sorted({str(row["machine"]) for row in rows})
    lines += ["", *(f"Machine: {name}." for name in machines), ""]
    (RESULTS / "export-memory.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--nearest", action="store_true", help="round to nearest, without calibration")
    parser.add_argument("--scratch", type=Path, required=True, help="folder with room for the bundle")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--keep", type=Path, help="move the bundle here instead of deleting it")
    parser.add_argument("--label", required=True, help="the model's name in the table")
    options = parser.parse_args()
    row = measure(
        options.checkpoint, options.precision, options.nearest, options.scratch, options.keep, options.label
    )
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "export-memory.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    key = ("label", "precision", "decoder_layers", "machine")
    rows = [old for old in rows if any(old[name] != row[name] for name in key)] + [row]
    file.write_text(json.dumps(rows, indent=2) + "\n")
    write_table(rows)
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
