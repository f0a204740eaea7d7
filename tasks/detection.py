"""Object detection, as pretraining asks for it: a picture in, each object's four bins and name out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from ..data import augment
from ..data.boxes import BoxProblem, LabelledBox, area, as_array, fit, parse_objects
from ..data.builder import Builder, Row
from ..data.codec import Codec
from ..data.example import Example
from ..models.generation.box_grammar import Boxes
from .kinds import Kind
from .metrics.boxes import Detected, DetectionAP
from .refcoco import BoxReader, read_boxes

INSTRUCTION = " what are the objects in the image?"
CONFIDENCE = 2.0  # weight of the loss, official data/pretrain_data/unify_dataset.py


class Detection(Kind):
    """A picture in, its objects out."""

    name = "detection"
    metrics = (DetectionAP,)
    settings = {"beam": 1, "max_len_b": 200}

    def rules(self, codec: Codec) -> Boxes:
        """Any number of boxes, each with a name in any words."""
        words = torch.ones(len(codec.dictionary), dtype=torch.bool)
        words[[codec.bos, codec.pad, codec.eos, codec.unk, codec.mask]] = False
        words[codec.code0 : codec.bin0 + codec.num_bins] = False  # codes, and bins behind them
        return Boxes(codec.bin0, codec.num_bins, codec.eos, 0, math.inf, words, len(words))

    def answer(
        self, codec: Codec, cfg: Any, hypothesis: Mapping[str, Any], scale: tuple[float, float]
    ) -> list[Detected]:
        """The objects that four bins and a name in succession say; what else there is says none."""
        tokens = [token for token in hypothesis["tokens"].tolist() if token != codec.eos]
        scores = hypothesis["positional_scores"].tolist()
        is_bin = [codec.bin0 <= token < codec.bin0 + codec.num_bins for token in tokens]
        found, start = [], 0
        while start < len(tokens):
            stop = start
            while stop < len(tokens) and is_bin[stop]:
                stop += 1
            end = stop
            while end < len(tokens) and not is_bin[end]:
                end += 1
            name = codec.decode(tokens[stop:end]).strip()
            if stop - start == 4 and name:
                (box,) = read_boxes(torch.tensor(tokens[start:stop]), codec, cfg.max_image_size, scale)
                found.append(Detected(box, name, float(np.exp(np.mean(scores[start:end])))))
            start = end
        return found

    def entry(self, uniq_id: str | int, answer: list[Detected]) -> dict[str, Any]:
        """Box, name and confidence of each object."""
        objects = [
            {
                "box": [round(corner, 2) for corner in seen.box],
                "name": seen.name,
                "confidence": round(seen.confidence, 4),
            }
            for seen in answer
        ]
        return {"uniq_id": uniq_id, "objects": objects}


class DetectionBuilder(BoxReader, Builder):
    """Official `process_detection` of `data/pretrain_data/unify_dataset.py`: row `d1 <image> 0,0,60,40,7,Dog&&...`
    becomes the pair " what are the objects in the image?" and, for each object, four bins and " Dog", in file order.

    Training flips, jitters and crops the picture to `2 * --code-image-size` pixels; evaluation sees it whole, in that
    size. A picture without objects is a legal one: its target is only the end.
    """

    columns = ("id", "image", "objects")
    selected = {"train": "0,1,2", "other": "0,1,2"}
    kinds = ("detection",)
    instructions = (INSTRUCTION,)

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        picture = self.picture(index, row.image)
        objects, counts, notes = self.objects(index, row, picture.size)
        side, boxes, scale = 2 * self.cfg.code_image_size, as_array([one.box for one in objects]), (1.0, 1.0)
        if self.training:
            if draw.random() < 0.5:
                picture, boxes = augment.horizontal_flip(picture, boxes)
            picture, boxes, kept = augment.large_scale_jitter(picture, boxes, side, draw)
        else:
            picture, boxes, scale = augment.square(picture, boxes, side)
            kept = np.ones(len(objects), dtype=bool)
        names = [one.name for one, stays in zip(objects, kept, strict=True) if stays]
        pieces = [piece for name, box in zip(names, boxes, strict=True) for piece in (self.bins(box[None]), f" {name}")]
        if not pieces:
            counts["empty_detections"] = 1
        yield self.example(
            index,
            row.id,
            kind="detection",
            source=self.source(INSTRUCTION),
            target=self.target(*pieces),
            image=augment.pixels(picture),
            confidence=CONFIDENCE,
            scale=scale,
            reference=None if self.training else objects,
            counts=counts,
            notes=notes,
        )

    def reference(self, row: Row) -> list[LabelledBox] | None:
        """The objects, in pixels of the stored picture; metrics prepare nothing from them."""
        return None

    def listed(self, index: int, row: Row) -> list[LabelledBox]:
        """The objects of a row as they stand there."""
        try:
            return parse_objects(row.objects)
        except BoxProblem as problem:
            raise self.bad(index, "objects", problem.reason, problem.remedy) from None

    def objects(
        self, index: int, row: Row, size: tuple[int, int]
    ) -> tuple[list[LabelledBox], dict[str, int], tuple[str, ...]]:
        """The objects inside a picture of width and height `size`; what was put right, in numbers and in words."""
        fitted, notes, clamped = [], [], 0
        try:
            for one in self.listed(index, row):
                box, moved = fit(one.box, *size)
                if not area(box):
                    place = f"{self.store.path}:{self.store.line(index)}"
                    notes.append(f"{place}: objects: the {one.name} has no area and is left out")
                    continue
                clamped += moved
                fitted.append(LabelledBox(box, one.name))
        except BoxProblem as problem:
            raise self.bad(index, "objects", problem.reason, problem.remedy) from None
        return fitted, {"clamped_boxes": clamped, "empty_boxes": len(notes)}, tuple(notes)

    def blank(self) -> torch.Tensor:
        """A picture of the size that the batch has."""
        side = 2 * self.cfg.code_image_size
        return torch.zeros(3, side, side, dtype=torch.uint8)
