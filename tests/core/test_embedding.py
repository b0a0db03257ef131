"""The memory-mapped embedding table."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.errors import BundleError, InputError


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("offset", [0, 4096, 7])
def test_gather_widens_exactly(tmp_path, dtype, offset):
    table = np.random.default_rng(1).normal(size=(50, 33)).astype(dtype)
    path = tmp_path / "embedding.bin"
    path.write_bytes(b"x" * offset + table.tobytes())
    ids = [0, 49, 7, 7, 3]
    embedding = _core.EmbeddingTable(str(path), 50, 33, np.dtype(dtype).name, offset)
    np.testing.assert_array_equal(embedding.gather(ids), table[ids].astype(np.float32))
    assert embedding.gather([]).shape == (0, 33)


def test_every_16_bit_pattern(tmp_path):
    path = tmp_path / "embedding.bin"
    patterns = np.arange(65536, dtype=np.uint16)
    path.write_bytes(patterns.tobytes())
    for dtype in (np.float16, ml_dtypes.bfloat16):
        row = _core.EmbeddingTable(str(path), 1, 65536, np.dtype(dtype).name).gather([0])[0]
        with np.errstate(invalid="ignore"):
            expected = patterns.view(dtype).astype(np.float32)
        np.testing.assert_array_equal(row, expected)  # NaN equals NaN here


def test_many_rows_use_threads_and_stay_right(tmp_path):
    table = np.arange(100 * 512, dtype=np.float32).reshape(100, 512)
    path = tmp_path / "embedding.bin"
    path.write_bytes(table.tobytes())
    ids = np.random.default_rng(0).integers(0, 100, 3000)
    np.testing.assert_array_equal(
        _core.EmbeddingTable(str(path), 100, 512, "float32").gather(ids), table[ids]
    )


def test_refusals(tmp_path):
    path = tmp_path / "embedding.bin"
    path.write_bytes(bytes(4 * 6 - 1))
    with pytest.raises(BundleError, match="too few for 2 rows"):
        _core.EmbeddingTable(str(path), 2, 3, "float32")
    with pytest.raises(BundleError, match="too few"):
        _core.EmbeddingTable(str(path), 2**62, 2**62, "float32")
    with pytest.raises(BundleError, match="cannot open"):
        _core.EmbeddingTable(str(tmp_path / "none"), 1, 1, "float32")
    with pytest.raises(BundleError, match="cannot map"):
        _core.EmbeddingTable(str(tmp_path), 1, 1, "float32")
    with pytest.raises(InputError, match="int4"):
        _core.EmbeddingTable(str(path), 1, 3, "int4")
    table = _core.EmbeddingTable(str(path), 1, 3, "float32")
    for bad in (-1, 1, 2**31 - 1):
        with pytest.raises(InputError, match=str(bad)):
            table.gather([0, bad])
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(BundleError, match="cannot map"):
        _core.EmbeddingTable(str(tmp_path / "empty"), 1, 1, "float32")
