"""Frames in a GPU's memory: from DLPack or __cuda_array_interface__ to patches, without leaving it."""

from __future__ import annotations

import ctypes
import hashlib
import math
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError, PictureError, PromptTooLongError
from qwen2vl_rt.number_formats import format_named
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.patches import pillow_starts_vertically
from qwen2vl_rt.processing.pixels import PixelSettings

# DLPack's device types: https://dmlc.github.io/dlpack/latest/c_api.html
CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
_GPU_TYPES = (CUDA, CUDA_HOST, CUDA_MANAGED)
_DIGEST_BYTES = 32

# The largest picture from the host that is prepared on the device, in bytes; a larger one is resized where it
# is. (The memory plan counts it.)
LARGEST_UPLOAD = 32 << 20


@dataclass(frozen=True, eq=False)
class DeviceFrame:
    """A uint8 frame somewhere in a device's memory, read in place. `owner` keeps it alive."""

    pointer: int
    height: int
    width: int
    strides: tuple[int, int, int]
    """Bytes from row to row, pixel to pixel, channel to channel; 0 between the channels of a grey frame."""
    owner: object = field(repr=False)


@dataclass(frozen=True, eq=False)
class DevicePatches:
    """The vision tower's input for one picture, in a device's memory."""

    block: _core.DeviceBlock = field(repr=False)
    shape: tuple[int, int, int]
    """[1, grid_h * grid_w, patch_values], in merge order."""
    dtype: str
    """"float32", "bfloat16" or "float16"."""


def is_device_frame(source: Any) -> bool:
    """Whether `source` is an array in a GPU's memory (PyTorch, CuPy, JAX, numba, a camera library, ...)."""
    if isinstance(source, np.ndarray):
        return False
    if hasattr(source, "__cuda_array_interface__"):
        return True
    return hasattr(source, "__dlpack_device__") and int(source.__dlpack_device__()[0]) in _GPU_TYPES


