"""Frames prepared by a device equal prepare_frame's patches to the last bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.errors import InputError
from qwen2vl_rt.processing.pixels import value_table
from tests.gpu.arrays import to_device, to_host
from tests.support.preparation import noise

TABLE = value_table(1 / 255, [0.48, 0.46, 0.41], [0.27, 0.26, 0.28])


def expected_patches(frame, height, width, vertical_first):
    patches = np.full((1, (height // 14) * (width // 14), 3 * 2 * 14 * 14), 7, np.float32)
    pixels = np.empty((height, width, 3), np.uint8)
    _core.write_frame(frame, patches, 0, 2, height, width, TABLE, 14, 2, 2, vertical_first, pixels)
    return patches[0], pixels


@pytest.mark.kernels("image/frame_kernel.cu")
@pytest.mark.parametrize("vertical_first", [False, True])
@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((56, 84), (56, 84)),  # as it is
        ((61, 97), (56, 84)),
        ((480, 640), (224, 308)),
        ((700, 40), (28, 56)),  # much lower: the vertical pass comes first in newer Pillows
        ((20, 900), (84, 28)),
        ((3, 5), (84, 112)),  # enlarged
        ((1, 1), (28, 28)),
        ((1500, 1400), (28, 28)),
    ],
)
def test_patches_equal_the_cpus(device, size, resized, vertical_first):
    frame = noise(sum(size), *size)
    if size[0] % 2:
        frame = (frame > 127).astype(np.uint8) * 255
    expected, pixels = expected_patches(frame, *resized, vertical_first)
    preparer = _core.FramePreparer(device, TABLE, 14, 2, 2, vertical_first)
    stored = to_device(device, frame)
    patches = device.allocate(expected.nbytes)
    digest = device.allocate(32)
    strides = [size[1] * 3, 3, 1]
    preparer.prepare(stored.pointer, size, strides, resized, 0, 2, patches.pointer, "float32", digest.pointer)
    np.testing.assert_array_equal(to_host(patches, expected.shape, np.float32), expected)
    first = to_host(digest, (4,), np.uint64)
    # The digest is of the resized pixels: the same frame has the same, another pixel another.
    again, changed = device.allocate(32), device.allocate(32)
    preparer.prepare(stored.pointer, size, strides, resized, 0, 1, patches.pointer, "float32", again.pointer)
    np.testing.assert_array_equal(to_host(again, (4,), np.uint64), first)
    other = np.ascontiguousarray(255 - frame)
    if not np.array_equal(expected_patches(other, *resized, vertical_first)[1], pixels):
        kept = to_device(device, other)
        preparer.prepare(
            kept.pointer, size, strides, resized, 0, 1, patches.pointer, "float32", changed.pointer
        )
        assert (to_host(changed, (4,), np.uint64) != first).all()


@pytest.mark.kernels("image/frame_kernel.cu")
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_strided_frames_slots_and_16_bit_patches(device, dtype):
    frame = noise(3, 90, 130, 4)
    stored = to_device(device, frame)
    views = {
        "rgba": (stored.pointer, (90, 130), (520, 4, 1), frame[:, :, :3]),
        "bgra": (stored.pointer + 2, (90, 130), (520, 4, -1), frame[:, :, 2::-1]),
        "turned over": (stored.pointer + 89 * 520, (90, 130), (-520, 4, 1), frame[::-1, :, :3]),
        "transposed": (stored.pointer, (130, 90), (4, 520, 1), frame.transpose(1, 0, 2)[:, :, :3]),
        "grey": (stored.pointer, (90, 130), (520, 4, 0), np.repeat(frame[:, :, :1], 3, axis=2)),
    }
    preparer = _core.FramePreparer(device, TABLE, 14, 2, 2, True)
    for pointer, size, strides, view in views.values():
        expected, _ = expected_patches(np.ascontiguousarray(view), 56, 84, True)
        patches = to_device(device, np.full(expected.shape, 3, dtype))
        preparer.prepare(pointer, size, strides, (56, 84), 1, 1, patches.pointer, np.dtype(dtype).name)
        actual = to_host(patches, expected.shape, dtype).reshape(-1, 3, 2, 196)
        np.testing.assert_array_equal(actual[:, :, 1], expected.astype(dtype).reshape(-1, 3, 2, 196)[:, :, 1])
        assert (actual[:, :, 0] == 3).all()  # the other slot is left alone


def test_frames_that_do_not_fit_are_refused(device):
    preparer = _core.FramePreparer(device, TABLE, 14, 2, 2, False)
    patches = device.allocate(4 * 3 * 2 * 196 * 4)

    def prepare(size, resized, slot=0, copies=1):
        preparer.prepare(patches.pointer, size, (3, 3, 1), resized, slot, copies, patches.pointer, "float32")

    for size, resized in (((0, 5), (28, 28)), ((5, 5), (30, 28)), ((2**25, 5), (28, 28))):
        with pytest.raises(InputError):
            prepare(size, resized)
    with pytest.raises(InputError, match=r"slots 1\.\.3"):
        prepare((5, 5), (28, 28), 1, 2)
    with pytest.raises(InputError, match="shrunk"):
        prepare((2**24, 28), (28, 28))
