"""Tests that run on the CPU twin of a kernel always, and on the GPU where there is one."""

from __future__ import annotations

import pytest

from qwen2vl_rt import cuda

STATUS = cuda.status()
WITHOUT_GPU = STATUS.reason if STATUS.devices == 0 else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, with the reason."""
    for item in items:
        if WITHOUT_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {WITHOUT_GPU}"))
