"""What is in a picture: shapes, where they stand, what lies behind them. Nothing here draws or speaks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

COLOURS = {
    "red": (214, 40, 40),
    "orange": (244, 130, 24),
    "yellow": (246, 216, 40),
    "green": (34, 150, 60),
    "cyan": (40, 196, 210),
    "blue": (40, 80, 220),
    "purple": (136, 48, 172),
    "pink": (242, 100, 178),
}
"""RGB of each colour, far apart from one another and from every background."""
KINDS = ("circle", "square", "triangle", "diamond", "cross", "star")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")

UNSEEN_PAIRS = (
    ("red", "star"),
    ("orange", "square"),
    ("yellow", "diamond"),
    ("green", "cross"),
    ("cyan", "triangle"),
    ("blue", "star"),
    ("purple", "circle"),
    ("pink", "square"),
)
"""Colour and kind that never meet outside the split `unseen_pairs`; each of them is well known by itself."""
SEEN_PAIRS = tuple((colour, kind) for colour in COLOURS for kind in KINDS if (colour, kind) not in UNSEEN_PAIRS)

BACKGROUNDS = ("plain", "gradient", "checks", "stripes", "blobs")
UNSEEN_BACKGROUNDS = ("rings", "grid", "zigzag")
"""Families of backgrounds outside the split `unseen_backgrounds`, and those in it."""

MOST_SHAPES = 6

# Fractions of the picture's side, unless said otherwise.
MARGIN = 0.08  # kept free at the border: training crops up to a tenth off each side
GAP = 0.025  # between the boxes of two shapes
WIDTHS = {"small": (0.132, 0.172), "large": (0.235, 0.345)}
APART = 1.18  # ratio of widths from which one shape is clearly larger than another
CLEAR = 0.07  # by so much must one shape stand beyond another, or one axis beyond the other, for a word about it

T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """One shape: its words, and the square that it fills, in whole pixels of the picture."""

    colour: str
    kind: str
    texture: str
    size: str
    left: int
    top: int
    width: int

    @property
    def pair(self) -> tuple[str, str]:
        """Colour and kind."""
        return self.colour, self.kind

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in pixels; the last two are the edges behind the last pixel."""
        return float(self.left), float(self.top), float(self.left + self.width), float(self.top + self.width)

    @property
    def centre(self) -> tuple[float, float]:
        """x, y in pixels."""
        return self.left + self.width / 2, self.top + self.width / 2


@dataclass(frozen=True)
class Background:
    """What lies behind the shapes: a pattern that mixes two tones.

    Args:
        family: one of `BACKGROUNDS` or `UNSEEN_BACKGROUNDS`.
        tones: RGB of the two tones.
        period: of the pattern, a fraction of the picture's side.
        angle: of the pattern, in radians.
        seed: of what is irregular in it.
    """

    family: str
    tones: tuple[tuple[int, int, int], tuple[int, int, int]]
    period: float
    angle: float
    seed: int


@dataclass(frozen=True)
class Scene:
    """A picture's content. The shapes are in order of width, largest first; the first three differ clearly."""

    side: int
    shapes: tuple[Shape, ...]
    background: Background

    @property
    def digest(self) -> bytes:
        """Eight bytes that stand for the whole content: two pictures with the same ones show the same."""
        return hashlib.blake2b(repr(self).encode(), digest_size=8).digest()

    def relation(self, shape: Shape, other: Shape) -> str | None:
        """How `shape` stands to `other` along the axis that parts them more; None where neither does clearly."""
        across = shape.centre[0] - other.centre[0]
        down = shape.centre[1] - other.centre[1]
        if abs(abs(across) - abs(down)) < CLEAR * self.side:
            return None
        if abs(across) > abs(down):
            return "left of" if across < 0 else "right of"
        return "above" if down < 0 else "below"


@dataclass(frozen=True)
class Contents:
    """What scenes of a split may hold.

    Args:
        counts: the fewest and the most shapes of a picture.
        backgrounds: the families to choose from.
        unseen: one of the two largest shapes is of an unseen pair; else none is.
    """

    counts: tuple[int, int]
    backgrounds: tuple[str, ...] = BACKGROUNDS
    unseen: bool = False


