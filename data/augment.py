"""What training does to a picture and its boxes: resize, crop, flip, jitter, RandAugment.

Pictures are Pillow's of mode RGB, boxes float64[N, 4] (x0, y0, x1, y1 in pixels of the picture beside them), and every
random choice comes from `draw`. The rules are those of official utils/transforms.py and utils/vision_helper.py,
`reframed` alone is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from .image import pixels as pixels

LARGEST_SIDE = 480  # of the official range of short sides
LONGEST_SIDE = 672  # at which official cuts the other side
OPS_PER_PICTURE, SKIPPED = 2, 0.5  # RandAugment: ops drawn, and the share of them that is not carried out
JITTER = (1.0, 1.5)  # short side of a jittered picture, in sides of the crop
GREY = (128, 128, 128)  # of what a warp, or a frame larger than the picture, uncovers
FRAMES = (0.5, 1.2)  # side of a frame, in sides of the picture
STRETCH = 1.15  # at most, of one side of a frame against the other


class Resized(NamedTuple):
    """A resized picture.

    Attributes:
        image: the picture.
        boxes: float64[N, 4] in its pixels.
        scale: by what its width and its height were multiplied; `boxes.to_pixels` divides by it.
    """

    image: Image.Image
    boxes: np.ndarray
    scale: tuple[float, float]


class Jitter(NamedTuple):
    """Where large scale jitter cuts a picture.

    Attributes:
        size: width and height of the whole resized picture.
        offset: left and top of the crop in it.
        boxes: float64[K, 4] in pixels of the crop, of the objects that are still seen.
        kept: bool[N], which these are.
    """

    size: tuple[int, int]
    offset: tuple[int, int]
    boxes: np.ndarray
    kept: np.ndarray


# Sizes ----------------------------------------------------------------------------------------------------------------


def draw_side(draw: np.random.Generator, patch_size: int) -> tuple[int, int]:
    """A short side for a crop of `patch_size` pixels, and the longest that the other side may be.

    For 384 to 480 pixels officially: uniform up to 480, and 672. For any other crop about the same in proportion.
    """
    official = 384 <= patch_size <= LARGEST_SIDE
    largest = LARGEST_SIDE if official else int(1.25 * patch_size)
    side = int(draw.integers(patch_size, largest, endpoint=True))
    return side, LONGEST_SIDE if official else int(1.75 * patch_size)


def short_side(image: Image.Image, boxes: np.ndarray, side: int, longest: int) -> Resized:
    """The picture with its short side `side` pixels long (bicubic).

    The long side follows, rounded down, but is cut to `longest`: such a picture does not keep its aspect.
    """
    width, height = image.size
    short = min(width, height)
    return _resized(image, boxes, (min(side * width // short, longest), min(side * height // short, longest)))


def square(image: Image.Image, boxes: np.ndarray, size: int) -> Resized:
    """The whole picture as `size` x `size` pixels (bicubic), its aspect not kept: what evaluation sees."""
    return _resized(image, boxes, (size, size))


# Crops and flips ------------------------------------------------------------------------------------------------------


def center_crop(image: Image.Image, boxes: np.ndarray, size: int) -> tuple[Image.Image, np.ndarray]:
    """The middle `size` x `size` pixels; boxes are clipped, and one that is not seen has no area.

    Raises:
        ValueError: the picture is smaller than that.
    """
    width, height = image.size
    return _cropped(image, boxes, round((width - size) / 2), round((height - size) / 2), size)


def object_center_crop(image: Image.Image, boxes: np.ndarray, size: int) -> tuple[Image.Image, np.ndarray]:
    """`size` x `size` pixels around the middle of the first box, shifted to lie inside the picture.

    Boxes are clipped. They move by the whole pixels that the crop moves by; official moves them by the fraction, half a
    pixel away from what they mark.

    Raises:
        ValueError: the picture is smaller than that.
    """
    x0, y0, x1, y1 = boxes[0].tolist()
    corners = ((x0 + x1) / 2 - size / 2, (y0 + y1) / 2 - size / 2)
    left, top = (
        round(max(min(corner, length - size), 0.0)) for corner, length in zip(corners, image.size, strict=True)
    )
    return _cropped(image, boxes, left, top, size)


def horizontal_flip(image: Image.Image, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """The picture and its boxes, mirrored left to right."""
    mirrored = boxes.copy()
    mirrored[:, [0, 2]] = image.width - boxes[:, [2, 0]]
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mirrored


def vertical_flip(image: Image.Image, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """The picture and its boxes, mirrored top to bottom."""
    mirrored = boxes.copy()
    mirrored[:, [1, 3]] = image.height - boxes[:, [3, 1]]
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), mirrored


def large_scale_jitter(
    image: Image.Image, boxes: np.ndarray, side: int, draw: np.random.Generator
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A random square of `side` pixels from the picture resized to a random size of at least that.

    Returns:
        The square; float64[K, 4] boxes clipped to it, of the objects that are still seen; bool[N], which these are.
        However little of an object is seen, it stays, as officially.
    """
    scale, down, across = draw.random(3).tolist()
    plan = jitter(image.size, boxes, side, scale, (down, across))
    (left, top), ratios = plan.offset, (plan.size[0] / image.width, plan.size[1] / image.height)
    # Only what is seen is computed: the whole of a picture of 1 x 2000 pixels would have 2.6e8
    seen = (left / ratios[0], top / ratios[1], (left + side) / ratios[0], (top + side) / ratios[1])
    seen = (*seen[:2], min(seen[2], image.width), min(seen[3], image.height))  # Pillow refuses a rounding error
    return image.resize((side, side), Image.Resampling.BICUBIC, box=seen), plan.boxes, plan.kept


