"""Loading a picture from whatever the caller has."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import os
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from qwen2vl_rt._core import CancelToken
from qwen2vl_rt.errors import PictureError
from qwen2vl_rt.processing.network import FetchError, fetch, without_login
from qwen2vl_rt.processing.source_locks import source_lock

#: Most pixels of a picture before resizing; a larger one is refused before it is decoded.
MAX_PICTURE_PIXELS = 178_956_970
#: Most bytes read from a network address or taken from a data: URL.
MAX_PICTURE_BYTES = 256 << 20
#: Seconds for reading a picture from a network address.
NETWORK_TIMEOUT = 30.0

# Formats that Pillow decodes by itself, in this process. (It would run Ghostscript for EPS.)
_FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA",
    "ICO", "PCX", "SGI",
)  # fmt: skip
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Picture:
    """A loaded picture.

    Attributes:
        pixels: uint8 [height, width, 3], RGB. For a numpy source a view of the caller's array, any strides.
    """

    pixels: np.ndarray

    @property
    def height(self) -> int:
        """Pixels, after the EXIF orientation is applied."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Pixels, after the EXIF orientation is applied."""
        return self.pixels.shape[1]


def load_picture(
    source: Any,
    name: str = "picture",
    timeout: float = NETWORK_TIMEOUT,
    cancel: CancelToken | None = None,
) -> Picture:
    """Loads a picture.

    source: a PIL image; a numpy array, uint8, [height, width, 3] RGB, [height, width, 4] RGBA (alpha is
    ignored), [height, width] or [height, width, 1] grey, any strides; a path (str or Path); the bytes of a
    picture file; an open binary file; an address as str: http://, https://, file:// or data:.

    Files and PIL images are treated as transformers' `load_image` does: EXIF orientation applied, then
    `convert("RGB")` (so alpha is dropped, not blended), which must not clip: values of more than 8 bits have
    to lie in 0 to 255. A numpy array is not copied. A PIL image and an open file are read by one thread at a
    time.

    name: how messages call this picture. timeout: seconds for network addresses. cancel: ends a download.
    Raises PictureError; CancelledError.
    """
    if isinstance(source, Image.Image):
        with source_lock(source):
            return Picture(_decode(source, name))
    if isinstance(source, np.ndarray):
        return Picture(_from_array(source, name))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Picture(_decode_file(file_of(source, name), name))
    if isinstance(source, os.PathLike):
        return Picture(_decode_path(Path(source), name))
    if isinstance(source, str):
        return Picture(_from_string(source, name, timeout, cancel))
    if hasattr(source, "read"):
        with source_lock(source):
            return Picture(_decode_file(source, name))
    raise PictureError(
        f"{name}: a {type(source).__module__}.{type(source).__qualname__} is no picture; give a PIL image, "
        "a uint8 numpy array [height, width, 3], a path, bytes, or an http(s)://, file:// or data: address"
    )


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    shape = array.shape
    if array.dtype != np.uint8:
        raise PictureError(
            f"{name}: a numpy picture must be uint8, values 0 to 255, not {array.dtype}: convert it"
        )
    if array.ndim == 3 and shape[2] in (1, 3, 4):
        frame = array[:, :, :3]
    elif array.ndim == 2:
        frame = array[:, :, None]
    else:
        hint = (
            "; it looks channels-first: transpose(1, 2, 0) it"
            if array.ndim == 3 and shape[0] in (1, 3, 4)
            else ""
        )
        raise PictureError(f"{name}: a numpy picture must be [height, width, 3], not {list(shape)}{hint}")
    if frame.size == 0:
        raise PictureError(f"{name}: a numpy picture of shape {list(shape)} is empty")
    return np.broadcast_to(frame, (*frame.shape[:2], 3))


def _from_string(source: str, name: str, timeout: float, cancel: CancelToken | None) -> np.ndarray:
    scheme = source[:8].lower()
    if scheme.startswith(("http://", "https://")):
        shown = _short(without_login(source))
        with io.BytesIO() as data:
            try:
                fetch(source, data, MAX_PICTURE_BYTES, timeout, cancel)
            except FetchError as error:
                raise PictureError(f"{name}: {shown} cannot be read: {error}") from None
            data.seek(0)
            return _decode_file(data, f"{name} ({shown})")
    if scheme.startswith("data:"):
        return _decode_file(io.BytesIO(decode_data_url(source, name)), name)
    return _decode_path(path_of(source, name), name)


