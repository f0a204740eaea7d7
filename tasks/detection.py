"""Object detection, in pretraining and as a task of its own: a picture in, each object's four bins and name out."""

# ruff: noqa: UP045  fairseq reads the field types at run time: no postponed annotations, Optional spelt out

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from fairseq.tasks import register_task

from ..data import augment
from ..data.answers import read_answers
from ..data.boxes import BoxProblem, LabelledBox, area, as_array, fit, parse_objects
from ..data.builder import Builder, Row
from ..data.codec import Codec
from ..data.example import Example
from ..errors import UserError
from ..models.generation.box_grammar import Boxes
from ..models.generation.trie import Trie
from . import coco
from .base import OFATask, OFATaskConfig
from .evaluation import write_json
from .kinds import Kind
from .metrics.base import Metric
from .metrics.boxes import Detected, DetectionAP, ObjectAP
from .refcoco import BoxReader, check_box_pictures, read_boxes

INSTRUCTION = " what are the objects in the image?"
CONFIDENCE = 2.0  # weight of the loss, official data/pretrain_data/unify_dataset.py


class Detection(Kind):
    """A picture in, its objects out.

    Args:
        names: what objects may be called; none: anything.
    """

    name = "detection"
    metrics = (DetectionAP,)
    settings = {"beam": 1, "max_len_b": 200}

    def __init__(self, names: Sequence[str] = ()):
        self.names = names

    def rules(self, codec: Codec) -> Boxes:
        """Any number of boxes, each with a name: one of the names, or any words."""
        if self.names:
            paths = [codec.encode(f" {name}").tolist() for name in self.names]
            closed = Trie.from_answers(paths, codec.bos, codec.eos)
            return Boxes(codec.bin0, codec.num_bins, codec.eos, 0, math.inf, closed, len(codec.dictionary))
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
    kind, confidence = "detection", CONFIDENCE

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        picture, found = self.picture(index, row.image), row.objects is not None
        if self.training and not found:
            raise self.bad(index, "objects", "no column of objects is selected", "name it in --selected-cols")
        objects, counts, notes = self.objects(index, row, picture.size) if found else ([], {}, ())
        boxes, kept, scale = as_array([one.box for one in objects]), np.ones(len(objects), dtype=bool), (1.0, 1.0)
        if self.augments():
            if draw.random() < 0.5:
                picture, boxes = augment.horizontal_flip(picture, boxes)
            picture, boxes, kept = augment.large_scale_jitter(picture, boxes, self.side(), draw)
        else:
            picture, boxes, scale = augment.square(picture, boxes, self.side())
        names = [one.name for one, stays in zip(objects, kept, strict=True) if stays]
        pieces = [piece for name, box in zip(names, boxes, strict=True) for piece in (self.bins(box[None]), f" {name}")]
        if found and not pieces:
            counts["empty_detections"] = 1
        yield self.example(
            index,
            row.id,
            kind=self.kind,
            source=self.source(INSTRUCTION),
            target=self.target(*pieces) if found else torch.tensor([self.codec.pad]),
            image=augment.pixels(picture),
            confidence=self.confidence,
            scale=scale,
            reference=None if self.training or not found else objects,
            counts=counts,
            notes=notes,
        )

    def side(self) -> int:
        """Pixels of a side of the model's picture."""
        return 2 * self.cfg.code_image_size

    def augments(self) -> bool:
        """Whether the picture is flipped, jittered and cropped."""
        return self.training

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
                fitted.append(dataclasses.replace(one, box=box))
        except BoxProblem as problem:
            raise self.bad(index, "objects", problem.reason, problem.remedy) from None
        return fitted, {"clamped_boxes": clamped, "empty_boxes": len(notes)}, tuple(notes)

    def blank(self) -> torch.Tensor:
        """A picture of the size that the batch has."""
        return torch.zeros(3, self.side(), self.side(), dtype=torch.uint8)


@dataclass
class DetectionConfig(OFATaskConfig):
    """Options of detection."""

    max_image_size: Optional[int] = field(
        default=None, metadata={"help": "pixels that the bins span, whatever the picture's size (512)"}
    )
    eval_ap: bool = field(
        default=False, metadata={"help": "find the validation objects and log ap50 (on by itself when it selects)"}
    )
    geometric_augment: bool = field(
        default=False, metadata={"help": "in training flip, jitter and crop the picture, as pretraining does"}
    )
    ans2label_file: Optional[str] = field(
        default=None, metadata={"help": "file of the names that objects may have, one a line (default: any words)"}
    )
    names: Optional[str] = field(default=None, metadata={"help": "the same, as a checkpoint remembers it: JSON"})


