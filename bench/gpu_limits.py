"""Measure a GPU's own limits, and name the machine. `make bench-gpu` runs this as a stage.

    python -m bench.gpu_limits --output limits.json

The bandwidth that bounds decode is a copy's, bytes read and written; the matrix rate is that of PyTorch's
bfloat16 product of 8192^3 random numbers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import statistics
import subprocess
import time
from pathlib import Path

from bench.gpu_figures import write_json
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.benchmark.timing import seconds
from qwen2vl_rt.cli.info import installed_onnxruntime


def copy_bandwidth() -> float:
    """Bytes a second that a device-to-device copy of 1 GiB reads and writes."""
    module = cuda.load()
    stream, size = module.Stream(), 1 << 30
    buffers = [module.DeviceBuffer(size) for _ in range(2)]
    start, end = module.Event(timing=True), module.Event(timing=True)
    seconds = []
    for _ in range(10):
        start.record(stream)
        module.copy_on_device(buffers[1].pointer, buffers[0].pointer, size, stream)
        end.record(stream)
        end.synchronize()
        seconds.append(end.milliseconds_since(start) / 1e3)
    return 2 * size / statistics.median(seconds[2:])


def matrix_rate() -> float | None:
    """bfloat16 FLOP/s of PyTorch's matrix product on random numbers; None without PyTorch for this GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        a @ b
        torch.cuda.synchronize()

    warm = time.perf_counter() + 0.5  # an idle GPU's clock takes its time
    while time.perf_counter() < warm:
        multiply()
    return 2 * 8192**3 / statistics.median(seconds(multiply) for _ in range(50))


def machine() -> dict[str, object]:
    """What ran: GPU, driver, versions."""
    info = cuda.load().device_info()
    version, distribution = installed_onnxruntime()
    versions = {"onnxruntime": version and f"{version} ({distribution})"}
    packages = ("tensorrt", "tensorrt_rtx", "torch", "transformers", "numpy")
    for package in ("qwen2vl_rt", *packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = None
    return {
        "gpu": info.name,
        "compute_capability": info.compute_capability / 10,
        "memory_bytes": info.total_bytes,
        "driver": driver,
        "cuda_driver": info.driver_version,
        "toolkit": cuda.status().toolkit,
        "python": platform.python_version(),
        **versions,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    options = parser.parse_args()
    rates = {"copy_bytes_per_second": copy_bandwidth(), "matrix_flops": matrix_rate()}
    write_json(options.output, {"machine": machine(), "limits": rates})


if __name__ == "__main__":
    main()
