"""Referring expressions: which region does a text describe, and what does a region show?"""

# ruff: noqa: UP045  fairseq reads the field types at run time: no postponed annotations, Optional spelt out

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from fairseq.tasks import register_task

from ..data import augment
from ..data.boxes import Box, BoxProblem, area, as_array, fit, parse_box, parse_boxes, to_bins, to_pixels
from ..data.builder import Builder, Row
from ..data.codec import Codec
from ..data.example import Example
from ..data.text import SEPARATOR, names_a_side, tidy_caption
from ..errors import UserError
from ..models.generation.box_grammar import Boxes
from .base import OFATask, OFATaskConfig
from .kinds import Kind
from .metrics.base import Metric
from .metrics.boxes import BoxF1, BoxRecall, FirstRegionAccuracy, RegionAccuracy

WHICH_REGION = ' which region does the text " {} " describe?'
WHICH_REGION_CHINESE = '这段文字" {} "描述的是哪个区域？'
WHAT_REGION = "  what does the region describe? region:"  # two spaces, as the released checkpoints saw it
MAX_IMAGE_SIZE = 512  # pixels that the bins span in the released checkpoints


class BoxReader:
    """What builders with boxes share: reading a cell's box, and writing boxes as tokens.

    `cfg.max_image_size` are the pixels that the bins span, whatever the size of the picture.
    """

    def region(self, index: int, cell: str, size: tuple[int, int], column: str = "box") -> tuple[Box, bool]:
        """The one box of a cell inside a picture of width and height `size`, and whether it was clamped.

        Raises:
            BadRow: no box, one outside of the picture, or one without area.
        """
        try:
            box, clamped = fit(parse_box(cell), *size)
            if not area(box):
                raise BoxProblem(f"box {cell} has no area", "give the corners of a region")
        except BoxProblem as problem:
            raise self.bad(index, column, problem.reason, problem.remedy) from None
        return box, clamped

    def bins(self, boxes: np.ndarray) -> torch.Tensor:
        """float64[N, 4] pixels of the model's picture to the ids of their bins, int64[4 * N]: x0 y0 x1 y1 of each."""
        return self.codec.bins(to_bins(boxes, self.codec.num_bins, self.cfg.max_image_size).ravel().tolist())


def read_boxes(tokens: torch.Tensor, codec: Codec, frame: int, scale: tuple[float, float]) -> list[Box]:
    """The boxes that tokens int64[T] say, in pixels of the stored picture; [] unless they are fours of bins alone."""
    bins = [token - codec.bin0 for token in tokens.tolist() if token != codec.eos]
    if not bins or len(bins) % 4 or not all(0 <= number < codec.num_bins for number in bins):
        return []
    return [tuple(box) for box in to_pixels(np.array(bins).reshape(-1, 4), codec.num_bins, frame, scale).tolist()]


class Grounding(Kind):
    """A text in, the region that it describes out."""

    name = "grounding"
    settings = {"beam": 5, "min_len": 4, "max_len_a": 0, "max_len_b": 4}

    class Accuracy(RegionAccuracy):
        """`RegionAccuracy`, told from other kinds' numbers."""

        name = "grounding_acc"

    metrics = (Accuracy,)

    def rules(self, codec: Codec) -> Boxes:
        """One box."""
        return Boxes(codec.bin0, codec.num_bins, codec.eos)

    def answer(self, codec: Codec, cfg: Any, hypothesis: Mapping[str, Any], scale: tuple[float, float]) -> Box | None:
        """The box in pixels of the stored picture; None where the answer is no box."""
        boxes = read_boxes(hypothesis["tokens"], codec, cfg.max_image_size, scale)
        return boxes[0] if len(boxes) == 1 else None

    def entry(self, uniq_id: str | int, answer: Box | None) -> dict[str, Any]:
        """The official form; no box is an empty list."""
        return {"uniq_id": uniq_id, "box": [round(corner, 2) for corner in answer or ()]}


