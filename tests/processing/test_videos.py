"""Videos: which frames come out, by seeking and by counting, from files and lists; and what is refused."""

import base64
import contextlib
import http.server
import io
import struct
import threading
import tracemalloc

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwen2vl_rt.errors import VideoError
from qwen2vl_rt.processing import video_file, videos
from qwen2vl_rt.processing.options import VisualOptions
from qwen2vl_rt.processing.pixels import PixelSettings
from qwen2vl_rt.processing.video_file import IndexMismatchError
from qwen2vl_rt.processing.videos import open_video
from qwen2vl_rt.processing.visuals import prepare_video
from tests.support.preparation import PREPROCESSOR, noise

SIZE = (64, 48)  # width, height
SETTINGS = PixelSettings.from_config(PREPROCESSOR)


def numbered(index):
    """A frame that carries its number: 8 blocks below are its bits, and the upper left is white."""
    frame = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    frame[: SIZE[1] // 2, : SIZE[0] // 2] = 255
    for bit in range(8):
        frame[SIZE[1] // 2 :, bit * 8 : bit * 8 + 8] = 255 * (index >> bit & 1)
    return frame


def number(frame):
    blocks = frame[SIZE[1] // 2 + 4 : -4].reshape(-1, 8, 8, 3)[:, :, 2:6].mean(axis=(0, 2, 3))
    return sum(1 << bit for bit in range(8) if blocks[bit] > 127)


def write(path, frames=60, codec="libx264", rate=10, gop=12, **options):
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        for index in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(numbered(index % 256), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def indices(clip):
    """Which frames came out."""
    return [number(frame) for frame in clip.frames]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {
        "h264.mp4": write(folder / "h264.mp4"),
        "faststart.mp4": write(folder / "faststart.mp4", movflags="faststart"),
        "h264.mkv": write(folder / "h264.mkv"),
        "h264.ts": write(folder / "h264.ts"),
        "mpeg4.avi": write(folder / "mpeg4.avi", codec="mpeg4"),
        "mpeg4.mp4": write(folder / "mpeg4.mp4", codec="mpeg4"),
        "one_gop.mp4": write(folder / "one_gop.mp4", gop=1000),
        "ffv1.mkv": write(folder / "ffv1.mkv", codec="ffv1", gop=1),
    }


NAMES = [
    "h264.mp4",
    "faststart.mp4",
    "h264.mkv",
    "h264.ts",
    "mpeg4.avi",
    "mpeg4.mp4",
    "one_gop.mp4",
    "ffv1.mkv",
]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_frames_of_files(files, name, exact):
    for count in (2, 4, 12, 60):
        with open_video(files[name], VisualOptions(nframes=count), exact=exact) as clip:
            expected = torch.linspace(0, 59, count).round().long().tolist()
            assert clip.count == count
            assert indices(clip) == expected
            assert clip.sample_fps == pytest.approx(count / 6)
            assert clip.times == pytest.approx([index / 10 for index in expected], abs=0.002)


def test_frames_in_a_range(files):
    options = VisualOptions(fps=2, video_start=2.0, video_end=5.0)
    with open_video(files["h264.mp4"], options) as clip:
        # 31 frames, 20 to 50, are 3.1 seconds: 6 frames.
        assert indices(clip) == torch.linspace(20, 50, 6).round().long().tolist()
        assert clip.times[0] == pytest.approx(2.0)


def test_skipped_parts_are_not_decoded(files, monkeypatch):
    decoded = []
    original = video_file.VideoFile._index

    def index(self, time):
        decoded.append(time)
        return original(self, time)

    monkeypatch.setattr(video_file.VideoFile, "_index", index)
    with open_video(files["h264.mp4"], VisualOptions(nframes=2)) as clip:
        assert indices(clip) == [0, 59]
    assert len(set(decoded)) < 30


def test_a_search_that_lands_early(files, monkeypatch):
    """A container may go to a keyframe before the one that was asked for."""
    original = video_file.VideoFile._container

    class Early:
        def __init__(self, container):
            self.container = container

        def seek(self, time, **options):
            self.container.seek(0, **options)

        def __getattr__(self, name):
            return getattr(self.container, name)

    @contextlib.contextmanager
    def early(self):
        with original(self) as (container, stream):
            yield Early(container), stream

    monkeypatch.setattr(video_file.VideoFile, "_container", early)
    with open_video(files["h264.mp4"], VisualOptions(nframes=4)) as clip:
        assert indices(clip) == [0, 20, 39, 59]


@pytest.mark.parametrize("form", ["str", "path", "url", "bytes", "strided", "file", "data"])
def test_sources(files, form):
    path = files["h264.mp4"]
    data = path.read_bytes()
    source = {
        "str": str(path),
        "path": path,
        "url": path.as_uri(),
        "bytes": data,
        "strided": memoryview(data[::-1])[::-1],
        "file": io.BytesIO(data),
        "data": "data:video/mp4;base64," + base64.b64encode(data).decode(),
    }[form]
    with open_video(source, VisualOptions(nframes=4)) as clip:
        assert indices(clip) == [0, 20, 39, 59]


def test_network(files, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(files["h264.mp4"].parent))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with open_video(f"{address}/h264.mp4", VisualOptions(nframes=4)) as clip:
            assert indices(clip) == [0, 20, 39, 59]
        with pytest.raises(VideoError, match="answered 404"):
            prepare_video(f"{address}/missing.mp4", VisualOptions(), SETTINGS)
        monkeypatch.setattr(videos, "MAX_VIDEO_BYTES", 1000)
        with pytest.raises(VideoError, match="the limit is 1000"):
            prepare_video(f"{address}/h264.mp4", VisualOptions(), SETTINGS)
        server.shutdown()


def test_lists_and_arrays_of_frames(tmp_path):
    frames = [noise(seed, 30, 40) for seed in range(3)]
    Image.fromarray(frames[1]).save(tmp_path / "1.png")
    mixed = [frames[0], tmp_path / "1.png", Image.fromarray(frames[2])]
    for source in (frames, tuple(frames), np.stack(frames), mixed):
        with open_video(source, VisualOptions()) as clip:
            assert clip.count == 3
            for got, frame in zip(clip.frames, frames, strict=True):
                np.testing.assert_array_equal(got, frame)


def test_the_last_frame_of_an_odd_list_is_repeated():
    frames = [noise(seed, 60, 80) for seed in range(3)]
    odd, _ = prepare_video(frames, VisualOptions(), SETTINGS)
    even, _ = prepare_video([*frames, frames[2]], VisualOptions(), SETTINGS)
    assert odd.grid_thw[0] == 2
    np.testing.assert_array_equal(odd.patches, even.patches)


def test_a_single_frame(tmp_path):
    path = write(tmp_path / "one.mp4", frames=1)
    visual, _ = prepare_video(path, VisualOptions(), SETTINGS)
    assert visual.grid_thw[0] == 1


def test_size_and_times(files):
    settings_ = PixelSettings.from_config({**PREPROCESSOR, "max_pixels": 16384 * 784})
    visual, _ = prepare_video(files["h264.mp4"], VisualOptions(), settings_)
    # 128 visual tokens at least: 316 x 316 pixels of a 4 : 3 picture, 280 x 392.
    assert visual.grid_thw == (6, 20, 28)
    assert (visual.width, visual.height) == SIZE
    assert visual.sample_fps == 2.0
    assert len(visual.frame_times) == 12
    small, _ = prepare_video(files["h264.mp4"], VisualOptions(nframes=2, max_pixels=3136), settings_)
    assert small.grid_thw == (1, 4, 4)
    exact, _ = prepare_video(
        files["h264.mp4"], VisualOptions(nframes=2, resized_height=56, resized_width=112), settings_
    )
    assert exact.grid_thw == (1, 4, 8)


def with_rotation(data, matrix):
    """An mp4 whose video track asks for a turn: its display matrix lies at a fixed place in the tkhd box."""
    place = data.index(b"tkhd") + 4 + 40
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    assert data[place : place + 36] == identity
    return data[:place] + struct.pack(">9i", *matrix, 1 << 30) + data[place + 36 :]


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((0, 65536, 0, -65536, 0, 0, 0, 0), (0, -1)),  # a quarter clockwise: the upper left goes right
        ((-65536, 0, 0, 0, -65536, 0, 0, 0), (-1, -1)),
        ((0, -65536, 0, 65536, 0, 0, 0, 0), (-1, 0)),
    ],
)
def test_turned_videos_are_upright(files, matrix, corner):
    data = with_rotation(files["h264.mp4"].read_bytes(), matrix)
    with open_video(data, VisualOptions(nframes=2)) as clip:
        frame = next(clip.frames)
    assert frame.shape[:2] == ((64, 48) if matrix[0] == 0 else (48, 64))
    assert frame[corner].mean() > 230
    others = {(0, 0), (0, -1), (-1, 0), (-1, -1)} - {corner}
    assert all(frame[other].mean() < 50 for other in others)


def test_titles_in_any_encoding(tmp_path):
    path = tmp_path / "title.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Kuechentisch"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for index in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(index), format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert b"Kuechentisch" in data
    latin = data.replace(b"Kuechentisch", "K\u00fcchentisch ".encode("latin-1"))
    with open_video(latin, VisualOptions(nframes=4)) as clip:
        assert indices(clip) == [0, 1, 2, 3]


def test_memory_does_not_grow_with_the_length(tmp_path):
    """Ten times as many frames, as many taken: the same peak."""
    peaks = []
    for frames in (50, 500):
        path = write(tmp_path / f"{frames}.mp4", frames=frames, codec="mpeg4")
        tracemalloc.start()
        prepare_video(path, VisualOptions(nframes=8), SETTINGS)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000


class TestRefuses:
    def refuses(self, source, message, **options):
        with pytest.raises(VideoError, match=message):
            prepare_video(source, VisualOptions(**options), SETTINGS, "videos[2]")

    def test_truncated_files(self, files):
        # The index comes first in one file, last in the other.
        for name in ("faststart.mp4", "h264.mp4"):
            data = files[name].read_bytes()
            for cut in (10, len(data) // 3, len(data) // 2):
                self.refuses(data[:cut], r"videos\[2\]: ")
        data = files["faststart.mp4"].read_bytes()
        self.refuses(data[:-1], "cut off or damaged")

    def test_damaged_frames(self, files):
        data = bytearray(files["faststart.mp4"].read_bytes())
        place = data.index(b"mdat") + 4
        data[place:] = bytes(len(data) - place)
        self.refuses(bytes(data), "cannot be read")

    def test_other_files(self, tmp_path):
        (tmp_path / "a.txt").write_text("hello")
        self.refuses(tmp_path / "a.txt", "cannot be read")
        self.refuses(tmp_path / "missing.mp4", "no such file")
        self.refuses(tmp_path, "Is a directory|cannot be read")
        self.refuses(b"", "cannot be read")
        self.refuses("rtsp://camera/1", "rtsp:// is not supported")
        self.refuses("concat:/etc/hostname|/etc/hostname", "no such file")

    def test_memoryviews_that_were_released(self, files):
        view = memoryview(files["h264.mp4"].read_bytes())
        view.release()
        self.refuses(view, r"videos\[2\]: its bytes cannot be read: .*released")

    def test_a_stream_without_a_decoder(self, files):
        data = files["h264.mp4"].read_bytes()
        assert data.count(b"avc1") >= 1
        self.refuses(data.replace(b"avc1", b"zzzz"), "no decoder for its video stream")

    def test_sound_without_pictures(self, tmp_path):
        with av.open(str(tmp_path / "a.wav"), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.rate = 8000
            container.mux(stream.encode(frame))
        self.refuses(tmp_path / "a.wav", "holds no video stream")

    def test_options(self, files):
        self.refuses(files["h264.mp4"], "cannot take 100 frames of 60", nframes=100)
        self.refuses(files["h264.mp4"], "cannot take 1 frames of 60, two by two: .* 2 to 60", nframes=1)
        one = r"one frame \(at 1\.00 seconds\) lies between video_start=1 and video_end=1\.05,.* 0\.1 seconds"
        self.refuses(files["h264.mp4"], one, video_start=1.0, video_end=1.05)
        self.refuses(files["h264.mp4"], "no frames lie between video_start=8 and its end", video_start=8)

    def test_lists(self):
        self.refuses([], "no frames")
        frames = [noise(1, 30, 30), noise(1, 30, 31)]
        self.refuses(frames, r"videos\[2\]\[1\] has 31 x 30 pixels, the first frame 30 x 30")
        self.refuses([np.zeros((9, 9, 3))], r"videos\[2\]\[0\]: .*uint8")
        self.refuses([noise(1, 1, 300)], "aspect ratio")
        self.refuses(["nowhere.png"], r"videos\[2\]\[0\]: no such file")
        self.refuses(np.zeros((2, 2), np.uint8), "is no video")

    def test_other_things(self):
        for source in (None, 5, {"a": 1}):
            self.refuses(source, "is no video; give a path")


def test_a_wrong_count_is_found_out(files, monkeypatch):
    """A file whose packets promise more frames than come is read again, counting."""
    original = video_file.VideoFile._scan

    def scan(self):
        original(self)
        self._times.append(self._times[-1] + 1)

    monkeypatch.setattr(video_file.VideoFile, "_scan", scan)
    with open_video(files["h264.mp4"], VisualOptions(nframes=4)) as clip, pytest.raises(IndexMismatchError):
        list(clip.frames)
    visual, _ = prepare_video(files["h264.mp4"], VisualOptions(nframes=4), SETTINGS)
    assert visual.frame_times == pytest.approx((0, 2.0, 3.9, 5.9))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["faststart.mp4", "h264.mkv", "mpeg4.avi", "h264.ts"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=20),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_fuzzed_files_load_or_are_refused(files, name, changes, cut):
    data = bytearray(files[name].read_bytes())
    for place, value in changes:
        data[int(place**2 * (len(data) - 1))] = value
    if cut is not None:
        del data[int(cut * len(data)) :]
    try:
        visual, _ = prepare_video(bytes(data), VisualOptions(nframes=4, max_pixels=3136), SETTINGS)
    except VideoError:
        return
    assert np.isfinite(visual.patches).all()


def test_no_room_for_a_download_is_the_projects_own_error(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(VideoError, match="TMPDIR"), open_video("http://127.0.0.1:9/a.mp4", VisualOptions()):
        pass
