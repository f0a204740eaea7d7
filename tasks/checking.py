"""Every row of a data file held against what training would say of it: `ofa check`.

Rows go through the task's own builder, so that what is named here is what a run would name. Pictures are not decoded:
the builder is given their outlines, sizes from their headers. A sample is decoded in full.
"""

from __future__ import annotations

import contextlib
import json
from argparse import Namespace
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

from ..data.answers import read_answers
from ..data.boxes import Box, BoxProblem, area, parse_box, parse_objects
from ..data.builder import Builder, Row
from ..data.codec import Codec
from ..data.image import Header, ImageProblem, ImageReader, read_header
from ..data.negatives import Negatives
from ..data.prepare.report import DELAY
from ..data.tsv import TSVStore, parse_selected_cols
from ..errors import BadRow, UserError
from ..models.generation.trie import Trie
from ..progress import progress_bar
from .answering import AnsweringBuilder, AnswerSet, token_paths
from .base import DEFAULTS, OFATask
from .detection import DetectionBuilder
from .metrics.accuracy import best_answer, parse_answers
from .pretrain import SOURCES, PretrainTask, VisionLanguageBuilder

SIDE = 64  # pixels of the squares that builders make of outlines: small, and not less than reading's least side
DECODED = 200  # pictures of a file that are decoded unless told otherwise
SHEET = 16  # rows of a contact sheet
EVALUATED = ("valid", "val", "dev", "test", "unseen")  # how the names of files begin that are not trained on
NAMED = 3  # lines that a note names
NO_TEXT = ("id", "image", "box", "objects", "answers", "label", "choices")  # columns that hold something else,
NO_TEXT += ("refs", "dataset", "type", "codes")  # and those of pretraining
SMALL, MEDIUM = 32**2, 96**2  # square pixels, as COCO tells small, medium and large objects apart
OFTEN = 0.1  # share of a file's boxes that lie outside from which another size of the pictures is likely

DUPLICATES = "ids that occur more than once"
OUTSIDE = "rows whose answers are all outside the set"
UNLABELLED = "rows without a reference, which cannot be scored"


class Words:
    """Stands for a vocabulary where none was given: every word is a token of its own.

    What builders ask of a `Codec`, as far as they do without its dictionary.
    """

    chinese = False
    bos, pad, eos, unk, mask = range(5)
    num_bins, code_dict_size, unit = 1000, 8192, "words"

    def __init__(self) -> None:
        self.code0 = self.mask + 1
        self.bin0 = self.code0 + self.code_dict_size
        self._ids: dict[str, int] = {}
        self._first = self.bin0 + self.num_bins

    def encode(self, text: str, max_tokens: int | None = None) -> torch.Tensor:
        """int64[N]: a number for each word."""
        words = text.split()[:max_tokens]
        return torch.tensor([self._ids.setdefault(word, self._first + len(self._ids)) for word in words]).long()

    def bins(self, numbers: Sequence[int]) -> torch.Tensor:
        """int64[N]: the ids of bins."""
        return torch.tensor(numbers).long() + self.bin0

    def codes(self, numbers: Sequence[int]) -> torch.Tensor:
        """int64[N]: the ids of image codes."""
        return torch.tensor(numbers).long() + self.code0

    def word_starts(self, tokens: torch.Tensor) -> torch.Tensor:
        """bool[N]: every token begins a word, but for those around the text."""
        return tokens >= self._first


class Outline:
    """A picture of which only the size is known; what builders do with a picture gives black."""

    mode = "RGB"

    def __init__(self, size: tuple[int, int]):
        self.size = self.width, self.height = size

    def resize(self, size: tuple[int, int], *_: Any, **__: Any) -> Outline:
        """Another size."""
        return Outline(tuple(size))

    def crop(self, box: tuple[int, int, int, int]) -> Outline:
        """A part of it."""
        return Outline((box[2] - box[0], box[3] - box[1]))

    def tobytes(self, *_: Any) -> bytes:
        """One channel, black."""
        return bytes(self.width * self.height)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.zeros((self.height, self.width, 3), dtype or np.uint8)


