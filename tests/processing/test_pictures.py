"""Loading pictures: every mode and source, against transformers' load_image; and what is refused."""

import base64
import http.server
import io
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image

from qwen2vl_rt.errors import PictureError
from qwen2vl_rt.processing import load_picture, pictures
from tests.support.preparation import noise


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def as_mode(mode: str) -> tuple[Image.Image, str]:
    """A picture in a Pillow mode, and a format that keeps the mode."""
    rgb = Image.fromarray(noise(1, 41, 57))
    if mode == "RGBA":
        return Image.fromarray(noise(2, 41, 57, 4), "RGBA"), "PNG"
    if mode == "P+transparency":
        return rgb.quantize(16), "GIF"
    if mode in ("I;16", "I", "F"):
        values = np.random.default_rng(3).integers(0, 256, (41, 57))
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(values.astype(dtype)), "TIFF" if mode != "I;16" else "PNG"
    image = rgb.convert(mode)
    return image, {"CMYK": "JPEG", "YCbCr": "JPEG", "LAB": "TIFF", "LA": "PNG", "1": "PNG"}.get(mode, "PNG")


MODES = ["RGB", "RGBA", "L", "LA", "P", "P+transparency", "1", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, tmp_path):
    image, format = as_mode(mode)
    options = {"transparency": 3} if mode == "P+transparency" else {}
    data = encoded(image, format, **options)
    path = tmp_path / f"picture.{format.lower()}"
    path.write_bytes(data)
    expected = np.asarray(load_image(str(path)))
    for source in (
        path,
        str(path),
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        Image.open(path),
    ):
        np.testing.assert_array_equal(load_picture(source).pixels, expected)
    np.testing.assert_array_equal(load_picture(image).pixels, np.asarray(load_image(image)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((8, 9), 40_000, np.uint16), r"mode I;16.* from 40000 to 40000, .* divide by 257"),
        (np.full((8, 9), -1, np.int32), "from -1 to -1"),
        (np.linspace(0, 1, 72, dtype=np.float32).reshape(8, 9), "from 0 to 1"),
        (np.linspace(0, 9000, 72, dtype=np.float32).reshape(8, 9), "from 0 to 9000"),
        (np.full((8, 9), np.nan, np.float32), "from nan"),
    ],
)
def test_more_than_8_bits_are_not_clipped_in_silence(values, words):
    """The reference's convert("RGB") makes white or black of them."""
    image = Image.fromarray(values)
    for source in (image, encoded(image, "TIFF")):
        with pytest.raises(PictureError, match=f"^picture: its values .*{words}"):
            load_picture(source)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(Image.fromarray(noise(1, 30, 50)), "JPEG", exif=exif))
    picture = load_picture(path)
    np.testing.assert_array_equal(picture.pixels, np.asarray(load_image(str(path))))
    assert (picture.width, picture.height) == ((50, 30) if orientation < 5 else (30, 50))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats(format):
    image = Image.fromarray(noise(7, 33, 44))
    data = encoded(image, format)
    expected = np.asarray(load_image(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(load_picture(data).pixels, expected)


class TestArrays:
    def test_rgb_is_not_copied(self):
        frame = noise(1, 20, 30)
        for view in (frame, frame[::2, ::-1], frame[:, :, ::-1]):
            pixels = load_picture(view).pixels
            assert np.shares_memory(pixels, frame)
            np.testing.assert_array_equal(pixels, view)

    @pytest.mark.parametrize("channels", [None, 1, 4])
    def test_grey_and_alpha_do_what_pillow_does(self, channels):
        frame = noise(2, 20, 30, channels)
        expected = Image.fromarray(frame[:, :, 0] if channels == 1 else frame).convert("RGB")
        np.testing.assert_array_equal(load_picture(frame).pixels, np.asarray(expected))
        assert np.shares_memory(load_picture(frame).pixels, frame)

    @pytest.mark.parametrize(
        ("frame", "message"),
        [
            (np.zeros((4, 4, 3), np.float32), "must be uint8, values 0 to 255, not float32"),
            (np.zeros((4, 4, 3), np.int64), "not int64"),
            (np.zeros((4, 4, 3), bool), "not bool"),
            (np.zeros((3, 40, 50), np.uint8), r"channels-first: transpose\(1, 2, 0\) it"),
            (np.zeros((4, 4, 2), np.uint8), r"not \[4, 4, 2\]"),
            (np.zeros((2, 4, 4, 3), np.uint8), r"not \[2, 4, 4, 3\]"),
            (np.zeros(5, np.uint8), "must be"),
            (np.zeros((0, 4, 3), np.uint8), "is empty"),
        ],
    )
    def test_refuses(self, frame, message):
        with pytest.raises(PictureError, match=message):
            load_picture(frame)


class TestAddresses:
    def test_file(self, tmp_path):
        path = tmp_path / "a picture #1?.png"
        Image.fromarray(noise(1, 8, 9)).save(path)
        for source in (f"file://{path}", f"file://localhost{urllib.parse.quote(str(path))}", path.as_uri()):
            np.testing.assert_array_equal(load_picture(source).pixels, noise(1, 8, 9))

    def test_data(self):
        data = encoded(Image.fromarray(noise(1, 8, 9)), "PNG")
        text = base64.b64encode(data).decode()
        sources = [
            f"data:image/png;base64,{text}",
            f"DATA:image/png;charset=x;BASE64,{text}",
            f"data:;base64,{text.rstrip('=')}",
            f"data:image/png;base64,{base64.urlsafe_b64encode(data).decode()}",
            "data:image/png;base64," + "\n".join(text[i : i + 60] for i in range(0, len(text), 60)),
            "data:image/png," + urllib.parse.quote(data),
        ]
        for source in sources:
            np.testing.assert_array_equal(load_picture(source).pixels, noise(1, 8, 9))

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("data:image/png;base64", "no comma"),
            ("data:image/png;base64,!!!!", "cannot be decoded"),
            ("data:image/png;base64,", "not a picture"),
            ("data:image/png;base64,aGVsbG8=", "not a picture in a known format"),
            ("file://elsewhere/a.png", "another host"),
            ("/nowhere/a.png", "no such file: /nowhere/a.png"),
            ("", "an empty string is no path"),
            ("a\0b", "null byte"),
            ("x" * 5000, "cannot be read"),
            ("ftp://host/a.png", "ftp:// is not supported; give a path, or an http"),
            ("S3://bucket/a.png", "S3:// is not supported"),
            ("rtsp://user:secret@host/1", r"rtsp://host/1: rtsp:// .* frames as arrays"),
            ("http://[::1/a.png", "no valid address"),
            ("http://user:my/secret@host/", "http://host/ cannot be read: it is no valid address"),
        ],
    )
    def test_refuses(self, source, message):
        with pytest.raises(PictureError, match=message):
            load_picture(source, "images[3]")
        with pytest.raises(PictureError, match=r"images\[3\]") as caught:
            load_picture(source, "images[3]")
        assert "secret" not in str(caught.value)

    def test_a_message_is_not_nested(self, tmp_path):
        (tmp_path / "a.txt").write_text("hello")
        with pytest.raises(PictureError) as caught:
            load_picture(tmp_path / "a.txt")
        assert str(caught.value).startswith(f"picture ({tmp_path}/a.txt): not a picture in a known format")

    def test_a_folder_is_no_picture(self, tmp_path):
        with pytest.raises(PictureError, match="cannot be read"):
            load_picture(tmp_path)


