"""Every task but pretraining: one TSV a subset in the official columns, and the answer set where a task has one.

Columns, as official: caption id, picture's id, caption, (labels), picture; vqa_gen id, picture's id, question, answers,
(labels), picture; refcoco id, picture's id, text, box, picture; snli_ve id, picture's id, picture, hypothesis, caption,
label; image_classify picture, number, class; ocr id, picture, text; detection id, picture, objects; gigaword source,
target; GLUE's tasks their texts and label behind the columns that `--selected-cols` passes over.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ...progress import progress_bar
from ..answers import read_answers
from ..text import SEPARATOR
from .clean import answers_cell, tidy
from .kept import KeptPictures
from .outputs import Outputs
from .pictures import PictureFinder, PictureStore, is_picture
from .readers import RecordFile
from .report import DELAY, Place, Report, RowProblem
from .request import FILES, Request
from .rows import Made, RowMaker, in_order, kept_objects, named_once, objects_cell, objects_of, region_box
from .sources import KINDS, Caption, Column, Labelled, ObjectList, Question, Region, Sources
from .spool import Spool
from .unify import DUPLICATES, check_request

ANSWERS = "answers.txt"
NAMES = "names.txt"  # of the objects of detection: what a vocabulary is made of
TRAIN = "train"
OUTSIDE = "rows whose answers are all outside answers.txt"
OUTSIDE_TRAINING = f"training {OUTSIDE}, left out"
EMPTY_CLASS = "classes without a picture"
SKIPPED = "files that are no pictures of a class, passed over"

NLI = ("entailment", "neutral", "contradiction")
ENTAILED = ("entailment", "not_entailment")


class Places:
    """Which subset each picture is in, and the numbers of classes: what the makers look up."""

    def __init__(self, subsets: Sequence[str], subset_of: Callable[[int], str]):
        self.subsets, self.subset_of = subsets, subset_of
        self.allowed: dict[str, int] | None = None  # answer -> its place in the set


class OfTask(RowMaker):
    """Rows of one file a subset."""

    def __init__(self, store: KeptPictures | None, places: Places, form: Form, request: Request):
        super().__init__(store)
        self.places, self.form, self.request = places, form, request

    def add(self, made: Made, before: Sequence[str], after: Sequence[str] = ()) -> None:
        """Adds a row: the cells before the picture's and those after it."""
        subset = self.places.subset_of(made.picture.number)
        start = "".join(f"{cell}\t" for cell in before) if self.store else "\t".join(before)
        made.rows.append((subset, "", start, "".join(f"\t{cell}" for cell in after)))

    def trains(self, made: Made) -> bool:
        """Whether the rows of a picture are trained on."""
        return self.places.subset_of(made.picture.number) == TRAIN

    def possible(self, made: Made, answers: Sequence[str], place: Place) -> bool:
        """Whether the set holds one of the answers; training rows need one, others are counted."""
        allowed = self.places.allowed
        if allowed is None or any(answer in allowed for answer in answers):
            return True
        made.changes.append((OUTSIDE_TRAINING if self.trains(made) else OUTSIDE, place))
        return not self.trains(made)


class CaptionRows(OfTask):
    """A row a caption in training; elsewhere one a picture, with all its references."""

    def write(self, made: Made) -> None:
        """Adds them."""
        items = [item for item in made.picture.items if isinstance(item, Caption)]
        if items and (self.request.join_captions or not self.trains(made)):
            items = [items[0]._replace(text=SEPARATOR.join(item.text for item in items))]
        for item in items:
            self.add(made, (item.id, made.picture.name, item.text, ""))


class QuestionRows(OfTask):
    """A row a question, with all its answers."""

    def write(self, made: Made) -> None:
        """Adds them."""
        for item in made.picture.items:
            if self.possible(made, tuple(item.answers), item.place):
                self.add(made, (item.id, made.picture.name, item.text, answers_cell(item.answers), ""))


class RegionRows(OfTask):
    """A row an expression; a name that one object of a list alone has is one, too."""

    def write(self, made: Made) -> None:
        """Adds them."""
        objects = objects_of(made.picture)
        for item in made.picture.items:
            if isinstance(item, Region):
                if box := region_box(made, item):
                    self.add(made, (item.id, made.picture.name, item.text, box))
            elif isinstance(item, ObjectList):
                listed = objects.get(item.source, [])
                for each, box in named_once(kept_objects(made, item, listed) or [], listed):
                    self.add(made, (each.id, made.picture.name, each.name, box))


