"""Tests of device code: on the CPU twin always, and on the GPU where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.backends import cuda
from tests.gpu import emulation

STATUS = cuda.status()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, with the reason; QWEN2VL_REQUIRE_GPU=1: that is an error."""
    if STATUS.devices == 0 and os.environ.get("QWEN2VL_REQUIRE_GPU") == "1":
        raise pytest.UsageError(f"QWEN2VL_REQUIRE_GPU=1, and there is no GPU: {STATUS.reason}")
    for item in items:
        if STATUS.devices == 0 and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {STATUS.reason}"))


@pytest.fixture(autouse=True)
def _memory_is_the_gpus_own() -> Iterator[None]:
    """What a test lets the host do with the emulated GPU's memory ends with it."""
    yield
    emulation.share_memory(False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> _core.Device:
    """The CPU as a device, then the first GPU."""
    if request.param == "cpu":
        return _core.HostDevice()
    module = cuda.load()
    return module.CudaDevice(module.Stream())


@pytest.fixture
def another_gpu() -> Iterator[None]:
    """The calling thread works on another GPU than sessions do."""
    if not emulation.is_emulated():
        pytest.skip("needs two GPUs")
    emulation.select(1)
    yield
    emulation.select(0)
