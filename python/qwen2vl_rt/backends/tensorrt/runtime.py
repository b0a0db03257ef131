"""The engine call: an engine file opened on this machine's GPU, and one fixed way through it.

Everything that TensorRT itself does when a session runs is behind these two classes. `executors.py`
is written against them alone, so that it runs with another engine in their place, too.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from qwen2vl_rt.backends.device.steps import Tensor
from qwen2vl_rt.backends.tensorrt.description import EngineDescription
from qwen2vl_rt.backends.tensorrt.edition import Edition
from qwen2vl_rt.backends.tensorrt.engines import EngineFile
from qwen2vl_rt.backends.tensorrt.files import write_whole
from qwen2vl_rt.backends.tensorrt.logger import first_error
from qwen2vl_rt.errors import BackendError

ALIGNMENT = 256  # bytes, of every address bound: `IExecutionContext::setTensorAddress` asks for it


class Execution(Protocol):
    """An engine with a profile, scratch memory and a stream: what is bound once may be run many times."""

    def bind(self, tensors: Sequence[Tensor]) -> None:
        """Bind shapes and device addresses of inputs and outputs; those that it doesn't have are left.

        Raises:
            BackendError: it doesn't take one of them, or an address is no multiple of `ALIGNMENT`.
        """

    def enqueue(self) -> None:
        """Queue a run on the stream."""

    def capturable(self) -> bool:
        """Whether a run can be recorded in a CUDA graph, as it is bound now."""


class Engine(Protocol):
    """An engine on a device."""

    description: EngineDescription
    """What is written beside it: `engines.EngineFile.describe`."""
    scratch_bytes: int
    """Device memory that a run needs besides inputs and outputs."""

    def has(self, name: str) -> bool:
        """Whether it has an input or output of this name."""

    def execution(self, profile: str, scratch: tuple[int, int], *, fixed: bool) -> Execution:
        """A way through the engine.

        Args:
            profile: of `description.key.profiles`.
            scratch: address and size of `scratch_bytes` or more; one run at a time uses it.
            fixed: it is bound once and runs with these shapes only.
        """

    def keep_kernels(self) -> None:
        """Write kernels that were compiled where the engine runs beside it."""


class TensorRTExecution(Execution):
    """An execution context."""

    def __init__(self, engine: TensorRTEngine, context: Any, stream: int) -> None:
        self._engine = engine
        self._context = context
        self._stream = stream

    def bind(self, tensors: Sequence[Tensor]) -> None:
        """See `Execution`."""
        for tensor in tensors:
            name, shape, pointer = tensor[:3]
            if not self._engine.has(name):
                continue
            if not tensor.output and not self._context.set_input_shape(name, tuple(shape)):
                raise self._engine.failure(f"does not take {name} of shape {list(shape)}")
            if pointer % ALIGNMENT or not self._context.set_tensor_address(name, pointer):
                raise self._engine.failure(f"does not take {name} at address {pointer:#x}")
        try:
            unbound = self._context.infer_shapes()
        except RuntimeError as error:
            raise self._engine.failure(f"cannot infer its shapes ({error})") from error
        if unbound:
            raise self._engine.failure(f"has no value for {', '.join(unbound)}")

    def enqueue(self) -> None:
        """See `Execution`."""
        if not self._context.execute_async_v3(self._stream):
            raise self._engine.failure("failed")

    def capturable(self) -> bool:
        """See `Execution`."""
        ask = getattr(self._context, "is_stream_capturable", None)  # TensorRT for RTX's own
        return ask is None or bool(ask(self._stream))


class TensorRTEngine(Engine):
    """A deserialized engine.

    Args:
        edition: the TensorRT that built it.
        file: the engine and its description.
        stream: cudaStream_t of everything that it does.

    Raises:
        BackendError: TensorRT doesn't open it on this machine, or it isn't what its description says.
    """

    def __init__(self, edition: Edition, file: EngineFile, stream: int) -> None:
        self.description = file.describe()
        self._edition, self._file, self._stream = edition, file, stream
        trt = edition.module
        edition.logger.take()
        self._runtime = trt.Runtime(edition.logger)
        with open(file.path, "rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise self.failure("cannot be opened on this machine's GPU")
        engine = self._engine
        self._tensors = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        described = {tensor.name for tensor in self.description.tensors()}
        if described != self._tensors:
            differing = ", ".join(sorted(described ^ self._tensors))
            raise self.failure(f"and its description differ in {differing}")
        self.scratch_bytes = int(engine.device_memory_size_v2)
        self._cache = self._open_cache()

    def has(self, name: str) -> bool:
        """See `Engine`."""
        return name in self._tensors

    def execution(self, profile: str, scratch: tuple[int, int], *, fixed: bool) -> TensorRTExecution:
        """See `Engine`."""
        trt = self._edition.module
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is None:
            context = self._engine.create_execution_context(managed)
        else:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            config.set_runtime_cache(self._cache)
            # Kernels for the exact shapes before the first run where there will be no others, which a
            # recording keeps. Where shapes vary, the same general kernels always: LAZY would change them as
            # soon as better ones are compiled, so that one prompt had two answers and the self-check had run
            # others than the session; EAGER would compile for every prompt's length and picture's size.
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = (
                strategies.EAGER if fixed else strategies.NONE
            )
            context = self._engine.create_execution_context(config)
        if context is None:
            raise self.failure("has no execution context")
        context.set_device_memory(*scratch)
        index = [one.name for one in self.description.key.profiles].index(profile)
        if not context.set_optimization_profile_async(index, self._stream):
            raise self.failure(f"has no profile {profile!r}")
        return TensorRTExecution(self, context, self._stream)

    def keep_kernels(self) -> None:
        """See `Engine`; where they can't be had or written, they are compiled again next time."""
        serialized = self._cache.serialize() if self._cache is not None else None
        if serialized is None:
            return
        compiled = bytes(memoryview(serialized))
        if compiled and compiled != self._kept:
            try:
                write_whole(self._cache_path, compiled)
                self._kept = compiled
            except OSError:
                return

    def failure(self, problem: str) -> BackendError:
        """An error about this engine, with TensorRT's own words where it had any."""
        reason = first_error(self._edition.logger.take())
        return BackendError(
            f"{self._edition}: the engine {self._file.path} {problem}" + (f": {reason}" if reason else "")
        )

    @property
    def _cache_path(self) -> Path:
        return self._file.path.with_suffix(".kernels")

    def _open_cache(self) -> Any:
        """TensorRT for RTX compiles kernels where the engine runs, and keeps them in this cache."""
        self._kept = b""
        config = self._engine.create_runtime_config() if self._edition.compiles_at_run_time else None
        if config is None:
            return None
        cache = config.create_runtime_cache()
        if self._cache_path.is_file():
            kept = self._cache_path.read_bytes()
            if cache.deserialize(kept):  # else they are another GPU's or driver's
                self._kept = kept
        return cache
