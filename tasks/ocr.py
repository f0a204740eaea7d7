"""Reading: a picture of a line of text in, what is written there out."""

# no `from __future__ import annotations`: fairseq reads the field types at run time

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fairseq.tasks import register_task
from PIL import Image

from ..data.augment import pixels
from ..data.builder import Builder, Row
from ..data.example import Example
from ..data.simplified import simplify
from ..errors import UserError
from .base import OFATask, OFATaskConfig
from .metrics.transcription import NormalisedEditDistance, TranscriptionAccuracy, without_spaces
from .refcoco import refuse_fast_images

INSTRUCTION = " what are the texts on the image?"
CHINESE_INSTRUCTION = "图片上的文字是什么?"
LEAST_SIDE = 64  # pixels to which the shorter side of a picture is stretched at least
LINE, PARTS = (1920, 64), 4  # width and height of a document's line, and into how many it is cut, one below the other


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height that a picture of `size` has in a square: the longer one `side`, the other in proportion."""
    longer = max(size)
    width, height = (max(LEAST_SIDE, int(side * (length / longer))) for length in size)
    return width, height


def stacked(image: Image.Image) -> Image.Image:
    """A long line as four lines of 480 x 64 pixels, one below the other."""
    line = np.asarray(image.resize(LINE, Image.Resampling.BICUBIC))
    return Image.fromarray(np.concatenate(np.split(line, PARTS, axis=1)))


def padded(image: Image.Image, side: int, left: int, top: int) -> Image.Image:
    """The picture at a place in a square of `side` pixels, whose rest repeats the picture's edges."""
    right, bottom = side - image.width - left, side - image.height - top
    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))


@dataclass
class OcrConfig(OFATaskConfig):
    """Options of reading text."""

    is_document: bool = field(
        default=False, metadata={"help": "cut each picture, a long line, into four lines, one below the other"}
    )


class OcrBuilder(Builder):
    """Official `data/mm_data/ocr_dataset.py`: row `7 <image> "繁體字 ＡＢＣ"` becomes the pair
    " what are the texts on the image?" and " 繁体字 abc".

    The picture keeps its proportions in the square; where it stands is drawn in training, and the middle elsewhere
    (officially drawn there, too). In training the first `--max-tgt-length` words, or with a Chinese vocabulary
    characters, are the target; elsewhere all of the text is the reference.
    """

    columns = ("id", "image", "text")
    selected = {"train": "0,1,2", "other": "0,1,2"}
    instructions = (INSTRUCTION,)

    @classmethod
    def typed(cls, cfg: Any) -> tuple[str, ...]:
        """The picture."""
        return ("image",)

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        text = self.reference(row)
        if text is None and self.training:
            raise self.bad(index, "text", "it is empty", "write what the picture says, or leave the row out")
        yield self.example(
            index,
            row.id,
            source=self.source(CHINESE_INSTRUCTION if self.codec.chinese else INSTRUCTION),
            target=torch.tensor([self.codec.pad]) if text is None else self.target(f" {self._cut(text)}"),
            image=pixels(self._placed(self.picture(index, row.image), draw)),
            reference=text,
            reference_tokens=None if text is None else self.target(f" {text}"),
        )

    def reference(self, row: Row) -> str | None:
        """The text in simplified characters, compatible forms (`ＡＢＣ`, `ſ`) made plain, and lower case."""
        text = unicodedata.normalize("NFKC", simplify(row.text or ""))
        return " ".join(text.lower().split()) or None

    def _cut(self, text: str) -> str:
        most = self.cfg.max_tgt_length
        return text[:most] if self.codec.chinese else " ".join(text.split(" ")[:most])

    def _placed(self, picture: Image.Image, draw: np.random.Generator) -> Image.Image:
        side = self.cfg.patch_image_size
        if self.cfg.is_document:
            picture = stacked(picture)
        else:
            picture = picture.resize(fitted(picture.size, side), Image.Resampling.BICUBIC)
        room = (side - picture.width, side - picture.height)
        left, top = (int(draw.integers(most, endpoint=True)) if self.training else most // 2 for most in room)
        return padded(picture, side, left, top)


@register_task("ocr", dataclass=OcrConfig)
class OcrTask(OFATask):
    """`--task ocr`."""

    builder = OcrBuilder
    metric = TranscriptionAccuracy
    more_metrics = (NormalisedEditDistance,)
    evaluation_defaults = {"beam": 5, "max_len_b": 64}

    def setup(self) -> None:
        """Checks that the pictures have room for letters."""
        cfg = self.cfg
        refuse_fast_images(cfg)
        if cfg.patch_image_size < LEAST_SIDE:
            raise UserError(
                f"--patch-image-size {cfg.patch_image_size}: --task ocr makes lines {LEAST_SIDE} pixels high at least; "
                f"give {LEAST_SIDE} or more"
            )
        if cfg.is_document and cfg.patch_image_size != LINE[0] // PARTS:
            raise UserError(
                f"--patch-image-size {cfg.patch_image_size}: --is-document makes lines of {LINE[0] // PARTS} pixels; "
                "give that size, or leave --is-document out"
            )

    def answer(self, tokens: torch.Tensor) -> str:
        """The text; with a Chinese vocabulary, which decodes to single characters, without spaces."""
        text = super().answer(tokens)
        return without_spaces(text) if self.codec.chinese else text

    def entry(self, uniq_id: str | int, answer: str) -> dict[str, Any]:
        """The official form."""
        return {"image_id": uniq_id, "ocr": answer}
