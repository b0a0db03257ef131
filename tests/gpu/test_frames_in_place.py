"""Frames in a device's memory: adopted in place, prepared there, answered about like any other picture."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from qwen2vl_rt import _core
from qwen2vl_rt.backends import cuda
from qwen2vl_rt.errors import PictureError, PromptTooLongError
from qwen2vl_rt.processing import device_frames
from qwen2vl_rt.processing.device_frames import DeviceFrames, DevicePatches, is_device_frame
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.pixels import PixelSettings
from qwen2vl_rt.processing.visuals import prepare_picture
from tests.gpu import emulation
from tests.gpu.arrays import to_device, to_host
from tests.support.preparation import noise

SETTINGS = PixelSettings.from_config({})


class CudaArray:
    """What a library's array in a GPU's memory offers: an address, and no way to read it from the CPU."""

    def __init__(self, block, shape, strides=None, typestr="|u1"):
        self.block = block
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (block.pointer, True),
            "strides": strides,
            "version": 2,
        }


def frames_on(device) -> DeviceFrames:
    stream = None if isinstance(device, _core.HostDevice) else device.stream.handle
    return DeviceFrames(device, "float32", stream)


@pytest.mark.parametrize("channels", [3, 4])
def test_a_frame_becomes_the_same_patches_as_a_numpy_array(device, channels):
    pixels = noise(1, 100, 150, channels)
    source = CudaArray(to_device(device, pixels), pixels.shape)
    assert is_device_frame(source)
    assert not is_device_frame(pixels)
    visual, _ = prepare_picture(source, VisualOptions(), SETTINGS, frames=frames_on(device))
    expected, _ = prepare_picture(pixels, VisualOptions(), SETTINGS)
    assert isinstance(visual.patches, DevicePatches)
    assert visual.grid_thw == expected.grid_thw
    assert (visual.width, visual.height) == (150, 100)
    assert visual.patches.shape == expected.patches.shape
    actual = to_host(visual.patches.block, visual.patches.shape, np.float32)
    np.testing.assert_array_equal(actual, expected.patches)


def test_digests_are_of_the_content(device):
    frames = frames_on(device)

    def digest(pixels, **options):
        source = CudaArray(to_device(device, pixels), pixels.shape)
        return prepare_picture(source, VisualOptions(**options), SETTINGS, frames=frames)[0].digest

    pixels = noise(2, 90, 90)
    other = pixels.copy()
    other[40, 41, 1] ^= 128
    first = digest(pixels)
    assert len(first) == 32
    assert digest(pixels) == first
    assert len({first, digest(other), digest(pixels[:, ::-1]), digest(pixels, max_pixels=56 * 56)}) == 4


def test_dlpack_of_any_strides():
    """DLPack on the CPU's own device, which numpy offers: the same code reads a GPU's."""
    pixels = noise(3, 60, 80, 4)
    frames = DeviceFrames(_core.HostDevice(), "float32", None)
    for view in (pixels, pixels[:, :, :3], pixels[::2, 1::3, :3], pixels[:, :, 0], pixels[:, :, :1]):
        frame = frames.adopt(view)
        _, height, width = (1, *view.shape[:2])
        assert (frame.height, frame.width) == (height, width)
        settings = SETTINGS
        patches, _ = frames.prepare(frame, 56, 84, settings)
        expected, _ = prepare_picture(view, VisualOptions(resized_height=56, resized_width=84), settings)
        actual = to_host(patches.block, patches.shape, np.float32)
        np.testing.assert_array_equal(actual, expected.patches)


def test_an_adopted_frame_outlives_its_source():
    frames = DeviceFrames(_core.HostDevice(), "float32", None)
    pixels = noise(4, 64, 64)
    frame = frames.adopt(pixels.copy())
    gc.collect()
    patches, _ = frames.prepare(frame, 56, 56, SETTINGS)
    expected, _ = prepare_picture(pixels, VisualOptions(resized_height=56, resized_width=56), SETTINGS)
    np.testing.assert_array_equal(to_host(patches.block, patches.shape, np.float32), expected.patches)


@pytest.mark.gpu
def test_a_producers_default_stream_is_that_of_its_gpu(another_gpu):
    module, pixels, made = cuda.load(), noise(5, 64, 64), []
    device = module.CudaDevice(module.Stream())
    source = CudaArray(to_device(device, pixels), pixels.shape)
    source.__cuda_array_interface__["stream"] = 1
    queue = emulation.queue_on(0)
    frames = frames_on(device)  # whose end would wait for all streams
    queue(lambda: made.append("frame"))
    frames.adopt(source)
    assert made == ["frame"]


class OnSecondGpu:
    """A DLPack array of which only the place is asked for."""

    def __dlpack_device__(self):
        return (2, 1)

    def __dlpack__(self, stream=None):
        raise AssertionError("taken over from the wrong GPU")


def test_refusals():
    device = _core.HostDevice()
    frames, block = DeviceFrames(device, "float32", None), device.allocate(64 * 64 * 4)

    def prepare(source, frames=frames, **keywords):
        prepare_picture(source, VisualOptions(), SETTINGS, "camera 2", frames=frames, **keywords)

    with pytest.raises(PictureError, match=r"camera 2: .*computes on the CPU"):
        prepare(CudaArray(block, (64, 64, 3)), frames=None)
    for shape in ((64,), (64, 64, 2), (0, 64, 3), (1, 64, 64, 3)):
        with pytest.raises(PictureError, match=r"must be \[height, width, 3\]"):
            prepare(CudaArray(block, shape))
    with pytest.raises(PictureError, match="must be uint8, not <f4"):
        prepare(CudaArray(block, (64, 64, 3), typestr="<f4"))
    with pytest.raises(PictureError, match="must be uint8, not DLPack type 2"):
        frames.adopt(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(PictureError, match=r"camera 2: .*lies on GPU 1, .*CUDA_VISIBLE_DEVICES"):
        prepare(OnSecondGpu(), frames=DeviceFrames(device, "float32", stream=7))
    with pytest.raises(PictureError, match="aspect ratio"):
        prepare(CudaArray(block, (1, 2000, 3)))
    with pytest.raises(PromptTooLongError, match="room for 3"):
        prepare(CudaArray(block, (64, 64, 3)), most_tokens=3)


def test_a_picture_on_the_host_is_brought_to_the_device(device, monkeypatch):
    frames, wide = frames_on(device), noise(7, 70, 95)[:, 5:]  # rows with a gap
    for pixels in (wide, noise(8, 40, 2000)):
        visual, _ = prepare_picture(pixels, VisualOptions(max_pixels=28 * 28 * 8), SETTINGS, frames=frames)
        expected, _ = prepare_picture(pixels, VisualOptions(max_pixels=28 * 28 * 8), SETTINGS)
        assert isinstance(visual.patches, DevicePatches)
        actual = to_host(visual.patches.block, visual.patches.shape, np.float32)
        np.testing.assert_array_equal(actual, expected.patches)
        assert (visual.width, visual.height, visual.grid_thw) == (
            expected.width,
            expected.height,
            expected.grid_thw,
        )
    again, _ = prepare_picture(wide.copy(), VisualOptions(max_pixels=28 * 28 * 8), SETTINGS, frames=frames)
    other, _ = prepare_picture(255 - wide, VisualOptions(max_pixels=28 * 28 * 8), SETTINGS, frames=frames)
    first, _ = prepare_picture(wide, VisualOptions(max_pixels=28 * 28 * 8), SETTINGS, frames=frames)
    assert again.digest == first.digest != other.digest
    with pytest.raises(PromptTooLongError, match="room for 2"):
        prepare_picture(wide, VisualOptions(), SETTINGS, frames=frames, most_tokens=2)
    monkeypatch.setattr(device_frames, "LARGEST_UPLOAD", wide.nbytes - 1)
    large, _ = prepare_picture(wide, VisualOptions(), SETTINGS, frames=frames)
    assert isinstance(large.patches, np.ndarray)


def test_the_vision_tower_reads_patches_where_they_are(tmp_path, device):
    from qwen2vl_export.export import export_checkpoint
    from qwen2vl_rt.backends.cuda.executors import DeviceVision
    from qwen2vl_rt.vision import VisionTower
    from tests.gpu.checkpoint import small_checkpoint
    from tests.gpu.test_cuda_backend import provider_of

    bundle = export_checkpoint(small_checkpoint(tmp_path / "checkpoint"), tmp_path / "bundle")
    vision = DeviceVision(bundle, device, "float32", provider_of(device))

    class OnHost:
        """Embeddings brought to the host, to be compared."""

        def encode(self, patches, cos, sin):
            return vision.encode(patches, cos, sin).numpy()

    tower = VisionTower(OnHost(), bundle.geometry.vision)
    pixels = noise(6, 90, 120)
    source = CudaArray(to_device(device, pixels), pixels.shape)
    on_device, _ = prepare_picture(source, VisualOptions(), SETTINGS, frames=frames_on(device))
    on_host, _ = prepare_picture(pixels, VisualOptions(), SETTINGS)
    actual, expected = tower.encode([on_device, on_host])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