def pick(draw: np.random.Generator, choices: Sequence[T]) -> T:
    """One of them, each as likely."""
    return choices[int(draw.integers(len(choices)))]


def random_scene(draw: np.random.Generator, contents: Contents, side: int) -> Scene:
    """A scene of `side` pixels without overlaps, in which the two largest shapes stand clearly to one another."""
    count = int(draw.integers(contents.counts[0], contents.counts[1] + 1))
    while True:
        sizes = _random_sizes(draw, count, side)
        places = _random_places(draw, [width for _, width in sizes], side)
        if places is not None:
            break
    unseen = int(draw.integers(min(2, count))) if contents.unseen else -1
    shapes: list[Shape] = []
    for number, ((size, width), (left, top)) in enumerate(zip(sizes, places, strict=True)):
        pair = pick(draw, UNSEEN_PAIRS) if number == unseen else _random_pair(draw, [shape.pair for shape in shapes])
        shapes.append(Shape(*pair, pick(draw, TEXTURES), size, left, top, width))
    return Scene(side, tuple(shapes), _random_background(draw, pick(draw, contents.backgrounds)))


def _random_sizes(draw: np.random.Generator, count: int, side: int) -> list[tuple[str, int]]:
    """Size and width of each shape, largest first; each of the first two is clearly larger than the next."""
    while True:
        large = int(draw.integers(0 if count < 3 else 1, min(count, 3 if count < 6 else 2) + 1))
        names = ["large"] * large + ["small"] * (count - large)
        sizes = [(name, round(draw.uniform(*WIDTHS[name]) * side)) for name in names]
        sizes.sort(key=lambda size: -size[1])
        if all(sizes[n][1] >= APART * sizes[n + 1][1] for n in range(min(2, count - 1))):
            return sizes


def _random_places(draw: np.random.Generator, widths: list[int], side: int) -> list[tuple[int, int]] | None:
    """Left and top of each; None where the luck of the draw leaves no room."""
    margin, gap, clear = round(MARGIN * side), round(GAP * side), CLEAR * side
    for _ in range(8):
        places: list[tuple[int, int]] = []
        for width in widths:
            for _ in range(24):
                left, top = (int(edge) for edge in draw.integers(margin, side - margin - width + 1, 2))
                if any(
                    left < x + wide + gap and x < left + width + gap and top < y + wide + gap and y < top + width + gap
                    for (x, y), wide in zip(places, widths, strict=False)
                ):
                    continue
                if len(places) == 1:  # the caption tells how these two stand
                    shift = (width - widths[0]) / 2
                    across, down = (abs(new - old + shift) for new, old in zip((left, top), places[0], strict=True))
                    if abs(across - down) < clear:
                        continue
                places.append((left, top))
                break
            else:
                break
        if len(places) == len(widths):
            return places
    return None


def _random_pair(draw: np.random.Generator, others: list[tuple[str, str]]) -> tuple[str, str]:
    """A seen pair, often with something of another shape of the picture, so that one word is not enough."""
    like = draw.random()
    if others and like < 0.7:
        colour, kind = pick(draw, others)
        if like < 0.2:
            same = [(colour, kind)]
        elif like < 0.45:
            same = [(colour, name) for name in KINDS]
        else:
            same = [(name, kind) for name in COLOURS]
        same = [pair for pair in same if pair in _SEEN]
        if same:
            return pick(draw, same)
    return pick(draw, SEEN_PAIRS)


_SEEN = frozenset(SEEN_PAIRS)


def _random_background(draw: np.random.Generator, family: str) -> Background:
    """Two tones of one dim or light tint."""
    dim = draw.random() < 0.5
    low, high = (24, 62) if dim else (200, 238)
    first, second = draw.uniform(low, high, 2)
    if abs(first - second) < 12:  # or a pattern could not be seen
        second = first + (18 if first < (low + high) / 2 else -18)
    tint = draw.uniform(-11, 11, 3)
    tones = tuple(tuple(int(round(level + shade)) for shade in tint) for level in (first, second))
    period, angle = float(draw.uniform(0.12, 0.3)), float(draw.uniform(0, np.pi))
    return Background(family, tones, period, angle, int(draw.integers(2**31)))
