"""A bundle's engines on this machine: found, opened on a GPU of its own stream, checked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qwen2vl_rt.backends import cuda
from qwen2vl_rt.backends.tensorrt.build import build_engines
from qwen2vl_rt.backends.tensorrt.check import checked
from qwen2vl_rt.backends.tensorrt.engines import EngineFile
from qwen2vl_rt.backends.tensorrt.executors import Engines
from qwen2vl_rt.backends.tensorrt.find import EngineSet
from qwen2vl_rt.backends.tensorrt.runtime import TensorRTEngine
from qwen2vl_rt.backends.tensorrt.target import choose_target
from qwen2vl_rt.bundle import Bundle


def load_engines(bundle: Bundle, candidates: Sequence[EngineSet], threads: int) -> Engines:
    """The best engines whose numbers are right here, on a stream of their own.

    Raises:
        EngineRefusedError: the self-check fails on all of them.
        BackendError: TensorRT doesn't open them.
    """
    module = cuda.load()
    stream = module.Stream()
    target = module.CudaDevice(stream)

    def open_engines(chosen: EngineSet) -> Engines:
        def open_engine(file: EngineFile) -> TensorRTEngine:
            return TensorRTEngine(chosen.edition, file, stream.handle)

        return Engines.open(chosen, target, open_engine)

    build = build_masked(bundle)
    _, engines = checked(bundle, candidates, machine_name(), open_engines, build, threads)
    engines.keep_kernels()
    return engines


def build_masked(bundle: Bundle) -> Callable[[EngineSet], EngineSet]:
    """A function that builds the decoders of an engine set again, with a mask in the graph."""

    def build(chosen: EngineSet) -> EngineSet:
        key, edition = chosen.decoder, chosen.edition
        folder: Path = chosen.files["decoder"].path.parent
        built = build_engines(
            bundle,
            edition,
            choose_target(key.target, edition),
            chosen.limits,
            attention="mask",
            number_format=key.form.number_format,
            fp8=key.form.fp8,
            output=folder,
        )
        return EngineSet.of(bundle, edition, {one.graph: one.file for one in built})

    return build


def machine_name() -> str:
    """The GPU and the driver: a check holds for both."""
    info = cuda.load().device_info()
    return f"{info.name}, CUDA driver {info.driver_version}"
