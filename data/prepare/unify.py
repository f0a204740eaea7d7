"""Pretraining (`--task unify_task`): four files of rows and what negatives are drawn from.

Columns, as official (README of OFA, "Pretraining"): vision_language id, picture, caption, question, refs, objects,
dataset, type; text id, text; image id, picture, codes; detection id, picture, objects.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from ...errors import UserError
from ...progress import progress_bar
from ..text import SEPARATOR
from .clean import answers_cell
from .kept import KeptPictures
from .negatives import FILES, Negatives
from .outputs import Outputs
from .pictures import PictureFinder, PictureStore, check_code_side, is_picture
from .report import DELAY, Report
from .request import Request
from .rows import Made, RowMaker, in_order, kept_objects, named_once, objects_cell, objects_of, region_box
from .sources import KINDS, Caption, Object, ObjectList, Question, Region, Sources, dataset_name
from .spool import Spool

VISION_LANGUAGE = "vision_language_examples.tsv"
TEXT = "text_examples.tsv"
IMAGE = "image_examples.tsv"
DETECTION = "detection_examples.tsv"
BAD_ROWS = "bad_rows.tsv"
NEGATIVES = "negative_sample"

CAPTION, QA, GROUNDING = "caption", "qa", "visual_grounding"  # types of vision-language rows

DUPLICATES = "ids that occur more than once, kept"
NO_PICTURE = "files that are no pictures, passed over"


def prepare(request: Request) -> Report:
    """Writes the files of one subset and returns what happened; `data/prepare/__init__.py` says what it raises."""
    _check(request)
    request.out.mkdir(parents=True, exist_ok=True)
    of_pictures = bool(request.captions or request.questions or request.boxes)
    planned = [VISION_LANGUAGE] if of_pictures else []
    planned += [DETECTION] if request.boxes else []
    planned += [IMAGE] if request.images and request.codes else []
    planned += [TEXT] if request.text else []
    files = {name: f"{request.subset}/{name}" for name in (*planned, BAD_ROWS)}
    negatives = {name: f"{NEGATIVES}/{name}" for name in FILES}
    missing = not all((request.out / name).exists() for name in negatives.values())
    make_negatives = of_pictures and (request.subset == "train" or missing)

    with Outputs(request.out) as outputs:
        if not request.force:
            rewritten = negatives.values() if make_negatives and request.subset == "train" else ()
            outputs.refuse_existing([*(files[name] for name in planned), *rewritten])
        for name in files.values():  # one that stays empty does not appear, nor does an old one stay
            outputs.open(name)
        report = Report(outputs.open(files[BAD_ROWS]))
        spool = Spool(request.out, KINDS)
        try:
            run = _Run(request, outputs, files, report, spool)
            run.read()
            run.write_pictures()
            for kind, key, places in spool.duplicates():
                report.change(DUPLICATES, f"{kind.lower()} {key} at {', '.join(places)}")
            if make_negatives:
                for name in negatives.values():
                    outputs.open(name)
                outputs.open(negatives[FILES[0]]).writelines(f"{text}\n" for text in spool.captions())
                outputs.open(negatives[FILES[1]]).writelines(run.negatives.object_lines())
                outputs.open(negatives[FILES[2]]).write(run.negatives.answers_json())
        finally:
            spool.close()
        outputs.finish(empty=files.values())
    report.summary = _summary(request, report, run, make_negatives)
    return report


def _check(request: Request) -> None:
    for flag in ("refs", "rows"):
        if getattr(request, flag):
            raise UserError(f"--{flag}: unify_task reads --captions, --questions, --boxes, --text: give these")
    if request.split:
        raise UserError("--split: unify_task makes one subset at a time: name it with --subset")
    given = [flag for flag in ("captions", "questions", "boxes") if getattr(request, flag)]
    if given and request.images is None:
        raise UserError(f"--{given[0]} needs --images, the folder of the pictures")
    if not given and not request.text and not request.images:
        raise UserError("nothing to prepare: give --captions, --questions, --boxes, --text, or --images alone")
    if request.annotations and not request.questions:
        raise UserError("--annotations holds the answers to --questions: give both")
    try:
        check_code_side(request.code_image_size)
    except ValueError as error:
        raise UserError(f"--code-image-size {error}") from None
    if request.subset == NEGATIVES:
        raise UserError(f"--subset {NEGATIVES} is the folder of the negatives: give another name")
    check_request(request, request.out / request.subset)


def check_request(request: Request, rows: Path) -> None:
    """What every task checks.

    Args:
        request: what was asked for.
        rows: the folder that the TSVs will be in.

    Raises:
        UserError: naming the flag that does not fit.
    """
    if request.workers < 1:
        raise UserError(f"--workers {request.workers}: give 1 or more")
    if request.max_side is not None and request.max_side < 1:
        raise UserError(f"--max-side {request.max_side}: give a number of pixels")
    if not request.embed_images and request.images:
        if request.max_side is not None:
            raise UserError("--max-side makes new pictures, which --image-paths cannot name: leave one of them out")
        if not request.images.resolve().is_relative_to(rows.resolve()):
            raise UserError(
                f"--image-paths: a row may only name pictures below its own folder, {rows}, and --images is "
                f"{request.images}: move them there, or embed them"
            )


class PretrainingRows(RowMaker):
    """The rows of pretraining.

    Args:
        store: makes the picture's cell.
        grounding: whether objects whose name occurs once in their picture become grounding rows as well.
    """

    def __init__(self, store: PictureStore, grounding: bool):
        super().__init__(store)
        self.grounding = grounding

    def write(self, made: Made) -> None:
        """Captions, questions, regions, lists of objects, and the square that has image codes."""
        picture, objects = made.picture, objects_of(made.picture)
        there = list(dict.fromkeys(each.name.lower() for some in objects.values() for each in some if each.name))
        for item in picture.items:
            if isinstance(item, Caption):
                named = item.objects or there
                _pair(made, item, CAPTION, item.text, "", "", SEPARATOR.join(named))
                made.captions.append(item.text)
                made.objects += named
            elif isinstance(item, Question):
                _pair(made, item, QA, "", item.text, answers_cell(item.answers), "")
                made.answers.append((next(iter(item.answers)), item.type))
            elif isinstance(item, Region):
                if box := region_box(made, item):
                    _pair(made, item, GROUNDING, item.text, "", box, "")
            elif isinstance(item, ObjectList):
                self._objects(made, item, objects.get(item.source, []))
        if made.stored.code_cell:
            made.rows.append((IMAGE, "", f"{picture.name}\t{made.stored.code_cell}\t{made.stored.codes}", ""))

    def _objects(self, made: Made, item: ObjectList, objects: list[Object]) -> None:
        """The detection row of a list, largest object first, and its grounding rows."""
        kept = kept_objects(made, item, objects)
        if kept is None:
            return
        made.rows.append((DETECTION, "", f"{item.id}\t", f"\t{objects_cell(kept)}"))
        made.objects += [each.name for each, _ in kept]
        for each, box in named_once(kept, objects) if self.grounding else ():
            region = Region(each.place, each.id, each.name, each.box, dataset_name(each.place.file))
            _pair(made, region, GROUNDING, each.name, "", box, "")


def _pair(
    made: Made, item: Caption | Question | Region, kind: str, caption: str, question: str, refs: str, objects: str
) -> None:
    """Adds a vision-language row."""
    after = "\t".join(("", caption, question, refs, objects, item.source, kind))
    made.rows.append((VISION_LANGUAGE, kind, f"{item.id}\t", after))


class _Run:
    """One run: reads everything into the spool, then writes the rows picture by picture."""

    def __init__(self, request: Request, outputs: Outputs, files: dict[str, str], report: Report, spool: Spool):
        self.request, self.outputs, self.files, self.report, self.spool = request, outputs, files, report, spool
        self.negatives = Negatives()
        self.pictures = 0

    def read(self) -> None:
        """The user's files to the spool; texts go to their file at once."""
        request = self.request
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
            sources.read_boxes(path)
        for path in request.text:
            for key, text in sources.read_text(path):
                self._write(TEXT, "", f"{key}\t{text}")
        if request.images and not (request.captions or request.questions or request.boxes):
            for path in finder.all():
                if is_picture(path):
                    self.spool.picture(os.path.normpath(path), finder.name(path))
                else:
                    self.report.change(NO_PICTURE, finder.name(path))

    def write_pictures(self) -> None:
        """The rows of all pictures, in the order in which they were first named, whatever the number of workers."""
        request = self.request
        root = None if request.embed_images else request.out / request.subset
        store = PictureStore(root, request.max_side, request.code_image_size if request.codes else None)
        with (
            KeptPictures(store, request.out) as kept,
            progress_bar(self.spool.count("picture"), "picture", "writing", DELAY) as bar,
        ):
            for made in in_order(PretrainingRows(kept, request.grounding), self.spool.pictures(), request.workers):
                self._write_picture(made)
                bar.update()

    def _write_picture(self, made: Made) -> None:
        made.tell(self.report)
        for file, kind, before, after in made.rows:
            self._write(file, kind, before, made.stored.cell if file != IMAGE else "", after)
        for text in made.captions:
            self.spool.see_caption(text)
        for name in made.objects:
            self.negatives.add_object(name)
        for answer, kind in made.answers:
            self.negatives.add_answer(answer, kind)
        self.pictures += made.stored is not None

    def _write(self, file: str, kind: str, *parts: str) -> None:
        if file not in self.files:  # --no-codes, or no boxes asked for
            return
        self.outputs.open(self.files[file]).writelines((*parts, "\n"))
        self.report.row(self.files[file], kind)


