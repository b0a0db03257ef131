"""From a parsed network to an engine file: profiles, progress, errors in words, figures."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen2vl_rt.backends.tensorrt.build_memory import limit_workspace
from qwen2vl_rt.backends.tensorrt.description import Figures
from qwen2vl_rt.backends.tensorrt.logger import ACTIVATIONS, WEIGHTS, figures, first_error
from qwen2vl_rt.backends.tensorrt.network import Network
from qwen2vl_rt.backends.tensorrt.profiles import Profile
from qwen2vl_rt.backends.tensorrt.target import Target, configure
from qwen2vl_rt.backends.tensorrt.timing import keep_timings, use_timings
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.peak_memory import peak_memory, reset_peak
from qwen2vl_rt.progress import progress_bar


def build_engine(
    network: Network,
    target: Target,
    profiles: Sequence[Profile],
    title: str,
    file: Path,
    timings: Path | None = None,
) -> Figures:
    """Build and write one engine.

    Args:
        network: parsed and patched.
        target: the GPUs that it is for.
        profiles: ranges of the inputs' shapes.
        title: what the progress bar calls it.
        file: where the engine goes.
        timings: the edition's timing cache (`timing.timing_file`).

    Raises:
        BackendError: TensorRT refuses, in its own words.
        KeyboardInterrupt: Ctrl-C, after TensorRT has stopped.
    """
    edition, trt = network.edition, network.edition.module
    config = network.builder.create_builder_config()
    configure(config, target, edition)
    limit_workspace(config, edition, network.weights_bytes)
    for profile in profiles:
        config.add_optimization_profile(_profile(network.builder, profile))
    if timings:
        use_timings(config, timings)
    edition.logger.take()
    reset_peak()
    started = time.perf_counter()
    with progress_bar(title, 1) as bar:
        monitor = _monitor(trt, bar)
        config.progress_monitor = monitor
        with _stopped_by_ctrl_c(monitor):
            engine = network.builder.build_serialized_network(network.network, config)
    messages = edition.logger.take()
    if monitor.interrupted:
        raise KeyboardInterrupt
    if engine is None:
        problem = first_error(messages) or "TensorRT gives no reason"
        raise BackendError(f"{edition} cannot build {title} for {target.name}: {problem}")
    file.write_bytes(engine)
    if timings:
        keep_timings(config, timings)
    weights = figures(messages, WEIGHTS)
    return Figures(
        seconds=time.perf_counter() - started,
        peak_bytes=peak_memory(),
        engine_bytes=engine.nbytes,
        weights_bytes=weights[-1] if weights else None,
        activation_bytes=tuple(figures(messages, ACTIVATIONS)),
    )


def _profile(builder: Any, profile: Profile) -> Any:
    result = builder.create_optimization_profile()
    for name, shapes in profile.shapes.items():
        result.set_shape(name, *shapes)
    return result


def _monitor(trt: Any, bar: Any) -> Any:
    """TensorRT's phases on one bar, whose end moves as they begin; `interrupted` stops the build."""

    class _Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            bar.total += steps
            bar.set_postfix_str(phase, refresh=False)

        def step_complete(self, phase: str, step: int) -> bool:
            bar.update()
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            pass

    return _Monitor()


@contextmanager
def _stopped_by_ctrl_c(monitor: Any) -> Iterator[None]:
    """Ctrl-C becomes a request to stop: an exception must not pass through TensorRT's own frames."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return

    def stop(*_signal: object) -> None:
        monitor.interrupted = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