class Region(NamedTuple):
    """One of several regions that a text describes.

    Attributes:
        box: in pixels of the stored picture.
        confidence: 0..1, the mean probability (geometric) of its bins.
    """

    box: Box
    confidence: float


class SeveralRegions(Kind):
    """A text in, all regions that it describes out.

    Args:
        most: boxes that may be answered.
    """

    name = "several_regions"
    metrics = (FirstRegionAccuracy, BoxF1, BoxRecall)

    def __init__(self, most: int):
        self.most = most
        self.settings = {**Grounding.settings, "max_len_b": 4 * most}

    def rules(self, codec: Codec) -> Boxes:
        """One box to `most`."""
        return Boxes(codec.bin0, codec.num_bins, codec.eos, 1, self.most)

    def answer(self, codec: Codec, cfg: Any, hypothesis: Mapping[str, Any], scale: tuple[float, float]) -> list[Region]:
        """The boxes in pixels of the stored picture; none where the answer is no boxes."""
        boxes = read_boxes(hypothesis["tokens"], codec, cfg.max_image_size, scale)
        sure = hypothesis["positional_scores"][: 4 * len(boxes)].view(-1, 4).mean(1).exp().tolist()
        return [Region(*pair) for pair in zip(boxes, sure, strict=True)]

    def entry(self, uniq_id: str | int, answer: Sequence[Region]) -> dict[str, Any]:
        """The boxes in the order of the answer, and how sure each is."""
        return {
            "uniq_id": uniq_id,
            "boxes": [[round(corner, 2) for corner in region.box] for region in answer],
            "confidences": [round(region.confidence, 4) for region in answer],
        }


class SaidOfRegion(Metric):
    """Share of the regions described in the very words of the reference."""

    name = "region_caption_exact"

    def score(self, hypothesis: str, reference: str) -> float:
        """1 or 0."""
        return float(hypothesis == reference)


class RegionCaption(Kind):
    """A region in, what it shows out (grounded captioning)."""

    name = "region_caption"
    metrics = (SaidOfRegion,)
    settings = {"beam": 5, "max_len_b": 60}


def check_box_pictures(cfg: Any) -> None:
    """What tasks with boxes need of their pictures; fills `cfg.max_image_size`.

    Raises:
        UserError: for `--image-backend fast`, and where the bins do not span the picture.
    """
    cfg.max_image_size = cfg.max_image_size or MAX_IMAGE_SIZE
    refuse_fast_images(cfg)
    if cfg.max_image_size < cfg.patch_image_size:
        raise UserError(
            f"--max-image-size {cfg.max_image_size}: the bins must span the picture, whose side is "
            f"--patch-image-size {cfg.patch_image_size}"
        )


def refuse_fast_images(cfg: Any) -> None:
    """Raises UserError for `--image-backend fast`, where boxes move along with the picture."""
    if cfg.image_backend != "pil":
        raise UserError(f"--image-backend {cfg.image_backend}: --task {cfg._name} has only pil; leave it out")


@dataclass
class RefcocoConfig(OFATaskConfig):
    """Options of referring expressions."""

    max_image_size: Optional[int] = field(
        default=None, metadata={"help": "pixels that the bins span, whatever the picture's size (512)"}
    )
    eval_acc: bool = field(
        default=False, metadata={"help": "find the validation regions and log score (on by itself when it selects)"}
    )
    several_boxes: Optional[int] = field(
        default=None, metadata={"help": "a text may describe up to so many regions: boxes joined by && (1)"}
    )
    geometric_augment: bool = field(
        default=False,
        metadata={"help": "in training mirror the picture, unless the text names a side, and move and zoom its frame"},
    )