def _summary(request: Request, report: Report, run: _Run, negatives: bool) -> list[str]:
    """What the user reads at the end."""
    lines = []
    for file, kinds in report.rows.items():
        split = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if kind)
        lines.append(f"{request.out / file}: {sum(kinds.values())} rows{f' ({split})' if split else ''}")
    if negatives:
        with open(request.out / NEGATIVES / FILES[0], encoding="utf-8") as file:
            captions = sum(1 for _ in file)
        objects, answers = len(run.negatives.objects), len(run.negatives.answers)
        types = len(run.negatives.by_type())
        types = "1 type" if types == 1 else f"{types} types"
        line = f"{request.out / NEGATIVES}: {captions} captions, {objects} objects, {answers} answers of {types}"
        lines.append(line if request.subset == "train" else f"{line} (there were none; --subset train makes its own)")
    lines += [f"changed: {line}" for line in report.change_lines()]
    if report.bad_rows:
        lines.append(f"bad rows: {report.bad_rows} left out, listed in {request.out / request.subset / BAD_ROWS}")
        if request.images and not run.pictures:
            lines.append(f"not one picture could be used: is --images {request.images} the right folder?")
    return lines + _next_steps(request, report)


def _next_steps(request: Request, report: Report) -> list[str]:
    """The commands that make use of the files."""
    columns = {VISION_LANGUAGE: "2,3,4,5", TEXT: "1"}  # that hold text
    made = {name: numbers for name, numbers in columns.items() if f"{request.subset}/{name}" in report.rows}
    if not made or request.subset != "train":
        return []
    out = shlex.quote(str(request.out))
    texts = " ".join(shlex.quote(f"{request.out / 'train' / name}:{numbers}") for name, numbers in made.items())
    side = f"--code-image-size {request.code_image_size} " if request.code_image_size != 128 else ""
    alone = "" if (request.out / "valid").is_dir() else "--disable-validation "
    return [
        f"next: ofa train-bpe {out}/bpe {texts}",
        f'      fairseq-train {out} --user-dir "$(ofa user-dir)" --task unify_task --arch ofa_nano '
        f"--patch-image-size 256 {side}--bpe sentencepiece --bpe-dir {out}/bpe "
        f"--criterion adjust_label_smoothed_cross_entropy --optimizer adam --lr 5e-4 --batch-size 16 {alone}"
        "--max-epoch 20",
    ]