class ObjectsBuilder(DetectionBuilder):
    """`DetectionBuilder` of the task of its own: pictures of `--patch-image-size`, augmented only when asked to."""

    required = 2
    kind, confidence = "", 1.0

    @classmethod
    def typed(cls, cfg: Any) -> tuple[str, ...]:
        """Picture."""
        return ("image",)

    def side(self) -> int:
        """Pixels of a side of the model's picture."""
        return self.cfg.patch_image_size

    def augments(self) -> bool:
        """Whether the picture is flipped, jittered and cropped."""
        return self.training and self.cfg.geometric_augment

    def reference(self, row: Row) -> list[LabelledBox] | None:
        """Whether there is one; metrics prepare nothing from it."""
        return None if row.objects is None else []

    def listed(self, index: int, row: Row) -> list[LabelledBox]:
        """The objects of a row as they stand there, each with a name that it may have."""
        objects, names = super().listed(index, row), self._names
        strange = next((one.name for one in objects if one.name not in names), None) if names else None
        if strange is not None:
            raise self.bad(index, "objects", f"{strange!r} is none of the names", "add it to --ans2label-file")
        return objects

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(json.loads(self.cfg.names or "[]"))


@register_task("detection", dataclass=DetectionConfig)
class DetectionTask(OFATask):
    """`--task detection`."""

    builder = ObjectsBuilder
    metric = ObjectAP
    evaluation_defaults = Detection.settings
    counted = ("clamped_boxes", "empty_boxes", "empty_detections")

    def setup(self) -> None:
        """Checks that the bins reach over the whole picture, and reads the names."""
        cfg = self.cfg
        check_box_pictures(cfg)
        if cfg.ans2label_file:
            cfg.names = json.dumps(read_answers(cfg.ans2label_file), ensure_ascii=False)
            cfg.ans2label_file = None  # a checkpoint needs no file beside it
        self.kind = Detection(json.loads(cfg.names or "[]"))
        for name in self.kind.names:
            if self.codec.decode(self.codec.encode(f" {name}")).strip() != name:
                raise UserError(f"--ans2label-file: the vocabulary cannot write {name!r}; take another --bpe-dir")

    def _scores(self) -> tuple[type[Metric], ...]:
        cfg = self.cfg
        return self.all_metrics() if cfg.path or cfg.eval_ap or cfg.best_checkpoint_metric == self.metric.name else ()

    def rules_of(self, kind: str) -> Boxes:
        """Boxes with names."""
        return self.kind.rules(self.codec)

    def answer_to(self, sample: dict[str, Any], row: int, hypothesis: dict[str, Any]) -> list[Detected]:
        """The objects, in pixels of the stored picture."""
        return self.kind.answer(self.codec, self.cfg, hypothesis, sample["scales"][row])

    def entry(self, uniq_id: str | int, answer: list[Detected]) -> dict[str, Any]:
        """Box, name and confidence of each object."""
        return self.kind.entry(uniq_id, answer)

    def record(self, reference: list[LabelledBox] | None) -> list[coco.Known] | None:
        """The objects that are there."""
        return None if reference is None else [(one.box, one.name, one.number) for one in reference]

    @classmethod
    def conclude(
        cls, entries: Mapping[int, dict[str, Any]], records: Mapping[int, Any], subset: str, folder: Path | None
    ) -> dict[str, float]:
        """COCO's average precision; `<subset>_coco_results.json`, and where there are references the annotations."""
        seen = {
            row: [(one["box"], one["name"], one["confidence"]) for one in entry["objects"] or ()]
            for row, entry in entries.items()
            if "objects" in entry  # else a bad row that is reported
        }
        if folder is not None:
            ids = coco.categories(records, seen)
            images = {row: entry["uniq_id"] for row, entry in entries.items()}
            write_json(folder / f"{subset}_coco_results.json", coco.results(seen, ids, images))
            if records:
                write_json(folder / f"{subset}_coco_annotations.json", coco.annotations(records, ids, images))
        return coco.average_precision(records, seen) if records else {}
