"""The eight pretraining tasks in one run: which files there are, what is made of their rows, how they are mixed."""

# ruff: noqa: UP045  fairseq reads the field types at run time: no postponed annotations, Optional spelt out

import copy
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Optional

import numpy as np
from fairseq.data import FairseqDataset
from fairseq.tasks import register_task
from torch import nn

from ..data import augment
from ..data.boxes import Box, as_array, parse_box
from ..data.builder import Builder, Row
from ..data.codec import Codec
from ..data.dataset import OFADataset
from ..data.example import Example
from ..data.image import PictureLoader
from ..data.mixture import ByKind, Mixture, Part
from ..data.negatives import Negatives
from ..data.text import SEPARATOR, tidy_caption, tidy_question
from ..data.tsv import TSVStore, parse_selected_cols
from ..errors import BadRow, UserError
from ..models.generation.grammar import Grammar
from .asking import SETTINGS, AskedForm, AskedScore
from .base import PATCH_PIXELS, OFATask, OFATaskConfig, Source
from .caption import INSTRUCTION as WHAT_IS_SHOWN
from .caption import plain
from .detection import Detection, DetectionBuilder
from .evaluation import typed_id
from .infilling import CODE_PIXELS, ImageBuilder, ImageInfilling, TextBuilder, TextInfilling
from .kinds import Kind
from .matching import OF_ANSWER, OF_CAPTION, Matching, answer_statement, caption_statement
from .metrics.accuracy import VQAScore, best_answer, parse_answers
from .metrics.base import Metric
from .metrics.cider import CIDErD
from .refcoco import (
    MAX_IMAGE_SIZE,
    WHAT_REGION,
    WHICH_REGION,
    BoxReader,
    Grounding,
    RegionCaption,
    refuse_fast_images,
)

logger = logging.getLogger(__name__)

UNDESCRIBED = "cc12m"  # of this dataset's captions the first two tokens are not learned (official)
UNSCORED = 2


class Captioning(Kind):
    """A picture in, what it shows out."""

    name = "caption"
    metrics = (CIDErD,)
    settings = {"beam": 5, "max_len_b": 60}

    def answer(self, codec: Codec, cfg: Any, hypothesis: Mapping[str, Any], scale: tuple[float, float]) -> str:
        """Without punctuation, as references are compared."""
        return plain(super().answer(codec, cfg, hypothesis, scale))


class Answering(Kind):
    """A picture and a question in, an answer out; free, as pretraining has no answer set."""

    name = "vqa"
    metrics = (VQAScore,)
    settings = {"beam": 5, "unnormalized": True, "max_len_b": 30}


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Captioning(),
        Answering(),
        Matching(),
        Grounding(),
        RegionCaption(),
        TextInfilling(),
        ImageInfilling(),
        Detection(),
    )
}