class DetectionRows(OfTask):
    """A row a list of objects, the largest first."""

    def write(self, made: Made) -> None:
        """Adds them."""
        objects = objects_of(made.picture)
        for item in made.picture.items:
            if isinstance(item, ObjectList):
                kept = kept_objects(made, item, objects.get(item.source, []))
                if kept is not None:
                    self.add(made, (item.id,), (objects_cell(kept),))
                    made.objects += [each.name for each, _ in kept]


class EntailmentRows(OfTask):
    """Picture, hypothesis, caption, label."""

    def write(self, made: Made) -> None:
        """Adds them."""
        for item in made.picture.items:
            self.add(made, (item.id, made.picture.name), (*item.texts, item.label))


class ClassRows(OfTask):
    """Picture, number of the class from 1 and its name."""

    def write(self, made: Made) -> None:
        """Adds them."""
        for item in made.picture.items:
            if self.possible(made, (item.label,), item.place):
                number = (self.places.allowed or {}).get(item.label, -1) + 1
                self.add(made, (), (str(number), item.label))


class ReadingRows(OfTask):
    """Id, picture, text."""

    def write(self, made: Made) -> None:
        """Adds them."""
        for item in made.picture.items:
            self.add(made, (item.id,), item.texts)


class TextRows(OfTask):
    """Texts and label, behind the columns that the official files have before them."""

    def write(self, made: Made) -> None:
        """Adds them."""
        for item in made.picture.items:
            skipped = [item.id, *[""] * self.form.skipped][: self.form.skipped]
            label = () if self.form.label is None else (item.label,)
            self.add(made, (*skipped, *item.texts, *label))


@dataclass(frozen=True)
class Form:
    """What tells the files of one task from another's.

    Attributes:
        reads: the flags that name its files, the usual one first.
        maker: makes the rows.
        words: the columns that hold text, as `ofa train-bpe` takes them.
        texts, label: the columns of `--rows`.
        labels: those that a row may have; numbers count from the first if `numbered`, else need `--label-order`.
        numbered: whether the numbers of labels mean the same everywhere.
        skipped: columns before the texts.
        pictures: whether rows have one.
        answers: the rows make an answer set.
        training: further flags of fairseq-train.
    """

    reads: tuple[str, ...]
    maker: type[OfTask]
    words: str
    texts: tuple[Column, ...] = ()
    label: Column | None = None
    labels: tuple[str, ...] = ()
    numbered: bool = False
    skipped: int = 0
    pictures: bool = True
    answers: bool = False
    training: str = ""


_LABEL = Column(("label", "gold_label", "class", "answer"))
_PIXELS = "--patch-image-size 256 "


def _glue(skipped: int, labels: tuple[str, ...], numbered: bool, *texts: tuple[str, ...], label: Column = _LABEL):
    words = ",".join(str(skipped + number) for number in range(len(texts)))
    columns = tuple(Column(names) for names in texts)
    return Form(("rows",), TextRows, words, columns, label, labels, numbered=numbered, skipped=skipped, pictures=False)


FORMS: dict[str, Form] = {
    "caption": Form(("captions",), CaptionRows, "2", training=_PIXELS),
    "vqa_gen": Form(("questions", "annotations"), QuestionRows, "2,3", answers=True, training=_PIXELS),
    "refcoco": Form(("refs", "boxes"), RegionRows, "2", training=_PIXELS),
    "detection": Form(("boxes",), DetectionRows, "", training=_PIXELS),
    "snli_ve": Form(
        ("rows",),
        EntailmentRows,
        "3,4",
        (Column(("hypothesis", "sentence2")), Column(("caption", "premise", "sentence1"), optional=True)),
        _LABEL,
        NLI,
        training=_PIXELS,
    ),
    "image_classify": Form(("rows",), ClassRows, "2", (), _LABEL, answers=True, training=_PIXELS),
    "ocr": Form(
        ("rows",),
        ReadingRows,
        "2",
        (Column(("text", "label", "transcription", "caption")),),
        training=_PIXELS,
    ),
    "gigaword": Form(
        ("rows",),
        TextRows,
        "0,1",
        (
            Column(("source", "article", "document", "text")),
            Column(("target", "summary", "title", "headline", "highlights")),
        ),
        pictures=False,
    ),
    "cola": _glue(1, ("0", "1"), True, ("sentence",)),
    "mnli": _glue(
        0,
        NLI,
        False,
        ("premise", "sentence1"),
        ("hypothesis", "sentence2"),
        label=Column(("gold_label", "label")),
    ),
    "mrpc": _glue(
        0, ("0", "1"), True, ("sentence1", "#1 String"), ("sentence2", "#2 String"), label=Column(("label", "Quality"))
    ),
    "qnli": _glue(1, ENTAILED, False, ("question",), ("sentence",)),
    "qqp": _glue(3, ("0", "1"), True, ("question1",), ("question2",), label=Column(("label", "is_duplicate"))),
    "rte": _glue(1, ENTAILED, False, ("sentence1", "premise"), ("sentence2", "hypothesis")),
    "sst2": _glue(0, ("0", "1"), True, ("sentence",)),
}
"""By task, as fairseq knows it."""


