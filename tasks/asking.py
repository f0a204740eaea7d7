"""An instruction of the user's own: any text, columns of the rows in it, and regions of the picture."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import augment
from ..data.boxes import as_array
from ..data.builder import Builder, Row
from ..data.codec import Codec
from ..data.example import Example
from ..data.image import PictureLoader
from ..data.text import MARK, tidy_question
from ..data.tsv import TSVStore
from ..errors import UserError
from .metrics.accuracy import VQAScore, parse_answers
from .refcoco import BoxReader

PIECE = re.compile(r"\{([^{}]*)\}")
NOT_SAID = ("id", "image", "answers")  # columns that cannot stand in an instruction
SETTINGS = {"beam": 5, "max_len_b": 60}


class AskedScore(VQAScore):
    """`VQAScore` of what was asked with an instruction of the user's own."""

    name = "asked_score"


@dataclass(frozen=True)
class AskedForm:
    """What `--instruction` and `--columns` say; makes the builder of a file.

    Attributes:
        instruction: with columns in braces.
        columns: of the rows, in the file's order.

    Raises:
        UserError: a brace names no column, or one that cannot stand there; the image is missing.
    """

    instruction: str
    columns: tuple[str, ...]
    required: None = None

    def __post_init__(self) -> None:
        listed = ",".join(self.columns)
        for name in self.columns:
            is_name = name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")
            if not is_name or self.columns.count(name) > 1:
                raise UserError(
                    f"--columns {listed}: {name!r} is no name, or is there twice; write id,image,question,box"
                )
        if "image" not in self.columns:
            raise UserError(f"--columns {listed}: there is no image")
        if not self.instruction.strip():
            raise UserError("--instruction is empty: write what the model is to do")
        for name in PIECE.findall(self.instruction):
            if name not in self.columns or name in NOT_SAID:
                usable = ", ".join(f"{{{one}}}" for one in self.columns if one not in NOT_SAID) or "none"
                raise UserError(
                    f"--instruction: {{{name}}} is not there to be used; --columns {listed} offers {usable}"
                )
        if re.search(r"[{}]", PIECE.sub("", self.instruction)):
            raise UserError(f"--instruction {self.instruction!r}: a brace without its other half")

    @property
    def selected(self) -> dict[str, str]:
        """The columns as they come."""
        return {split: ",".join(map(str, range(len(self.columns)))) for split in ("train", "other")}

    def typed(self, cfg: Any) -> tuple[str, ...]:
        """What `fairseq-interactive` asks for: all but id and answers."""
        return tuple(name for name in self.columns if name not in ("id", "answers"))

    def __call__(
        self, store: TSVStore, codec: Codec, cfg: Any, training: bool, pictures: PictureLoader | None
    ) -> AskedBuilder:
        """The builder of a file."""
        return AskedBuilder(self, store, codec, cfg, training, pictures)


class AskedBuilder(BoxReader, Builder):
    """The instruction with each `{column}` replaced: texts are tidied, a column whose name ends in `box` becomes four
    bins. The picture is the whole one, made square. `answers` (`1.0|!+yes&&...`, or one answer) are the reference.
    """

    def __init__(self, form: AskedForm, *rest: Any):
        super().__init__(*rest)
        self.form = form

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        picture = self.picture(index, row.image)
        boxes = {name: self.region(index, getattr(row, name), picture.size, name)[0] for name in self._boxes()}
        view = augment.square(picture, as_array(boxes.values()), self.cfg.patch_image_size)
        bins = {name: self.bins(box[None]) for name, box in zip(boxes, view.boxes, strict=True)}
        try:
            reference = self._answers(row)
        except ValueError as error:
            raise self.bad(
                index, "answers", str(error), "write 1.0|!+yes, several joined by &&, or one answer"
            ) from None
        yield self.example(
            index,
            getattr(row, "id", None) or str(self.store.line(index)),
            source=self.source(*self._pieces(index, row, bins)),
            target=torch.tensor([self.codec.pad]) if reference is None else self.target(f" {next(iter(reference))}"),
            image=augment.pixels(view.image),
            scale=view.scale,
            reference=reference,
        )

    def reference(self, row: Row) -> dict[str, float] | None:
        """Answer to confidence; None without a column `answers`, or where it is empty."""
        try:
            return self._answers(row)
        except ValueError:
            return None  # reported with its line when the row is read as an example

    @staticmethod
    def _answers(row: Row) -> dict[str, float] | None:
        cell = (getattr(row, "answers", None) or "").strip()
        if not cell:
            return None
        return parse_answers(cell) if MARK in cell else {cell: 1.0}

    def _boxes(self) -> list[str]:
        return list(dict.fromkeys(name for name in PIECE.findall(self.form.instruction) if name.endswith("box")))

    def _pieces(self, index: int, row: Row, bins: dict[str, Tensor]) -> list[str | Tensor]:
        """Texts and the ids of boxes, in order; the texts with a space before their first word."""
        parts: list[str | Tensor] = [""]
        for number, part in enumerate(PIECE.split(self.form.instruction)):
            if number % 2 and part in bins:
                parts += [bins[part], ""]
            elif number % 2:
                text = tidy_question(getattr(row, part))
                if not text:
                    raise self.bad(index, part, "it is empty", "write what --instruction is to say here")
                parts[-1] += text
            else:
                parts[-1] += part
        return [
            f" {part.strip()}" if isinstance(part, str) else part
            for part in parts
            if not isinstance(part, str) or part.strip()
        ]
