"""Build full-size TensorRT engines without a GPU and record time, peak memory and size.

    python -m bench.tensorrt_build --gpu sm89 --json bench/results/tensorrt-build.json

Weights are arbitrary numbers in the 2B model's shapes: what a build takes does not depend on them. Each
engine is built in a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from qwen2vl_export.decoder import decoder_graph
from qwen2vl_export.vision import vision_graph
from qwen2vl_rt.geometry import DecoderGeometry, Geometry, SpecialIds, VisionGeometry
from qwen2vl_rt.lowering.tensorrt import Form, lower_decoder, lower_vision
from qwen2vl_rt.plan import GIB, SessionLimits
from qwen2vl_rt.tensorrt.builder import build_engine
from qwen2vl_rt.tensorrt.edition import find_edition
from qwen2vl_rt.tensorrt.network import Network
from qwen2vl_rt.tensorrt.profiles import decoder_profiles, vision_profiles
from qwen2vl_rt.tensorrt.target import choose_target
from tests.support.shaped_graphs import shaped

DECODER = DecoderGeometry(1536, 28, 12, 2, 128, 8960, 151936, 1e6, (16, 24, 24), 1e-6, tied_embedding=True)
VISION = VisionGeometry(32, 1280, 16, 5120, 14, 2, 2, 3)
GEOMETRY = Geometry(DECODER, VISION, SpecialIds(151655, 151656, 151652, 151653, (151645,), 151643))
LIMITS = SessionLimits(max_length=4096, max_batch=1, max_pixels=16384 * 14 * 14, prefill_chunk=512)
ENGINES = [
    ("decoder", "bf16", "mask"),
    ("decoder", "int4", "mask"),
    ("vision", "bf16", "mask"),
    ("vision", "int8", "mask"),
    ("decoder", "int8", "mask"),
    ("decoder", "bf16", "lengths"),
]


def build(graph: str, precision: str, attention: str, gpu: str) -> dict:
    """Build one engine in this process; its figures."""
    edition = find_edition()
    form = Form("bf16", attention)
    if graph == "decoder":
        model, weights = shaped(decoder_graph(DECODER, precision))
        lower_decoder(model, weights, GEOMETRY, form, LIMITS.max_length)
        profiles = decoder_profiles(DECODER, LIMITS, ("prefill", "decode"))
    else:
        model, weights = shaped(vision_graph(VISION, DECODER.hidden_size, precision))
        lower_vision(model, weights, GEOMETRY, form)
        profiles = vision_profiles(VISION, LIMITS)
    network = Network(edition, model, weights)
    if graph == "decoder" and attention == "lengths":
        network.align_attention()
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder, "engine")
        figures = build_engine(network, choose_target(gpu, edition), profiles, graph, engine)
    cpu_seconds = time.process_time() - started
    names = {tensor.name for tensor in model.graph.initializer}
    stored = sum(array.nbytes for name, array in weights.items() if name in names)
    return {
        "graph": graph,
        "precision": precision,
        "attention": attention,
        "gpu": gpu,
        "edition": str(edition),
        "stored_bytes": stored,
        "profiles": [profile.name for profile in profiles],
        **asdict(figures),
        "cpu_seconds": cpu_seconds,
    }


def row(report: dict) -> str:
    """One line of the table."""
    name = f"{report['graph']}, {report['precision']}"
    if report["graph"] == "decoder":
        name += f", `{report['attention']}`"
    scratch = ", ".join(
        f"{size / (1 << 20):.0f} MiB {profile}"
        for profile, size in zip(report["profiles"], report["activation_bytes"], strict=True)
    )
    took = f"{report['seconds']:.0f} s ({report['cpu_seconds']:.0f} s)"
    sizes = [f"{report[name] / GIB:.2f} GiB" for name in ("peak_bytes", "stored_bytes", "engine_bytes")]
    return f"| {' | '.join([name, took, *sizes, scratch])} |"


def main() -> None:
    """Build all, one process each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="sm89")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs=3, metavar=("GRAPH", "PRECISION", "ATTENTION"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(build(*options.one, options.gpu)))
        return
    reports = []
    print(
        "| engine | time (of the CPU) | peak memory | weights | engine | scratch |\n|---|---|---|---|---|---|"
    )
    for engine in ENGINES:
        command = [sys.executable, "-m", "bench.tensorrt_build", "--gpu", options.gpu, "--one", *engine]
        reports.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        print(row(reports[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
