"""Image classification: which of the classes does a picture show? Scored by the first answer, and by the first five."""

# no `from __future__ import annotations`: fairseq reads the field types at run time

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fairseq.tasks import register_task

from ..data.augment_imagenet import augmented
from ..data.builder import Row
from .answering import AnsweringBuilder, AnsweringConfig, AnsweringTask
from .caption import INSTRUCTION
from .metrics.accuracy import ClassScore, TopFive


@dataclass
class ImageClassifyConfig(AnsweringConfig):
    """Options of image classification."""


class ImageClassifyBuilder(AnsweringBuilder):
    """Official `data/cv_data/image_classify_dataset.py`: row `<image> 281 "tabby cat"` becomes the pair
    " what does the image describe?" and " tabby cat". A row's id is its number.

    In training the picture is augmented, always with Pillow; elsewhere it is resized. A class is written as in the
    answer set, to the letter.
    """

    columns = ("image", "label")
    selected = {"train": "0,2", "other": "0,2"}
    instructions = (INSTRUCTION,)
    answer_column = "label"
    answer_remedy = "write the name of a class, or leave the row out"

    @classmethod
    def typed(cls, cfg: Any) -> tuple[str, ...]:
        """The picture."""
        return ("image",)

    def uniq_id(self, index: int, row: Row | None) -> str:
        """The number of the row, from 0 (official)."""
        return str(index)

    def asked(self, index: int, row: Row) -> str:
        """The same of every picture; officially in English whatever the vocabulary."""
        return INSTRUCTION

    def seen(self, index: int, row: Row, draw: np.random.Generator) -> dict[str, Any]:
        """The picture, augmented in training."""
        if not self.training:
            return super().seen(index, row, draw)
        cfg, picture = self.cfg, self.picture(index, row.image)
        image, erased = augmented(picture, cfg.patch_image_size, cfg.imagenet_default_mean_and_std, draw)
        return {"image": image, "erased": erased}

    def answers(self, row: Row) -> dict[str, float] | None:
        """The class, surely; a picture whose class is unknown has an empty cell."""
        return {row.label: 1.0} if row.label.strip() else None


@register_task("image_classify", dataclass=ImageClassifyConfig)
class ImageClassifyTask(AnsweringTask):
    """`--task image_classify`."""

    builder = ImageClassifyBuilder
    metric = ClassScore
    more_metrics = (TopFive,)
    ranked = TopFive.within

    def judged(self, sample: dict[str, Any], row: int, hypotheses: Sequence[dict[str, Any]]) -> list[str]:
        """The likeliest classes, the likeliest first."""
        return [self.answer_to(sample, row, one) for one in hypotheses[: self.ranked]]
