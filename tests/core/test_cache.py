"""The KV cache: views, lengths, and moving rows."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError, Qwen2VLError
from qwen2vl_rt.peak_memory import resident_memory


def filled_cache(layers=3, rows=4, kv_heads=2, capacity=40, head_dim=8):
    cache = _core.KVCache(layers, rows, kv_heads, capacity, head_dim)
    rng = np.random.default_rng(0)
    for layer in range(layers):
        cache.keys(layer)[:] = rng.normal(size=cache.keys(layer).shape)
        cache.values(layer)[:] = rng.normal(size=cache.values(layer).shape)
    return cache


def row_content(cache, row, length):
    return [
        tensor(layer)[row, :, :length].copy()
        for layer in range(cache.layers)
        for tensor in (cache.keys, cache.values)
    ]


def test_views_are_distinct_writable_and_keep_the_cache_alive():
    cache = _core.KVCache(3, 2, 2, 100, 16)
    views = [tensor(layer) for layer in range(3) for tensor in (cache.keys, cache.values)]
    assert cache.bytes >= 3 * 2 * 2 * 2 * 100 * 16 * 4
    del cache
    gc.collect()
    for number, view in enumerate(views):
        assert view.shape == (2, 2, 100, 16)
        assert view.dtype == np.float32
        assert not view.any()
        view[:] = number
    for number, view in enumerate(views):
        assert (view == number).all()


def test_addresses_never_change():
    cache = _core.KVCache(1, 1, 1, 8, 4)
    before = cache.keys(0).ctypes.data
    cache.append(0, range(8))
    cache.truncate(0, 0)
    assert cache.keys(0).ctypes.data == before


def test_a_large_capacity_costs_nothing_before_it_is_used():
    before = resident_memory()
    cache = _core.KVCache(28, 4, 2, 32768, 128)
    assert cache.bytes == 28 * 4 * 2 * 2 * 32768 * 128 * 4  # 7 GiB
    cache.keys(27)[3, 1, 32767] = 1.0
    assert resident_memory() - before < 64 << 20


def test_lengths():
    cache = _core.KVCache(1, 2, 1, 8, 4)
    cache.append(1, [1, 2, 3])
    assert [cache.length(0), cache.length(1)] == [0, 3]
    cache.append(1, [4, 5, 6, 7, 8])
    with pytest.raises(InputError, match="1 more don't fit"):
        cache.append(1, [9])
    cache.truncate(1, 2)
    assert cache.length(1) == 2
    with pytest.raises(InputError, match="truncate row 1 of 2 positions to 3"):
        cache.truncate(1, 3)
    for call in (lambda: cache.length(2), lambda: cache.length(-1), lambda: cache.truncate(2, 0)):
        with pytest.raises(InputError, match="row"):
            call()
    with pytest.raises(InputError, match="layer 1"):
        cache.keys(1)
    with pytest.raises(InputError, match="layer -1"):
        cache.values(-1)


@pytest.mark.parametrize("length", [0, 1, 17, 40])
def test_copy_and_move(length):
    cache = filled_cache()
    cache.append(2, range(length))
    cache.append(0, range(5))
    content = row_content(cache, 2, length)
    untouched = row_content(cache, 1, 40)

    cache.copy_row(2, 0)
    assert [cache.length(row) for row in range(4)] == [length, 0, length, 0]
    for actual, expected in zip(row_content(cache, 0, length), content, strict=True):
        np.testing.assert_array_equal(actual, expected)

    cache.move_row(0, 3)
    assert [cache.length(row) for row in range(4)] == [0, 0, length, length]
    for actual, expected in zip(row_content(cache, 3, length), content, strict=True):
        np.testing.assert_array_equal(actual, expected)
    for actual, expected in zip(row_content(cache, 1, 40), untouched, strict=True):
        np.testing.assert_array_equal(actual, expected)

    cache.move_row(3, 3)
    assert cache.length(3) == length


def test_large_rows_are_copied_by_threads_and_stay_right():
    cache = filled_cache(layers=4, rows=2, kv_heads=4, capacity=600, head_dim=64)
    cache.append(0, range(555))
    cache.copy_row(0, 1)
    for layer in range(4):
        np.testing.assert_array_equal(cache.keys(layer)[0, :, :555], cache.keys(layer)[1, :, :555])
        assert not np.array_equal(cache.values(layer)[0, :, 555:], cache.values(layer)[1, :, 555:])


def test_refusals():
    for sizes in ((0, 1, 1, 1, 1), (1, -1, 1, 1, 1), (1, 1, 1, 0, 1)):
        with pytest.raises(InputError, match="at least 1"):
            _core.KVCache(*sizes)
    with pytest.raises(InputError, match="address space"):
        _core.KVCache(2**31, 2**31, 2**31, 2**31, 2**31)
    with pytest.raises(Qwen2VLError):
        _core.KVCache(80, 1, 8, 2**33, 128)
