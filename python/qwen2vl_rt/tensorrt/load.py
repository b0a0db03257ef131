"""A bundle's engines on this machine: found, opened on a GPU of its own stream, checked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qwen2vl_rt import cuda
from qwen2vl_rt.bundle import Bundle
from qwen2vl_rt.executors.cuda_frames import cuda_frames
from qwen2vl_rt.executors.opened import Opened
from qwen2vl_rt.executors.tensorrt import Engines, TensorRTVision, tensorrt_decoder
from qwen2vl_rt.session_limits import SessionLimits
from qwen2vl_rt.tensorrt.build import build_engines
from qwen2vl_rt.tensorrt.check import checked
from qwen2vl_rt.tensorrt.engines import EngineFile
from qwen2vl_rt.tensorrt.find import EngineSet
from qwen2vl_rt.tensorrt.runtime import TensorRTEngine
from qwen2vl_rt.tensorrt.target import choose_target


def open_tensorrt(
    bundle: Bundle, limits: SessionLimits, candidates: Sequence[EngineSet], threads: int
) -> Opened:
    """A bundle's executors on the best engines that are right here. Raises as `load_engines` does."""
    engines = load_engines(bundle, candidates, threads)
    return Opened(
        tensorrt_decoder(bundle, limits, engines)[0],
        TensorRTVision(bundle, engines),
        device=engines.device,
        frames=cuda_frames(engines.dtype),
        keep=engines.keep_kernels,
    )


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
