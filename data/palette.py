"""A documented stand-in for the image tokenizer: one code for the mean colour of each cell of 8 x 8 pixels.

The 256 codes are the corners of a fixed grid in RGB: 8 levels of red, 8 of green, 4 of blue. It needs no weights, is
the same everywhere, and decodes to a mosaic; what OFA's released checkpoints were trained on are codes of a VQGAN,
which these do not stand for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

CELL = 8  # pixels of a side that become one code, as in OFA's image tokenizer
LEVELS = (8, 8, 4)  # of red, green and blue
CODES = 256


def codebook() -> np.ndarray:
    """uint8[256, 3]: the colour of each code; the code is `(red * 8 + green) * 4 + blue` in levels."""
    axes = [np.round(np.linspace(0, 255, count)) for count in LEVELS]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(CODES, 3).astype(np.uint8)


def encode(image: Image.Image, side: int) -> list[int]:
    """The codes of the central `side` x `side` pixels, row after row: (side / 8) ** 2 of them, each 0..255.

    Args:
        image: RGB, at least `side` pixels wide and high.
        side: a multiple of 8; 128 for the official files, whose pictures have 256 pixels.

    Raises:
        ValueError: the picture is smaller than that, or `side` is no multiple of 8.
    """
    width, height = image.size
    if side % CELL or min(width, height) < side:
        raise ValueError(f"a picture of {width} x {height} pixels has no central square of {side} in cells of {CELL}")
    left, top = (width - side) // 2, (height - side) // 2
    pixels = np.asarray(image.convert("RGB").crop((left, top, left + side, top + side)), np.float64)
    cells = pixels.reshape(side // CELL, CELL, side // CELL, CELL, 3).mean((1, 3))  # [side / 8, side / 8, 3]
    red, green, blue = (np.round(cells[..., axis] * (count - 1) / 255) for axis, count in enumerate(LEVELS))
    return ((red * LEVELS[1] + green) * LEVELS[2] + blue).astype(int).ravel().tolist()


def decode(codes: Sequence[int]) -> Image.Image:
    """The mosaic of a square of codes: RGB, 8 pixels for each.

    Raises:
        ValueError: their number is no square, or one of them is not in 0..255.
    """
    side = round(len(codes) ** 0.5)
    if side * side != len(codes) or not all(0 <= code < CODES for code in codes):
        raise ValueError(f"{len(codes)} codes are no square of numbers in 0..{CODES - 1}")
    colours = codebook()[np.asarray(codes)].reshape(side, side, 3)
    return Image.fromarray(colours.repeat(CELL, 0).repeat(CELL, 1))
