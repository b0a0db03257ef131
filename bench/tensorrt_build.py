"""Build full-size TensorRT engines without a GPU and record time, peak memory and size.

    python -m bench.tensorrt_build --gpu sm89 --json bench/results/tensorrt-build.json

writes the table beside the JSON file, too, after each engine. Weights are arbitrary numbers in the 2B model's
shapes: what a build takes does not depend on them. Each engine is built in a process of its own, so that its
peak is its own. `--layers 2` cuts the graphs, to see that all is in order.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from bench.export_memory import machine
from bench.shaped_graphs import shaped
from qwen2vl_export.decoder import decoder_graph
from qwen2vl_export.vision import vision_graph
from qwen2vl_rt.backends.tensorrt.build import lower_graph
from qwen2vl_rt.backends.tensorrt.builder import build_engine
from qwen2vl_rt.backends.tensorrt.edition import find_edition
from qwen2vl_rt.backends.tensorrt.network import Network
from qwen2vl_rt.backends.tensorrt.target import choose_target
from qwen2vl_rt.geometry import DecoderGeometry, Geometry, SpecialIds, VisionGeometry
from qwen2vl_rt.lowering.tensorrt import Form
from qwen2vl_rt.session_limits import SessionLimits

DECODER = DecoderGeometry(1536, 28, 12, 2, 128, 8960, 151936, 1e6, (16, 24, 24), 1e-6, tied_embedding=True)
VISION = VisionGeometry(32, 1280, 16, 5120, 14, 2, 2, 3)
IDS = SpecialIds(151655, 151656, 151652, 151653, (151645,), 151643)
LIMITS = SessionLimits(max_length=4096, max_batch=1, max_pixels=16384 * 14 * 14, prefill_chunk=512)
ENGINES = [
    ("decoder", "bf16", "mask"),
    ("decoder", "int4", "mask"),
    ("vision", "bf16", "mask"),
    ("vision", "int8", "mask"),
    ("decoder", "int8", "mask"),
    ("decoder", "bf16", "lengths"),
]
# Seconds, GB of peak memory, GB of the engine: graphs of these shapes written by hand, measured once before
# this builder existed, on another machine.
BEFORE = {
    ("decoder", "bf16"): ("20-31 s", "9.4", "3.1"),
    ("decoder", "int4"): ("14-31 s", "4-5", "1.17"),
    ("vision", "bf16"): ("8-11 s", "", "1.34"),
}
COLUMNS = (
    "engine",
    "time (of the CPU)",
    "before",
    "peak memory, GB",
    "before",
    "the bundle's weights, GB",
    "engine, GB",
    "before",
    "engine / weights",
    "scratch, MB",
)


def build(graph: str, precision: str, attention: str, gpu: str, layers: int | None) -> dict:
    """Build one engine in this process, of the first `layers` layers only if given; its figures."""
    edition = find_edition()
    form = Form("bf16", attention)
    decoder = replace(DECODER, layers=layers or DECODER.layers)
    vision = replace(VISION, depth=layers or VISION.depth)
    geometry = Geometry(decoder, vision, IDS)
    if graph == "decoder":
        portable = decoder_graph(decoder, precision)
    else:
        portable = vision_graph(vision, decoder.hidden_size, precision)
    model, weights = shaped(portable)
    profiles = lower_graph(graph, model, weights, geometry, LIMITS, form)
    network = Network(edition, model, weights)
    if attention == "lengths":
        network.align_attention()
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder, "engine")
        figures = build_engine(network, choose_target(gpu, edition), profiles, graph, engine)
    return {
        "graph": graph,
        "precision": precision,
        "attention": attention,
        "layers": layers,
        "gpu": gpu,
        "edition": str(edition),
        "bundle_weights_bytes": sum(weight.nbytes for weight in portable.weights),
        "profiles": [profile.name for profile in profiles],
        **asdict(figures),
        "cpu_seconds": time.process_time() - started,
        "machine": machine(),
        "busy": os.getloadavg()[0],
    }


def table(reports: list[dict]) -> str:
    """Markdown."""
    busy = max(report["busy"] for report in reports)
    lines = [
        "# TensorRT engines of the 2B shapes, built without a GPU",
        "",
        "`python -m bench.tensorrt_build`: cache of 4,096 positions, one row, prompts in chunks of 512",
        "tokens, pictures of up to 16,384 patches; bfloat16 around the matrices. `before`: graphs of these",
        "shapes written by hand and built once on another machine, before this builder existed. Peak memory",
        "includes the weights that are built from. An engine is larger than its weights by the sources of",
        "its kernels, which TensorRT for RTX compiles where it runs: some 2 MB a layer in int8.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(_row(report) for report in reports),
        "",
        *(
            f"{edition}, for {gpu}{f', {layers} layers only' if layers else ''}. Machine: {name}."
            for edition, gpu, layers, name in dict.fromkeys(
                (report["edition"], report["gpu"], report["layers"], report["machine"]) for report in reports
            )
        ),
        f"Load average up to {busy:.1f}: beyond 1, other work ran beside the builds and made them longer.",
        "",
    ]
    return "\n".join(lines)


def _row(report: dict) -> str:
    name = f"{report['graph']}, {report['precision']}"
    if report["graph"] == "decoder":
        name += f", `{report['attention']}`"
    seconds, peak, size = BEFORE.get((report["graph"], report["precision"]), ("", "", ""))
    weights, engine = report["bundle_weights_bytes"], report["engine_bytes"]
    scratch = ", ".join(
        f"{size / 1e6:.0f} {profile}"
        for profile, size in zip(report["profiles"], report["activation_bytes"], strict=True)
    )
    cells = [
        name,
        f"{report['seconds']:.0f} s ({report['cpu_seconds']:.0f} s)",
        seconds,
        f"{report['peak_bytes'] / 1e9:.1f}",
        peak,
        f"{weights / 1e9:.2f}",
        f"{engine / 1e9:.2f}",
        size,
        f"{engine / weights:.3f}",
        scratch,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Build all, one process each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="sm89")
    parser.add_argument("--json", type=Path, metavar="FILE", help="and the table in FILE with .md for .json")
    parser.add_argument("--layers", type=int, metavar="N", help="this many layers and blocks only")
    parser.add_argument("--one", nargs=3, metavar=("GRAPH", "PRECISION", "ATTENTION"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(build(*options.one, options.gpu, options.layers)))
        return
    reports: list[dict] = []
    cut = [] if options.layers is None else ["--layers", str(options.layers)]
    for engine in ENGINES:
        command = [sys.executable, "-m", "bench.tensorrt_build", "--gpu", options.gpu, *cut, "--one", *engine]
        reports.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        print(_row(reports[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(reports, indent=1) + "\n")
            options.json.with_suffix(".md").write_text(table(reports))


if __name__ == "__main__":
    main()
