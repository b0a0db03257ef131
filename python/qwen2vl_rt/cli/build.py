"""`qwen2vl build`: TensorRT engines of a bundle, for this GPU or another."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen2vl_rt.backends.tensorrt import ATTENTION_FORMS
from qwen2vl_rt.backends.tensorrt.target import PORTABLE, THIS
from qwen2vl_rt.cli.output import print_json

if TYPE_CHECKING:
    from qwen2vl_rt.backends.tensorrt.build import Built
    from qwen2vl_rt.bundle import Bundle
    from qwen2vl_rt.session_limits import SessionLimits


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser("build", help="build TensorRT engines of a bundle, with or without the GPU")
    parser.add_argument("bundle", type=Path, help="folder that qwen2vl-export wrote")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--gpu", metavar="SM", help="a GPU architecture, such as sm89")
    target.add_argument(
        "--portable", action="store_const", dest="gpu", const=PORTABLE, help="any GPU from SM 8.0 on"
    )
    target.add_argument(
        "--this", action="store_const", dest="gpu", const=THIS, help="the GPU of this machine (default)"
    )
    parser.add_argument(
        "--edition", metavar="NAME", help="tensorrt or tensorrt_rtx; what is installed if left out"
    )
    parser.add_argument("--max-length", type=int, metavar="N", help="positions of the KV cache")
    parser.add_argument(
        "--max-batch", type=int, default=1, metavar="N", help="answers generated side by side"
    )
    parser.add_argument("--max-pixels", type=int, metavar="N", help="largest picture after resizing")
    parser.add_argument("--prefill-chunk", type=int, metavar="N", help="prompt tokens a step")
    parser.add_argument(
        "--arithmetic",
        choices=("fp32", "bf16", "fp16"),
        help="number format around the matrices: a bf16 or fp16 bundle's own; else bf16, or fp16 on sm75",
    )
    parser.add_argument(
        "--fp8", action="store_true", help="products of 8-bit floats, from an unquantized bundle; SM 8.9 on"
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTION_FORMS,
        help="how the decoder's attention is told what to see (docs/tensorrt.md)",
    )
    parser.add_argument(
        "--expected",
        action="store_true",
        help="build nothing: compute the self-check's values on the CPU, for a machine without ONNX Runtime",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the engines (BUNDLE/engines)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(execute=execute, gpu=THIS)


def execute(options: argparse.Namespace) -> int:
    """Build and print what was built."""
    from qwen2vl_rt.backends.tensorrt.build import build_engines, choose_format
    from qwen2vl_rt.backends.tensorrt.edition import find_edition
    from qwen2vl_rt.backends.tensorrt.target import choose_target
    from qwen2vl_rt.bundle import Bundle
    from qwen2vl_rt.session_limits import PREFILL_CHUNK, AskedLimits

    bundle = Bundle.open(options.bundle)
    prefill_chunk = PREFILL_CHUNK if options.prefill_chunk is None else options.prefill_chunk
    limits = AskedLimits(options.max_length, options.max_batch, options.max_pixels, prefill_chunk).for_bundle(
        bundle
    )
    if options.expected:
        return _expected(options, bundle, limits)
    edition = find_edition(options.edition)
    target = choose_target(options.gpu, edition)
    number_format = choose_format(bundle, target, options.arithmetic)
    if not options.json:
        print(f"{edition} builds {bundle.name} ({bundle.precision}) for {target.name}", flush=True)
        if bundle.precision == "fp32" and options.arithmetic is None:
            print(f"computes in {number_format}: --arithmetic names another format", flush=True)
    built = build_engines(
        bundle,
        edition,
        target,
        limits,
        attention=options.attention,
        number_format=number_format,
        fp8=options.fp8,
        output=options.output,
        on_engine=None if options.json else lambda engine: print(describe(engine), flush=True),
    )
    if options.json:
        engines = {engine.graph: str(engine.file.path) for engine in built}
        about = {"edition": str(edition), "target": target.name, "arithmetic": number_format}
        print_json(about | {"engines": engines})
    return 0


def _expected(options: argparse.Namespace, bundle: Bundle, limits: SessionLimits) -> int:
    """Keep the self-check's values and print where they are."""
    from qwen2vl_rt.backends.tensorrt.build import check_length, choose_format
    from qwen2vl_rt.backends.tensorrt.check_files import expected_file, keep_expected
    from qwen2vl_rt.backends.tensorrt.engines import FOLDER
    from qwen2vl_rt.backends.tensorrt.profiles import SHORTEST
    from qwen2vl_rt.backends.tensorrt.target import named_target
    from qwen2vl_rt.errors import BackendError

    check_length(limits)
    limits = replace(limits, prefill_chunk=max(limits.prefill_chunk, SHORTEST))  # as engines have it
    target = named_target(options.gpu)
    number_format = choose_format(bundle, target, options.arithmetic)
    folder = options.output or bundle.path / FOLDER
    try:
        values = keep_expected(bundle, limits, number_format, folder)
    except ImportError as error:
        raise BackendError(f"The cpu backend computes these values, and is missing here: {error}") from error
    file = expected_file(bundle, limits, number_format, folder)
    if not file.is_file():  # a session does without: it computes them again
        raise BackendError(f"Cannot write {file}; name another --output.")
    counts = {name: len(arrays) for name, arrays in values.items()}
    if options.json:
        about = {"target": target.name, "arithmetic": number_format}
        print_json(about | {"expected": str(file), "values": counts})
    else:
        print(f"{file}\nfor the self-check of {target.name} engines that compute in {number_format}:")
        print(", ".join(f"{count} of {name}" for name, count in counts.items()))
    return 0


def describe(engine: Built) -> str:
    """One engine in two lines: where it is, what the build took."""
    from qwen2vl_rt.plan import GIB, MIB

    figures, profiles = engine.description.figures, engine.description.key.profiles
    parts = [f"{figures.engine_bytes / MIB:.1f} MiB"]
    sizes = figures.activation_bytes
    if len(sizes) == len(profiles):
        each = zip(profiles, sizes, strict=True)
        parts += [f"{profile.name} needs {size / MIB:.1f} MiB more" for profile, size in each]
    elif sizes:
        parts.append(f"needs up to {max(sizes) / MIB:.1f} MiB more")
    if engine.reused:
        parts.append("was there already")
    else:
        parts.append(f"built in {figures.seconds:.1f} s with {figures.peak_bytes / GIB:.2f} GiB")
    return f"{engine.graph:<8} {engine.file.path}\n{'':<8} {', '.join(parts)}"