class Outlines:
    """What a builder has for a `PictureLoader`: cells become outlines, or are decoded where `decoding` says so."""

    def __init__(self, root: Path):
        self.full = ImageReader(root)
        self.patch = Namespace(size=SIDE)
        self.square = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
        self.decoding = False
        self.seen: Header | None = None
        self._known: dict[str, Header] = {}  # of pictures named by a path: rows share them

    def reader(self, cell: str) -> Outline:
        """The outline of a cell. Raises ImageProblem."""
        self.seen = None
        header = None if self.decoding else self._known.get(cell)
        if header is None:
            data = self.full.file(cell)
            header = read_header(data)
            if self.decoding:
                self.full.decode(data)
            if len(cell) < 256:
                self._known[cell] = header
        self.seen = header
        return Outline(header.size)

    def __call__(self, cell: str) -> torch.Tensor:
        """uint8[3, SIDE, SIDE] of nothing. Raises ImageProblem."""
        self.reader(cell)
        return self.square


@dataclass
class Note:
    """Something that a run copes with: how often, and the first lines."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        """Counts one."""
        self.count += 1
        if len(self.lines) < NAMED:
            self.lines.append(line)


@dataclass
class FileReport:
    """What was found in one file."""

    path: str
    training: bool
    rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    notes: dict[str, Note] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)  # what there is to say in words
    widths: array = field(default_factory=lambda: array("l"))
    heights: array = field(default_factory=lambda: array("l"))
    formats: Counter = field(default_factory=Counter)
    decoded: int = 0
    lengths: dict[str, array] = field(default_factory=dict)  # of texts, by column
    unit: str = "words"
    boxes: Counter = field(default_factory=Counter)  # small, medium, large
    names: Counter = field(default_factory=Counter)  # of objects
    answers: Counter = field(default_factory=Counter)
    examples: Counter = field(default_factory=Counter)  # of pretraining, by kind

    def note(self, kind: str, line: int) -> None:
        """Counts something that a run copes with."""
        self.notes.setdefault(kind, Note()).add(line)

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        bad = [
            {"file": each.path, "line": each.line, "column": each.column, "reason": each.reason, "remedy": each.remedy}
            for each in self.bad
        ]
        return {
            "file": self.path,
            "training": self.training,
            "rows": self.rows,
            "bad_rows": bad,
            "notes": {kind: {"rows": note.count, "lines": note.lines} for kind, note in self.notes.items()},
            "said": self.said,
            "pictures": {"width": _spread(self.widths), "height": _spread(self.heights), "formats": self.formats},
            "decoded": self.decoded,
            "texts": {column: {**_spread(found), "unit": self.unit} for column, found in self.lengths.items()},
            "boxes": self.boxes,
            "names": dict(self.names.most_common()),
            "answers": dict(self.answers.most_common()),
            "examples": dict(self.examples),
        }

    def lines(self) -> Iterator[str]:
        """The same to read, without the bad rows."""
        use = "to train on" if self.training else "to evaluate"
        yield f"{self.path}: {self.rows} rows {use}, {len(self.bad)} bad"
        if self.widths:
            formats = ", ".join(f"{count} {name}" for name, count in self.formats.most_common())
            yield (
                f"  pictures: {_said(self.widths)} wide, {_said(self.heights)} high ({formats}); "
                f"{self.decoded} of them decoded in full"
            )
        if self.examples:
            yield f"  examples: {', '.join(f'{count} {kind}' for kind, count in self.examples.items())}"
        for column, found in self.lengths.items():
            yield f"  {column}: {_said(found)} {self.unit}"
        if self.boxes:
            sizes = ", ".join(f"{self.boxes[name]} {name}" for name in ("small", "medium", "large"))
            yield f"  boxes: {sum(self.boxes.values())} ({sizes}; limits 32 and 96 pixels squared)"
        for what, counter in (("names", self.names), ("answers", self.answers)):
            if counter:
                first = ", ".join(f"{name} {count}" for name, count in counter.most_common(5))
                yield f"  {what}: {len(counter)} different ({first}{', ...' if len(counter) > 5 else ''})"
        for kind, note in self.notes.items():
            share = f"{100 * note.count / max(self.rows, 1):.1f} %"
            lines = ", ".join(map(str, note.lines)) + (", ..." if note.count > len(note.lines) else "")
            yield f"  {kind}: {note.count} ({share}; lines {lines})"
        for text in self.said:
            yield f"  {text}"


@dataclass(frozen=True)
class Asked:
    """What the user asked for.

    Attributes:
        task: as fairseq knows it.
        selected_cols, answers, codec: None: the official columns; the set beside the file, or none; words.
        code_image_size: of pretraining, which says how many image codes a row has.
        training: whether rows are to be trained on; None: as the file's name says.
        decode: how many pictures of a file to decode; None: all.
        seed: of the samples.
    """

    task: str
    selected_cols: str | None = None
    answers: str | None = None
    codec: Codec | None = None
    training: bool | None = None
    decode: int | None = DECODED
    code_image_size: int = 128
    seed: int = 1


def checkable() -> list[str]:
    """The tasks whose files can be checked."""
    return sorted(name for name, task in TASK_REGISTRY.items() if issubclass(task, OFATask))


def files_of(path: Path, task: str) -> list[Path]:
    """The TSVs that PATH means for a task. Raises UserError where there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder: give a TSV, or the folder of train.tsv, valid.tsv, ...")
    found = sorted(path.glob("*.tsv"))
    if task == "unify_task":
        known = [kind.file for kind in SOURCES.values()]
        found = [folder / file for folder in (path, *sorted(path.glob("*/"))) for file in known]
        found = [file for file in found if file.is_file()]
    if not found:
        raise UserError(f"{path}: no .tsv in this folder: give a TSV, or make them with `ofa prepare`")
    return found


