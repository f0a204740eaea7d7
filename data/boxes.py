"""Boxes: read from a cell, held against their picture, to bins and back, and how far two of them overlap.

A box is `x0,y0,x1,y1` in pixels, left, top, right, bottom; a picture of width w reaches from 0 to w. Two boxes overlap
by their areas alone: no pixel is added to a side, and an overlap of exactly the threshold counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import Problem
from .text import SEPARATOR

Box = tuple[float, float, float, float]

FRAME = 512.0  # pixels that the bins span in the released checkpoints, whatever a picture's size (--max-image-size)
OVERSHOOT = 1.0  # pixels that a corner may lie outside of its picture: rounding, and what counts from 1 instead of 0
FORM = "x0,y0,x1,y1"
OBJECT_FORM = f"{FORM},object_id,object_name"

_CORNERS = FORM.split(",")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)  # float() also takes 1_0, nan and ４
_ROUNDING = 1e-6  # pixels; 333 * (512 / 333) is more than 512


class BoxProblem(Problem, ValueError):
    """A box that cannot be used."""


@dataclass(frozen=True)
class LabelledBox:
    """An object of a detection row: where it is, in pixels, what it is called, and the file's number for it."""

    box: Box
    name: str
    number: str = field(default="", compare=False)


# From a cell to boxes in their picture --------------------------------------------------------------------------------


def parse_box(cell: str) -> Box:
    """The box of a cell `x0,y0,x1,y1`; whether it fits a picture is for `fit`.

    Raises:
        BoxProblem: other than four finite numbers.
    """
    return _corners(cell.split(","), f"box {_short(cell)}")


def parse_boxes(cell: str) -> list[Box]:
    """The boxes of a cell, each as in `parse_box`, joined by `&&`.

    Raises:
        BoxProblem: one of them is none.
    """
    return [parse_box(item) for item in cell.split(SEPARATOR)]


def parse_objects(cell: str) -> list[LabelledBox]:
    """The objects of a detection cell, in their order: `x0,y0,x1,y1,object_id,object_name` joined by `&&`.

    A name may hold commas. A cell without objects is a legal one: an empty list.

    Raises:
        BoxProblem: naming the object, counted from 1.
    """
    if not cell.strip():
        return []
    items = cell.split(SEPARATOR)
    return [_labelled(item, f"object {number} of {len(items)}") for number, item in enumerate(items, 1)]


def fit(box: Box, width: int, height: int) -> tuple[Box, bool]:
    """The box inside its picture; an overshoot of at most `OVERSHOOT` pixels is clamped. Its area may be zero.

    Args:
        box: in pixels of the picture.
        width, height: of the picture.

    Returns:
        The box, and whether it was clamped.

    Raises:
        BoxProblem: a corner farther out, or corners in the wrong order, with the box and the size of the picture.
    """
    x0, y0, x1, y1 = box
    here = f"box {_written(box)} of a picture of {width} x {height}"
    if x1 < x0 or y1 < y0:
        reason = " and ".join(text for text, wrong in (("x1<x0", x1 < x0), ("y1<y0", y1 < y0)) if wrong)
        if 0 <= x0 <= width and 0 <= y0 <= height and 0 < x1 <= width and 0 < y1 <= height:
            raise BoxProblem(f"{here}: {reason}: looks like x,y,width,height", f"write {FORM}, where x1 = x + width")
        raise BoxProblem(f"{here}: {reason}", f"write {FORM}: left, top, right, bottom")
    sizes = (width, height, width, height)
    beyond = [max(-value, value - size) for value, size in zip(box, sizes, strict=True)]
    if max(beyond) > OVERSHOOT:
        remedy = "give boxes of this very picture, in its pixels"
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise BoxProblem(f"{here}: wholly outside", remedy)
        faults = [
            f"{name} {'is negative' if value < 0 else f'lies {value - size:g} px outside'}"
            for name, value, size, far in zip(_CORNERS, box, sizes, beyond, strict=True)
            if far > OVERSHOOT
        ]
        raise BoxProblem(f"{here}: {', '.join(faults)}", remedy)
    x0, y0, x1, y1 = (min(max(value, 0.0), float(size)) for value, size in zip(box, sizes, strict=True))
    return (x0, y0, x1, y1), max(beyond) > 0


