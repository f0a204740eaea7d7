"""What training does to the pictures of image classification: crop, flip, RandAugment twice, erasing.

The chain of official data/cv_data/image_classify_dataset.py: timm's `create_transform` with `rand-m9-mstd0.5-inc1` and
erasing, OFA's own RandAugment behind timm's. Colours are jittered by the two RandAugments only, since timm leaves its
colour jitter out beside them. Every random choice comes from `draw`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from .augment import pixels, rand_augment
from .image import mean_colour

AREA = (0.08, 1.0)  # of a crop, in areas of the picture
ASPECT = (3 / 4, 4 / 3)  # of a crop, width by height
ATTEMPTS = 10  # at a rectangle that fits
OPS_PER_PICTURE, CARRIED_OUT = 2, 0.5  # timm's RandAugment: ops drawn, and the chance of each to be carried out
LEVEL, SPREAD, HIGHEST = 9.0, 0.5, 10.0  # of an op: mean, deviation, and the level that no draw exceeds
ERASED, ERASED_AREA, ERASED_ASPECT = 0.25, (0.02, 1 / 3), (0.3, 1 / 0.3)  # chance; area and aspect of the rectangle

Colour = tuple[int, int, int]


def augmented(
    image: Image.Image, size: int, imagenet: bool, draw: np.random.Generator
) -> tuple[Tensor, tuple[int, int, Tensor] | None]:
    """The whole chain.

    Args:
        image: of mode RGB.
        size: S, pixels.
        imagenet: whether the picture will be normalised with ImageNet's mean, which also fills what a warp uncovers.
        draw: of the row.

    Returns:
        uint8[3, S, S], and what is erased of it (`Example.erased`).
    """
    image = random_resized_crop(image, size, draw)
    if draw.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = rand_augment(strong_augment(image, mean_colour(imagenet), draw), draw)
    return pixels(image), erasing(size, draw)


def random_resized_crop(image: Image.Image, size: int, draw: np.random.Generator) -> Image.Image:
    """A random part of the picture, of random shape, as `size` x `size` pixels (bicubic)."""
    left, top, width, height = draw_crop(image.size, draw)
    part = image.crop((left, top, left + width, top + height))
    return part.resize((size, size), Image.Resampling.BICUBIC)


def draw_crop(size: tuple[int, int], draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop of `AREA` and `ASPECT` in a picture of width and height `size`.

    Where none was found that fits, as in a picture like a ribbon: the largest one in the middle.
    """
    width, height = size
    for _ in range(ATTEMPTS):
        across, down = _sides(width * height, AREA, ASPECT, draw)
        if across <= width and down <= height:
            return (*_corner(width - across, height - down, draw), across, down)
    across = min(width, max(1, round(height * ASPECT[1])))
    down = min(height, max(1, round(width / ASPECT[0])))
    return (width - across) // 2, (height - down) // 2, across, down


def erasing(size: int, draw: np.random.Generator) -> tuple[int, int, Tensor] | None:
    """With a chance of one quarter a rectangle of noise for a picture of `size` x `size` pixels.

    Returns:
        Top, left and float32[3, h, w], from the standard normal distribution, as normalised pixels are; or None.
    """
    if draw.random() >= ERASED:
        return None
    for _ in range(ATTEMPTS):
        width, height = _sides(size * size, ERASED_AREA, ERASED_ASPECT, draw)
        if width < size and height < size:
            left, top = _corner(size - width, size - height, draw)
            return top, left, torch.from_numpy(draw.standard_normal((3, height, width), dtype=np.float32))
    return None


def strong_augment(image: Image.Image, fill: Colour, draw: np.random.Generator) -> Image.Image:
    """Two of `OPS`, drawn with replacement, each carried out with a chance of one half at a level around nine."""
    for number in draw.integers(len(OPS), size=OPS_PER_PICTURE):
        if draw.random() < CARRIED_OUT:
            level = min(max(draw.normal(LEVEL, SPREAD), 0.0), HIGHEST)
            sign = 1 if draw.random() < 0.5 else -1
            image = _DRAWN[number](image, level / HIGHEST, sign, fill)
    return image


# timm's ops, each of picture, strength 0..1, sign and the colour of what a warp uncovers ------------------------------

Op = Callable[[Image.Image, float, int, Colour], Image.Image]


def _enhanced(kind: Callable[[Image.Image], Any]) -> Op:
    """Less or more of a quality, each as often: factor 1 changes nothing."""
    return lambda image, strength, sign, fill: kind(image).enhance(max(0.1, 1 + sign * 0.9 * strength))


def _warped(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Op:
    """An affine map, bicubic; `matrix` takes a place in the result to one in the picture."""

    def warp(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
        of_result = matrix(image, sign * strength)
        return image.transform(image.size, Image.Transform.AFFINE, of_result, Image.Resampling.BICUBIC, fillcolor=fill)

    return warp


def _rotated(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return image.rotate(sign * 30 * strength, Image.Resampling.BICUBIC, fillcolor=fill)


def _posterised(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    return ImageOps.posterize(image, max(1, 4 - int(4 * strength)))  # timm keeps 0 bits at the highest level: black


def _lightened(image: Image.Image, strength: float, sign: int, fill: Colour) -> Image.Image:
    """Adds to the dark half of the levels."""
    more = int(110 * strength)
    return image.point([min(255, level + more) if level < 128 else level for level in range(256)] * 3)


OPS: dict[str, Op] = {
    "AutoContrast": lambda image, *_: ImageOps.autocontrast(image),
    "Equalize": lambda image, *_: ImageOps.equalize(image),
    "Invert": lambda image, *_: ImageOps.invert(image),
    "Rotate": _rotated,
    "PosterizeIncreasing": _posterised,
    "SolarizeIncreasing": lambda image, strength, *_: ImageOps.solarize(image, 256 - int(256 * strength)),
    "SolarizeAdd": _lightened,
    "ColorIncreasing": _enhanced(ImageEnhance.Color),
    "ContrastIncreasing": _enhanced(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhanced(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhanced(ImageEnhance.Sharpness),
    "ShearX": _warped(lambda image, amount: (1, 0.3 * amount, 0, 0, 1, 0)),
    "ShearY": _warped(lambda image, amount: (1, 0, 0, 0.3 * amount, 1, 0)),
    "TranslateXRel": _warped(lambda image, amount: (1, 0, 0.45 * amount * image.width, 0, 1, 0)),
    "TranslateYRel": _warped(lambda image, amount: (1, 0, 0, 0, 1, 0.45 * amount * image.height)),
}
_DRAWN = tuple(OPS.values())


# Helpers --------------------------------------------------------------------------------------------------------------


def _sides(
    area: int, share: tuple[float, float], aspect: tuple[float, float], draw: np.random.Generator
) -> tuple[int, int]:
    """Width and height of a rectangle: its area uniform, its aspect uniform in its logarithm."""
    wanted = draw.uniform(*share) * area
    ratio = math.exp(draw.uniform(math.log(aspect[0]), math.log(aspect[1])))
    return max(1, round(math.sqrt(wanted * ratio))), max(1, round(math.sqrt(wanted / ratio)))


def _corner(right: int, down: int, draw: np.random.Generator) -> tuple[int, int]:
    """Left and top, each from 0 to as far as there is room."""
    return int(draw.integers(right, endpoint=True)), int(draw.integers(down, endpoint=True))
