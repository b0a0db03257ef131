"""A decode step of 16-bit numbers as a list of kernels, each started before the one in front is done."""

from __future__ import annotations

import numpy as np
import pytest

from qwen2vl_rt import _core
from tests.gpu.arrays import DTYPES, to_device, to_host
from tests.gpu.test_device_linear import FORMS, Matrix

HIDDEN, HEADS, KV_HEADS, DIM, BETWEEN, TOKENS = 256, 4, 2, 64, 640, 104
LAYERS, ROWS, CAPACITY = 2, 3, 8


class Step:
    """Two decoder layers and the logits, random weights, on a device."""

    def __init__(self, device, dtype, form, early):
        self.device, self.dtype, self.form, self.kept = device, dtype, form, []
        self.rng = np.random.default_rng(23)
        cache = _core.DeviceCache(device, LAYERS, ROWS, KV_HEADS, CAPACITY, DIM, dtype)
        self.past = self.put(np.zeros(ROWS, np.int64))
        self.program = _core.StepProgram(device, cache, _core.DeviceEngine(), ROWS, self.past.pointer, early)
        angles = self.rng.uniform(0, 6, (ROWS, DIM // 2))
        cos, sin = (
            self.put(table.astype(DTYPES[dtype])).pointer for table in (np.cos(angles), np.sin(angles))
        )
        self.x = self.put(np.zeros((ROWS, HIDDEN), DTYPES[dtype]))
        x = self.x.pointer
        for layer in range(LAYERS):
            q, k, v, attended = (
                self.program.allocate(heads * DIM, dtype) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
            )
            turned = {"rotated": 2, "head_dim": DIM, "cos": cos, "sin": sin}
            outputs = {q: HEADS * DIM, k: KV_HEADS * DIM, v: KV_HEADS * DIM}
            self.linear(x, HIDDEN, outputs, norm=self.norm(), bias=True, **turned)
            self.program.attention(layer, HEADS, q, k, v, attended)
            x = self.linear(attended, HEADS * DIM, {self.program.allocate(HIDDEN, dtype): HIDDEN}, added=x)
            gated = self.program.allocate(BETWEEN, dtype)
            self.linear(x, HIDDEN, {gated: BETWEEN, 0: BETWEEN}, norm=self.norm(), gated=1)
            x = self.linear(gated, BETWEEN, {self.program.allocate(HIDDEN, dtype): HIDDEN}, added=x)
        self.logits = device.allocate(ROWS * TOKENS * 4)
        self.linear(x, HIDDEN, {self.logits.pointer: TOKENS}, norm=self.norm(), result_dtype="float32")

    def put(self, array):
        self.kept.append(to_device(self.device, array))
        return self.kept[-1]

    def norm(self):
        return self.put(self.rng.normal(size=HIDDEN).astype(DTYPES[self.dtype])).pointer

    def linear(self, x, inputs, outputs, bias=False, **fields):
        step = {"dtype": self.dtype, "result_dtype": self.dtype, "form": self.form, "block": _core.BLOCK}
        step |= {"rows": ROWS, "inputs": inputs, "x": x, "epsilon": 1e-6} | fields
        matrices = []
        for result, n in outputs.items():
            matrix = Matrix(self.rng, self.form, inputs, n, self.dtype, bias=bias)
            # Weights of a size that leaves what passes through the layers as large as it was.
            scaled = "weights" if self.form == "plain" else "scales"
            matrix.arrays[scaled] = (matrix.arrays[scaled] / np.sqrt(inputs)).astype(DTYPES[self.dtype])
            arrays = {name: self.put(array).pointer for name, array in matrix.arrays.items()}
            matrices.append(arrays | {"outputs": n, "result": result})
        self.program.linear(step, matrices)
        return matrices[0]["result"]

    def run(self, x, past):
        """Logits [ROWS, TOKENS] of the tokens `x` behind `past` positions that earlier runs left."""
        self.x.upload(np.ascontiguousarray(x.astype(DTYPES[self.dtype])).reshape(-1).view(np.uint8))
        self.past.upload(np.full(ROWS, past, np.int64).view(np.uint8))
        self.program.run(ROWS)
        return to_host(self.logits, (ROWS, TOKENS), np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_early_starts_change_nothing(device, dtype, form):
    early, in_turn, twin = (
        Step(*each)
        for each in [
            (device, dtype, form, True),
            (device, dtype, form, False),
            (_core.HostDevice(), dtype, form, False),
        ]
    )
    rng = np.random.default_rng(29)
    for past in range(CAPACITY - 1):
        x = rng.normal(size=(ROWS, HIDDEN))
        found, expected = early.run(x, past), twin.run(x, past)
        np.testing.assert_array_equal(found, in_turn.run(x, past))
        tolerance = 0.05 if dtype == "bfloat16" else 0.01
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
