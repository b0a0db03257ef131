"""Reading one safetensors file: a checked header, then tensors by rows, straight from their place in the
file.

The file is 8 bytes (the header's length, little-endian), a JSON header {name: {dtype, shape,
data_offsets}} and the tensors' bytes. A damaged header must end in a message and not in a crash or a huge
allocation, so every number of it is checked against the file's real size before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from qwen2vl_rt.errors import CheckpointError

# Numpy's types for the formats that weights come in. Other formats are listed by their size only, so that
# a file that holds such a tensor is still readable and the message can name the tensor.
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_ITEM_BYTES = {
    **{name: dtype.itemsize for name, dtype in DTYPES.items()},
    **{"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1},
    **{"F8_E4M3": 1, "F8_E5M2": 1},
}
_HEADER_LIMIT = 100_000_000  # bytes, the format's own limit
_LARGEST = 2**48  # numbers in a tensor, taking 0 as 1: else a shape with a 0 in it could hold anything


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: its format, shape and the position of its first byte."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def number(self) -> np.dtype:
        """Numpy's type of the numbers. Raises CheckpointError if they are not floating-point ones."""
        if self.dtype not in DTYPES:
            raise CheckpointError(
                f"{self.file}: tensor {self.name} has format {self.dtype}, "
                f"expected one of {', '.join(DTYPES)}; "
                "of quantized checkpoints the GPTQ and AWQ layouts can be read"
            )
        return DTYPES[self.dtype]

    @property
    def words(self) -> np.dtype:
        """Numpy's type of packed codes. Raises CheckpointError if they are no 32-bit integers."""
        if self.dtype != "I32":
            raise CheckpointError(f"{self.file}: tensor {self.name} has format {self.dtype}, expected I32")
        return np.dtype(np.uint32)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the rows `start` to `stop`: an array [stop - start, *shape[1:]].

        Raises CheckpointError if the file does not hold them or they are not floating-point numbers.
        """
        rows = np.empty((stop - start, *self.shape[1:]), self.number)
        self._fill([rows], start * math.prod(self.shape[1:]), 0)
        return rows

    def read_words(self, start: int, stop: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """Read the rows `start` to `stop` of a tensor of 32-bit integers, as uint32; of a matrix, its columns
        `first` to `last`.

        Raises CheckpointError if the file does not hold them or they are no 32-bit integers.
        """
        width = math.prod(self.shape[1:])
        last = width if last is None else last
        rows = np.empty((stop - start, last - first), self.words)
        if last - first == width:
            self._fill([rows], start * width, 0)
            return rows.reshape(stop - start, *self.shape[1:])
        self._fill(rows, start * width + first, width)
        return rows

    def _fill(self, blocks: Iterable[np.ndarray], position: int, step: int) -> None:
        """Read into contiguous `blocks` from the tensor's numbers `position`, `position` + `step`, ... on."""
        try:
            with open(self.file, "rb", buffering=0) as stream:
                for block in blocks:
                    stream.seek(self.offset + position * block.itemsize)
                    view, read = memoryview(block.reshape(-1).view(np.uint8)), 0
                    while read < len(view):
                        if not (count := stream.readinto(view[read:])):
                            raise CheckpointError(
                                f"{self.file} is truncated in tensor {self.name}; download it again"
                            )
                        read += count
                    position += step
        except OSError as error:
            raise CheckpointError(f"{self.file} cannot be read: {error.strerror}") from error


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name.

    Raises CheckpointError if the header is damaged or the file is shorter or longer than the header says.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise CheckpointError(
                    f"{file} is truncated or no safetensors file: it has {size} bytes and "
                    f"announces a header of {length}; download it again"
                )
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; download the checkpoint again") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the header is not valid JSON ({error}); download it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: the header is not a JSON object; download it again")

    data_start, expected_end, tensors = 8 + length, 8 + length, {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensors[name], end = _stored_tensor(file, name, entry, data_start)
        expected_end = max(expected_end, end)
    if expected_end != size:
        what = "truncated" if size < expected_end else "damaged"
        raise CheckpointError(
            f"{file} is {what}: it has {size} bytes, its header describes {expected_end}; download it again"
        )
    return tensors


def _stored_tensor(file: Path, name: str, entry: object, data_start: int) -> tuple[StoredTensor, int]:
    """Check one header entry; return the tensor and the position after its last byte."""
    try:
        dtype, shape = entry["dtype"], entry["shape"]  # type: ignore[index]
        start, end = entry["data_offsets"]  # type: ignore[index]
        whole = len(shape) <= 8 and all(type(n) is int and n >= 0 for n in (start, end, *shape))
        if not whole or math.prod(max(n, 1) for n in shape) > _LARGEST:
            raise ValueError
        if math.prod(shape) * _ITEM_BYTES[dtype] != end - start:
            raise ValueError
    except (TypeError, KeyError, ValueError, IndexError):
        raise CheckpointError(
            f"{file}: the header's entry of tensor {name[:200]!r} is damaged ({str(entry)[:200]}); "
            "download it again"
        ) from None
    return StoredTensor(name, file, dtype, tuple(shape), data_start + start), data_start + end
