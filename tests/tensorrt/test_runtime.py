"""The engine call against a double of TensorRT's runtime, and against TensorRT for RTX where no GPU is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qwen2vl_rt.backends.device.steps import Tensor
from qwen2vl_rt.backends.tensorrt.description import EngineDescription, EngineKey, EngineTensor, Figures
from qwen2vl_rt.backends.tensorrt.edition import Edition, find_edition
from qwen2vl_rt.backends.tensorrt.engines import EngineFile
from qwen2vl_rt.backends.tensorrt.gpu import compute_capability
from qwen2vl_rt.backends.tensorrt.profiles import Profile
from qwen2vl_rt.backends.tensorrt.runtime import TensorRTEngine
from qwen2vl_rt.errors import BackendError
from qwen2vl_rt.lowering.tensorrt import Form

STREAM = 0x5000


class Messages:
    def __init__(self):
        self.pending = []

    def take(self):
        taken, self.pending = self.pending, []
        return taken


class Context:
    def __init__(self, trt, config):
        self.trt, self.config = trt, config
        self.calls, self.shapes, self.addresses = [], {}, {}

    def set_device_memory(self, pointer, size):
        self.calls.append(("memory", pointer, size))

    def set_optimization_profile_async(self, index, stream):
        self.calls.append(("profile", index, stream))
        return True

    def set_input_shape(self, name, shape):
        assert name in self.trt.inputs
        self.shapes[name] = shape
        return shape[0] <= 2

    def set_tensor_address(self, name, pointer):
        self.addresses[name] = pointer
        return True

    def infer_shapes(self):
        if not self.trt.infers:
            raise RuntimeError("shape inference failed")
        return [name for name in self.trt.inputs if name not in self.shapes]

    def execute_async_v3(self, stream):
        self.calls.append(("run", stream))
        return not self.trt.fails

    def is_stream_capturable(self, stream):
        return stream == STREAM


class Rtx:
    """TensorRT for RTX's names; full TensorRT has no runtime cache."""

    __version__ = "1.0"

    def __init__(self, has_cache=True):
        self.inputs, self.outputs = ["x", "past_k.0"], ["logits", "present_k.0"]
        self.fails, self.infers, self.opens, self.kernels = False, True, True, b"kernels"
        self.contexts, self.kept = [], []
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager", NONE="none")
        if has_cache:
            self.IRuntimeCache = None

    def Runtime(self, logger):  # noqa: N802
        return SimpleNamespace(deserialize_cuda_engine=self._open)

    def _open(self, data):
        assert bytes(data) == b"engine"
        if not self.opens:
            self.logger.pending.append((1, "incompatible\nversion"))
            return None
        names = self.inputs + self.outputs
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=lambda index: names[index],
            device_memory_size_v2=1000,
            create_runtime_config=self._config,
            create_execution_context=self._context,
        )

    def _config(self):
        def deserialize(data):
            self.kept.append(data)
            return data == self.kernels

        cache = SimpleNamespace(deserialize=deserialize, serialize=lambda: self.kernels)
        return SimpleNamespace(
            create_runtime_cache=lambda: cache,
            set_runtime_cache=lambda used: None,
            set_execution_context_allocation_strategy=lambda strategy: None,
        )

    def _context(self, config):
        self.contexts.append(Context(self, config))
        return self.contexts[-1]


@pytest.fixture
def file(tmp_path) -> EngineFile:
    described = EngineFile(tmp_path / "decoder.sm89.0.engine")
    built = tmp_path / "built"
    built.write_bytes(b"engine")
    profiles = Profile("prefill", {}), Profile("decode", {})
    key = EngineKey(1, "", {}, "tensorrt_rtx", "1.0", "sm89", Form("fp32"), profiles)
    inputs, outputs = (
        tuple(EngineTensor(name, "float", (-1,)) for name in names)
        for names in (("x", "past_k.0"), ("logits", "present_k.0"))
    )
    figures = Figures(1.0, 0, 6, None, ())
    described.write(built, EngineDescription("decoder", "", "fp32", key, inputs, outputs, {}, figures))
    return described