def area(box: Sequence[float]) -> float:
    """Square pixels; 0 where a side is empty or its corners stand in the wrong order."""
    x0, y0, x1, y1 = map(float, box)
    return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)


def as_array(boxes: Iterable[Box]) -> np.ndarray:
    """Boxes as float64[N, 4], also where there is none."""
    return np.array(list(boxes), dtype=np.float64).reshape(-1, 4)


# To bins and back -----------------------------------------------------------------------------------------------------


def to_bins(boxes: np.ndarray, num_bins: int, frame: float = FRAME) -> np.ndarray:
    """Pixels of the resized picture to bin numbers: `round(pixel / frame * (num_bins - 1))`, half to even.

    The released checkpoints divide by 512 whatever the picture's size (official utils/transforms.py, Normalize), so a
    picture of 384 pixels never reaches the upper bins. Another frame orphans the box tokens that they learned.

    Args:
        boxes: float64[N, 4], pixels of the resized picture.
        num_bins: bins along an axis.
        frame: pixels that the bins span.

    Returns:
        int64[N, 4] in 0 .. num_bins - 1.

    Raises:
        ValueError: a corner lies outside of the frame.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    outside = boxes[~((boxes >= -_ROUNDING) & (boxes <= frame + _ROUNDING))]
    if outside.size:
        raise ValueError(f"box corner at {outside[0]:g} px, but bins span 0 .. {frame:g}: see --max-image-size")
    shares = np.clip(boxes, 0, frame).astype(np.float32) / np.float32(frame)  # 32 bits, as official: they decide halves
    return np.rint(shares * np.float32(num_bins - 1)).astype(np.int64)


def to_pixels(
    bins: np.ndarray, num_bins: int, frame: float = FRAME, scale: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Bin numbers to pixels of the stored picture.

    Args:
        bins: int64[N, 4].
        num_bins: bins along an axis.
        frame: pixels that the bins span.
        scale: by what the picture's width and height were multiplied when it was resized.

    Returns:
        float64[N, 4].
    """
    return np.asarray(bins, dtype=np.float64) / (num_bins - 1) * frame / np.array([*scale, *scale])


# Overlap --------------------------------------------------------------------------------------------------------------


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes, 0 to 1; two empty boxes have 0.

    Official divides by the union + 1e-6, which in 64 bits turns an overlap of exactly one half into less than that.
    Here numbers of 32 bits give what the same numbers in 64 bits give.
    """
    a, b = [float(value) for value in a], [float(value) for value in b]
    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return shared / (area(a) + area(b) - shared) if shared > 0 else 0.0


def hits(hypothesis: Sequence[float], reference: Sequence[float], threshold: float = 0.5) -> bool:
    """Whether the boxes overlap at all and by at least `threshold` (official tasks/mm_tasks/refcoco.py)."""
    overlap = iou(hypothesis, reference)
    return 0 < overlap >= threshold


# Helpers --------------------------------------------------------------------------------------------------------------


def _corners(parts: Sequence[str], name: str) -> Box:
    remedy = f"write {FORM} in pixels"
    if len(parts) != 4:
        found = "one value" if len(parts) == 1 else f"{len(parts)} values"
        raise BoxProblem(f"{name}: {found}, not four", remedy)
    for corner, part in zip(_CORNERS, parts, strict=True):
        if not _NUMBER.fullmatch(part) or not math.isfinite(float(part)):
            raise BoxProblem(f"{name}: {corner} is {_short(part)}, no finite number", remedy)
    x0, y0, x1, y1 = map(float, parts)
    return x0, y0, x1, y1


def _labelled(item: str, name: str) -> LabelledBox:
    parts = item.split(",", 5)
    if len(parts) < 6:
        raise BoxProblem(f"{name}, {_short(item)}: {len(parts)} of 6 parts", f"write {OBJECT_FORM}, joined by &&")
    if not parts[5].strip():
        raise BoxProblem(f"{name}, {_short(item)}: no object name", f"write {OBJECT_FORM}, joined by &&")
    return LabelledBox(_corners(parts[:4], f"{name}, {_short(item)}"), parts[5].strip(), parts[4].strip())


def _written(box: Box) -> str:
    return ",".join(f"{value:g}" for value in box)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
