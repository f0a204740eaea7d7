"""Infilling, as pretraining asks for it: the removed words of a text, the image codes of a picture's middle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ..data import augment
from ..data.builder import Builder, Row
from ..data.codec import Codec
from ..data.example import Example
from ..data.noise import LAST, Noise, excerpt
from ..models.generation.grammar import Range
from .kinds import Kind
from .metrics.infilling import CodeAccuracy, Gapped, InfilledAccuracy

TEXT_BEFORE, TEXT_BEHIND = ' what is the complete text of "', ' "?'
IMAGE_INSTRUCTION = " what is the image in the middle part?"
CONFIDENCE = 2.0  # weight of the loss, official data/pretrain_data/unify_dataset.py
CODE_PIXELS = 8  # of a side of the picture that become one code


class TextInfilling(Kind):
    """A text with gaps in, the whole text out."""

    name = "text_infilling"
    metrics = (InfilledAccuracy,)
    # A limit that grows with the source would be that of the longest source in the batch. With its end the longest
    # text, less a token, has room in the 256 positions of ofa_nano.
    settings = {"beam": 1, "max_len_b": LAST - 1}

    def answer(self, codec: Codec, cfg: Any, hypothesis: Mapping[str, Any], scale: tuple[float, float]) -> list[int]:
        """The tokens."""
        return [token for token in hypothesis["tokens"].tolist() if token != codec.eos]

    def entry(self, uniq_id: str | int, answer: list[int]) -> dict[str, Any]:
        """Token ids: what they say stands on the H- line."""
        return {"uniq_id": uniq_id, "tokens": answer}


class ImageInfilling(Kind):
    """A picture without its middle in, the image codes of the middle out."""

    name = "image_infilling"
    metrics = (CodeAccuracy,)
    writes_codes = True

    def generation(self, cfg: Any) -> dict[str, Any]:
        """Exactly as many codes as the middle has."""
        count = code_count(cfg.code_image_size)
        return {"beam": 1, "min_len": count, "max_len_a": 0, "max_len_b": count}

    def rules(self, codec: Codec) -> Range:
        """The codes."""
        return Range(codec.code0, codec.code0 + codec.code_dict_size, (codec.eos,))

    def answer(self, codec: Codec, cfg: Any, hypothesis: Mapping[str, Any], scale: tuple[float, float]) -> list[int]:
        """The codes, row after row."""
        return [token - codec.code0 for token in hypothesis["tokens"].tolist() if token != codec.eos]

    def entry(self, uniq_id: str | int, answer: list[int]) -> dict[str, Any]:
        """The codes."""
        return {"uniq_id": uniq_id, "codes": answer}


def code_count(side: int) -> int:
    """Codes of a square picture of `side` pixels."""
    return (side // CODE_PIXELS) ** 2


class TextBuilder(Builder):
    """Official `process_pure_text` of `data/pretrain_data/unify_dataset.py`: the text " hello world" becomes the pair
    ` what is the complete text of "<mask> world "?` and itself.
    """

    columns = ("id", "text")
    selected = {"train": "0,1", "other": "0,1"}
    kinds = ("text_infilling",)
    instructions = (TEXT_BEFORE + TEXT_BEHIND,)

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        cfg = self.cfg
        self.noise = Noise(
            self.codec.mask, cfg.mask_ratio, cfg.mask_length, cfg.poisson_lambda, cfg.replace_length, cfg.random_ratio
        )

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        text = row.text.strip().lower()
        if not text:
            raise self.bad(index, "text", "it is empty", "write a text, or leave the row out")
        clean = excerpt(self.codec.encode(f" {text}"))
        whole = torch.cat([torch.tensor([self.codec.bos]), clean, torch.tensor([self.codec.eos])])
        noised = self.noise(whole, self.codec.word_starts(whole), draw)
        gapped = None if self.training else Gapped(tuple(clean.tolist()), tuple(noised.removed[1:-1].tolist()))
        yield self.example(
            index,
            row.id,
            kind="text_infilling",
            source=self.source(TEXT_BEFORE, noised.ids[1:-1], TEXT_BEHIND),
            target=self.target(clean),
            confidence=CONFIDENCE,
            reference=gapped,
        )


class ImageBuilder(Builder):
    """Official `process_pure_image` of `data/pretrain_data/unify_dataset.py`: a picture of `2 * --code-image-size`
    pixels, its middle blank, becomes the pair " what is the image in the middle part?" and the codes of the middle.
    """

    columns = ("id", "image", "codes")
    selected = {"train": "0,1,2", "other": "0,1,2"}
    kinds = ("image_infilling",)
    instructions = (IMAGE_INSTRUCTION,)

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        side = self.cfg.code_image_size
        picture = self.picture(index, row.image)
        if picture.size != (2 * side, 2 * side):
            reason = f"a picture of {picture.width} x {picture.height} pixels, not {2 * side} x {2 * side}"
            raise self.bad(
                index, "image", reason, "store it in that size, with codes made from it, or see --code-image-size"
            )
        codes = self._codes(index, row.codes)
        yield self.example(
            index,
            row.id,
            kind="image_infilling",
            source=self.source(IMAGE_INSTRUCTION),
            target=self.target(self.codec.codes(codes)),
            image=augment.pixels(picture),
            hole=side,
            writes_codes=True,
            confidence=CONFIDENCE,
            reference=None if self.training else codes,
        )

    def _codes(self, index: int, cell: str) -> list[int]:
        words, count = cell.split(), code_count(self.cfg.code_image_size)
        remedy = f"write {count} numbers in 0..{self.codec.code_dict_size - 1}, separated by spaces"
        if len(words) != count:
            raise self.bad(index, "codes", f"{len(words)} codes, not {count}", f"{remedy}; see --code-image-size")
        for word in words:
            if not (word.isascii() and word.isdigit() and int(word) < self.codec.code_dict_size):
                raise self.bad(index, "codes", f"code {word[:20]!r}", f"{remedy}; see --code-dict-size")
        return [int(word) for word in words]

    def blank(self) -> torch.Tensor:
        """A picture of the size that the batch has."""
        side = 2 * self.cfg.code_image_size
        return torch.zeros(3, side, side, dtype=torch.uint8)

    def placeholder(self, index: int, bad: Any) -> Example:
        """As the base's, in a batch that writes codes."""
        example = super().placeholder(index, bad)
        example.writes_codes = True
        return example