@pytest.mark.parametrize("source", [None, 5, ["a"], {"a": 1}, object()])
def test_refuses_other_things(source):
    with pytest.raises(PictureError, match="is no picture; give a PIL image"):
        load_picture(source)


def test_memoryviews():
    data = encoded(Image.fromarray(noise(1, 8, 9)), "PNG")
    strided = memoryview(bytes(byte for pair in zip(data, data, strict=True) for byte in pair))[::2]
    np.testing.assert_array_equal(load_picture(strided).pixels, noise(1, 8, 9))
    strided.release()
    with pytest.raises(PictureError, match=r"picture: its bytes cannot be read: .*released"):
        load_picture(strided)


def test_truncated_files():
    for format in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        data = encoded(Image.fromarray(noise(1, 60, 60)), format)
        with pytest.raises(PictureError, match="picture: "):
            load_picture(data[: len(data) // 2])


def test_decompression_bombs(monkeypatch):
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(PictureError, match=r"400000000|20000 x 20000"):
        load_picture(bomb)
    # Also where the program has switched Pillow's own check off.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(PictureError, match="20000 x 20000 pixels; the limit is"):
        load_picture(bomb)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a PNG at /picture, and failures at other paths."""

    png = encoded(Image.fromarray(noise(1, 8, 9)), "PNG")

    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/picture")
            self.end_headers()
            return
        if self.path == "/local":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        if self.path.startswith("/locked"):
            login = "Basic " + base64.b64encode(b"robot:p@ss w\xc3\xb6rt").decode()
            if self.headers.get("Authorization") != login:
                self.send_error(401)
                return
            if self.path == "/locked/moved":
                self.send_response(302)
                self.send_header("Location", "/locked")
                self.end_headers()
                return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path == "/picture":
            self.send_header("Content-Length", str(len(self.png)))
        elif self.path == "/announced":
            self.send_header("Content-Length", str(10**12))
        elif self.path == "/short":
            self.send_header("Content-Length", str(len(self.png) + 100))
        self.end_headers()
        try:
            if self.path == "/slow":
                for _ in range(100):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.05)
            elif self.path == "/silent":
                time.sleep(2)
            elif self.path == "/endless":
                for _ in range(1000):
                    self.wfile.write(b"x" * 65536)
            elif self.path == "/text":
                self.wfile.write(b"<html>not a picture</html>")
            else:
                self.wfile.write(self.png)
        except OSError:
            pass  # the client went away, as it should

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        instance.daemon_threads = True
        threading.Thread(target=instance.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{instance.server_address[1]}"
        instance.shutdown()


class TestNetwork:
    @pytest.fixture(autouse=True)
    def direct(self, monkeypatch):
        monkeypatch.setenv("no_proxy", "127.0.0.1")

    @pytest.mark.parametrize(
        "path", ["/picture", "/moved", "/unannounced", "/with space", "/k\u00fcche.png?a=\u00fc b", "/a%20b"]
    )
    def test_reads(self, server, path):
        np.testing.assert_array_equal(load_picture(server + path).pixels, noise(1, 8, 9))

    def test_a_login_reaches_the_host_alone_and_no_message(self, server):
        address = server.replace("//", "//robot:p%40ss%20w%C3%B6rt@")
        np.testing.assert_array_equal(load_picture(address + "/locked").pixels, noise(1, 8, 9))
        for path in ("/missing", "/text", "/locked/moved"):  # the last: not repeated where it leads to
            with pytest.raises(PictureError, match=r"http://127\.0\.0\.1") as caught:
                load_picture(address + path)
            assert "robot" not in str(caught.value)
            assert "p%40ss" not in str(caught.value)

    def test_a_host_beyond_ascii(self, monkeypatch):
        asked = []
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, *_: asked.append((host, port)) or [][0])
        with pytest.raises(PictureError, match="cannot be read"):
            load_picture("http://k\u00fcche.example:81/a.png")
        assert asked == [("xn--kche-0ra.example", 81)]

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/missing", "the server answered 404"),
            ("/text", "not a picture"),
            ("/announced", "1000000000000 bytes; the limit"),
            ("/short", "broke off"),
            ("/local", "is not allowed"),
            ("/locked", "the server answered 401"),
        ],
    )
    def test_refuses(self, server, path, message):
        with pytest.raises(PictureError, match=message):
            load_picture(server + path)

    def test_limits_the_size(self, server, monkeypatch):
        monkeypatch.setattr(pictures, "MAX_PICTURE_BYTES", 100_000)
        with pytest.raises(PictureError, match="more than 100000 bytes"):
            load_picture(server + "/endless")

    @pytest.mark.parametrize("path", ["/slow", "/silent"])
    def test_limits_the_time(self, server, path):
        started = time.monotonic()
        with pytest.raises(PictureError, match=r"within 0\.4 seconds"):
            load_picture(server + path, timeout=0.4)
        assert time.monotonic() - started < 1.5

    def test_nobody_listens(self):
        with pytest.raises(PictureError, match="cannot be read"):
            load_picture("http://127.0.0.1:9/picture")


SEEDS = [
    encoded(Image.fromarray(noise(seed, 24, 31)), format)
    for seed, format in enumerate(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "ICO"])
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the damage
@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    st.one_of(st.none(), st.floats(0, 1)),
    st.binary(max_size=8),
)
def test_fuzzed_bytes_load_or_are_refused(seed, changes, cut, tail):
    data = bytearray(seed)
    for place, value in changes:
        # Headers are short, and most of what can go wrong is there.
        data[int(place**3 * (len(data) - 1))] = value
    if cut is not None:
        del data[int(cut * len(data)) :]
    try:
        pixels = load_picture(bytes(data) + tail).pixels
    except PictureError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


data_urls = st.from_regex(r"data:[a-z/]{0,9}(;base64)?,?[A-Za-z0-9+/=%\n]{0,50}", fullmatch=True)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.from_regex(r"data:[a-z/]{0,9}(;base64)?,?[A-Za-z0-9+/=%\n]{0,50}", fullmatch=True),
    )
)
def test_fuzzed_strings_load_or_are_refused(text):
    if text[:4].lower() == "http":
        return
    with pytest.raises(PictureError):
        load_picture(text)


def test_importing_is_light():
    """Neither PyAV nor torch is loaded before it is needed."""
    code = "import sys, qwen2vl_rt.processing; print({'av', 'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_an_open_file_is_read_by_one_thread_at_a_time():
    class Watched(io.BytesIO):
        readers = most = 0

        def read(self, *arguments):
            self.readers += 1
            self.most = max(self.most, self.readers)
            time.sleep(0.002)
            self.readers -= 1
            return super().read(*arguments)

    data = io.BytesIO()
    Image.new("RGB", (40, 30), (1, 2, 3)).save(data, "PNG")
    file, found = Watched(data.getvalue()), []
    threads = [
        threading.Thread(target=lambda: found.append(load_picture(file).pixels[0, 0].tolist()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1, 2, 3]] * 4
    assert file.most == 1