class Check:
    """One file under examination.

    Raises:
        UserError: the task is unknown, or the file is none at all.
    """

    def __init__(self, path: Path, asked: Asked):
        self.path, self.asked = path, asked
        if asked.task not in checkable():
            raise UserError(f"TASK {asked.task}: unknown to `ofa check`; choose one of {', '.join(checkable())}")
        task = TASK_REGISTRY[asked.task]
        kind, named = task.builder, path.stem
        if issubclass(task, PretrainTask):  # the folder is the subset
            kind, named = _source(path), path.resolve().parent.name
        training = not named.lower().startswith(EVALUATED) if asked.training is None else asked.training
        self.report = FileReport(str(path), training)
        columns = asked.selected_cols or kind.selected["train" if training else "other"]
        self.store = TSVStore(path, kind.columns, parse_selected_cols(columns), kind.required)
        self.pictures = Outlines(path.resolve().parent) if "image" in kind.columns else None
        codec: Any = asked.codec or Words()
        self.report.unit = getattr(codec, "unit", "tokens")
        cfg = _settings(asked, task)
        rest: list[Any] = [self.store, codec, cfg, training, self.pictures]
        if issubclass(kind, AnsweringBuilder):
            self.answer_set = self._answer_set(task, codec, cfg)
            kind = type(kind.__name__, (kind,), {"seen": AnsweringBuilder.seen})  # augments nothing
            rest.append(self.answer_set)
        elif issubclass(kind, DetectionBuilder):
            kind = type(kind.__name__, (kind,), {"augments": lambda _: False})  # a crop at random may lose all objects
        elif kind is VisionLanguageBuilder:
            rest += self._statements(kind, training)
        self.builder: Builder = kind(*rest)
        self.codec = codec
        self.texts = [name for name in kind.columns if name not in NO_TEXT]

    def _answer_set(self, task: type[OFATask], codec: Any, cfg: Any) -> AnswerSet | None:
        beside = self.path.parent / "answers.txt"
        file = self.asked.answers or (str(beside) if beside.is_file() and not task.default_answers else None)
        if file is None and not task.default_answers:
            self.report.said.append("no answer set: give --ans2label-file, or put answers.txt beside the file")
            return None
        answers = read_answers(file) if file else list(task.default_answers)
        if file:
            self.report.said.append(f"answer set: {len(answers)} answers of {file}")
        paths = token_paths(answers, codec, cfg.max_tgt_length)
        return AnswerSet(frozenset(answers), Trie.from_answers(paths, codec.bos, codec.eos), file or "the answer set")

    def _statements(self, kind: type[Builder], training: bool) -> tuple[tuple[str, ...], Negatives | None]:
        """The kinds of example that rows are to give, and what false statements are made of."""
        folder = self.path.resolve().parent.parent / "negative_sample"
        if folder.is_dir():
            return kind.kinds, Negatives(str(folder))
        self.report.said.append(f"no {folder}: matching, which needs false statements, was not looked at")
        return tuple(name for name in kind.kinds if name != "matching"), None

    def run(self) -> FileReport:
        """Reads every row."""
        report, store = self.report, self.store
        report.rows = len(store)
        draw = np.random.default_rng(self.asked.seed)
        chosen = self._sample(self.asked.decode, draw) if self.pictures else set()
        ids: dict[str, int] = {}
        with progress_bar(len(store), "row", str(self.path), DELAY) as bar:
            for index in range(len(store)):
                if self.pictures:
                    self.pictures.seen, self.pictures.decoding = None, index in chosen
                self._look_at(index, ids, draw)
                bar.update()
        self._conclude()
        return report

    def _look_at(self, index: int, ids: dict[str, int], draw: np.random.Generator) -> None:
        report, store = self.report, self.store
        try:
            row = store[index]
        except BadRow as bad:
            report.bad.append(bad)
            return
        self._note_id(ids, index, row)
        self._measure(row)
        try:
            examples = list(self.builder.examples(index, row, draw))
        except BadRow as bad:
            report.bad.append(bad)
            examples = []
        self._note_picture(index)
        self._note_answers(index, row)
        for example in examples:
            if example.kind:
                report.examples[example.kind] += 1
            for kind, count in example.counts.items():
                if count:
                    report.note(kind.replace("_", " "), store.line(index))
            if not report.training and example.reference is None and self.builder.reference(row) is None:
                report.note(UNLABELLED, store.line(index))

    def _sample(self, wanted: int | None, draw: np.random.Generator) -> set[int]:
        rows = len(self.store)
        if wanted is None or wanted >= rows:
            return set(range(rows))
        return set(draw.choice(rows, wanted, replace=False).tolist())

    def _note_id(self, ids: dict[str, int], index: int, row: Row) -> None:
        key, line = self.builder.uniq_id(index, row), self.store.line(index)
        first = ids.setdefault(key, line)
        if first != line:
            self.report.note(DUPLICATES, line)
            if self.report.notes[DUPLICATES].count <= NAMED:
                self.report.said.append(f"id {key!r} is that of line {first} and of line {line}")

    def _measure(self, row: Row) -> None:
        for column in self.texts:
            text = getattr(row, column)
            if text and text.strip():
                self.report.lengths.setdefault(column, array("l")).append(len(self.codec.encode(f" {text}")))
        try:
            boxes = [parse_box(row.box)] if "box" in self.builder.columns else []
            if isinstance(self.builder, DetectionBuilder):
                objects = parse_objects(row.objects)
                boxes = [one.box for one in objects]
                self.report.names.update(one.name for one in objects)
            elif isinstance(self.builder, VisionLanguageBuilder) and row.type == "visual_grounding":
                boxes = [parse_box(row.refs)]
        except BoxProblem:
            return  # the builder names it
        for box in boxes:
            size = area(box)
            self.report.boxes["small" if size < SMALL else "medium" if size < MEDIUM else "large"] += 1

    def _note_picture(self, index: int) -> None:
        seen = self.pictures.seen if self.pictures else None
        if seen is None:
            return
        report, line = self.report, self.store.line(index)
        report.widths.append(seen.size[0])
        report.heights.append(seen.size[1])
        report.formats[seen.format] += 1
        report.decoded += self.pictures.decoding
        for oddity in seen.oddities:
            report.note(f"pictures with {oddity}", line)

    def _note_answers(self, index: int, row: Row) -> None:
        if isinstance(self.builder, VisionLanguageBuilder) and row.type == "qa":
            with contextlib.suppress(ValueError):  # the builder names it
                self.report.answers[best_answer(parse_answers(row.refs))] += 1
        if not isinstance(self.builder, AnsweringBuilder):
            return
        answers = self.builder.reference(row)
        if answers:
            self.report.answers[max(answers, key=lambda answer: answers[answer])] += 1
            if self.answer_set and not any(answer in self.answer_set.answers for answer in answers):
                self.report.note(OUTSIDE, self.store.line(index))

    def _conclude(self) -> None:
        report = self.report
        outside = sum("px outside" in bad.reason or "wholly outside" in bad.reason for bad in report.bad)
        if outside > 1 and outside >= OFTEN * report.rows:
            report.said.append(
                f"{outside} rows have boxes outside of their pictures: were these made for pictures of another size?"
            )
        form = getattr(self.builder, "form", None)
        if form is not None:
            numbers = {label: answer for label, answer in form.answers.items() if label.isdecimal()}
            if numbers and any(self._labels_are_numbers()):
                order = ", ".join(f"{label} is {answer!r}" for label, answer in sorted(numbers.items()))
                report.said.append(f"labels are numbers: {order}; where yours mean something else, write words")

    def _labels_are_numbers(self) -> Iterator[bool]:
        """Whether each of the first rows has a number for its label."""
        for index in range(min(len(self.store), 100)):
            try:
                yield (self.store[index].label or "").strip().isdecimal()
            except BadRow:
                yield False

    def sheet(self) -> Iterator[tuple[str, Any, list[Box], list[str]]]:
        """(title, RGB picture, boxes in its pixels, texts) of a random sample of rows that can be read."""
        draw = np.random.default_rng(self.asked.seed)
        for index in sorted(self._sample(SHEET, draw)):
            try:
                row = self.store[index]
                picture = self.pictures.full(row.image)
                boxes = [parse_box(row.box)] if "box" in self.builder.columns else []
                if getattr(row, "type", "") == "visual_grounding":
                    boxes = [parse_box(row.refs)]
                texts = [
                    getattr(row, name) or "" for name in (*self.texts, "answers", "refs", "label") if hasattr(row, name)
                ]
                if isinstance(self.builder, DetectionBuilder):
                    objects = parse_objects(row.objects)
                    boxes, texts = [one.box for one in objects], [", ".join(one.name for one in objects)]
            except (BadRow, ImageProblem, BoxProblem):
                continue  # named above
            yield f"{self.path.name}:{self.store.line(index)}", picture, boxes, [text for text in texts if text]


