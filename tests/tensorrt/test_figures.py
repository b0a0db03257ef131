"""The figures of a build, read from TensorRT's log, and how the command shows them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen2vl_rt.backends.tensorrt.build import Built
from qwen2vl_rt.backends.tensorrt.description import Figures
from qwen2vl_rt.backends.tensorrt.engines import EngineFile
from qwen2vl_rt.backends.tensorrt.logger import ACTIVATIONS, WEIGHTS, figures
from qwen2vl_rt.backends.tensorrt.profiles import Profile
from qwen2vl_rt.cli.build import describe


@pytest.mark.parametrize("unit", [" bytes", ""], ids=["newer", "TensorRT 10.3"])
def test_figures_of_the_log(unit):
    log = [
        (3, f"Total Activation Memory: 5434880{unit}"),
        (2, "Something else: 7 bytes"),
        (3, f"Total Weights Memory: 20195976{unit}"),
        (3, f"Total Activation Memory: 1024{unit}"),
    ]
    assert figures(log, ACTIVATIONS) == [5434880, 1024]
    assert figures(log, WEIGHTS) == [20195976]


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ([3 << 20, 1 << 20], "prefill needs 3.0 MiB more, decode needs 1.0 MiB more, "),
        ([3 << 20], "needs up to 3.0 MiB more, "),
        ([1 << 20, 3 << 20, 2 << 20], "needs up to 3.0 MiB more, "),
        ([], ""),
    ],
)
def test_what_the_command_says_of_an_engine(sizes, shown):
    """An edition may log another number of figures than the engine has profiles."""
    description = SimpleNamespace(
        figures=Figures(2.0, 1 << 30, 5 << 20, None, sizes),
        key=SimpleNamespace(profiles=[Profile("prefill", {}), Profile("decode", {})]),
    )
    text = describe(Built("decoder", EngineFile(Path("decoder.engine")), description, reused=False))
    second_line = text.splitlines()[1].strip()
    assert second_line == f"5.0 MiB, {shown}built in 2.0 s with 1.00 GiB"