def prepare(request: Request) -> Report:
    """Writes one subset, or all that `--split` names; `data/prepare/__init__.py` says what it raises."""
    form = FORMS[request.task]
    _check(request, form)
    request.out.mkdir(parents=True, exist_ok=True)
    subsets = tuple(name for name, _ in request.split) or (request.subset,)
    files = {subset: f"{subset}.tsv" for subset in subsets}
    ledger = "bad_rows.txt" if request.split else f"{request.subset}.bad_rows.txt"
    sets = (ANSWERS,) if form.answers else (NAMES,) if request.task == "detection" else ()
    sets = tuple(name for name in sets if TRAIN in subsets or not (request.out / name).exists())
    with Outputs(request.out) as outputs:
        if not request.force:
            outputs.refuse_existing([*files.values(), *(name for name in sets if TRAIN in subsets)])
        for name in (*files.values(), ledger):
            outputs.open(name)
        report = Report(outputs.open(ledger))
        spool = Spool(request.out, KINDS)
        try:
            run = _Run(request, form, outputs, files, report, spool)
            run.read()
            run.write(ANSWERS in sets)
            if NAMES in sets:
                outputs.open(NAMES).writelines(f"{name}\n" for name in run.names)
            for kind, key, places in spool.duplicates():
                report.change(DUPLICATES, f"{kind.lower()} {key} at {', '.join(places)}")
        finally:
            spool.close()
        outputs.finish(empty=(*files.values(), ledger))
    report.summary = _summary(request, form, report, run, ledger, sets)
    return report


def _check(request: Request, form: Form) -> None:
    reads = ", ".join(f"--{flag}" for flag in form.reads)
    for flag in FILES:
        if getattr(request, flag) and flag not in form.reads:
            raise UserError(f"--{flag}: {request.task} reads {reads}: give these")
    given = any(getattr(request, flag) for flag in form.reads)
    of_folders = request.task == "image_classify" and request.images is not None
    if not given and not of_folders:
        alone = ", or --images DIR alone, a folder a class" if request.task == "image_classify" else ""
        raise UserError(f"nothing to prepare: {request.task} reads {reads}{alone}")
    if form.pictures and request.images is None:
        raise UserError(f"{request.task} needs pictures: give their folder as --images")
    check_request(request, request.out)
    if request.answers < 1 or request.min_count < 1:
        raise UserError(f"--answers {request.answers} --min-count {request.min_count}: give 1 or more")
    if request.label_order:
        if not form.labels or form.numbered:
            raise UserError(f"--label-order: the labels of {request.task} have no order to be named: leave it out")
        if sorted(request.label_order) != sorted(form.labels):
            given = ",".join(request.label_order)
            raise UserError(f"--label-order {given}: write {', '.join(form.labels)} in the order of your numbers")