class VisionLanguageBuilder(BoxReader, Builder):
    """Official `process_image_text_pair` of `data/pretrain_data/unify_dataset.py`. A row's type decides:

    * `caption`: " what does the image describe?" and its caption; matching, about this caption or a false one;
    * `qa`: the question and its surest answer; matching, about this answer or a false one;
    * `visual_grounding`: the expression and its box; the box and its expression.

    Training resizes and crops the picture at random, the two examples of a row alike; evaluation sees it whole, as a
    square, and yields the one kind that is wanted.
    """

    columns = ("id", "image", "caption", "question", "refs", "objects", "dataset", "type")
    selected = {"train": "0,1,2,3,4,5,6,7", "other": "0,1,2,3,4,5,6,7"}
    kinds = ("caption", "vqa", "matching", "grounding", "region_caption")
    instructions = (WHAT_IS_SHOWN, OF_CAPTION, OF_ANSWER, WHICH_REGION, WHAT_REGION)
    of_type: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "caption": ("caption", "matching"),
        "qa": ("vqa", "matching"),
        "visual_grounding": ("grounding", "region_caption"),
    }

    def __init__(
        self,
        store: TSVStore,
        codec: Codec,
        cfg: Any,
        training: bool,
        pictures: PictureLoader,
        wanted: tuple[str, ...],
        negatives: Negatives | None,
    ):
        super().__init__(store, codec, cfg, training, pictures)
        self.wanted, self.negatives = wanted, negatives

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields an example of each wanted kind that the row gives."""
        if row.type not in self.of_type:
            raise self.bad(index, "type", f"{row.type!r} is unknown", f"write one of {', '.join(self.of_type)}")
        picture = self.picture(index, row.image)
        if row.type == "visual_grounding":
            box, clamped = self.region(index, row.refs, picture.size, "refs")
            view, boxes, scale = self._view(picture, draw, box)
            common = {"scale": scale, "counts": {"clamped_boxes": int(clamped)}}
        else:
            view, boxes, scale = self._view(picture, draw)
            common = {"scale": scale}
        common["image"] = augment.pixels(view)
        make = {
            "caption": self._of_caption,
            "qa": self._of_question,
            "visual_grounding": lambda index, row, draw: self._of_region(index, row, boxes),
        }[row.type]
        for kind, parts in make(index, row, draw):
            reference = parts.pop("reference")
            if kind in self.wanted:
                reference = None if self.training else reference
                yield self.example(index, row.id, kind=kind, reference=reference, **common, **parts)
                common.pop("counts", None)

    def reference(self, row: Row) -> list[str]:
        """A caption row's captions, without punctuation."""
        return [plain(tidy_caption(one)) for one in _told(row)]

    def _view(
        self, picture: Any, draw: np.random.Generator, box: Box | None = None
    ) -> tuple[Any, np.ndarray, tuple[float, float]]:
        """The square of the picture that the model sees, the box in it (float64[0 or 1, 4]), and its scale."""
        size, boxes = self.cfg.patch_image_size, as_array([] if box is None else [box])
        if not self.training:
            return augment.square(picture, boxes, size)
        resized = augment.short_side(picture, boxes, *augment.draw_side(draw, size))
        if box is not None:
            return *augment.object_center_crop(resized.image, resized.boxes, size), resized.scale
        cropped, boxes = augment.center_crop(resized.image, resized.boxes, size)
        view = cropped if self.cfg.no_rand_augment else augment.rand_augment(cropped, draw)
        return view, boxes, resized.scale

    def _of_caption(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
        cfg = self.cfg
        told = _told(row)
        caption = tidy_caption(told[0], cfg.max_tgt_length) if told else ""
        if not caption:
            raise self.bad(index, "caption", "it is empty", "write a caption, or leave the row out")
        yield (
            "caption",
            {
                "source": self.source(WHAT_IS_SHOWN),
                "target": self.target(f" {caption}"),
                "unscored": UNSCORED if row.dataset == UNDESCRIBED else 0,
                "reference": self.reference(row),
                "reference_tokens": self.target(f" {SEPARATOR.join(told)}"),
            },
        )
        if "matching" in self.wanted:
            objects = [one.strip() for one in row.objects.split(SEPARATOR) if one.strip()]
            statement = caption_statement(caption, objects, self.negatives, draw, cfg.max_tgt_length)
            yield "matching", self._statement(statement, 1.0)

    def _of_question(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
        question = tidy_question(row.question, self.cfg.max_src_length)
        if not question:
            raise self.bad(index, "question", "it is empty", "write a question, or leave the row out")
        try:
            answers = parse_answers(row.refs)
        except ValueError as error:
            raise self.bad(index, "refs", str(error), "write 1.0|!+yes, several joined by &&") from None
        answer = best_answer(answers)
        confidence = answers[answer]
        yield (
            "vqa",
            {
                "source": self.source(f" {question}"),
                "target": self.target(f" {answer}"),
                "confidence": confidence,
                "reference": answers,
            },
        )
        if "matching" in self.wanted:
            statement = answer_statement(question, answer, confidence, self.negatives, draw)
            yield "matching", self._statement(statement, confidence)

    def _statement(self, statement: dict[str, Any], confidence: float) -> dict[str, Any]:
        return {
            "source": self.source(statement["text"]),
            "target": self.target(f" {statement['answer']}"),
            "confidence": confidence,
            "reference": {statement["answer"]: 1.0},
        }

    def _of_region(self, index: int, row: Row, boxes: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:
        cfg = self.cfg
        asked = tidy_caption(row.caption, cfg.max_src_length)
        if not asked:
            raise self.bad(index, "caption", "it is empty", "write what the region shows, or leave the row out")
        bins, said = self.bins(boxes), tidy_caption(row.caption, cfg.max_tgt_length)
        yield (
            "grounding",
            {
                "source": self.source(WHICH_REGION.format(asked)),
                "target": self.target(bins),
                "reference": parse_box(row.refs),
            },
        )
        yield (
            "region_caption",
            {
                "source": self.source(WHAT_REGION, bins),
                "target": self.target(f" {said}"),
                "reference": said,
            },
        )


def _told(row: Row) -> list[str]:
    captions = [" ".join(part.split()) for part in row.caption.split(SEPARATOR)]
    return [caption for caption in captions if caption]


class SourceKind(NamedTuple):
    """One of the four kinds of file.

    Attributes:
        file: its name in the folder of a subset.
        flag: the option that names it.
        builder: makes its examples.
        rows: how many of its rows go together with how many of the others' (official 8 : 2 : 1 : 1).
        share: weight of its mean loss in the loss of a batch. Officially the three small files' tokens have one mean
            together, so that what each of them weighs changes from batch to batch.
    """

    file: str
    flag: str
    builder: type[Builder]
    rows: int
    share: float


SOURCES = {
    "vision_language": SourceKind("vision_language_examples.tsv", "DATA", VisionLanguageBuilder, 8, 1.0),
    "text": SourceKind("text_examples.tsv", "--text-data", TextBuilder, 2, 0.5),
    "image": SourceKind("image_examples.tsv", "--image-data", ImageBuilder, 1, 0.25),
    "detection": SourceKind("detection_examples.tsv", "--detection-data", DetectionBuilder, 1, 0.25),
}
"""Where the mixing is declared: files, proportions, weights. Pictures of the first have `--patch-image-size` pixels,
those of the others `2 * --code-image-size`; `--sample-patch-num` of the criterion samples the first one's patches."""


@dataclass
class PretrainConfig(OFATaskConfig):
    """Options of pretraining, under their official names where they have one."""

    text_data: Optional[str] = field(default=None, metadata={"help": "TSV of texts (DATA/<subset>/text_examples.tsv)"})
    image_data: Optional[str] = field(
        default=None, metadata={"help": "TSV of pictures and their codes (DATA/<subset>/image_examples.tsv)"}
    )
    detection_data: Optional[str] = field(
        default=None, metadata={"help": "TSV of pictures and their objects (DATA/<subset>/detection_examples.tsv)"}
    )
    text_selected_cols: Optional[str] = field(default=None, metadata={"help": "columns of id, text (0,1)"})
    image_selected_cols: Optional[str] = field(default=None, metadata={"help": "columns of id, image, codes (0,1,2)"})
    detection_selected_cols: Optional[str] = field(
        default=None, metadata={"help": "columns of id, image, objects (0,1,2)"}
    )
    neg_sample_dir: Optional[str] = field(
        default=None, metadata={"help": "folder of what false statements are made of (DATA/negative_sample)"}
    )
    kinds: Optional[str] = field(
        default=None, metadata={"help": f"the kinds of example to use, of {','.join(KINDS)} (all that have a file)"}
    )
    mixture: Optional[str] = field(
        default=None, metadata={"help": "rows of vision_language:text:image:detection that go together (8:2:1:1)"}
    )
    kind_weights: Optional[str] = field(
        default=None, metadata={"help": "by what the loss of some kinds is multiplied, e.g. vqa=4,matching=2"}
    )
    max_image_size: Optional[int] = field(
        default=None, metadata={"help": "pixels that the bins span, whatever the picture's size (512)"}
    )
    code_image_size: Optional[int] = field(
        default=None, metadata={"help": "pixels of a side of the middle that is infilled; pictures have twice (128)"}
    )
    mask_ratio: Optional[float] = field(default=None, metadata={"help": "share of a text's words to remove (0.3)"})
    random_ratio: Optional[float] = field(
        default=None, metadata={"help": "share of the masks that become a random token instead (0)"}
    )
    keep_ratio: Optional[float] = field(default=None, metadata={"help": "taken, and without effect, as officially"})
    mask_length: Optional[str] = field(
        default=None, metadata={"help": "what is removed at a time: subword, word or span-poisson (default)"}
    )
    poisson_lambda: Optional[float] = field(default=None, metadata={"help": "mean words of a removed span (3.0)"})
    replace_length: Optional[int] = field(
        default=None, metadata={"help": "masks for a removed span: 1 (default), 0, or -1 for one each token"}
    )
    no_rand_augment: bool = field(
        default=False,
        metadata={"help": "leave RandAugment out, by which pictures are turned, sheared and recoloured in training"},
    )
    pretrain_seed: Optional[int] = field(default=None, metadata={"help": "seed of the data (that of --seed)"})
    instruction: Optional[str] = field(
        default=None, metadata={"help": "at generation: your own instruction, with {column} or {box} in braces"}
    )
    columns: Optional[str] = field(
        default=None, metadata={"help": "with --instruction: names of the columns, e.g. id,image,question,box,answers"}
    )


PRETRAIN_DEFAULTS = {
    "mixture": "8:2:1:1",
    "max_image_size": MAX_IMAGE_SIZE,
    "code_image_size": 128,
    "mask_ratio": 0.3,
    "random_ratio": 0.0,
    "mask_length": "span-poisson",
    "poisson_lambda": 3.0,
    "replace_length": 1,
    "max_src_length": 80,
}


@register_task("unify_task", dataclass=PretrainConfig)
class PretrainTask(OFATask):
    """`--task unify_task`."""

    builder = VisionLanguageBuilder
    counted = ("clamped_boxes", "empty_boxes", "empty_detections")
    own_to_a_run = (
        *("text_data", "image_data", "detection_data", "neg_sample_dir"),
        *("kinds", "kind_weights", "mixture", "pretrain_seed"),
        *("text_selected_cols", "image_selected_cols", "detection_selected_cols", "instruction", "columns"),
    )
    defaults = PRETRAIN_DEFAULTS

    def setup(self) -> None:
        """Checks the options that belong together."""
        cfg = self.cfg
        if cfg.code_image_size < CODE_PIXELS or cfg.code_image_size % CODE_PIXELS:
            raise UserError(
                f"--code-image-size {cfg.code_image_size}: a code is {CODE_PIXELS} pixels of a side; give a multiple "
                f"of {CODE_PIXELS}, officially 128"
            )
        largest = max(cfg.patch_image_size, 2 * cfg.code_image_size)
        if cfg.max_image_size < largest:
            raise UserError(
                f"--max-image-size {cfg.max_image_size}: the bins must span every picture, and {largest} pixels is the "
                f"larger of --patch-image-size {cfg.patch_image_size} and twice --code-image-size {cfg.code_image_size}"
            )
        self.asks = cfg.instruction is not None  # something of the user's own instead of the eight
        if self.asks:
            if not cfg.path:
                raise UserError("--instruction is for generation: training has the instructions of its eight tasks")
            if cfg.columns is None:
                raise UserError("--instruction needs --columns, the names of the TSV's columns: id,image,question,box")
            self.builder = AskedForm(cfg.instruction, tuple(cfg.columns.split(",")))
        elif cfg.columns is not None:
            raise UserError("--columns names the columns for --instruction: give both")
        self.wanted = tuple(KINDS) if cfg.kinds is None else tuple(dict.fromkeys(cfg.kinds.split(",")))
        for kind in self.wanted:
            if kind not in KINDS:
                raise UserError(f"--kinds {cfg.kinds}: {kind!r} is none of {', '.join(KINDS)}")
        self._proportions()
        self._weights()
        self._names: tuple[str, ...] | None = None
        self._rows_of_file: dict[str, int] = {}
        self._types_of_file: dict[str, list[str]] = {}
        refuse_fast_images(cfg)

    def _weights(self) -> dict[str, float]:
        """What `--kind-weights` says."""
        weights = {}
        for item in self.cfg.kind_weights.split(",") if self.cfg.kind_weights else ():
            kind, _, number = item.partition("=")
            try:
                weights[kind] = float(number)
            except ValueError:
                weights[kind] = -1.0
            if kind not in KINDS or not 0 < weights[kind] < math.inf:
                raise UserError(f"--kind-weights {item}: write KIND=NUMBER above 0, KIND one of {', '.join(KINDS)}")
        return weights

    def _proportions(self) -> dict[str, int]:
        """Rows of each source in a unit of the mixture."""
        parts = self.cfg.mixture.split(":")
        if len(parts) != len(SOURCES) or not all(part.isdecimal() and int(part) for part in parts):
            raise UserError(f"--mixture {self.cfg.mixture}: four whole numbers from 1 on, e.g. 8:2:1:1")
        return dict(zip(SOURCES, map(int, parts), strict=True))

    # ---------------------------------------------------------------------------------------------------- data

    def has_sharded_data(self, split: str) -> bool:
        """Whether each epoch trains on another vision-language file; all of a comma list are for training."""
        return len(self._vision_language_files()) > 1

    def _vision_language_files(self) -> list[str]:
        files = self._data_files()
        return [] if files.folder else files.files

    def sources(self, split: str, training: bool, epoch: int = 1) -> list[Source]:
        """Those of the four files that are there, and that a wanted kind of example is made from."""
        if self.asks:
            return super().sources(split, training, epoch)
        files, found = self._data_files(), []
        folder = files.folder and files.folder / split
        if folder and not folder.is_dir():
            subsets = ", ".join(sorted(path.parent.name for path in files.folder.glob("*/*_examples.tsv"))) or "none"
            raise UserError(
                f"{folder}: no such folder; subsets found in {files.folder}: {subsets}; "
                "check --train-subset, --valid-subset, --gen-subset (or give --disable-validation)"
            )
        if not folder and not training and not self.cfg.path:
            raise UserError(
                f"{self.cfg.data}: with TSVs as DATA all of them are trained on; give a folder with "
                f"{split}/vision_language_examples.tsv to validate on, or --disable-validation"
            )
        for name, kind in SOURCES.items():
            given = self._given(name, training)
            if name == "vision_language" and not folder:
                path = files.files[(epoch - 1) % len(files.files)]
            elif given:
                path = given
            elif folder and (folder / kind.file).is_file():
                path = str(folder / kind.file)
            else:
                continue
            if set(kind.builder.kinds) & set(self.wanted):
                found.append(Source(name, path, kind.builder, *self._columns(name)))
        self._check_wanted(found, split)
        return found

    def _given(self, name: str, training: bool) -> str | None:
        """The file that a flag names: in training the one trained on, in evaluation the evaluated one."""
        if name == "vision_language" or not (training or self.cfg.path):
            return None
        return self.cfg[f"{name}_data"]

    def _columns(self, name: str) -> tuple[str | None, str]:
        if name == "vision_language":
            return self.cfg.selected_cols, "--selected-cols"
        return self.cfg[f"{name}_selected_cols"], f"--{name}-selected-cols"

    def _check_wanted(self, found: list[Source], split: str) -> None:
        offered = {kind for source in found for kind in source.builder.kinds}
        missing = [kind for kind in self.wanted if kind not in offered]
        if not found or (missing and self.cfg.kinds is not None):
            needed = {
                source.file: source.flag
                for source in SOURCES.values()
                if set(source.builder.kinds) & set(missing or self.wanted)
            }
            files = " or ".join(f"{file} ({flag})" for file, flag in needed.items())
            raise UserError(f"{self.cfg.data}: {split} has no {files} for {', '.join(missing or self.wanted)}")
        if missing:
            logger.info("%s: without %s, for which there is no file", split, ", ".join(missing))

    def dataset_of(self, opened: dict[str, TSVStore], split: str, training: bool, epoch: int) -> FairseqDataset:
        """The mixture of the files for training; else each kind of example on its own."""
        if self.asks:
            return super().dataset_of(opened, split, training, epoch)
        return self._mixture(opened, split) if training else self._by_kind(opened, split)

    def _kinds_of_run(self) -> tuple[str, ...]:
        """What the log tells apart, in training and its validation: the wanted kinds that training has a file for."""
        if self.cfg.path:
            return self.wanted
        if self._names is None:
            sources = self.sources(self.cfg.train_subset.split(",")[0], True)
            self._names = tuple(kind for kind in self.wanted if any(kind in one.builder.kinds for one in sources))
        return self._names

    def _mixture(self, opened: dict[str, TSVStore], split: str) -> Mixture:
        parts, names = {}, self._kinds_of_run()
        proportions = self._proportions()
        for number, (name, store) in enumerate(opened.items()):
            dataset = self._dataset(store, name, split, True, names, weights=self._weights(), stream=number)
            if not len(dataset):
                raise UserError(f"{store.path}: it has no row for --kinds {self.cfg.kinds}")
            parts[name] = Part(dataset, proportions[name], SOURCES[name].share)
        mixed = ", ".join(f"{part.rows} {name} (weight {part.share:g})" for name, part in parts.items())
        logger.info("%s: mixes %s; kinds of example: %s", split, mixed, ", ".join(names))
        leading = next(iter(parts))
        rows = len(parts[leading].dataset)
        if leading != "vision_language" or not self.has_sharded_data(split):
            return Mixture(parts, lambda epoch: rows)
        self._rows_of_file[opened[leading].path] = rows
        return Mixture(parts, self._rows_in_epoch)

    def _rows_in_epoch(self, epoch: int) -> int:
        """Rows of the vision-language file of an epoch."""
        files = self._vision_language_files()
        path = files[(epoch - 1) % len(files)]
        if path not in self._rows_of_file:
            selected = parse_selected_cols(self.cfg.selected_cols or self.builder.selected["train"])
            store = TSVStore(path, self.builder.columns, selected)
            rows = self._rows_with(store, self._kinds_of_run())
            self._rows_of_file[path] = len(store) if rows is None else len(rows)
        return self._rows_of_file[path]

    def _by_kind(self, opened: dict[str, TSVStore], split: str) -> ByKind:
        datasets = {}
        for name, store in opened.items():
            for kind in SOURCES[name].builder.kinds:
                if kind in self._kinds_of_run():
                    dataset = self._dataset(store, name, split, False, (kind,))
                    if len(dataset):
                        datasets[kind] = dataset
        if not datasets:
            raise UserError(f"{self.cfg.data}: {split} has no row for --kinds {self.cfg.kinds}")
        logger.info("%s: %s", split, ", ".join(f"{len(one)} {kind}" for kind, one in datasets.items()))
        metrics_of = {kind: tuple(metric() for metric in KINDS[kind].metrics) for kind in datasets}
        references = {kind: self.references(one) if kind == "caption" else [] for kind, one in datasets.items()}
        self._prepare_metrics(split, metrics_of, references)
        return ByKind(datasets)

    def _rows_with(self, store: TSVStore, wanted: tuple[str, ...]) -> np.ndarray | None:
        """int64[N]: the rows that give a wanted kind of example, or cannot be read and are met later; None: all do."""
        of_type = VisionLanguageBuilder.of_type
        if all(set(gives) & set(wanted) for gives in of_type.values()):
            return None
        first = [kind for kind in VisionLanguageBuilder.kinds if kind in self._kinds_of_run()][:1]
        gives = [of_type.get(type, first) for type in self._types(store)]  # one that cannot be read is met once
        return np.array([index for index, kinds in enumerate(gives) if set(kinds) & set(wanted)], np.int64)

    def _types(self, store: TSVStore) -> list[str]:
        """The type of each row, "" where it cannot be read; a long file takes a while."""
        if store.path not in self._types_of_file:
            types, started, shown = [], time.monotonic(), time.monotonic()
            for index in range(len(store)):
                try:
                    types.append(store[index].type)
                except BadRow:
                    types.append("")
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    left = (shown - started) / (index + 1) * (len(store) - index)
                    logger.info("%s: %d of %d rows, about %.0f s left", store.path, index + 1, len(store), left)
            self._types_of_file[store.path] = types
        return self._types_of_file[store.path]

    def _dataset(
        self, store: TSVStore, source: str, split: str, training: bool, kinds: tuple[str, ...], **options: Any
    ) -> OFADataset:
        """The rows of one file that give these kinds of example."""
        cfg, make = self.cfg, SOURCES[source].builder
        of_rows, extra, rows = cfg.patch_image_size, (), None
        if make is VisionLanguageBuilder:
            extra, rows = (kinds, self._negatives() if "matching" in kinds else None), self._rows_with(store, kinds)
        else:
            of_rows = 2 * cfg.code_image_size
        pictures = None
        if "image" in make.columns:
            pictures = PictureLoader(
                Path(store.path).parent, of_rows, exif_transpose=cfg.exif_transpose, lenient=cfg.lenient_images
            )
        return OFADataset(
            make(store, self.codec, cfg, training, pictures, *extra),
            split,
            seed=cfg.seed if cfg.pretrain_seed is None else cfg.pretrain_seed,
            shuffle=training,
            image_tokens=math.ceil(of_rows / PATCH_PIXELS) ** 2 if pictures else 0,
            text_tokens=cfg.max_src_length + cfg.max_tgt_length,
            imagenet_mean=cfg.imagenet_default_mean_and_std,
            on_bad=self.on_bad(training),
            kinds=self._kinds_of_run(),
            rows=rows,
            **options,
        )

    def _negatives(self) -> Negatives:
        folder = self.cfg.neg_sample_dir
        if folder is None and self._data_files().folder:
            folder = str(self._data_files().folder / "negative_sample")
        if folder is None:
            raise UserError(
                "matching needs false statements: give --neg-sample-dir, the folder with all_captions.txt, object.txt "
                "and type2ans.json, or take matching out with --kinds"
            )
        return Negatives(folder)

    # ---------------------------------------------------------------------------------------------- generation

    @classmethod
    def all_metrics(cls) -> tuple[type[Metric], ...]:
        """Those of every kind of example."""
        return *(metric for kind in KINDS.values() for metric in kind.metrics), AskedScore

    def _scores(self) -> tuple[type[Metric], ...]:
        return (AskedScore,) if self.asks else self.all_metrics()

    def kind_of(self, sample: dict[str, Any]) -> str:
        """The kind of a batch's examples."""
        return sample.get("kind", "")

    def defaults_of(self, kind: str) -> dict[str, Any]:
        """A kind's own generation settings."""
        return SETTINGS if self.asks else KINDS[kind].generation(self.cfg)

    def rules_of(self, kind: str) -> Grammar | None:
        """What a kind of example allows as an answer."""
        return super().rules_of(kind) if self.asks else KINDS[kind].rules(self.codec)

    def writes_codes(self, kind: str) -> bool:
        """Whether a kind's answers are image codes."""
        return not self.asks and KINDS[kind].writes_codes

    def build_generator(self, models: list[nn.Module], args: Any, *rest: Any, **options: Any) -> Any:
        """A generator for each kind of example, made when it is needed."""
        if self.asks:
            return super().build_generator(models, args, *rest, **options)
        self._open_evaluation()
        return OfKinds(functools.partial(self._make_generator, models, copy.deepcopy(args)))

    def _generate(self, generator: Any, models: list[nn.Module], sample: dict[str, Any], *rest: Any) -> Any:
        if isinstance(generator, OfKinds):
            generator = generator.of(self.kind_of(sample))
        return super()._generate(generator, models, sample, *rest)

    def _make_validator(self, model: nn.Module) -> Any:
        return self._make_generator([model]) if self.asks else OfKinds(functools.partial(self._make_generator, [model]))

    def answer_to(self, sample: dict[str, Any], row: int, hypothesis: dict[str, Any]) -> Any:
        """What a hypothesis says, as its kind reads it."""
        if self.asks:
            return super().answer_to(sample, row, hypothesis)
        return KINDS[self.kind_of(sample)].answer(self.codec, self.cfg, hypothesis, sample["scales"][row])

    def entry_to(self, sample: dict[str, Any], row: int, answer: Any) -> dict[str, Any]:
        """A kind's entry, and which kind it is."""
        if self.asks:
            return super().entry_to(sample, row, answer)
        kind = self.kind_of(sample)
        return {**KINDS[kind].entry(typed_id(sample["uniq_ids"][row]), answer), "kind": kind}


class OfKinds:
    """The generators of one run, by kind of example; each is made with the first batch of its kind.

    Args:
        make: called with `kind`.
    """

    def __init__(self, make: Callable[..., Any]):
        self._make = make
        self._made: dict[str, Any] = {}

    def of(self, kind: str) -> Any:
        """The generator for a kind."""
        if kind not in self._made:
            self._made[kind] = self._make(kind=kind)
        return self._made[kind]

    @property
    def symbols_to_strip_from_output(self) -> set[int]:
        """What stock asks a generator for before it prints: the same for all."""
        return next(iter(self._made.values())).symbols_to_strip_from_output