def file_of(data: bytes | bytearray | memoryview, name: str) -> io.BytesIO:
    """Bytes as a file; a memoryview may have strides."""
    try:
        return io.BytesIO(bytes(data))
    except ValueError as error:  # of a memoryview that was released
        raise PictureError(f"{name}: its bytes cannot be read: {error}") from None


def is_address(source: str) -> bool:
    """Whether a str is an address, supported or not, and no path."""
    return _SCHEME.match(source) is not None or source[:5].lower() == "data:"


def path_of(source: str, name: str) -> Path:
    """The path that a str names: a path as it is, or a file:// address."""
    if not source:
        raise PictureError(f"{name}: an empty string is no path")
    if source[:7].lower() == "file://":
        parts = urllib.parse.urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise PictureError(f"{name}: {_short(source)} names another host; use file:///path")
        # A query or fragment is no part of a file's name unless it was quoted; '?' and '#' are taken
        # literally.
        return Path(urllib.request.url2pathname(source[7 + len(parts.netloc) :]))
    if scheme := _SCHEME.match(source):
        raise PictureError(
            f"{name}: {_short(without_login(source))}: {scheme[0]} is not supported; give a path, or an "
            "http(s)://, file:// or data: address (of a camera's stream, pass the frames as arrays)"
        )
    if "\0" in source:
        raise PictureError(f"{name}: a path must not hold a null byte")
    return Path(source)


def decode_data_url(source: str, name: str) -> bytes:
    """The bytes of a data: URL, base64 or percent-encoded."""
    header, comma, payload = source.partition(",")
    if not comma:
        raise PictureError(f"{name}: the data: URL {_short(source)} has no comma before its data")
    if len(payload) > MAX_PICTURE_BYTES * 4 // 3:
        raise PictureError(f"{name}: the data: URL holds more than {MAX_PICTURE_BYTES} bytes, the limit")
    try:
        if header.lower().endswith(";base64"):
            # Blanks and line ends are tolerated, as is missing padding; other foreign characters are not.
            text = "".join(urllib.parse.unquote(payload).split())
            text += "=" * (-len(text) % 4)
            return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
        return urllib.parse.unquote_to_bytes(payload)
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"{name}: the data: URL {_short(source)} cannot be decoded: {error}") from None


def _decode_path(path: Path, name: str) -> np.ndarray:
    try:
        with path.open("rb") as file:
            return _decode_file(file, f"{name} ({path})")
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{name}: no such file: {_short(str(path))}") from None
    except (OSError, ValueError) as error:
        raise PictureError(f"{name}: {_short(str(path))} cannot be read: {error}") from None


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _decode_file(file: Any, name: str) -> np.ndarray:
    try:
        with Image.open(file, formats=_formats()) as image:
            return _decode(image, name)
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(f"{name}: not a picture in a known format ({', '.join(_formats())})") from None
    # Decoders meet damaged files with nearly any exception; none of them may reach the caller as it is.
    except Exception as error:
        raise PictureError(f"{name}: cannot be read: {type(error).__name__}: {error}") from None


def _decode(image: Image.Image, name: str) -> np.ndarray:
    width, height = image.size
    if width * height > MAX_PICTURE_PIXELS:
        raise PictureError(f"{name}: {width} x {height} pixels; the limit is {MAX_PICTURE_PIXELS} pixels")
    if width < 1 or height < 1:
        raise PictureError(f"{name}: a picture of {width} x {height} pixels is empty")
    try:
        _check_depth(image, name)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(f"{name}: cannot be decoded: {type(error).__name__}: {error}") from None


def _check_depth(image: Image.Image, name: str) -> None:
    """Refuse values that `convert` would clip: a picture of 16 bits to white, one of fractions to black."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    fractions = image.mode == "F" and 0 < high <= 1
    if fractions or not (low >= 0 and high <= 255):  # written so that it is true for nan
        raise PictureError(
            f"{name}: its values (Pillow mode {image.mode}) reach from {low:g} to {high:g}, and a picture's "
            "from 0 to 255: scale them to 8 bits (16 bits: divide by 257; depth: the distances that matter)"
        )


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:60] + "..." + text[-15:]