def jitter(size: tuple[int, int], boxes: np.ndarray, side: int, scale: float, offset: tuple[float, float]) -> Jitter:
    """The geometry of large scale jitter for given draws, each in 0 .. 1.

    Args:
        size: width and height of the picture.
        boxes: float64[N, 4], its objects.
        side: of the crop, pixels.
        scale: draw for the size; 0 makes the short side as long as the crop's, 1 half as long again.
        offset: draws for the top and the left edge of the crop, in this order.
    """
    short = round((JITTER[0] + scale * (JITTER[1] - JITTER[0])) * side)
    width, height = (round(length * short / min(size)) for length in size)
    top, left = (int((room - side) * share) for room, share in zip((height, width), offset, strict=True))
    moved = boxes * _twice(width / size[0], height / size[1]) - _twice(left, top)
    moved = moved.clip(0, side)
    kept = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
    return Jitter((width, height), (left, top), moved[kept], kept)


def reframed(
    image: Image.Image,
    boxes: np.ndarray,
    size: int,
    draw: np.random.Generator,
    mirror: bool = True,
) -> tuple[Image.Image, np.ndarray]:
    """The picture mirrored along each axis with a chance of one half, then seen through a random frame that holds every
    box whole.

    Args:
        image: the picture.
        boxes: float64[N, 4], inside of it.
        size: side of the result in pixels.
        draw: source of every choice.
        mirror: whether it may be mirrored at all.

    Returns:
        The view, size x size pixels, and float64[N, 4] boxes in it.
    """
    across, down = draw.random(2) < 0.5
    if mirror and across:
        image, boxes = horizontal_flip(image, boxes)
    if mirror and down:
        image, boxes = vertical_flip(image, boxes)
    share, stretch = draw.uniform(*FRAMES), STRETCH ** draw.uniform(-0.5, 0.5)
    lengths = np.array(image.size, dtype=np.float64)
    first, last = (boxes[:, :2].min(0), boxes[:, 2:].max(0)) if len(boxes) else (lengths, 0 * lengths)
    frame = np.maximum(lengths * share * np.array([stretch, 1 / stretch]), last - first)
    least = np.maximum(np.minimum(0, lengths - frame), last - frame)  # of the frame's left and top edge
    most = np.maximum(np.minimum(np.maximum(0, lengths - frame), first), least)
    corner = least + draw.random(2) * (most - least)
    view = _through(image, corner, frame, size)
    moved = (boxes - np.tile(corner, 2)) * np.tile(size / frame, 2)
    return view, moved.clip(0, size)


# RandAugment (Cubuk et al. 2020), the ten ops of pretraining at level 7 of 10 -----------------------------------------