def opened(trt: Rtx, file: EngineFile) -> TensorRTEngine:
    trt.logger = Messages()
    return TensorRTEngine(Edition("tensorrt_rtx", trt, trt.logger), file, STREAM)


TENSORS = [
    Tensor("x", (1, 3), 0x100),
    Tensor("past_k.0", (1, 2, 8, 4), 0x200),
    Tensor("present_k.0", (1, 2, 8, 4), 0x200, output=True),
    Tensor("logits", (1, 1, 9), 0x300, output=True),
    Tensor("new_k.0", (1, 2, 3, 4), 0x400, output=True),  # of another form
]


def test_one_way_through(file):
    trt = Rtx()
    engine = opened(trt, file)
    assert engine.scratch_bytes == 1000
    decode, prefill = (
        engine.execution(name, (0x9000, 4096), fixed=name == "decode") for name in ("decode", "prefill")
    )
    first, second = trt.contexts
    assert first.calls == [("memory", 0x9000, 4096), ("profile", 1, STREAM)]
    assert second.calls[1] == ("profile", 0, STREAM)
    assert first.config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert second.config.dynamic_shapes_kernel_specialization_strategy == "none"
    decode.bind(TENSORS)
    assert first.shapes == {"x": (1, 3), "past_k.0": (1, 2, 8, 4)}
    assert first.addresses == {"x": 0x100, "past_k.0": 0x200, "present_k.0": 0x200, "logits": 0x300}
    decode.enqueue()
    assert first.calls[-1] == ("run", STREAM) and decode.capturable()
    with pytest.raises(BackendError, match=r"decoder\.sm89\.0\.engine has no value for past_k\.0"):
        prefill.bind(TENSORS[:1])
    with pytest.raises(BackendError, match=r"does not take x of shape \[3, 3\]"):
        prefill.bind([Tensor("x", (3, 3), 0x100)])
    trt.infers = False
    with pytest.raises(BackendError, match=r"cannot infer its shapes \(shape inference failed\)"):
        prefill.bind(TENSORS)
    trt.fails = True
    trt.logger.pending.append((1, "a kernel\n  failed"))
    with pytest.raises(BackendError, match="failed: a kernel failed"):
        decode.enqueue()


def test_full_tensorrt_gets_its_strategy(file):
    trt = Rtx(has_cache=False)
    engine = opened(trt, file)
    engine.execution("decode", (1, 1), fixed=True)
    assert trt.contexts[0].config == "user"
    engine.keep_kernels()
    assert not list(file.path.parent.glob("*.kernels"))


def test_compiled_kernels_are_kept(file):
    trt = Rtx()
    opened(trt, file).keep_kernels()
    kernels = file.path.with_suffix(".kernels")
    assert kernels.read_bytes() == b"kernels"
    again = opened(trt, file)
    assert trt.kept == [b"kernels"]
    written = kernels.stat().st_mtime_ns
    again.keep_kernels()
    assert kernels.stat().st_mtime_ns == written
    trt.kernels = b"of another driver"
    opened(trt, file).keep_kernels()
    assert kernels.read_bytes() == b"of another driver"
    trt.kernels = None  # TensorRT could not serialize them
    opened(trt, file).keep_kernels()
    assert kernels.read_bytes() == b"of another driver"


def test_engines_that_do_not_open(file):
    trt = Rtx()
    trt.opens = False
    with pytest.raises(BackendError, match="cannot be opened on this machine's GPU: incompatible version"):
        opened(trt, file)
    trt.opens, trt.outputs = True, ["logits"]
    with pytest.raises(BackendError, match=r"and its description differ in present_k\.0"):
        opened(trt, file)


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU here")
def test_without_a_gpu_tensorrt_says_so_in_our_error(file):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    with pytest.raises(BackendError, match=r"TensorRT for RTX .* cannot be opened on this machine's GPU: "):
        TensorRTEngine(find_edition("tensorrt_rtx"), file, 0)
