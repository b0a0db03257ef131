"""Layers with all that stands around them: against NumPy in float64, on the CPU and on the GPU."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.backends import cuda
from tests.gpu import emulation
from tests.gpu.arrays import DTYPES, to_device, to_host

TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2, "float16": 2e-3}
BLOCK = _core.BLOCK  # inputs that share a scale


class Matrix:
    """Random weights [N, K] in one of the forms, and what they stand for."""

    def __init__(self, rng, form, inputs, outputs, dtype, bias=False, zero_points=False):
        self.outputs, self.arrays = outputs, {}
        numbers = rng.normal(size=(outputs, inputs)).astype(DTYPES[dtype])
        if form == "plain":
            self.arrays["weights"] = numbers
            self.values = numbers.astype(np.float64)
        else:
            bits = 4 if form == "blocks4" else 8
            blocks = -(-inputs // BLOCK)
            codes = rng.integers(0, 1 << bits, (outputs, blocks * BLOCK)).astype(np.uint8)
            scales = rng.uniform(0.5, 1.5, (outputs, blocks)).astype(DTYPES[dtype]) / (1 << bits)
            scales = scales.astype(DTYPES[dtype])
            zeros = np.full((outputs, blocks), 1 << (bits - 1), np.uint8)
            if zero_points:
                zeros = rng.integers(0, 1 << bits, (outputs, blocks)).astype(np.uint8)
                self.arrays["zero_points"] = packed(zeros, bits)
            self.arrays |= {"weights": packed(codes, bits), "scales": scales}
            steps = codes.astype(np.float64) - np.repeat(zeros, BLOCK, axis=1)
            self.values = (steps * np.repeat(scales.astype(np.float64), BLOCK, axis=1))[:, :inputs]
        self.bias = np.zeros(outputs)
        if bias:
            self.arrays["bias"] = rng.normal(size=outputs).astype(DTYPES[dtype])
            self.bias = self.arrays["bias"].astype(np.float64)


def packed(codes, bits):
    if bits == 8:
        return codes
    codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return codes[:, ::2] | codes[:, 1::2] << 4


def run(device, dtype, form, x, matrices, *, results=None, result_dtype=None, **fields):
    """The results that are written, as float64."""
    wide = DTYPES[result_dtype or dtype]
    kept = []

    def put(array):
        kept.append(to_device(device, array))
        return kept[-1].pointer

    item = np.dtype(wide).itemsize
    written = [device.allocate(len(x) * matrix.outputs * item) for matrix in matrices]
    step = {"dtype": dtype, "form": form, "rows": len(x), "inputs": x.shape[1], "block": BLOCK, "x": put(x)}
    step |= {"result_dtype": result_dtype or dtype}
    step |= {name: put(value) if isinstance(value, np.ndarray) else value for name, value in fields.items()}
    described = [
        {name: put(array) for name, array in matrix.arrays.items()}
        | {"outputs": matrix.outputs, "result": block.pointer}
        for matrix, block in zip(matrices, written, strict=True)
    ]
    device.linear(step, described)
    return [
        to_host(block, (len(x), matrix.outputs), wide).astype(np.float64)
        for matrix, block in zip(matrices[:results], written, strict=False)
    ]


def products(x, matrices):
    return [x.astype(np.float64) @ matrix.values.T + matrix.bias for matrix in matrices]


def assert_close(actual, expected, dtype):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE[dtype] * np.abs(other).max())


FORMS = ("plain", "blocks4", "blocks8")
# Few rows, more than share a pass, many; inputs and outputs of all widths that a kernel tells apart.
SIZES = [
    (1, 256, [48]),
    (1, 1536, [1536, 24, 16]),
    (1, 2048, [24]),
    (2, 640, [200, 72]),
    (1, 2304, [1040]),
    (4, 1024, [30, 2]),
    (3, 96, [800, 40]),
    (5, 320, [64]),
    (8, 48, [7]),
    (6, 2304, [16]),
    (8, 6400, [24]),
    (1, 29568, [24]),
    (11, 64, [40, 32]),
    (2, 50, [10, 9]),
    (9, 50, [10]),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_products(device, dtype, form, rows, inputs, outputs):
    rng = np.random.default_rng(rows)
    bits = form.startswith("blocks")
    matrices = [
        Matrix(rng, form, inputs, n, dtype, bias=i != 1, zero_points=bits and i != 2)
        for i, n in enumerate(outputs)
    ]
    x = rng.normal(size=(rows, inputs)).astype(DTYPES[dtype])
    assert_close(run(device, dtype, form, x, matrices), products(x, matrices), dtype)


@pytest.mark.kernels("linear/device_linear.cu", "linear/few_rows.cu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 6, 9])
def test_norm_residual_and_gate(device, dtype, form, rows):
    rng = np.random.default_rng(7)
    inputs, outputs = 160, 816
    gate, up = (Matrix(rng, form, inputs, outputs, dtype, bias=part == "up") for part in ("gate", "up"))
    x = (3 * rng.normal(size=(rows, inputs))).astype(DTYPES[dtype])
    norm = rng.normal(size=inputs).astype(DTYPES[dtype])
    wide = x.astype(np.float64)
    normed = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 0.01) * norm.astype(np.float64)
    first, second = products(normed.astype(DTYPES[dtype]), [gate, up])
    expected = first / (1 + np.exp(-first)) * second
    actual = run(device, dtype, form, x, [gate, up], results=1, norm=norm, epsilon=0.01, gated=1)
    assert_close(actual, [expected], dtype)
    down = Matrix(rng, form, inputs, 96, dtype)
    added = rng.normal(size=(rows, 96)).astype(DTYPES[dtype])
    actual = run(device, dtype, form, x, [down], added=added)
    assert_close(actual, [products(x, [down])[0] + added.astype(np.float64)], dtype)


@pytest.mark.kernels("linear/device_linear.cu", "linear/few_rows.cu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "head_dim", "heads"), [(1, 128, (6, 2)), (3, 16, (2, 1)), (12, 32, (3, 1))])
def test_rotated_heads(device, dtype, form, rows, head_dim, heads):
    """Queries and keys are turned, values are not."""
    rng = np.random.default_rng(9)
    inputs, widths = 64, [heads[0] * head_dim, heads[1] * head_dim, heads[1] * head_dim]
    matrices = [Matrix(rng, form, inputs, n, dtype, bias=True) for n in widths]
    x = rng.normal(size=(rows, inputs)).astype(DTYPES[dtype])
    angles = rng.uniform(0, 6, (rows, head_dim // 2))
    cos, sin = np.cos(angles).astype(DTYPES[dtype]), np.sin(angles).astype(DTYPES[dtype])
    expected = products(x, matrices)
    for i in (0, 1):
        left, right = np.split(expected[i].reshape(rows, -1, head_dim), 2, axis=-1)
        c, s = (table.astype(np.float64)[:, None] for table in (cos, sin))
        turned = np.concatenate([left * c - right * s, right * c + left * s], axis=-1)
        expected[i] = turned.reshape(rows, -1)
    actual = run(device, dtype, form, x, matrices, rotated=2, head_dim=head_dim, cos=cos, sin=sin)
    assert_close(actual, expected, dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inputs", [512, 8960])  # eight rows at once, and what shared memory has room for
def test_a_row_does_not_depend_on_the_others(device, form, inputs):
    """Alone or beside seven: the same bits."""
    rng = np.random.default_rng(11)
    matrix = Matrix(rng, form, inputs, 160 if inputs == 512 else 24, "bfloat16")
    x, norm = (rng.normal(size=size).astype(ml_dtypes.bfloat16) for size in ((8, inputs), inputs))
    (together,) = run(device, "bfloat16", form, x, [matrix], norm=norm, epsilon=1e-6)
    for row in (0, 3, 7):
        (alone,) = run(device, "bfloat16", form, x[row : row + 1], [matrix], norm=norm, epsilon=1e-6)
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 12])
def test_results_may_be_float32(device, form, rows):
    rng = np.random.default_rng(13)
    matrix = Matrix(rng, form, 256, 72, "bfloat16")
    x = rng.normal(size=(rows, 256)).astype(ml_dtypes.bfloat16)
    (actual,) = run(device, "bfloat16", form, x, [matrix], result_dtype="float32")
    (expected,) = products(x, [matrix])
    # Weights of blocks are unpacked, and rounded, for many rows.
    tolerance = 1e-2 if rows > 8 and form != "plain" else 2e-5
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [16, 32, 48, 256])
@pytest.mark.parametrize("form", ["blocks4", "blocks8"])
@pytest.mark.parametrize("inputs", [720, 1536])
def test_blocks_of_other_sizes(device, monkeypatch, dtype, form, block, inputs):
    monkeypatch.setattr(sys.modules[__name__], "BLOCK", block)
    rng = np.random.default_rng(block)
    matrix = Matrix(rng, form, inputs, 56, dtype, zero_points=True)
    x = rng.normal(size=(2, inputs)).astype(DTYPES[dtype])
    assert_close(run(device, dtype, form, x, [matrix]), products(x, [matrix]), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inputs", [320, 1536, 8960, 18944])  # the models', from the tiny one's on
@pytest.mark.parametrize("zero_points", [False, True])
def test_steps_of_the_models_are_one_launch(dtype, form, inputs, zero_points):
    """The kernel that is fast takes them."""
    if not emulation.is_emulated():
        pytest.skip("launches are counted on the emulated GPU")
    module = cuda.load()
    device = module.CudaDevice(module.Stream())
    rng = np.random.default_rng(17)
    quantized = {"zero_points": zero_points} if form != "plain" else {}
    matrices = [Matrix(rng, form, inputs, n, dtype, **quantized) for n in (48, 24, 8)]
    x, norm = (rng.normal(size=size).astype(DTYPES[dtype]) for size in ((1, inputs), inputs))
    before = emulation.launches()
    actual = run(device, dtype, form, x, matrices, norm=norm, epsilon=1e-6)
    assert emulation.launches() - before == 1
    wide = x.astype(np.float64)
    wide *= norm.astype(np.float64) / np.sqrt((wide**2).mean() + 1e-6)
    assert_close(actual, products(wide.astype(DTYPES[dtype]), matrices), dtype)
