"""Drawing: backgrounds, the three kinds of objects, and the light and noise of a camera."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Photographs and textures inside scikit-image's wheel, used as backgrounds; training's licences stand in
# README.md. The pictures that are shipped, the evaluation's and the calibration's, show only the held-out
# ones, all free of rights: NASA's astronaut, SpaceX's rocket, Rachel Michetti's coffee, Stéfan van der Walt's
# cat.
TRAINING_PHOTOS = (
    *("brick.png", "grass.png", "gravel.png", "camera.png", "page.png", "moon.png", "ihc.png", "retina.jpg"),
    *("motorcycle_right.png", "horse.png", "hubble_deep_field.jpg", "coins.png"),
)
HELD_OUT_PHOTOS = ("astronaut.png", "rocket.jpg", "coffee.png", "chelsea.png")
# A table in front of these holds what was put there and nothing else: the photograph of coffee shows a cup.
HELD_OUT_BACKGROUNDS = ("astronaut.png", "rocket.jpg", "chelsea.png")


@functools.cache
def photo(name: str) -> Image.Image:
    """A photograph of scikit-image, at most 512 pixels a side."""
    import os

    import skimage.data

    folder = os.path.dirname(skimage.data.__file__)
    picture = Image.open(os.path.join(folder, name)).convert("RGB")
    picture.thumbnail((512, 512))
    return picture


def background(
    rng: np.random.Generator, width: int, height: int, photos: tuple[str, ...] = TRAINING_PHOTOS
) -> np.ndarray:
    """A tabletop, wall, texture or photograph: float32 [height, width, 3] in 0..255."""
    kind = rng.choice(6, p=(0.24, 0.2, 0.2, 0.12, 0.12, 0.12))
    if kind == 0:
        return np.broadcast_to(muted_colour(rng), (height, width, 3)).astype(np.float32)
    if kind == 1:
        return gradient(rng, width, height)
    if kind == 2:
        canvas = np.empty((height, width, 3), np.float32)
        horizon = int(height * rng.uniform(0.1, 0.6))
        canvas[:horizon] = muted_colour(rng)
        canvas[horizon:] = muted_colour(rng)
        return canvas
    if kind == 3:
        return planks(rng, width, height)
    if kind == 4:
        coarse = (muted_colour(rng) + rng.normal(0, 22, (5, 5, 3))).clip(0, 255).astype(np.uint8)
        return np.asarray(
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32
        )
    return photo_crop(rng, width, height, photos)


def muted_colour(rng: np.random.Generator) -> np.ndarray:
    """A table's or wall's colour: any lightness, little saturation. float32 [3]"""
    grey = rng.uniform(45, 225)
    return (grey + rng.normal(0, 14, 3)).clip(10, 245).astype(np.float32)


def gradient(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    start, end = muted_colour(rng), muted_colour(rng)
    angle = rng.uniform(0, 2 * math.pi)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * math.cos(angle)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * math.sin(angle)
    mix = ((x + y) * 0.5 + 0.5).clip(0, 1)[..., None]
    return start * (1 - mix) + end * mix


def planks(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Wooden planks: stripes of slightly different lightness with dark seams."""
    wood = np.array((rng.uniform(110, 190), 0, 0), np.float32)
    wood[1], wood[2] = wood[0] * rng.uniform(0.72, 0.9), wood[0] * rng.uniform(0.5, 0.75)
    along = width if rng.random() < 0.5 else height
    edges = np.arange(along) // max(8, int(along * rng.uniform(0.1, 0.3)))
    shade = rng.uniform(0.85, 1.1, edges[-1] + 1)[edges].astype(np.float32)
    shade[1:][edges[1:] != edges[:-1]] *= 0.6
    lines = shade[None, :, None] if along == width else shade[:, None, None]
    return np.ascontiguousarray(np.broadcast_to(wood * lines, (height, width, 3)))


