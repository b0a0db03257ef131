"""The GPU of these tests may be one that the CPU emulates (tests/emulated_cuda, `make test-emulated`)."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable

from qwen2vl_rt.backends import cuda


def is_emulated() -> bool:
    """Whether this installation's CUDA half was built for the emulated GPU."""
    return cuda.status().devices > 0 and cuda.load().device_info().name == "Emulated GPU"


def share_memory(shared: bool) -> None:
    """Let the host read and write the emulated GPU's memory, for an engine that computes on the CPU."""
    if is_emulated():
        ctypes.CDLL(cuda.load().__file__).emulated_cuda_share(int(shared))


def idle(idle: bool) -> None:
    """Kernels and products don't run: for what is around them."""
    if is_emulated():
        ctypes.CDLL(cuda.load().__file__).emulated_cuda_idle(int(idle))


def launches() -> int:
    """Kernels that have been launched or recorded so far."""
    function = ctypes.CDLL(cuda.load().__file__).emulated_cuda_launches
    function.restype = ctypes.c_uint64
    return function()


def select(number: int) -> None:
    """The calling thread works on another of the emulated GPUs, as other code of a program may."""
    assert ctypes.CDLL(cuda.load().__file__).emulated_cuda_select(number) == 0


def selected() -> int:
    """The emulated GPU that the calling thread works on."""
    return ctypes.CDLL(cuda.load().__file__).emulated_cuda_selected()


def queue_on(stream: int) -> Callable[[Callable[[], None]], None]:
    """What queues calls of Python's on an emulated stream, where a recording repeats them."""
    library = ctypes.CDLL(cuda.load().__file__)
    kind, kept = ctypes.CFUNCTYPE(None), []

    def queue(function: Callable[[], None]) -> None:
        kept.append(kind(function))  # recordings call them for as long as they live
        assert library.emulated_cuda_call(ctypes.c_void_p(stream), kept[-1]) == 0

    return queue


def is_recorded(stream: int) -> bool:
    """Whether what is queued on an emulated stream is recorded now."""
    return bool(ctypes.CDLL(cuda.load().__file__).emulated_cuda_recorded(ctypes.c_void_p(stream)))


def driver() -> ctypes.CDLL:
    """CUDA's driver, or what stands in for it."""
    return ctypes.CDLL(cuda.load().__file__ if is_emulated() else "libcuda.so.1")


def examples() -> list[str]:
    """The names of the kernels that have a mistake (tests/emulated_cuda/access_examples.cu)."""
    if not is_emulated():
        return []
    name_of = ctypes.CDLL(cuda.load().__file__).emulated_cuda_example_name
    name_of.restype = ctypes.c_char_p
    return [name.decode() for name in iter(map(name_of, itertools.count()).__next__, None)]


def run_example(number: int, wrong: bool) -> str:
    """What the emulated GPU says of an example with its mistake, or without; empty when it finds nothing."""
    report = ctypes.create_string_buffer(2048)
    run = ctypes.CDLL(cuda.load().__file__).emulated_cuda_example
    run(ctypes.c_size_t(number), int(wrong), report, ctypes.c_size_t(len(report)))
    return report.value.decode()
