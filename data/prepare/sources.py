"""What the user's records mean: COCO's, VQAv2's and plain ones become captions, questions, regions and object lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError
from .clean import confidences, tidy, tidy_box, tidy_id, tidy_names
from .negatives import question_type
from .pictures import PictureFinder
from .readers import Record, RecordFile, parsed, text_lines
from .report import Place, Report, RowProblem, plain
from .spool import Spool

NO_QUESTION = "annotations without a question, left out"
LOST_OBJECTS = "objects of pictures that could not be used"


class Caption(NamedTuple):
    """A caption, and what is in the picture, if the user said so."""

    place: Place
    id: str
    text: str
    objects: list[str]
    source: str  # name of the file, which becomes the dataset's name


class Question(NamedTuple):
    """A question with its answers and their confidences, the highest first, and its type, as in `type2ans.json`."""

    place: Place
    id: str
    text: str
    answers: dict[str, float]
    type: str
    source: str


class Region(NamedTuple):
    """A referring expression; x0, y0, x1, y1 in pixels of the picture."""

    place: Place
    id: str
    text: str
    box: list[float]
    source: str


class ObjectList(NamedTuple):
    """The objects of a picture; those of COCO follow as items of their own."""

    place: Place
    id: str
    size: list[int] | None  # width and height of the picture that was annotated
    source: str  # what tells it from the other lists


class Object(NamedTuple):
    """An object of the `ObjectList` of the same `source`; x0, y0, x1, y1 in pixels of the picture.

    Without a box it is one that was named as a bad row already.
    """

    place: Place
    source: str
    id: str
    number: int  # of its category
    name: str
    box: list[float]
    sized: bool  # it was given as x, y, width, height
    crowd: bool


KINDS = {kind.__name__: kind for kind in (Caption, Question, Region, ObjectList, Object)}


class Sources:
    """Reads the user's files into the spool.

    Args:
        spool: takes the items.
        finder: finds the pictures.
        report: is told of bad rows and of changes.
    """

    def __init__(self, spool: Spool, finder: PictureFinder, report: Report):
        self.spool, self.finder, self.report = spool, finder, report

    def read_captions(self, path: Path) -> None:
        """COCO captions, or `{"image": path, "caption": text or [text, ...], "id"?, "objects"?}`."""
        file = RecordFile(path, "--captions")
        if file.tables:
            self._read_pictures(file)

        def use(record: Record, value: dict[str, Any], changes: set[str]) -> None:
            texts = value.get("caption")
            texts = texts if isinstance(texts, list) else [texts]
            if not texts:
                raise RowProblem("caption is an empty list", "write one, or delete the row")
            texts = [tidy(text, "caption", changes) for text in texts]
            objects = tidy_names(value["objects"], changes) if value.get("objects") else []
            key, picture = _id(record, changes), self._picture(file, record)
            for number, text in enumerate(texts):
                own = key if len(texts) == 1 else f"{key}_{number}"
                self._add(picture, Caption(record.place, own, text, objects, dataset_name(path)))

        self._each(file, "annotations", "caption", use)

    def read_annotations(self, path: Path) -> None:
        """The annotations of VQAv2: ten answers a question. Read them before the questions."""

        def use(record: Record, value: dict[str, Any], changes: set[str]) -> None:
            if "question_id" not in value:
                raise RowProblem("question_id is missing", "write that of its question")
            known = ("answers", "answer", "multiple_choice_answer", "question_type", "answer_type")
            self.spool.put_answer(str(value["question_id"]), {name: value[name] for name in known if name in value})

        self._each(RecordFile(path, "--annotations"), "annotations", "question_id", use)

    def read_questions(self, path: Path) -> None:
        """The questions of VQAv2, or `{"image", "question", "answer": text}`, or `"answers"` (see `confidences`)."""
        file = RecordFile(path, "--questions")
        if file.tables:
            self._read_pictures(file)

        def use(record: Record, value: dict[str, Any], changes: set[str]) -> None:
            text = tidy(value.get("question"), "question", changes)
            key = _id(record, changes)
            if not {"answers", "answer"} & value.keys():
                answer = self.spool.take_answer(key)
                if answer is None:
                    raise RowProblem(f"question {key} has no answer", "give --annotations that hold its question_id")
                value = {**answer, **value}
            answers = confidences(value, changes)
            kind = question_type(text, next(iter(answers)), value.get("question_type"), value.get("answer_type"))
            self._add(self._picture(file, record), Question(record.place, key, text, answers, kind, dataset_name(path)))

        self._each(file, "questions", "question", use)

    def finish_questions(self) -> None:
        """Counts the annotations that no question took."""
        for key in self.spool.answers_left():
            self.report.change(NO_QUESTION, f"question_id {key}")

    def read_boxes(self, path: Path) -> None:
        """COCO instances, or `{"image", "objects": [{"box", "name"}, ...]}`, or `{"image", "text", "box"}`."""
        file = RecordFile(path, "--boxes")
        if file.tables:
            self._read_instances(file)
        else:
            self._each(file, "", "", lambda *row: self._use_boxes(file, *row))

    def read_text(self, path: Path) -> Iterator[tuple[str, str]]:
        """Documents as (id, text): one a line, blank lines passed over, or JSONL with `text`."""
        as_json = None
        for number, line in text_lines(path):
            place, changes = Place(str(path), str(number)), set()
            try:
                if isinstance(line, RowProblem):
                    raise line
                if not line.strip():
                    continue
                key, text = f"{dataset_name(path)}-{number}", line
                if as_json is None:  # the first line that says something decides
                    as_json = isinstance(parsed(line), dict)
                if as_json:
                    if not isinstance(value := parsed(line), dict):
                        raise RowProblem("not readable as JSON, as the lines before are", 'write {"text": ...}')
                    text, key = value.get("text"), tidy_id(value.get("id"), key, changes)
                text = tidy(text, "text", changes)
            except RowProblem as problem:
                self.report.bad(place, problem)
                continue
            self.spool.see("text", key, place)
            for kind in sorted(changes):
                self.report.change(kind, place)
            yield key, text

    # One record --------------------------------------------------------------------------------------------------

    def _use_boxes(self, file: RecordFile, record: Record, value: dict[str, Any], changes: set[str]) -> None:
        """A line of boxes."""
        key = _id(record, changes)
        if isinstance(objects := value.get("objects"), list):
            picture = self._picture(file, record)
            self._add(picture, ObjectList(record.place, key, _size(value), str(record.place)))
            for number, one in enumerate(objects):
                place = Place(record.place.file, f"{record.place.where}: objects[{number}]")
                try:
                    if not isinstance(one, dict):
                        raise RowProblem("no JSON object", 'write {"box": [x0, y0, x1, y1], "name": text}')
                    name, box = tidy(one.get("name"), "name", changes), list(tidy_box(one.get("box"), sized=False))
                except RowProblem as problem:
                    self.report.bad(place, problem)
                    self.spool.add(picture, Object(place, str(record.place), "", 0, "", [], False, False))
                    continue
                own = f"{key}_{number}"
                self.spool.add(picture, Object(place, str(record.place), own, 0, name, box, False, False))
        elif "text" in value or "box" in value:
            text, box = tidy(value.get("text"), "text", changes), list(tidy_box(value.get("box"), sized=False))
            self._add(self._picture(file, record), Region(record.place, key, text, box, dataset_name(file.path)))
        else:
            raise RowProblem("neither a list of objects nor a text and its box", "docs/prepare.md shows both forms")

    def _read_instances(self, file: RecordFile) -> None:
        """COCO instances. A picture of the table `images` without an annotation is one without objects."""
        names = self._read_pictures(file, listing=True)
        if not names:
            raise UserError(f"--boxes {file.path}: no categories, so its objects have no names")

        def use(record: Record, value: dict[str, Any], changes: set[str]) -> None:
            key = str(value.get("image_id"))
            entry = self.spool.entry(str(file.path), key)
            if entry is not None and entry[0] is None and entry[2]:
                self.report.change(LOST_OBJECTS, record.place)  # their picture is the bad row
                return
            picture, of = self._picture(file, record), f"{file.path} {key}"
            if entry is None:  # its picture is in no table
                self._add(picture, ObjectList(record.place, key, None, of))
            own = _id(record, changes)
            number, name, box = 0, "", []
            try:
                if str(value.get("category_id")) not in names:
                    raise RowProblem(f"category_id {value.get('category_id')!r} is not in categories", "add it there")
                number, name = names[str(value["category_id"])]
                box = list(tidy_box(value.get("bbox"), sized=True))
            finally:  # a bad object is still one that the list lacks
                self._add(picture, Object(record.place, of, own, number, name, box, True, bool(value.get("iscrowd"))))

        self._each(file, "annotations", "bbox", use, may_lack=True)

    # Helpers -----------------------------------------------------------------------------------------------------

    def _each(
        self, file: RecordFile, table: str, needed: str, use: Callable[..., None], may_lack: bool = False
    ) -> None:
        """Calls `use(record, value, changes)` for every record of a table; what that raises makes a bad row.

        The first record of a table must have the field that is `needed`, or the file is another one than the flag
        says. `may_lack`: the table may be empty.
        """
        found = False
        for record in file:
            if file.tables and record.table != table:
                continue
            changes: set[str] = set()
            try:
                if isinstance(record.value, RowProblem):
                    raise record.value
                if not found and file.tables and needed not in record.value:
                    there = ", ".join(list(record.value)[:6])
                    where = f"{file.flag} {record.place}"
                    raise UserError(f"{where} has no {needed}, but {there}: is the file meant for another flag?")
                found = True
                use(record, record.value, changes)
            except RowProblem as problem:
                self.report.bad(record.place, problem)
            for kind in sorted(changes):
                self.report.change(kind, record.place)
            found = True
        if not found and not may_lack:
            raise UserError(f"{file.flag} {file.path}: holds no {table or 'rows'}")

    def _add(self, picture: int, item: Any) -> None:
        self.spool.see(type(item).__name__, item.id, item.place)
        self.spool.add(picture, item)

    def _read_pictures(self, file: RecordFile, listing: bool = False) -> dict[str, tuple[int, str]]:
        """Keeps which picture each id of the table `images` means, or why it means none.

        Args:
            file: a file with tables.
            listing: each picture has a list of objects, and one that is not found is a bad row.

        Returns:
            id -> (number, name) of the table `categories`.
        """
        names = {}
        for record in file:
            if record.table not in ("images", "categories"):
                continue
            changes: set[str] = set()
            try:
                if isinstance(record.value, RowProblem):
                    raise record.value
                if (key := record.value.get("id")) is None:
                    raise RowProblem("id is missing", "write one")
                if record.table == "categories":
                    number = key if isinstance(key, int) else 0
                    names[str(key)] = number, tidy(record.value.get("name"), "name", changes)
                    continue
                size = _size(record.value)
                number, problem = self._find(file, key, record.value.get("file_name"), record.place, listing)
                if listing and problem:
                    raise RowProblem(*problem)
                if listing:
                    self._add(number, ObjectList(record.place, str(key), size, f"{file.path} {key}"))
            except RowProblem as problem:
                self.report.bad(record.place, problem)
        return names

    def _find(self, file: RecordFile, key: object, name: object, place: Place, named: bool) -> tuple[int | None, Any]:
        """Finds a picture by its name, or else its id, and keeps what was found."""
        number, problem = None, None
        try:
            path = self.finder.find(key if name is None else name, place)
            number = self.spool.picture(path, tidy_id(key, "", set()))
        except RowProblem as found:
            problem = [found.reason, found.remedy]
        if not self.spool.put_entry(str(file.path), str(key), [number, problem, named]):
            raise RowProblem(f"id {plain(str(key))} is another picture's too", "give each picture an id of its own")
        return number, problem

    def _picture(self, file: RecordFile, record: Record) -> int:
        """The number of the picture that a record is about.

        Raises:
            RowProblem: there is none.
        """
        image, key = record.value.get("image"), record.value.get("image_id")
        if image is not None or not file.tables:
            path = self.finder.find(key if image is None else image, record.place)
            return self.spool.picture(path, self.finder.name(path))
        if key is None:
            raise RowProblem("image_id is missing", "write that of its picture")
        entry = self.spool.entry(str(file.path), str(key))
        number, problem = entry[:2] if entry else self._find(file, key, None, record.place, False)
        if problem:
            raise RowProblem(*problem)
        return number


def dataset_name(path: str | Path) -> str:
    """What the rows of a file are named after: its name, without the ending, on one line."""
    return plain(" ".join(Path(path).stem.split()))


def _id(record: Record, changes: set[str]) -> str:
    value = record.value.get("question_id", record.value.get("id"))
    return tidy_id(value, f"{dataset_name(record.place.file)}-{record.number}", changes)


def _size(value: dict[str, Any]) -> list[int] | None:
    """Width and height that a record says its picture has."""
    size = [value.get("width"), value.get("height")]
    return size if all(isinstance(side, int) and side > 0 for side in size) else None
