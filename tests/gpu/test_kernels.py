"""Kernels against the CPU runtime's own functions: rope rows, embeddings, cache rows."""

from __future__ import annotations

import numpy as np
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError
from tests.gpu.arrays import DTYPES, to_device, to_host


@pytest.mark.kernels("rope/rope_kernel.cu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "sections"), [(128, (16, 24, 24)), (16, (2, 3, 3)), (24, (1, 4, 7))])
def test_rope_rows(device, dtype, head_dim, sections):
    table = _core.RopeTable(head_dim, 1e6, sections)
    positions = np.random.default_rng(0).integers(0, 33000, (3, 77))
    expected = _core.rope_table(positions, head_dim, 1e6, sections)
    width = head_dim // 2
    inv_freq = to_device(device, np.array(table.inverse_frequencies, np.float32))
    axes = to_device(device, np.array(table.axes, np.uint8))
    given = to_device(device, positions)
    size = 77 * width * np.dtype(DTYPES[dtype]).itemsize
    out = [device.allocate(size) for _ in range(2)]
    device.rope_rows(
        inv_freq.pointer, axes.pointer, width, given.pointer, 77, 77, dtype, out[0].pointer, out[1].pointer
    )
    for block, want in zip(out, expected, strict=True):
        np.testing.assert_array_equal(to_host(block, (77, width), DTYPES[dtype]), want.astype(DTYPES[dtype]))


@pytest.mark.kernels("rope/rope_kernel.cu")
def test_rope_rows_of_text_have_one_position_on_all_axes(device):
    table = _core.RopeTable(16, 1e6, (2, 3, 3))
    positions = np.array([0, 5, 40000])
    expected = _core.rope_table(np.tile(positions, (3, 1)), 16, 1e6, (2, 3, 3))
    blocks = [
        to_device(device, array)
        for array in (
            np.array(table.inverse_frequencies, np.float32),
            np.array(table.axes, np.uint8),
            positions,
        )
    ]
    cos, sin = device.allocate(3 * 8 * 4), device.allocate(3 * 8 * 4)
    inv_freq, axes, given = (block.pointer for block in blocks)
    device.rope_rows(inv_freq, axes, 8, given, 0, 3, "float32", cos.pointer, sin.pointer)
    np.testing.assert_array_equal(to_host(cos, (3, 8), np.float32), expected[0])
    np.testing.assert_array_equal(to_host(sin, (3, 8), np.float32), expected[1])


@pytest.mark.kernels("embedding/gather_kernel.cu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("table_dtype", [*DTYPES, "uint8"])
@pytest.mark.parametrize("shared", [False, True], ids=["device memory", "host memory"])
def test_gather_embeddings(device, dtype, table_dtype, shared):
    rng = np.random.default_rng(1)
    rows, width, block = 40, 200, 128
    ids = rng.integers(0, rows, 13).astype(np.int32)
    scale = zero_point = None
    if table_dtype == "uint8":
        table = rng.integers(0, 256, (rows, width)).astype(np.uint8)
        scale = rng.uniform(0.01, 0.1, (rows, 2)).astype(np.float32)
        zero_point = rng.integers(100, 150, (rows, 2)).astype(np.uint8)
        by_column = np.repeat(np.arange(2), [128, 72])
        values = (table.astype(np.float32) - zero_point[:, by_column]) * scale[:, by_column]
    else:
        table = rng.normal(size=(rows, width)).astype(DTYPES[table_dtype])
        values = table.astype(np.float32)
    expected = values[ids]
    # Tokens 3, 4 and 9 stand for rows 1, 2 and 0 of a picture's embeddings.
    visual = rng.normal(size=(3, width)).astype(np.float32)
    pictured = {3: 1, 4: 2, 9: 0}
    for token, row in pictured.items():
        expected[token] = visual[row]
    picture = to_device(device, visual)
    pointers = np.zeros(13, np.uint64)
    for token, row in pictured.items():
        pointers[token] = picture.pointer + 4 * width * row
    if shared:
        stored = device.allocate_shared(table.nbytes)
        np.asarray(memoryview(stored))[:] = table.reshape(-1).view(np.uint8)
    else:
        stored = to_device(device, table)
    parts = [to_device(device, part) if part is not None else None for part in (scale, zero_point)]
    given, visuals = to_device(device, ids), to_device(device, pointers)
    out = device.allocate(13 * width * np.dtype(DTYPES[dtype]).itemsize)
    device.gather_embeddings(
        stored.pointer,
        parts[0].pointer if parts[0] else 0,
        parts[1].pointer if parts[1] else 0,
        rows,
        width,
        block,
        table_dtype,
        given.pointer,
        visuals.pointer,
        13,
        dtype,
        out.pointer,
    )
    np.testing.assert_array_equal(to_host(out, (13, width), DTYPES[dtype]), expected.astype(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_rounding_to_16_bits(device, dtype):
    """Ties, subnormal numbers, overflow, infinities and NaN round as numpy rounds them."""
    bits = np.arange(0, 2**32, 4093, dtype=np.uint64).astype(np.uint32)
    edges = np.array([0x38800000, 0x387FFFFF, 0x477FF000, 0x477FEFFF, 0x33000000, 0x33000001], np.uint32)
    values = np.concatenate([bits, edges, edges | 0x80000000]).view(np.float32)[None]
    table, ids = to_device(device, values), to_device(device, np.zeros(1, np.int32))
    out = device.allocate(values.size * 2)
    device.gather_embeddings(
        table.pointer, 0, 0, 1, values.size, 1, "float32", ids.pointer, 0, 1, dtype, out.pointer
    )
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(DTYPES[dtype])
    actual = to_host(out, values.shape, DTYPES[dtype])
    np.testing.assert_array_equal(actual.astype(np.float32), expected.astype(np.float32))  # NaN equals NaN


def filled_cache(device, dtype, layers=3, rows=3, kv_heads=2, capacity=24, head_dim=16):
    """A cache whose every position was written, and a copy of it: [layers, 2, rows, heads, S, D]."""
    cache = _core.DeviceCache(device, layers, rows, kv_heads, capacity, head_dim, dtype)
    rng = np.random.default_rng(2)
    content = rng.normal(size=(layers, 2, rows, kv_heads, capacity, head_dim)).astype(DTYPES[dtype])
    start = to_device(device, np.zeros(rows, np.int64))
    for layer in range(layers):
        parts = [to_device(device, content[layer, part]) for part in range(2)]
        cache.write(device, layer, 0, rows, capacity, start.pointer, parts[0].pointer, parts[1].pointer)
    device.synchronize()
    return cache, content


def read_cache(device, cache, content):
    """What the cache holds, by way of a block of the same size."""
    read = np.empty_like(content)
    block = cache_view(device, cache, content)
    for layer in range(content.shape[0]):
        for part in range(2):
            read[layer, part] = block(layer, part)
    return read


def cache_view(device, cache, content):
    shape, itemsize = content.shape[2:], content.dtype.itemsize
    size = int(np.prod(shape)) * itemsize

    def read(layer, part):
        pointer = (cache.keys, cache.values)[part](layer)
        target = device.allocate(size)
        # A table of one row, gathered as it is, is a copy.
        ids = to_device(device, np.zeros(1, np.int32))
        name = next(name for name, dtype in DTYPES.items() if dtype == content.dtype)
        device.gather_embeddings(
            pointer, 0, 0, 1, size // itemsize, 1, name, ids.pointer, 0, 1, name, target.pointer
        )
        return to_host(target, shape, content.dtype)

    return read


@pytest.mark.kernels("device/transpose.cu")
@pytest.mark.parametrize("item", [np.uint8, np.uint16, np.uint32])
def test_a_matrix_is_turned(device, item):
    array = np.random.default_rng(4).integers(0, np.iinfo(item).max, (37, 300), item)
    given, turned = to_device(device, array), device.allocate(array.nbytes)
    device.transpose(given.pointer, turned.pointer, *array.shape, array.itemsize)
    np.testing.assert_array_equal(to_host(turned, array.shape[::-1], item), array.T)


@pytest.mark.kernels("cache/cache_kernels.cu")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cache_append_writes_behind_each_rows_past(device, dtype):
    cache, content = filled_cache(device, dtype)
    rng = np.random.default_rng(3)
    new = rng.normal(size=(2, 2, 2, 4, 16)).astype(DTYPES[dtype])  # keys/values, rows 1 and 2, 4 tokens
    past = to_device(device, np.array([5, 20]))
    keys, values = (to_device(device, part) for part in new)
    cache.write(device, 1, 1, 2, 4, past.pointer, keys.pointer, values.pointer)
    for part in range(2):
        content[1, part, 1, :, 5:9] = new[part, 0]
        content[1, part, 2, :, 20:24] = new[part, 1]
    np.testing.assert_array_equal(read_cache(device, cache, content), content)


@pytest.mark.kernels("cache/cache_kernels.cu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [0, 1, 17, 24])
def test_cache_rows_are_copied_and_moved(device, dtype, length):
    cache, content = filled_cache(device, dtype)
    cache.append(2, range(length))
    cache.copy_row(2, 0)
    content[:, :, 0, :, :length] = content[:, :, 2, :, :length]
    cache.move_row(0, 1)
    content[:, :, 1, :, :length] = content[:, :, 2, :, :length]
    np.testing.assert_array_equal(read_cache(device, cache, content), content)
    assert [cache.length(row) for row in range(3)] == [0, length, length]


@pytest.mark.kernels("cache/cache_kernels.cu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("begin", "end", "length"), [(2, 3, 24), (0, 11, 24), (5, 20, 22), (4, 4, 9), (7, 9, 9)]
)
def test_removed_positions_close_up_and_turn_the_keys(device, dtype, begin, end, length):
    head_dim, sections, shift = 16, (2, 3, 3), (-3, -1, 2)
    cache, content = filled_cache(device, dtype, capacity=24, head_dim=head_dim)
    table = _core.RopeTable(head_dim, 1e6, sections)
    cache.append(1, range(length))
    cache.remove(1, begin, end, shift, table, range(100, 100 + length - end))
    moved = content[:, :, 1, :, end:length].astype(np.float64)
    angles = np.array(table.inverse_frequencies) * np.array(shift)[table.axes]
    left, right = moved[:, 0, ..., : head_dim // 2].copy(), moved[:, 0, ..., head_dim // 2 :].copy()
    moved[:, 0, ..., : head_dim // 2] = left * np.cos(angles) - right * np.sin(angles)
    moved[:, 0, ..., head_dim // 2 :] = right * np.cos(angles) + left * np.sin(angles)
    actual = read_cache(device, cache, content)
    kept = begin + length - end
    assert cache.length(1) == kept
    tolerance = {"float32": 1e-6, "bfloat16": 0.01, "float16": 0.002}[dtype]
    np.testing.assert_allclose(
        actual[:, :, 1, :, begin:kept].astype(np.float64), moved, rtol=tolerance, atol=tolerance
    )
    # Values move as they are; nothing else changes.
    np.testing.assert_array_equal(actual[:, 1, 1, :, begin:kept], content[:, 1, 1, :, end:length])
    np.testing.assert_array_equal(actual[:, :, 1, :, :begin], content[:, :, 1, :, :begin])
    np.testing.assert_array_equal(actual[:, :, [0, 2]], content[:, :, [0, 2]])


def test_turned_keys_are_those_of_the_shifted_positions():
    """R(p) k turned by a shift is R(p + shift) k, on the CPU's own cache."""
    head_dim, sections = 16, (2, 3, 3)
    rng = np.random.default_rng(4)
    table = _core.RopeTable(head_dim, 1e6, sections)
    positions = rng.integers(50, 90, (3, 12))
    shift = (-7, -2, -11)
    raw = rng.normal(size=(2, 12, head_dim)).astype(np.float32)

    def rotated(at):
        cos, sin = _core.rope_table(at, head_dim, 1e6, sections)
        left, right = np.split(raw, 2, axis=-1)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

    cache = _core.KVCache(1, 1, 2, 20, head_dim)
    cache.keys(0)[0, :, 4:16] = rotated(positions)
    cache.values(0)[0, :, 4:16] = raw
    cache.append(0, range(16))
    cache.remove(0, 1, 4, shift, table, range(12))
    np.testing.assert_allclose(
        cache.keys(0)[0, :, 1:13], rotated(positions + np.array(shift)[:, None]), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(cache.values(0)[0, :, 1:13], raw)
    assert cache.length(0) == 13


def test_removals_that_do_not_fit_are_refused():
    cache, table = _core.KVCache(1, 1, 1, 8, 16), _core.RopeTable(16, 1e6, (2, 3, 3))
    cache.append(0, range(5))
    for begin, end, identities in ((-1, 2, 3), (3, 2, 3), (0, 6, 0), (1, 2, 4)):
        with pytest.raises(InputError):
            cache.remove(0, begin, end, (0, 0, 0), table, range(identities))
    with pytest.raises(InputError, match="heads of 8"):
        cache.remove(0, 0, 1, (0, 0, 0), _core.RopeTable(8, 1e6, (1, 1, 2)), range(4))
    with pytest.raises(InputError, match="multiples of 16"):
        _core.DeviceCache(_core.HostDevice(), 1, 1, 1, 8, 4, "bfloat16")