class RefcocoBuilder(BoxReader, Builder):
    """Official `data/mm_data/refcoco_dataset.py`: row `7 <image> "A man in red" 10,20,110,220` becomes the pair
    ` which region does the text " a man in red " describe?` and the four bins of its box, in a picture made square.
    """

    columns = ("id", "image", "text", "box")
    selected = {"train": "0,4,2,3", "other": "0,4,2,3"}
    instructions = (WHICH_REGION,)

    @classmethod
    def typed(cls, cfg: Any) -> tuple[str, ...]:
        """Picture and expression."""
        return ("image", "text")

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        picture = self.picture(index, row.image)
        text = tidy_caption(row.text, self.cfg.max_src_length)
        if not text:
            raise self.bad(index, "text", "it is empty", "write what the region shows, or leave the row out")
        instruction = WHICH_REGION_CHINESE if self.codec.chinese else WHICH_REGION
        cells = () if row.box is None else row.box.split(SEPARATOR) if self.several else (row.box,)
        if len(cells) > self.cfg.several_boxes:
            reason = f"{len(cells)} boxes, and --several-boxes is {self.cfg.several_boxes}"
            raise self.bad(index, "box", reason, "raise it, or leave the row out")
        found = [self.region(index, cell, picture.size) for cell in cells]
        boxes, size, scale = as_array([box for box, _ in found]), self.cfg.patch_image_size, (1.0, 1.0)
        if self.training and self.cfg.geometric_augment:
            mirror = not names_a_side(text)
            image, boxes = augment.reframed(picture, boxes, size, draw, mirror)
        else:
            image, boxes, scale = augment.square(picture, boxes, size)
        yield self.example(
            index,
            row.id,
            source=self.source(instruction.format(text)),
            target=self.target(self.bins(boxes)) if found else torch.tensor([self.codec.pad]),
            image=augment.pixels(image),
            scale=scale,
            reference=self._stored(row.box) if found else None,
            counts={"clamped_boxes": sum(clamped for _, clamped in found)},
        )

    @property
    def several(self) -> bool:
        """Whether a text may describe more than one region."""
        return self.cfg.several_boxes > 1

    def _stored(self, cell: str) -> Box | list[Box]:
        """What was asked for: corners as they stand in the file."""
        return parse_boxes(cell) if self.several else parse_box(cell)


@register_task("refcoco", dataclass=RefcocoConfig)
class RefcocoTask(OFATask):
    """`--task refcoco`."""

    builder = RefcocoBuilder
    metric = RegionAccuracy
    more_metrics = (BoxF1, BoxRecall)
    evaluation_defaults = Grounding.settings
    defaults = {"several_boxes": 1}
    counted = ("clamped_boxes",)

    def setup(self) -> None:
        """Checks that the bins reach over the whole picture, and how many boxes there may be."""
        cfg = self.cfg
        check_box_pictures(cfg)
        if cfg.several_boxes < 1:
            raise UserError(f"--several-boxes {cfg.several_boxes}: at least 1")
        several = cfg.several_boxes > 1
        self.kind = SeveralRegions(cfg.several_boxes) if several else Grounding()
        self._judges = SeveralRegions.metrics if several else (RegionAccuracy,)

    def defaults_of(self, kind: str) -> dict[str, Any]:
        """As long as the boxes."""
        return dict(self.kind.settings)

    def _scores(self) -> tuple[type[Metric], ...]:
        cfg = self.cfg
        names = [metric.name for metric in self._judges]
        return self._judges if cfg.path or cfg.eval_acc or cfg.best_checkpoint_metric in names else ()

    def rules_of(self, kind: str) -> Boxes:
        """One box, or several."""
        return self.kind.rules(self.codec)

    def answer_to(self, sample: dict[str, Any], row: int, hypothesis: dict[str, Any]) -> Box | list[Region] | None:
        """The box, or boxes, in pixels of the stored picture."""
        return self.kind.answer(self.codec, self.cfg, hypothesis, sample["scales"][row])

    def judged(self, sample: dict[str, Any], row: int, hypotheses: Sequence[dict[str, Any]]) -> Box | list[Box] | None:
        """The box, or boxes, alone."""
        answer = super().judged(sample, row, hypotheses)
        return [region.box for region in answer] if isinstance(answer, list) else answer

    def entry(self, uniq_id: str | int, answer: Box | list[Region] | None) -> dict[str, Any]:
        """The official form, or that of several."""
        return self.kind.entry(uniq_id, answer)