class _Run:
    """One run: everything into the spool, pictures into subsets, then rows picture by picture."""

    def __init__(
        self,
        request: Request,
        form: Form,
        outputs: Outputs,
        files: Mapping[str, str],
        report: Report,
        spool: Spool,
    ):
        self.request, self.form, self.outputs = request, form, outputs
        self.files, self.report, self.spool = files, report, spool
        self.names: dict[str, None] = {}  # of objects, in the order first seen
        self.class_names = _read_class_names(request.class_names)
        self.answers = 0
        self.pictures = 0

    def read(self) -> None:
        """The user's files to the spool."""
        request, form = self.request, self.form
        finder = PictureFinder(request.images or Path(), self.spool, self.report)
        sources = Sources(self.spool, finder, self.report, request.take)
        for path in request.captions:
            sources.read_captions(path)
        for path in request.annotations:
            sources.read_annotations(path)
        for path in request.questions:
            sources.read_questions(path)
        sources.finish_questions()
        for path in request.boxes:
            (sources.keep_boxes if request.refs else sources.read_boxes)(path)
        for path in request.refs:
            sources.read_refs(path)
        for path in request.rows:
            sources.read_rows(path, form.texts, form.label, form.pictures, self._label)
        if request.task == "image_classify" and not request.rows:
            self._read_folders(finder)

    def write(self, new_answers: bool) -> None:
        """The answer set, then the rows, in the order in which their pictures were first named."""
        request, form = self.request, self.form
        places = Places(tuple(self.files), self._subsets())
        if form.answers:
            answers = self._answer_set(places) if new_answers else read_answers(str(request.out / ANSWERS))
            places.allowed = {answer: number for number, answer in enumerate(answers)}
            self.answers = len(answers)
            if new_answers:
                self.outputs.open(ANSWERS).writelines(f"{answer}\n" for answer in answers)
        root = None if request.embed_images else request.out
        unit = "picture" if form.pictures else "text"
        store = KeptPictures(PictureStore(root, request.max_side, None), request.out) if form.pictures else None
        with (
            store or contextlib.nullcontext(),
            progress_bar(self.spool.count("picture"), unit, "writing", DELAY) as bar,
        ):
            maker = form.maker(store, places, form, request)
            for made in in_order(maker, self.spool.pictures(), request.workers):
                self._write(made)
                bar.update()

    def _write(self, made: Made) -> None:
        made.tell(self.report)
        cell = made.stored.cell if made.stored else ""
        for subset, kind, before, after in made.rows:
            self.outputs.open(self.files[subset]).writelines((before, cell, after, "\n"))
            self.report.row(self.files[subset], kind)
        self.names.update(dict.fromkeys(made.objects))
        self.pictures += made.stored is not None

    def _subsets(self) -> Callable[[int], str]:
        """The subset of each picture by its number: its place in an order drawn from the seed and its name alone."""
        request = self.request
        if not request.split:
            return lambda number: request.subset
        numbers, keys = [], []
        for number, name in self.spool.names_of_pictures():
            numbers.append(number)
            digest = blake2b(f"{request.seed}\t{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
            keys.append(int.from_bytes(digest, "big"))
        order = np.argsort(np.array(keys, np.uint64), kind="stable")
        bounds = np.cumsum([share for _, share in request.split])
        ends = np.rint(bounds / bounds[-1] * len(order)).astype(int)
        chosen = np.zeros(max(numbers, default=0) + 1, np.int32)
        for part in range(1, len(ends)):
            chosen[np.array(numbers)[order[ends[part - 1] : ends[part]]]] = part
        names = [name for name, _ in request.split]
        return lambda number: names[chosen[number]]

    def _answer_set(self, places: Places) -> list[str]:
        """The most frequent best answers of training, or every class in order of the alphabet."""
        counts: dict[str, int] = {}
        trains = TRAIN in places.subsets
        for picture in self.spool.pictures():
            for item in picture.items:
                if isinstance(item, Labelled):
                    counts[item.label] = counts.get(item.label, 0) + 1
                elif isinstance(item, Question) and (not trains or places.subset_of(picture.number) == TRAIN):
                    best = next(iter(item.answers))
                    counts[best] = counts.get(best, 0) + 1
        if self.request.task == "image_classify":
            return sorted(counts)
        kept = [answer for answer in counts if counts[answer] >= self.request.min_count]
        return sorted(kept, key=lambda answer: -counts[answer])[: self.request.answers]  # first seen, if as frequent

    def _label(self, given: str) -> str | None:
        """A row's label as it is written; None for one without."""
        form = self.form
        if not form.labels:
            if not given:
                raise RowProblem("label is missing", "write one, or delete the row")
            return self.class_names.get(given, given)
        label = given.lower().replace("-", "_") if given != "-1" else given
        if label in ("", "_", "-1"):
            return None
        if label in form.labels:
            return label
        order = self.request.label_order or (form.labels if form.numbered else ())
        if label.isdecimal() and not order:
            named = ",".join(form.labels)
            raise UserError(
                f"label {given} is a number, and files number the labels of {self.request.task} in different orders: "
                f"name yours, for example --label-order {named} where 0 is {form.labels[0]}"
            )
        if label.isdecimal() and int(label) < len(order):
            return order[int(label)]
        raise RowProblem(f"label {given!r} is unknown", f"write one of {', '.join(form.labels)}, or delete the row")

    def _read_folders(self, finder: PictureFinder) -> None:
        """A folder of pictures a class."""
        root = self.request.images
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise UserError(f"--images {root}: no folder in it; image_classify reads a folder a class, or --rows")
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
            if entry.name not in folders:
                self._skip(Path(entry.path))
        for folder in folders:
            changes: set[str] = set()
            folder_name = tidy(folder, "class", changes)
            name, found = self.class_names.get(folder_name, folder_name), 0
            for where, below, files in os.walk(root / folder, followlinks=True):
                for hidden in [each for each in below if each.startswith(".")]:
                    below.remove(hidden)
                    self._skip(Path(where, hidden))
                below.sort()
                for path in (os.path.join(where, each) for each in sorted(files)):
                    if os.path.basename(path).startswith(".") or not is_picture(path):
                        self._skip(Path(path))
                        continue
                    place = Place(path, "picture")
                    number = self.spool.picture(os.path.normpath(path), finder.name(path))
                    self.spool.add(number, Labelled(place, finder.name(path), [], name, folder))
                    found += 1
            if not found:
                self.report.change(EMPTY_CLASS, folder)

    def _skip(self, path: Path) -> None:
        """Counts the files of a path that is passed over."""
        for each in [path] if path.is_file() else sorted(path.rglob("*")):
            if each.is_file():
                self.report.change(SKIPPED, os.path.relpath(each, self.request.images))


def _read_class_names(path: Path | None) -> dict[str, str]:
    """Folder or label to the words that the model says, from JSON or a table with the columns label and name."""
    if path is None:
        return {}
    if not path.is_file():
        raise UserError(f"--class-names {path}: no such file")
    names: dict[str, str] = {}
    for record in RecordFile(path, "--class-names"):
        value: Any = record.value
        if isinstance(value, RowProblem) or not {"label", "name"} <= value.keys():
            raise UserError(f"--class-names {record.place}: write label and name, in JSONL or as columns of a table")
        names[str(value["label"])] = tidy(value["name"], "name", set())
    return names


def _summary(request: Request, form: Form, report: Report, run: _Run, ledger: str, sets: Sequence[str]) -> list[str]:
    """What the user reads at the end."""
    lines = [f"{request.out / file}: {sum(kinds.values())} rows" for file, kinds in report.rows.items()]
    kind = "classes" if request.task == "image_classify" else "answers"
    if form.answers:
        kept = "" if ANSWERS in sets else ", as they were"
        lines.append(f"{request.out / ANSWERS}: {run.answers} {kind}{kept}")
    if NAMES in sets:
        lines.append(f"{request.out / NAMES}: {len(run.names)} names of objects")
    lines += [f"changed: {line}" for line in report.change_lines()]
    for name, _ in request.split:
        if f"{name}.tsv" not in report.rows:
            lines.append(f"no row fell to {name}: there are too few pictures for its share")
    if report.bad_rows:
        lines.append(f"bad rows: {report.bad_rows} left out, listed in {request.out / ledger}")
        if form.pictures and not run.pictures:
            lines.append(f"not one picture could be used: is --images {request.images} the right folder?")
    return lines + _next_steps(request, form, report)


def _next_steps(request: Request, form: Form, report: Report) -> list[str]:
    """The commands that make use of the files."""
    train = f"{TRAIN}.tsv"
    if train not in report.rows:
        return []
    out = shlex.quote(str(request.out))
    words = f"{request.out / NAMES}:0" if request.task == "detection" else f"{request.out / train}:{form.words}"
    answers = f"--ans2label-file {shlex.quote(str(request.out / ANSWERS))} " if form.answers else ""
    alone = "" if "valid.tsv" in report.rows or (request.out / "valid.tsv").exists() else "--disable-validation "
    return [
        f"next: ofa check {out} {request.task}",
        f"      ofa train-bpe {out}/bpe {shlex.quote(words)}",
        f'      fairseq-train {out} --user-dir "$(ofa user-dir)" --task {request.task} --arch ofa_nano '
        f"{form.training}--bpe sentencepiece --bpe-dir {out}/bpe {answers}"
        "--criterion adjust_label_smoothed_cross_entropy --optimizer adam --lr 5e-4 --batch-size 16 "
        f"{alone}--max-epoch 20",
    ]