def _source(path: Path) -> type[Builder]:
    """What makes the examples of one of pretraining's four files. Raises UserError where the name is none of theirs."""
    builders = {kind.file: kind.builder for kind in SOURCES.values()}
    if path.name not in builders:
        raise UserError(f"{path}: the files of unify_task are called {', '.join(builders)}: give one, or their folder")
    return builders[path.name]


def _settings(asked: Asked, task: type[OFATask]) -> Any:
    """A task's configuration as far as rows are concerned: the official defaults, and small pictures."""
    kind = TASK_DATACLASS_REGISTRY[asked.task]
    values = {}
    for one in fields(kind):
        value = None if not isinstance(one.default, (bool, int, float, str)) else one.default
        values[one.name] = None if isinstance(value, str) and value.startswith("${") else value
    own: Mapping[str, Any] = {**DEFAULTS, **task.defaults}
    values.update({name: value for name, value in own.items() if values.get(name) is None})
    least = {"max_image_size": 512, "max_object_length": 30, "prompt_type": "none", "noise_ratio": 0.0}
    values.update({name: value for name, value in least.items() if values.get(name) is None})
    side = asked.code_image_size if issubclass(task, PretrainTask) else SIDE // 2
    small = {"patch_image_size": SIDE, "code_image_size": side, "no_rand_augment": True}
    return Namespace(**{**values, **small, "_name": asked.task})


def _spread(numbers: array) -> dict[str, int]:
    if not numbers:
        return {}
    return {"least": min(numbers), "median": int(np.median(numbers)), "most": max(numbers)}


def _said(numbers: array) -> str:
    spread = _spread(numbers)
    if spread["least"] == spread["most"]:
        return str(spread["most"])
    return f"{spread['least']} to {spread['most']} (median {spread['median']})"


def as_json(task: str, reports: Sequence[FileReport]) -> str:
    """All reports as one JSON object."""
    bad = sum(len(report.bad) for report in reports)
    return json.dumps(
        {"task": task, "bad_rows": bad, "files": [report.as_json() for report in reports]}, ensure_ascii=False, indent=1
    )
