"""The embedding table, read from its file."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.errors import BundleError, InputError


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_gather_widens_exactly(tmp_path, dtype):
    table = np.random.default_rng(1).normal(size=(50, 33)).astype(dtype)
    path = tmp_path / "embedding.bin"
    path.write_bytes(table.tobytes())
    ids = [0, 49, 7, 7, 3]
    embedding = _core.EmbeddingTable(str(path), 50, 33, np.dtype(dtype).name)
    np.testing.assert_array_equal(embedding.gather(ids), table[ids].astype(np.float32))
    assert embedding.gather([]).shape == (0, 33)


def block_table(rows: int, width: int, seed: int = 0):
    """Random 8-bit codes with scales and zero points a block of 128, and what they stand for."""
    rng = np.random.default_rng(seed)
    blocks = -(-width // 128)
    codes = rng.integers(0, 256, (rows, width), np.uint8)
    scales = rng.uniform(1e-3, 1e-2, (rows, blocks)).astype(np.float32)
    zero_points = rng.integers(0, 256, (rows, blocks), np.uint8)
    of_block = np.arange(width) // 128
    exact = codes.astype(np.float32) - zero_points[:, of_block].astype(np.float32)
    return codes, scales, zero_points, exact * scales[:, of_block]


def block_bytes(*parts: np.ndarray) -> bytes:
    """The parts as a file has them: each from a page's start on."""
    data = b""
    for part in parts:
        data += bytes(-len(data) % 4096) + part.tobytes()
    return data


@pytest.mark.parametrize("width", [1, 33, 128, 129, 320, 1536])
def test_gather_dequantises_blocks(tmp_path, width):
    codes, scales, zero_points, expected = block_table(50, width, width)
    path = tmp_path / "embedding.bin"
    path.write_bytes(block_bytes(codes, scales, zero_points))
    ids = [0, 49, 7, 7, 3]
    embedding = _core.EmbeddingTable(str(path), 50, width, "uint8")
    np.testing.assert_array_equal(embedding.gather(ids), expected[ids])


def test_gather_equals_dequantize_linear(tmp_path):
    """Bit for bit what the portable graph's operator gives."""
    codes, scales, zero_points, _ = block_table(9, 200)
    node = onnx.helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], axis=1, block_size=128)
    inputs = {"x": codes, "s": scales, "z": zero_points}
    values = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in inputs.items()
    ]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, codes.shape)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", values, [output]),
        opset_imports=[onnx.helper.make_opsetid("", 21)],
        ir_version=10,
    )
    (expected,) = ort.InferenceSession(model.SerializeToString()).run(None, inputs)
    path = tmp_path / "embedding.bin"
    path.write_bytes(block_bytes(codes, scales, zero_points))
    table = _core.EmbeddingTable(str(path), 9, 200, "uint8")
    np.testing.assert_array_equal(table.gather(range(9)), expected)


def test_a_block_table_cut_short_is_refused(tmp_path):
    codes, scales, zero_points, _ = block_table(50, 200)
    whole = block_bytes(codes, scales, zero_points)
    path = tmp_path / "embedding.bin"
    for size in (len(whole) - 1, 50 * 200 + 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError, match=rf"{size} bytes, too few for the scales and zero points of 50"):
            _core.EmbeddingTable(str(path), 50, 200, "uint8")


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
    with pytest.raises(BundleError, match="not a regular file"):
        _core.EmbeddingTable(str(tmp_path), 1, 1, "float32")
    with pytest.raises(InputError, match="int4"):
        _core.EmbeddingTable(str(path), 1, 3, "int4")
    table = _core.EmbeddingTable(str(path), 1, 3, "float32")
    for bad in (-1, 1, 2**31 - 1):
        with pytest.raises(InputError, match=str(bad)):
            table.gather([0, bad])
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(BundleError, match="it is empty"):
        _core.EmbeddingTable(str(tmp_path / "empty"), 1, 1, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_a_file_that_has_become_shorter_is_an_error(tmp_path, dtype):
    path = tmp_path / "embedding.bin"
    path.write_bytes(bytes(3 * 8192))
    table = _core.EmbeddingTable(str(path), 4, 128, dtype)
    table.gather([3])
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.raises(BundleError, match="has become shorter"):
        table.gather([3])


def test_rows_in_use_take_no_memory(tmp_path):
    """A table's rows come and go; the process does not keep them."""
    path = tmp_path / "embedding.bin"
    rows, width = 40_000, 256
    table = np.arange(rows, dtype=np.float32)[:, None] + np.zeros(width, np.float32)
    path.write_bytes(table.tobytes())
    embedding = _core.EmbeddingTable(str(path), rows, width, "float32")

    def file_pages() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssFile:")[1].split()[0]) * 1024

    before = file_pages()
    for begin in range(0, rows, 1000):
        assert (embedding.gather(range(begin, begin + 1000))[:, 0] == np.arange(begin, begin + 1000)).all()
    assert file_pages() - before < table.nbytes / 4