class DeviceFrames:
    """Prepares frames on a device, on a stream of its own, from any thread.

    Memory of patches that are gone holds the next frame's: what reads them on another stream must be done by
    then.

    Args:
        device: whose memory frames and patches are in; nothing else may run on it.
        dtype: of the patches, what the vision tower computes in.
        stream: the device's stream as an integer, which frames' producers make wait for their work; None on
            the CPU.
    """

    def __init__(self, device: _core.Device, dtype: str, stream: int | None) -> None:
        self._device = device
        self._dtype = dtype
        self._stream = stream
        self._lock = threading.Lock()
        self._preparer: tuple[PixelSettings, _core.FramePreparer] | None = None
        self._uploads, self._patches = _core.BlockPool(device), _core.BlockPool(device)
        self._digest = device.allocate(_DIGEST_BYTES)

    def adopt(self, source: Any, name: str = "picture") -> DeviceFrame:
        """The frame behind `source`: [height, width, 3], [.., 4] (alpha ignored), [.., 1] or [height, width].

        Raises:
            PictureError: it is no uint8 array of such a shape, or lies somewhere else.
        """
        from_there = _from_dlpack if hasattr(source, "__dlpack__") else _from_cuda_array
        return from_there(source, self._stream, name)

    def upload(self, pixels: np.ndarray) -> DeviceFrame | None:
        """A copy of a host's frame, uint8 [height, width, 3]; None if it is larger than LARGEST_UPLOAD."""
        if pixels.nbytes > LARGEST_UPLOAD:
            return None
        height, width, _ = pixels.shape
        with self._lock:
            block = self._uploads.take(pixels.nbytes)
            block.upload(np.ascontiguousarray(pixels).reshape(-1))
        return DeviceFrame(block.pointer, height, width, (3 * width, 3, 1), block)

    def prepare(
        self, frame: DeviceFrame, height: int, width: int, settings: PixelSettings
    ) -> tuple[DevicePatches, bytes]:
        """Patches of a frame resized to height x width pixels, and 32 bytes that identify its pixels."""
        patches = (height // settings.patch_size) * (width // settings.patch_size)
        with self._lock:
            if self._preparer is None or self._preparer[0] is not settings:
                self._preparer = (
                    settings,
                    _core.FramePreparer(
                        self._device,
                        settings.table,
                        settings.patch_size,
                        settings.temporal_patch_size,
                        settings.merge_size,
                        pillow_starts_vertically(),
                    ),
                )
            block = self._patches.take(patches * settings.patch_values * format_named(self._dtype).item_bytes)
            self._preparer[1].prepare(
                frame.pointer,
                (frame.height, frame.width),
                frame.strides,
                (height, width),
                0,
                settings.temporal_patch_size,
                block.pointer,
                self._dtype,
                self._digest.pointer,
            )
            words = np.empty(_DIGEST_BYTES, np.uint8)
            self._digest.download(words)  # waits: frame and patches are free to be used elsewhere
        shape = (1, patches, settings.patch_values)
        return DevicePatches(block, shape, self._dtype), words.tobytes()


def adopt_device_frame(source: Any, frames: DeviceFrames | None, name: str = "picture") -> DeviceFrame:
    """The frame behind an array in a GPU's memory.

    Raises:
        PictureError: the session computes on the CPU, or the frame can't be used.
    """
    if frames is None:
        raise PictureError(
            f"{name}: the picture is in a GPU's memory, and this session computes on the CPU: copy it there "
            "(a numpy array), or open the session with backend='cuda'"
        )
    return frames.adopt(source, name)


def prepare_device_frame(
    frame: DeviceFrame,
    options: VisualOptions,
    settings: PixelSettings,
    frames: DeviceFrames,
    name: str = "picture",
    most_tokens: int | None = None,
) -> tuple[tuple[int, int, int], DevicePatches, bytes]:
    """Grid (t, h, w), patches, and 32 bytes that identify the frame's content.

    Raises:
        PictureError: the frame can't be used.
        PromptTooLongError: it becomes more than `most_tokens` visual tokens.
    """
    try:
        height, width = settings.resized(frame.height, frame.width, options)
        grid = (1, height // settings.patch_size, width // settings.patch_size)
        tokens = math.prod(grid) // settings.merge_size**2
        if most_tokens is not None and tokens > most_tokens:
            raise PromptTooLongError(
                f"{name}: it becomes {tokens} visual tokens ({width} x {height} pixels), the prompt has room "
                f"for {max(0, most_tokens)}: lower max_pixels"
            )
        patches, digest = frames.prepare(frame, height, width, settings)
    except PromptTooLongError:
        raise
    except InputError as error:
        raise PictureError(f"{name}: {error}") from None
    identity = hashlib.blake2b(f"device frame {grid}".encode() + digest, digest_size=32).digest()
    return grid, patches, identity


def _frame(
    pointer: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, owner: object, name: str
) -> DeviceFrame:
    """Shape and byte strides of a uint8 array as a frame's."""
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise PictureError(f"{name}: a frame in a GPU's memory must be [height, width, 3], not {list(shape)}")
    if strides is None:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    channel = 0 if len(shape) == 2 or shape[2] == 1 else strides[2]
    return DeviceFrame(pointer, shape[0], shape[1], (strides[0], strides[1], channel), owner)


def _require_session_gpu(gpu: int, name: str) -> None:
    """A frame on another GPU would be an illegal address, after which no CUDA call of the process works."""
    if gpu > 0:
        raise PictureError(
            f"{name}: the frame lies on GPU {gpu}, and sessions compute on GPU 0: copy it there, or choose "
            "the GPU with the environment variable CUDA_VISIBLE_DEVICES"
        )


def _from_cuda_array(source: Any, own_stream: int | None, name: str) -> DeviceFrame:
    """https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html"""
    interface = source.__cuda_array_interface__
    if interface["typestr"] != "|u1":
        raise PictureError(f"{name}: a frame must be uint8, not {interface['typestr']}: convert it")
    pointer, stream = int(interface["data"][0]), interface.get("stream")
    if stream is not None:
        # The producer's work may still be under way; 1 and 2 are its GPU's default streams.
        from qwen2vl_rt.backends import cuda

        cuda.load().synchronize_stream(stream, max(cuda.load().device_of(pointer), 0))
    if own_stream is not None:
        from qwen2vl_rt.backends import cuda

        _require_session_gpu(cuda.load().device_of(pointer), name)
    return _frame(pointer, tuple(interface["shape"]), interface.get("strides"), source, name)


class _Tensor(ctypes.Structure):
    """DLTensor of DLPack 0.x and 1.x."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(source: Any, stream: int | None, name: str) -> DeviceFrame:
    device_type, device_number = source.__dlpack_device__()
    wanted = (CPU,) if stream is None else _GPU_TYPES
    if int(device_type) not in wanted:
        raise PictureError(
            f"{name}: the frame lies on a DLPack device of type {int(device_type)}, not {wanted}"
        )
    if int(device_type) == CUDA:
        _require_session_gpu(int(device_number), name)
    # The producer queues what our stream has to wait for.
    capsule = source.__dlpack__() if stream is None else source.__dlpack__(stream=stream)
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer_of(capsule, b"dltensor"))
    if (tensor.code, tensor.bits, tensor.lanes) != (1, 8, 1):
        raise PictureError(
            f"{name}: a frame must be uint8, not DLPack type {tensor.code} of {tensor.bits} bits"
        )
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    # The capsule is not marked as used: what it holds is freed with it.
    return _frame((tensor.data or 0) + tensor.byte_offset, shape, strides, (source, capsule), name)
