"""A decode step's attention over the cache: against NumPy in float64, on the CPU and on the GPU."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError
from tests.gpu.arrays import DTYPES, to_device, to_host

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
LAYERS = 2


class Rows:
    """A cache with some positions in each row, and the next token's queries, keys and values."""

    def __init__(self, device, dtype, lengths, heads, kv_heads, dim):
        rng = np.random.default_rng(sum(lengths))
        rows = len(lengths)
        self.device, self.dtype, self.lengths, self.heads = device, dtype, lengths, heads
        self.cache = _core.DeviceCache(device, LAYERS, rows, kv_heads, max(lengths) + 2, dim, dtype)
        shape = (LAYERS, 2, rows, kv_heads, max(*lengths, 1), dim)
        self.content = rng.normal(size=shape).astype(DTYPES[dtype])
        start = to_device(device, np.zeros(rows, np.int64))
        for layer in range(LAYERS):
            parts = [to_device(device, part) for part in self.content[layer]]
            self.cache.write(
                device, layer, 0, rows, shape[4], start.pointer, parts[0].pointer, parts[1].pointer
            )
        self.q = (2 * rng.normal(size=(rows, heads, dim))).astype(DTYPES[dtype])
        self.k, self.v = rng.normal(size=(2, rows, kv_heads, dim)).astype(DTYPES[dtype])

    def attend(self, layer=1):
        device = self.device
        past = to_device(device, np.array(self.lengths, np.int64))
        inputs = [to_device(device, array) for array in (self.q, self.k, self.v)]
        output = device.allocate(self.q.nbytes)
        pointers = [block.pointer for block in (past, *inputs, output)]
        self.cache.attend(device, layer, len(self.lengths), self.heads, *pointers)
        return to_host(output, self.q.shape, DTYPES[self.dtype]).astype(np.float64)

    def expected(self, layer=1):
        group = self.heads // self.k.shape[1]
        result = np.empty(self.q.shape)
        for row, length in enumerate(self.lengths):
            for head in range(self.heads):
                keys, values = (
                    np.concatenate([self.content[layer, part, row, head // group, :length], new[None]])
                    for part, new in ((0, self.k[row, head // group]), (1, self.v[row, head // group]))
                )
                scores = keys.astype(np.float64) @ self.q[row, head].astype(np.float64)
                weights = np.exp((scores - scores.max()) / np.sqrt(self.q.shape[-1]))
                result[row, head] = weights @ values.astype(np.float64) / weights.sum()
        return result


@pytest.mark.kernels("attention/decode_attention.cu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "dim"),
    [
        ([0], 4, 2, 32),
        ([7, 256, 31, 299], 12, 2, 128),
        ([90, 1], 7, 1, 64),
        ([33], 8, 8, 32),
        ([70, 511], 10, 1, 64),  # more query heads over one key/value head than a block takes
        ([4800], 3, 1, 64),  # several tiles of positions for each warp
    ],
)
def test_attention_over_past_and_new_token(device, dtype, lengths, heads, kv_heads, dim):
    rows = Rows(device, dtype, lengths, heads, kv_heads, dim)
    expected = rows.expected()
    for _ in range(2):  # what the first call left behind is the second's again
        np.testing.assert_allclose(rows.attend(), expected, rtol=0, atol=TOLERANCE[dtype] * 3)
    # The new token's key and value are in the cache: a step later they are part of the past.
    rows.content = np.pad(rows.content, [(0, 0)] * 4 + [(0, 1), (0, 0)])
    for row, length in enumerate(lengths):
        rows.content[1, 0, row, :, length], rows.content[1, 1, row, :, length] = rows.k[row], rows.v[row]
    rows.lengths = [length + 1 for length in lengths]
    np.testing.assert_allclose(rows.attend(), rows.expected(), rtol=0, atol=TOLERANCE[dtype] * 3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_not_rounded_to_16_bits(device, dtype):
    """Values whose weighted sum is nearly nothing show what the weights lost."""
    rows = Rows(device, dtype, [200], 1, 1, 128)
    keys = np.concatenate([rows.content[1, 0, 0, 0], rows.k[0]]).astype(np.float64)
    scores = keys @ rows.q[0, 0].astype(np.float64) / np.sqrt(128)
    weights = np.exp(scores - scores.max())
    others = weights[:-1] @ rows.content[1, 1, 0, 0].astype(np.float64)
    rows.v[0, 0] = (-others / weights[-1]).astype(DTYPES[dtype])
    sizes = weights @ np.abs(np.concatenate([rows.content[1, 1, 0, 0], rows.v[0]]).astype(np.float64))
    wrong = np.abs(rows.attend()[0, 0] - rows.expected()[0, 0]) * weights.sum() / sizes
    assert wrong.max() < ml_dtypes.finfo(DTYPES[dtype]).eps / 64


def test_a_row_does_not_depend_on_the_others(device):
    rows = Rows(device, "bfloat16", [200, 3, 77], 6, 2, 64)
    together = rows.attend()
    rows.lengths, rows.q, rows.k, rows.v = [200], rows.q[:1], rows.k[:1], rows.v[:1]
    np.testing.assert_array_equal(rows.attend()[0], together[0])


def test_heads_that_no_kernel_takes_are_refused(device):
    cache = _core.DeviceCache(device, 1, 1, 1, 8, 48, "float32")
    with pytest.raises(InputError, match="heads of 48 numbers"):
        _core.StepProgram(device, cache, _core.DeviceEngine(), 1, 0)
