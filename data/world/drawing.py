"""Scenes to pictures: a background mixes two tones, shapes are pasted through masks.

A mask is drawn once, four times as large, and shrunk, so that edges are smooth; it stands on whole pixels, so that a
box is exact.
"""

from __future__ import annotations

import base64
import functools
import io
import math

import numpy as np
from PIL import Image, ImageDraw

from .scene import COLOURS, Background, Scene

SUPERSAMPLE = 4
STEPS = 16  # shades between the two tones of a background: enough for the eye, and the files stay small
RIM = 0.008  # of a picture's side: a textured shape keeps a rim of its colour
STRIPE = 0.040  # period of stripes, of the picture's side
DOT = 0.052  # period of dots
INK = 0.28  # stripes and dots have the shape's colour, this bright


def draw_scene(scene: Scene) -> Image.Image:
    """The picture, RGB, `scene.side` pixels wide and high."""
    image = draw_background(scene.background, scene.side)
    for shape in scene.shapes:
        place, colour = (shape.left, shape.top), COLOURS[shape.colour]
        image.paste(colour, place, _mask(shape.kind, shape.width))
        if shape.texture != "plain":
            ink = tuple(round(INK * level) for level in colour)
            image.paste(ink, place, _ink_mask(shape.kind, shape.width, shape.texture, scene.side))
    return image


def encode_png(image: Image.Image) -> str:
    """A picture as OFA's files hold it: base64 of its PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return base64.b64encode(buffer.getvalue()).decode()


def draw_background(background: Background, side: int) -> Image.Image:
    """The picture without its shapes."""
    steps = (_PATTERNS[background.family](background, side) * STEPS).clip(0, STEPS - 1).astype(int)
    first, second = np.float64(background.tones[0]), np.float64(background.tones[1])
    shades = first + np.linspace(0, 1, STEPS)[:, None] * (second - first)  # [STEPS, 3]
    return Image.fromarray(np.round(shades).astype(np.uint8)[steps])


def _axes(background: Background, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across the pattern's angle, in periods, float64[side, side] each."""
    x, y = _grid(side)
    cosine, sine = math.cos(background.angle), math.sin(background.angle)
    return (x * cosine + y * sine) / background.period, (y * cosine - x * sine) / background.period


@functools.lru_cache(4)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    centres = (np.arange(side) + 0.5) / side
    return np.meshgrid(centres, centres)


def _plain(background: Background, side: int) -> np.ndarray:
    return np.zeros((side, side))


def _gradient(background: Background, side: int) -> np.ndarray:
    along, _ = _axes(background, side)
    return (along - along.min()) / (along.max() - along.min())


def _checks(background: Background, side: int) -> np.ndarray:
    x, y = _grid(side)
    return (x // background.period + y // background.period) % 2


def _stripes(background: Background, side: int) -> np.ndarray:
    return np.floor(_axes(background, side)[0] * 2) % 2


def _blobs(background: Background, side: int) -> np.ndarray:
    """Noise of few waves, smooth."""
    noise = np.random.default_rng(background.seed).random((6, 6)).astype(np.float32)
    soft = np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC), np.float64)
    return (soft - soft.min()) / (soft.max() - soft.min())


def _rings(background: Background, side: int) -> np.ndarray:
    x, y = _grid(side)
    east, south = np.random.default_rng(background.seed).random(2)
    return np.floor(np.hypot(x - east, y - south) / background.period * 2) % 2


def _grid_lines(background: Background, side: int) -> np.ndarray:
    along, across = _axes(background, side)
    return ((along % 1 < 0.2) | (across % 1 < 0.2)).astype(float)


def _zigzag(background: Background, side: int) -> np.ndarray:
    along, across = _axes(background, side)
    return np.floor(2 * along + 2 * np.abs(across % 1 - 0.5)) % 2


_PATTERNS = {
    "plain": _plain,
    "gradient": _gradient,
    "checks": _checks,
    "stripes": _stripes,
    "blobs": _blobs,
    "rings": _rings,
    "grid": _grid_lines,
    "zigzag": _zigzag,
}
"""For each family how much of the second tone is where: float64[side, side] in 0..1."""


@functools.lru_cache(1024)
def _mask(kind: str, width: int) -> Image.Image:
    """How much of each pixel a shape covers, 255 for all: L, `width` pixels wide and high, all four edges touched."""
    return _outline(kind, width).reduce(SUPERSAMPLE)


def _outline(kind: str, width: int) -> Image.Image:
    """Where a shape is, 255 there and 0 elsewhere: L, `SUPERSAMPLE * width` wide and high."""
    large = width * SUPERSAMPLE
    mask = Image.new("L", (large, large))
    pen = ImageDraw.Draw(mask)
    end = large - 1
    if kind == "circle":
        pen.ellipse((0, 0, end, end), fill=255)
    elif kind == "square":
        pen.rectangle((0, 0, end, end), fill=255)
    elif kind == "triangle":
        pen.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    elif kind == "diamond":
        pen.polygon([(end / 2, 0), (end, end / 2), (end / 2, end), (0, end / 2)], fill=255)
    elif kind == "cross":
        arm = round(large * 0.31)
        pen.rectangle((arm, 0, end - arm, end), fill=255)
        pen.rectangle((0, arm, end, end - arm), fill=255)
    else:
        pen.polygon([(x * end, y * end) for x, y in _star()], fill=255)
    return mask


def _star() -> list[tuple[float, float]]:
    """Corners of a star of five points that fills the unit square."""
    corners = []
    for number in range(10):
        radius, angle = (1.0, 0.48)[number % 2], math.pi * number / 5
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    xs, ys = zip(*corners, strict=True)
    return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in corners]


@functools.lru_cache(1024)
def _ink_mask(kind: str, width: int, texture: str, side: int) -> Image.Image:
    """How much of each pixel is a stripe or dot: inside the shape's rim only."""
    large = width * SUPERSAMPLE
    rim = max(1, round(RIM * side * SUPERSAMPLE))
    inner = _eroded(np.asarray(_outline(kind, width)), rim)
    places = np.arange(large) + 0.5 - large / 2  # from the middle, so that every shape shows its texture
    x, y = np.meshgrid(places, places)
    if texture == "striped":
        period = STRIPE * side * SUPERSAMPLE
        pattern = ((x + y) / math.sqrt(2) / period + 0.25) % 1 < 0.5
    else:
        period = DOT * side * SUPERSAMPLE
        shifted = np.where(np.floor(y / period + 0.5) % 2 == 1, x + period / 2, x)
        east, south = ((shifted / period + 0.5) % 1 - 0.5), ((y / period + 0.5) % 1 - 0.5)
        pattern = np.hypot(east, south) < 0.31
    return Image.fromarray(np.where(pattern, inner, 0).astype(np.uint8)).reduce(SUPERSAMPLE)


def _eroded(mask: np.ndarray, rim: int) -> np.ndarray:
    """The least value within `rim` pixels on either side, nothing being outside: as `mask`, uint8[N, N]."""
    side = len(mask)
    wide = np.pad(mask, rim)
    for _ in range(2):  # down, then across
        wide = np.minimum.reduce([wide[shift : shift + side] for shift in range(2 * rim + 1)]).T
    return wide
