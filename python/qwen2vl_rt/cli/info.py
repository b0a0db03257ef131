"""`qwen2vl info`: what a bundle holds, what it needs, and what this machine can run it on."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen2vl_rt import __version__
from qwen2vl_rt.cli.output import print_json
from qwen2vl_rt.cli.session_options import add_session_options
from qwen2vl_rt.errors import BackendError

if TYPE_CHECKING:
    from qwen2vl_rt.backends.backend import Backend
    from qwen2vl_rt.bundle import Bundle
    from qwen2vl_rt.plan import MemoryPlan
    from qwen2vl_rt.session_limits import AskedLimits


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser("info", help="geometry, sizes and memory plan of a bundle; what runs here")
    parser.add_argument("bundle", type=Path, nargs="?", help="folder that qwen2vl-export wrote")
    parser.add_argument("--verify", action="store_true", help="check every file's SHA-256")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="largest picture to plan for")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    session = add_session_options(parser)
    session.add_argument(
        "--max-batch", type=int, default=1, metavar="N", help="answers generated side by side (1)"
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Print the report."""
    from qwen2vl_rt.bundle import Bundle
    from qwen2vl_rt.options import check_session_options
    from qwen2vl_rt.progress import progress_bar
    from qwen2vl_rt.session_limits import AskedLimits

    check_session_options(memory_limit=options.memory_limit, threads=options.threads)
    bundle = None if options.bundle is None else Bundle.open(options.bundle)
    asked = AskedLimits(options.max_length, options.max_batch, options.max_pixels)
    runtime, backend = _runtime(options.backend, bundle, asked)
    report: dict[str, Any] = {"runtime": runtime}
    plan = None
    if bundle is not None:
        if options.verify:
            total = sum(entry.size for entry in bundle.files.values())
            with progress_bar("verify", total, unit="B") as bar:
                bundle.verify(bar.update)
        plan = _plan(bundle, backend, asked, options)
        report["bundle"] = {
            "path": str(bundle.path),
            "name": bundle.name,
            "precision": bundle.precision,
            "verified": options.verify,
            "files": {name: entry.size for name, entry in bundle.files.items()},
            "geometry": bundle.geometry.to_json(),
        }
        report["plan"] = plan and plan.to_json() | {"fits": plan.total <= plan.limit}
    if options.json:
        print_json(report)
    else:
        _print(report, plan, options.backend)
    return 0


def _runtime(name: str, bundle: Bundle | None, asked: AskedLimits) -> tuple[dict[str, Any], Backend | None]:
    """What is installed, and the backend that a session would have; None where something is missing.

    Raises:
        BackendError: the name is unknown.
    """
    from qwen2vl_rt.backends import cuda
    from qwen2vl_rt.backends.select import NAMES, select_backend

    report = {
        "qwen2vl_rt": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    report["onnxruntime"], report["onnxruntime_distribution"] = installed_onnxruntime()
    report["numpy"] = importlib.metadata.version("numpy")
    chosen = None
    try:
        chosen = select_backend(name, bundle, asked)
        report["backend"] = {"name": chosen.name, "reason": chosen.reason}
    except BackendError as error:
        if name not in NAMES:
            raise
        report["backend"] = {"name": None, "reason": str(error)}
    report["cuda"] = vars(cuda.status())
    return report, chosen


def _plan(
    bundle: Bundle, backend: Backend | None, asked: AskedLimits, options: argparse.Namespace
) -> MemoryPlan | None:
    """A session's memory; None for a GPU that can't be used: the CPU's plan is not what was asked for."""
    from qwen2vl_rt.backends.cpu.backend import CpuBackend

    if backend is None and options.backend in ("cuda", "tensorrt"):
        return None
    return (backend or CpuBackend("")).plan(bundle, asked.for_bundle(bundle), options.memory_limit)


def installed_onnxruntime() -> tuple[str | None, str | None]:
    """The version of ONNX Runtime that is imported here, and its distribution: "onnxruntime" or
    "onnxruntime-gpu". Both may be installed, whose files have the same names; None where none is.
    """
    try:
        about = importlib.import_module("onnxruntime.capi.build_and_package_info")
    except ImportError:
        return None, None
    return about.__version__, about.package_name


def _print(report: dict[str, Any], plan: MemoryPlan | None, asked: str) -> None:
    from qwen2vl_rt.plan import MIB

    runtime = report["runtime"]
    backend = runtime["backend"]
    engine = "not installed"
    if runtime["onnxruntime"]:
        engine = f"{runtime['onnxruntime']} ({runtime['onnxruntime_distribution']})"
    print(f"qwen2vl_rt {runtime['qwen2vl_rt']}, ONNX Runtime {engine}, {runtime['machine']}")
    print(f"backend: {backend['name'] or 'none'} ({backend['reason']})")
    print(f"CUDA kernels: {_cuda_line(runtime['cuda'])}")
    if "bundle" not in report:
        return
    bundle = report["bundle"]
    decoder, vision = bundle["geometry"]["decoder"], bundle["geometry"]["vision"]
    print(f"\n{bundle['name']}, {bundle['precision']}{', hashes verified' if bundle['verified'] else ''}")
    print(
        f"decoder: {decoder['layers']} layers of {decoder['hidden_size']}, {decoder['heads']} heads "
        f"({decoder['kv_heads']} kv) of {decoder['head_dim']}, vocabulary {decoder['vocab_size']}"
    )
    print(f"vision: {vision['depth']} layers of {vision['embed_dim']}, {vision['heads']} heads")
    for name, size in bundle["files"].items():
        print(f"  {name:<28} {size / MIB:>10.2f} MiB")
    if plan is None:
        print(f"\nno memory plan: {backend['reason']}")
        return
    limits = plan.limits
    print(f"\nmemory plan for max_length {limits.max_length}, max_batch {limits.max_batch}, ", end="")
    print(f"max_pixels {limits.max_pixels}:\n{plan}")
    if not report["plan"]["fits"]:
        passed_over = asked == "auto" and backend["name"] == "tensorrt"
        what = "These engines would be passed over" if passed_over else "This session would be refused"
        print(f"{what} here.", file=sys.stderr)


def _cuda_line(status: dict[str, Any]) -> str:
    if not status["built"]:
        return status["reason"]
    architectures = ", ".join(f"{number // 10}.{number % 10}" for number in status["architectures"])
    built = f"CUDA {status['toolkit']}, for compute capability {architectures}"
    return f"{built}; {status['reason'] or str(status['devices']) + ' GPU(s) here'}"