def photo_crop(rng: np.random.Generator, width: int, height: int, photos: tuple[str, ...]) -> np.ndarray:
    picture = photo(photos[rng.integers(len(photos))])
    scale = rng.uniform(0.3, 1.0)
    w, h = max(16, int(picture.width * scale)), max(16, int(picture.height * scale))
    x, y = rng.integers(picture.width - w + 1), rng.integers(picture.height - h + 1)
    crop = picture.resize(
        (width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h), reducing_gap=2.0
    )
    return np.asarray(crop, np.float32) * rng.uniform(0.6, 1.0)


def draw_object(
    rng: np.random.Generator, shape: str, colour: np.ndarray, width: int, height: int
) -> np.ndarray:
    """One object cut out tightly: uint8 [about height, about width, 4] (RGB and coverage)."""
    scale = 3 if max(width, height) < 80 else 2
    w, h = width * scale, height * scale
    canvas = Image.new("RGBA", (w, h), (*shade(colour, 1.0), 0))
    {"block": _block, "ball": _ball, "cup": _cup}[shape](rng, ImageDraw.Draw(canvas), colour, w, h)
    if shape != "ball" and rng.random() < 0.5:
        limit = 28 if shape == "block" else 10
        canvas = canvas.rotate(rng.uniform(-limit, limit), Image.Resampling.BILINEAR, expand=True)
    canvas = canvas.resize(
        (max(4, canvas.width // scale), max(4, canvas.height // scale)), Image.Resampling.BOX
    )
    pixels = np.asarray(canvas)
    solid = pixels[..., 3] > 127
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def shade(colour: np.ndarray, factor: float, lift: float = 0.0) -> tuple[int, int, int]:
    return tuple(int(min(255, max(0, c * factor + lift))) for c in colour)


def _block(rng: np.random.Generator, pen: ImageDraw.ImageDraw, colour: np.ndarray, w: int, h: int) -> None:
    """A box: front face, and usually a lighter top and a darker side."""
    if rng.random() < 0.3:
        pen.rectangle((0, 0, w - 1, h - 1), fill=(*shade(colour, 1.0), 255))
        return
    depth_x, depth_y = int(w * rng.uniform(0.12, 0.28)), int(h * rng.uniform(0.12, 0.28))
    right = rng.random() < 0.5
    left, edge = (0, w - 1 - depth_x) if right else (depth_x, w - 1)
    shift = depth_x if right else -depth_x
    pen.polygon(
        ((left, depth_y), (left + shift, 0), (edge + shift, 0), (edge, depth_y)),
        fill=(*shade(colour, 1.0, 28), 255),
    )
    side = edge if right else left
    pen.polygon(
        ((side, depth_y), (side + shift, 0), (side + shift, h - 1 - depth_y), (side, h - 1)),
        fill=(*shade(colour, 0.68), 255),
    )
    pen.rectangle((left, depth_y, edge, h - 1), fill=(*shade(colour, 0.92), 255))


def _ball(rng: np.random.Generator, pen: ImageDraw.ImageDraw, colour: np.ndarray, w: int, h: int) -> None:
    """A sphere: darker rim, body, a highlight towards the light."""
    pen.ellipse((0, 0, w - 1, h - 1), fill=(*shade(colour, 0.72), 255))
    dx, dy = rng.uniform(-0.1, 0.1) * w, rng.uniform(-0.12, 0.02) * h
    pen.ellipse((w * 0.1 + dx, h * 0.1 + dy, w * 0.88 + dx, h * 0.88 + dy), fill=(*shade(colour, 1.0), 255))
    cx, cy, r = w * 0.42 + 2 * dx, h * 0.36 + dy, 0.12 * w
    pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(*shade(colour, 1.0, 60), 255))


def _cup(rng: np.random.Generator, pen: ImageDraw.ImageDraw, colour: np.ndarray, w: int, h: int) -> None:
    """A cup: tapered body, open rim, a handle on one side."""
    handle = 0.26 * w
    right = rng.random() < 0.5
    left, edge = (0.0, w - 1 - handle) if right else (handle, w - 1.0)
    taper, rim = (edge - left) * rng.uniform(0.08, 0.18), h * rng.uniform(0.1, 0.16)
    line = max(2, int(0.075 * w))
    x = edge if right else left
    pen.ellipse(
        (x - handle, h * 0.26, x + handle - 1, h * 0.74), outline=(*shade(colour, 0.85), 255), width=line
    )
    pen.polygon(
        ((left, rim), (edge, rim), (edge - taper, h - 1 - rim / 2), (left + taper, h - 1 - rim / 2)),
        fill=(*shade(colour, 0.95), 255),
    )
    pen.ellipse((left + taper, h - 1 - rim, edge - taper, h - 1), fill=(*shade(colour, 0.95), 255))
    pen.ellipse((left, 0, edge, 2 * rim), fill=(*shade(colour, 0.9, 34), 255))
    pen.ellipse(
        (left + line / 2, line / 2, edge - line / 2, 2 * rim - line / 2), fill=(*shade(colour, 0.5), 255)
    )


def paste(canvas: np.ndarray, cutout: np.ndarray, x: int, y: int) -> np.ndarray:
    """Draw cutout on canvas (float32, in place) at x, y; returns its bool mask [h, w]."""
    h, w = cutout.shape[:2]
    alpha = cutout[..., 3:].astype(np.float32) / 255
    region = canvas[y : y + h, x : x + w]
    region += (cutout[..., :3] - region) * alpha
    return cutout[..., 3] > 127


def shadow(rng: np.random.Generator, canvas: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """A soft dark ellipse under an object, in place."""
    x1, y1, x2, y2 = box
    rx, ry = (x2 - x1) * 0.6, max(3.0, (y2 - y1) * 0.14)
    cx, cy = (x1 + x2) / 2 + rng.uniform(-0.1, 0.1) * (x2 - x1), y2 - ry * 0.3
    top, bottom = max(0, int(cy - ry)), min(canvas.shape[0], int(cy + ry) + 1)
    left, right = max(0, int(cx - rx)), min(canvas.shape[1], int(cx + rx) + 1)
    y = (np.arange(top, bottom, dtype=np.float32)[:, None] - cy) / ry
    x = (np.arange(left, right, dtype=np.float32)[None, :] - cx) / rx
    canvas[top:bottom, left:right] *= 1 - 0.45 * (1 - x * x - y * y).clip(0, 1)[..., None]


class Camera:
    """One camera's light, tint, noise and blur; the same for all frames of a video."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.gain = rng.uniform(0.75, 1.12) * rng.uniform(0.96, 1.04, 3).astype(np.float32)
        self.noise = rng.uniform(0, 9) if rng.random() < 0.7 else 0.0
        self.blur = rng.uniform(0.3, 0.8) if rng.random() < 0.2 else 0.0
        self.slope = rng.uniform(-0.18, 0.18, 2) if rng.random() < 0.4 else None

    def take(self, canvas: np.ndarray) -> np.ndarray:
        """float32 [h, w, 3] -> the picture taken, uint8 [h, w, 3]"""
        height, width = canvas.shape[:2]
        picture = canvas * self.gain.astype(np.float32)
        if self.slope is not None:
            x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * self.slope[0]
            y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * self.slope[1]
            picture *= (1 + x + y).astype(np.float32)
        if self.noise:
            picture += self.rng.standard_normal(picture.shape, np.float32) * np.float32(self.noise)
        taken = picture.clip(0, 255).astype(np.uint8)
        if self.blur:
            taken = np.asarray(Image.fromarray(taken).filter(ImageFilter.GaussianBlur(self.blur)))
        return taken


def resized(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """uint8 [frames, h, w, 3] as the processor would enlarge them from sides up to 13 pixels shorter."""
    height, width = frames.shape[1:3]
    smaller = (width - int(rng.integers(14)), height - int(rng.integers(14)))
    images = [Image.fromarray(frame).resize(smaller, Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images])
