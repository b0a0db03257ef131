"""Device memory, streams and graphs; and what a machine without a GPU gets instead."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading

import numpy as np
import pytest

from qwen2vl_rt.backends import cuda
from qwen2vl_rt.errors import BackendError, InputError
from tests.gpu import emulation

needs_kernels = pytest.mark.skipif(not cuda.status().built, reason=cuda.status().reason)


def test_status_says_why_there_is_no_gpu_or_counts_them():
    status = cuda.status()
    assert bool(status.reason) == (status.devices == 0)
    if status.built:
        assert status.toolkit
        # Of cmake/cuda.cmake's list those that the toolkit knows, or what QWEN2VL_CUDA_ARCHITECTURES named.
        assert status.architectures
        assert all(number >= 50 for number in status.architectures)
    else:
        assert "nvcc" in status.reason


@needs_kernels
@pytest.mark.skipif(cuda.status().devices > 0, reason="there is a GPU here")
def test_without_a_gpu_the_module_imports_and_refuses_clearly():
    module = cuda.load()
    with pytest.raises(BackendError, match="selecting the GPU"):
        module.Stream()
    with pytest.raises(BackendError, match="allocating 16 bytes"):
        module.DeviceBuffer(16)
    with pytest.raises(BackendError, match="properties"):
        module.device_info()


@needs_kernels
def test_the_cuda_half_is_imported_on_demand_only():
    code = "import qwen2vl_rt, sys; assert 'qwen2vl_rt._cuda' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
def test_memory_makes_the_round_trip():
    module = cuda.load()
    stream = module.Stream()
    values = np.random.default_rng(0).normal(size=(7, 33)).astype(np.float32)
    buffer = module.DeviceBuffer(values.nbytes + 8)
    buffer.zero(stream)
    buffer.upload(values, stream, 8)
    back, head = np.empty_like(values), np.ones(2, np.int32)
    buffer.download(back, stream, 8)
    buffer.download(head, stream)
    np.testing.assert_array_equal(back, values)
    assert not head.any()
    with pytest.raises(InputError, match="does not fit"):
        buffer.upload(values, stream, 9)
    with pytest.raises(InputError, match="C-contiguous"):
        buffer.upload(values.T, stream)


@pytest.mark.gpu
def test_a_graph_replays_what_was_recorded_on_what_memory_holds_then():
    module = cuda.load()
    stream, graph = module.Stream(), module.Graph()
    source, target = module.DeviceBuffer(4), module.DeviceBuffer(4)
    with pytest.raises(BackendError, match="recorded before"):
        graph.launch(stream)
    graph.begin(stream)
    module.copy_on_device(target.pointer, source.pointer, 4, stream)
    graph.end()
    value = np.zeros(1, np.int32)
    for number in (5, 6):
        source.upload(np.array([number], np.int32), stream)
        graph.launch(stream)
        target.download(value, stream)
        assert value[0] == number


@pytest.mark.gpu
def test_other_threads_work_on_while_one_records():
    """In CUDA's global mode, ONNX Runtime's: allocating, copying, waiting and freeing don't spoil it."""
    module, driver = cuda.load(), emulation.driver()
    stream, recorded = module.Stream(), module.DeviceBuffer(4096)
    handle, graph = ctypes.c_void_p(stream.handle), ctypes.c_void_p()
    values, copied = np.arange(1024, dtype=np.float32), np.zeros(1024, np.float32)

    def work():
        own = module.Stream()
        pinned = module.CudaDevice(own).allocate_shared(64)
        buffer, event = module.DeviceBuffer(values.nbytes), module.Event()
        buffer.upload(values, own)
        event.record(own)
        event.synchronize()
        buffer.download(copied, own)
        module.synchronize_stream(own.handle, own.device)
        del buffer, pinned, event, own

    assert driver.cuStreamBeginCapture_v2(handle, 0) == 0
    recorded.zero(stream)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert driver.cuStreamEndCapture(handle, ctypes.byref(graph)) == 0
    assert graph.value
    np.testing.assert_array_equal(copied, values)
    driver.cuGraphDestroy(graph)


@pytest.mark.gpu
def test_pinned_memory_is_shared():
    module = cuda.load()
    stream = module.Stream()
    pinned, target = module.CudaDevice(stream).allocate_shared(12), module.DeviceBuffer(12)
    view = np.asarray(memoryview(pinned)).view(np.int32)
    assert not view.any()
    view[:] = [1, 2, 3]
    module.copy_on_device(target.pointer, pinned.pointer, 12, stream)
    back = np.empty(3, np.int32)
    target.download(back, stream)
    np.testing.assert_array_equal(back, view)


@pytest.mark.gpu
def test_work_goes_to_the_streams_gpu_and_the_callers_stays_its_own(another_gpu):
    module = cuda.load()
    assert module.device_info().name
    device = module.CudaDevice(module.Stream())
    values, back = np.arange(12, dtype=np.float32).reshape(3, 4), np.empty((4, 3), np.float32)
    source, target = device.allocate(values.nbytes), device.allocate(values.nbytes)
    source.upload(values.reshape(-1).view(np.uint8))
    device.transpose(source.pointer, target.pointer, 3, 4, 4)
    target.download(back.reshape(-1).view(np.uint8))
    device.synchronize()
    np.testing.assert_array_equal(back, values.T)
    assert module.device_of(target.pointer) == 0
    assert module.device_of(values.ctypes.data) == -1
    assert emulation.selected() == 1