def rand_augment(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Two of `OPS`, drawn with replacement, each carried out with a chance of one half.

    Draws anew for each picture; official's draw is the same for all pictures of an epoch.
    """
    for number in draw.integers(len(OPS), size=OPS_PER_PICTURE):
        if draw.random() < SKIPPED:
            continue
        op = _DRAWN[number]
        sign = -1 if op.signed and draw.random() < 0.5 else 1
        image = op.apply(image, sign * op.amount)
    return image


class Op(NamedTuple):
    """An op of RandAugment.

    Attributes:
        apply: picture and amount to picture.
        amount: at level 7 of 10.
        signed: whether the amount is as often negative.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    amount: float = 0.0
    signed: bool = False


def shear_x(image: Image.Image, amount: float) -> Image.Image:
    """Each row moves right by `amount` of its distance from the top."""
    return _warped(image, (1, -amount, 0, 0, 1, 0))


def shear_y(image: Image.Image, amount: float) -> Image.Image:
    """Each column moves down by `amount` of its distance from the left."""
    return _warped(image, (1, 0, 0, -amount, 1, 0))


def translate_x(image: Image.Image, amount: float) -> Image.Image:
    """To the left by whole pixels."""
    return _shifted(image, -round(amount), 0)


def translate_y(image: Image.Image, amount: float) -> Image.Image:
    """Upwards by whole pixels."""
    return _shifted(image, 0, -round(amount))


def rotate(image: Image.Image, amount: float) -> Image.Image:
    """Counter-clockwise by `amount` degrees."""
    cos, sin = math.cos(math.radians(amount)), math.sin(math.radians(amount))
    x, y = image.width / 2, image.height / 2  # officially pixel (w/2, h/2) stays, half a pixel from the middle
    return _warped(image, (cos, -sin, (1 - cos) * x + sin * y, sin, cos, (1 - cos) * y - sin * x))


_ENHANCED = 0.7 * 1.8 + 0.1

OPS = {
    "Identity": Op(lambda image, _: image),
    "AutoContrast": Op(lambda image, _: ImageOps.autocontrast(image)),
    "Equalize": Op(lambda image, _: ImageOps.equalize(image)),
    "Brightness": Op(lambda image, amount: ImageEnhance.Brightness(image).enhance(amount), _ENHANCED),
    "Sharpness": Op(lambda image, amount: ImageEnhance.Sharpness(image).enhance(amount), _ENHANCED),
    "ShearX": Op(shear_x, 0.21, signed=True),
    "ShearY": Op(shear_y, 0.21, signed=True),
    "TranslateX": Op(translate_x, 7.0, signed=True),
    "TranslateY": Op(translate_y, 7.0, signed=True),
    "Rotate": Op(rotate, 21.0, signed=True),
}
_DRAWN = tuple(OPS.values())


# Helpers --------------------------------------------------------------------------------------------------------------


def _resized(image: Image.Image, boxes: np.ndarray, size: tuple[int, int]) -> Resized:
    scale = size[0] / image.width, size[1] / image.height
    picture = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
    return Resized(picture, boxes * _twice(*scale), scale)


def _cropped(image: Image.Image, boxes: np.ndarray, left: int, top: int, size: int) -> tuple[Image.Image, np.ndarray]:
    if left < 0 or top < 0 or left + size > image.width or top + size > image.height:
        raise ValueError(f"a picture of {image.width} x {image.height} pixels has no crop of {size} x {size}")
    return image.crop((left, top, left + size, top + size)), (boxes - _twice(left, top)).clip(0, size)


def _through(image: Image.Image, corner: np.ndarray, frame: np.ndarray, size: int) -> Image.Image:
    """What a frame (left and top, width and height) shows, size x size pixels; beside the picture it is grey."""
    margin = np.ceil(np.maximum(0, np.maximum(-corner, corner + frame - image.size))).astype(int)
    if margin.any():
        left, top = margin.tolist()
        canvas = Image.new("RGB", (image.width + 2 * left, image.height + 2 * top), GREY)
        canvas.paste(image, (left, top))
        image, corner = canvas, corner + margin
    low = np.clip(corner, 0, image.size)
    box = (*low, *np.clip(corner + frame, low, image.size))  # Pillow refuses a rounding error
    return image.resize((size, size), Image.Resampling.BICUBIC, box=tuple(map(float, box)))


def _twice(x: float, y: float) -> np.ndarray:
    """float64[4]: what a box is multiplied with, or moved by."""
    return np.array([x, y, x, y], dtype=np.float64)


def _shifted(image: Image.Image, right: int, down: int) -> Image.Image:
    shifted = Image.new("RGB", image.size, GREY)
    shifted.paste(image, (right, down))
    return shifted


def _warped(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Bilinear; `matrix` takes pixel (x, y) of the result, counted from (0, 0), to a place in the picture.

    A frame of one grey pixel makes Pillow blend the edge with the fill, as OpenCV, which official uses, does.
    """
    a, b, c, d, e, f = matrix
    framed = ImageOps.expand(image, 1, GREY)  # moves the origin by a pixel; Pillow counts from a pixel's corner
    matrix = (a, b, c + 1.5 - (a + b) / 2, d, e, f + 1.5 - (d + e) / 2)
    return framed.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)
