"""The compiled runtime on aarch64, Jetson's CPU: cross-compiled by Debian's g++ and run under QEMU.

Integers, bytes and chosen tokens must be those of this machine; cosines may differ by their last bits, since
they come from another C library.
"""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qwen2vl_rt import _core

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
for tool in (COMPILER, EMULATOR):
    if shutil.which(tool) is None:
        pytest.skip(
            f"{tool} is not installed (apt-get install g++-aarch64-linux-gnu qemu-user-static)",
            allow_module_level=True,
        )

ROOT = Path(__file__).parents[2]
OUTSIDE = ("bindings", "cuda")  # of the core: they need Python, or NVIDIA's toolkit
FLAGS = ["-std=c++17", "-O1", "-fno-trapping-math", "-fno-math-errno", "-Wall", "-Wno-psabi"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> dict[str, list[str]]:
    """The program's output under QEMU: values by name, one list a line."""
    folder = tmp_path_factory.mktemp("aarch64")
    sources = [file for file in ROOT.glob("csrc/*/*.cc") if file.parent.name not in OUTSIDE]
    sources.append(Path(__file__).with_name("core_on_arm.cc"))

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.parent.name}.{source.stem}.o"
        command = [COMPILER, *FLAGS, f"-I{ROOT / 'csrc'}", "-c", source, "-o", target]
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "core_on_arm"
    subprocess.run([COMPILER, "-static", *objects, "-pthread", "-o", program], check=True)
    output = subprocess.run([EMULATOR, program], check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        name, _, rest = line.partition(" ")
        found.setdefault(name, []).append(rest)
    return found


def numbers(lines: dict[str, list[str]], name: str, index: int = 0) -> np.ndarray:
    return np.array(lines[name][index].split(), np.float64)


def test_positions_and_tables(lines):
    ids = [1, 2, *[90] * 6, 3, 4, 5, *[91] * 12, 6]
    positions, delta = _core.mrope_positions(ids, [(1, 4, 6), (3, 4, 4)], 90, 91)
    np.testing.assert_array_equal(numbers(lines, "positions"), positions.reshape(-1))
    assert numbers(lines, "delta") == delta
    tables = _core.rope_table(positions, 32, 1e6, (4, 6, 6))
    tables += _core.vision_rope_table(4, 6, 20)
    for name, table in zip(("cos", "sin", "vision_cos", "vision_sin"), tables, strict=True):
        np.testing.assert_allclose(numbers(lines, name), table.reshape(-1), rtol=0, atol=3e-7)


def test_pictures(lines):
    index = np.arange(61 * 47 * 3)
    picture = (index * 37 + index // 141 * 11).astype(np.uint8).reshape(61, 47, 3)
    for order, (height, width) in enumerate([(28, 56), (84, 56)]):
        resized = _core.resize_bicubic(picture, height, width, vertical_first=False)
        np.testing.assert_array_equal(numbers(lines, "resized", order), resized.reshape(-1))
    expected = _core.smart_resize(1080, 1920, 28, 3136, 1003520)
    np.testing.assert_array_equal(numbers(lines, "smart_resize"), expected)


def test_sampling(lines):
    logits = (np.arange(400) * 7919 % 1000).astype(np.float32) / np.float32(125)
    options = _core.SamplingOptions(temperature=0.8, top_p=0.95, repetition_penalty=1.1, seed=11)
    sampler = _core.Sampler(options, 400, [3, 5, 8])
    np.testing.assert_array_equal(numbers(lines, "sampled"), [sampler.sample(logits)[0] for _ in range(50)])


def test_text_and_cache(lines):
    text = numbers(lines, "text").astype(np.uint8).tobytes().decode()
    assert text == "gr\u00fc\u00dfe \U0001f600 \ufffd\ufffd"
    np.testing.assert_array_equal(numbers(lines, "cache"), [3, 5])
    assert len(lines["error"]) == 1 and "16" in lines["error"][0]
