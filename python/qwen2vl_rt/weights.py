"""A bundle's graphs; their external weights are NumPy arrays over the mapped files, not read until used."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from qwen2vl_rt import _core
from qwen2vl_rt.bundle import EMBEDDING, Bundle
from qwen2vl_rt.errors import BundleError
from qwen2vl_rt.graph_format import PATCHES, STEP_INPUTS, cache_tensors
from qwen2vl_rt.number_formats import format_named


def load_graph(bundle: Bundle, file: str) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """Load one of the bundle's graphs without its weights, and map these: see `map_weights`.

    Raises:
        BundleError: a decoder's cache has other layers or sizes than the manifest says.
    """
    model = onnx.load(bundle.file(file), load_external_data=False)
    decoder = bundle.geometry.decoder
    caches = [value for value in model.graph.input if value.name not in (*STEP_INPUTS, PATCHES)]
    sizes = {tuple(dim.dim_value for dim in v.type.tensor_type.shape.dim)[1::2] for v in caches}
    expected = [names.past for names in cache_tensors(decoder.layers)], {(decoder.kv_heads, decoder.head_dim)}
    if caches and ([value.name for value in caches], sizes) != expected:
        raise BundleError(
            f"{bundle.path}: {file} and the manifest's geometry are of different models; "
            "copy the bundle again or export the checkpoint again"
        )
    return model, map_weights(model, bundle.path)


def map_weights(model: ModelProto, folder: Path) -> dict[str, np.ndarray]:
    """Map every initializer of `model` that is stored outside it.

    Args:
        model: a model whose external data lie in `folder`.
        folder: the bundle's folder.

    Returns:
        Read-only arrays by initializer name, in the stored shape and dtype (bfloat16 from ml_dtypes); 4-bit
        numbers, which NumPy has no packed type for, as the bytes that hold two each, uint8 [ceil(count / 2)].
        Arrays of one file share one mapping, so a tied table is in memory once.
    """
    files: dict[str, np.ndarray] = {}
    weights = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entry = {item.key: item.value for item in tensor.external_data}
        name = entry["location"]
        if name not in files:
            files[name] = np.memmap(folder / name, dtype=np.uint8, mode="r")
        offset, count = int(entry.get("offset", 0)), int(np.prod(tensor.dims, dtype=np.int64))
        if tensor.data_type == TensorProto.UINT4:
            weights[tensor.name] = files[name][offset : offset + (count + 1) // 2]
            continue
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        raw = files[name][offset : offset + count * dtype.itemsize]
        weights[tensor.name] = raw.view(dtype).reshape(tuple(tensor.dims))
    return weights


def embedding_table(bundle: Bundle) -> _core.EmbeddingTable:
    """The token embeddings [vocab_size, hidden_size], which are no graph's: rows are read from their file."""
    decoder = bundle.geometry.decoder
    dtype = "uint8" if bundle.quantized else format_named(bundle.precision).dtype
    return _core.EmbeddingTable(str(bundle.file(EMBEDDING)), decoder.vocab_size, decoder.hidden_size, dtype)


def drop_pages(weights: Iterable[np.ndarray]) -> None:
    """Give back the memory of mapped files; a page that is read again comes back from the file."""
    mappings = {id(mapping): mapping for mapping in map(_mapping, weights) if mapping is not None}
    for mapping in mappings.values():
        mapping.madvise(mmap.MADV_DONTNEED)


def drop_cache(file: Path) -> None:
    """Give back the page cache of a file that nothing maps any more; it comes back as it is read again."""
    with open(file, "rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_mapped(array: np.ndarray | None) -> bool:
    """Whether an array's memory is part of a mapped file."""
    return array is not None and _mapping(array) is not None


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """The mapped file that an array's memory is part of, if it is."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) else None
