"""Panels on a sheet: of each pretraining task what the model was asked and says, or rows of data as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from .data import palette

if TYPE_CHECKING:
    from .data.codec import Codec
    from .data.example import Example

COLUMNS, WIDTH, HEIGHT, MARGIN = 4, 330, 372, 12  # of panels, pixels
PICTURE = 192  # pixels of a shown side
LINE = 17
LONGEST = 120  # characters that are shown of a text of a row
BLACK, GREY, MODEL, RIGHT = (20, 20, 20), (120, 120, 120), (190, 0, 120), (0, 125, 60)

Words = list[tuple[str, tuple[int, int, int]]]  # each word, and its colour


@dataclass(frozen=True)
class Panel:
    """What is shown of one example.

    Attributes:
        title: the task.
        pictures: side by side, RGB; none for a text task.
        texts: paragraphs.
    """

    title: str
    pictures: list[Image.Image]
    texts: list[Words]


def panel(kind: str, title: str, example: Example, entry: Mapping[str, Any], codec: Codec) -> Panel:
    """The panel of a held-out example.

    Args:
        kind: of the example, as `--kinds` has it.
        title: shown above it.
        example: as `fairseq-generate` gave it to the model.
        entry: of the result file, the model's answer.
        codec: ids to text.
    """
    asked = " ".join(re.sub(r"(<bin_\d+>)+", " [box]", codec.decode(example.source)).split())
    target = " ".join(codec.decode(example.target).split())
    if kind == "text_infilling":
        gapped, answer = asked.replace("<mask>", " ___ "), " ".join(codec.decode(entry["tokens"]).split())
        return Panel(title, [], [words(gapped, GREY), _filled(gapped, answer), words(f"right: {target}", RIGHT)])
    picture = Image.fromarray(example.image.permute(1, 2, 0).numpy())
    if kind == "image_infilling":
        filled = _zoomed(_with_middle(picture, entry["codes"]))
        said = [*words("the middle as the model fills it,", MODEL), *words("beside the true picture", RIGHT)]
        return Panel(title, [filled, _zoomed(picture)], [words(asked, GREY), said])
    shown, factor = _zoomed(picture), PICTURE / picture.width
    scale = tuple(factor * each for each in example.scale)
    if kind == "detection":
        for one in example.reference:
            _box(shown, one.box, scale, RIGHT)
        for one in entry["objects"]:
            _box(shown, one["box"], scale, MODEL)
        named = ", ".join(one["name"] for one in entry["objects"]) or "nothing"
        right = ", ".join(one.name for one in example.reference)
        return Panel(title, [shown], [words(asked, GREY), words(named, MODEL), words(f"right: {right}", RIGHT)])
    if kind == "grounding":
        _box(shown, example.reference, scale, RIGHT)
        _box(shown, entry["box"], scale, MODEL)
        said = [*words("the model's box", MODEL), *words("and the right one", RIGHT)]
        return Panel(title, [shown], [words(asked, GREY), said])
    if kind == "region_caption":
        bins = [int(number) for number in re.findall(r"<bin_(\d+)>", codec.decode(example.source))]
        _box(shown, [number / (codec.num_bins - 1) for number in bins], (PICTURE, PICTURE), GREY)
    return Panel(title, [shown], [words(asked, GREY), words(entry["answer"], MODEL), words(f"right: {target}", RIGHT)])


def row_panel(title: str, picture: Image.Image, boxes: Iterable[Iterable[float]], texts: Iterable[str]) -> Panel:
    """The panel of a row of data.

    Args:
        title: shown above it.
        picture: RGB, shown whole, its proportions kept.
        boxes: in pixels of the picture.
        texts: shown below it, cut where they are long.
    """
    factor = PICTURE / max(picture.size)
    small = picture.resize([max(1, round(factor * side)) for side in picture.size], Image.Resampling.BICUBIC)
    shown = Image.new("RGB", (PICTURE, PICTURE), "white")
    shown.paste(small)
    for box in boxes:
        _box(shown, box, (factor, factor), MODEL)
    paragraphs = [words(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...", BLACK) for text in texts]
    return Panel(title, [shown], paragraphs)


def words(text: str, colour: tuple[int, int, int]) -> Words:
    """A text in one colour."""
    return [(word, colour) for word in text.split()]


def draw(panels: Iterable[Panel]) -> Image.Image:
    """All panels on one sheet, row after row."""
    panels = list(panels)
    sheet = Image.new("RGB", (COLUMNS * WIDTH, -(-len(panels) // COLUMNS) * HEIGHT), "white")
    pen = ImageDraw.Draw(sheet)
    for number, shown in enumerate(panels):
        left, top = number % COLUMNS * WIDTH + MARGIN, number // COLUMNS * HEIGHT + MARGIN
        pen.text((left, top), shown.title, fill=BLACK, font=ImageFont.load_default(16))
        top += 26
        width = (WIDTH - 2 * MARGIN - 6) // max(2, len(shown.pictures))
        for place, picture in enumerate(shown.pictures):
            side = PICTURE if len(shown.pictures) == 1 else width
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left + place * (width + 6), top))
        top += PICTURE + 8 if shown.pictures else 0
        for text in shown.texts:
            top = _paragraph(pen, text, left, top) + 4
    return sheet


def _paragraph(pen: ImageDraw.ImageDraw, text: Words, left: int, top: int) -> int:
    """Writes a text within a panel's width; where the next one may begin."""
    font, x = ImageFont.load_default(13), left
    space = font.getlength(" ")
    for word, colour in text:
        length = font.getlength(word)
        if x > left and x + length > left + WIDTH - 2 * MARGIN:
            x, top = left, top + LINE
        pen.text((x, top), word, fill=colour, font=font)
        x += length + space
    return top + LINE


def _filled(gapped: str, answer: str) -> Words:
    """The answer's words, those that were not to be seen in the model's colour."""
    said, shown = answer.split(), gapped.partition('"')[2].rpartition('"')[0].split()  # the text without the question
    colours = [MODEL] * len(said)
    for block in SequenceMatcher(None, shown, said, autojunk=False).get_matching_blocks():
        colours[block.b : block.b + block.size] = [BLACK] * block.size
    return list(zip(said, colours, strict=True))


def _with_middle(picture: Image.Image, codes: list[int]) -> Image.Image:
    """The picture with the mosaic of the codes in its middle."""
    mosaic, filled = palette.decode(codes), picture.copy()
    filled.paste(mosaic, ((picture.width - mosaic.width) // 2, (picture.height - mosaic.height) // 2))
    return filled


def _zoomed(picture: Image.Image) -> Image.Image:
    return picture.resize((PICTURE, PICTURE), Image.Resampling.NEAREST)


def _box(shown: Image.Image, box: Iterable[float], scale: tuple[float, float], colour: tuple[int, int, int]) -> None:
    """Draws a box that has a scale of its own; one without four corners, or in the wrong order, is not there."""
    corners = [round(float(corner) * scale[place % 2]) for place, corner in enumerate(box)]
    if len(corners) == 4 and corners[0] <= corners[2] and corners[1] <= corners[3]:
        pen, (left, top, right, bottom) = ImageDraw.Draw(shown), corners
        pen.rectangle((left - 3, top - 3, right + 2, bottom + 2), outline="white", width=3)  # seen on any background
        pen.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=colour, width=2)
