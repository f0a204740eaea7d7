"""What the user's records mean: COCO's, VQAv2's and plain ones become captions, questions, regions and object lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError
from .clean import confidences, tidy, tidy_box, tidy_id, tidy_names
from .negatives import question_type
from .pictures import PictureFinder
from .readers import Record, RecordFile, parsed, text_lines, voc_files, voc_record
from .report import Place, Report, RowProblem, plain
from .spool import Spool

NO_QUESTION = "annotations without a question, left out"
LOST_OBJECTS = "objects of pictures that could not be used"
NOT_TAKEN = "records passed over by --take"
UNLABELLED = "rows without a label on which the annotators agreed ('-' or empty), left out"

PICTURE_FIELDS = ("image", "image_path", "file_name", "filename", "filepath", "path", "file", "img")
"""Fields that may name a record's picture, the first that is there."""
PICTURE_IDS = ("image_id", "Flickr30K_ID", "Flikr30kID")
"""Fields that may hold its number, or its name without an ending."""
_EXPRESSION = ("text", "expression", "sentence", "sent", "caption", "phrase")
_CORNERS = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))
_SIZED = (("x", "y", "width", "height"), ("x", "y", "w", "h"))
_SEPARATORS = re.compile(r"[,;\s]+")


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


class Labelled(NamedTuple):
    """Texts and a label of a task's own, as `read_rows` finds them; of a picture, or of the first text."""

    place: Place
    id: str
    texts: list[str]
    label: str
    source: str


KINDS = {kind.__name__: kind for kind in (Caption, Question, Region, ObjectList, Object, Labelled)}


class Column(NamedTuple):
    """A column of a task: what its field may be called, the first being our name, and whether it may be left out."""

    names: tuple[str, ...]
    optional: bool = False

    def find(self, record: Mapping[str, Any]) -> Any:
        """The first of its fields that a record has, or None; case does not count."""
        lower = {name.lower(): value for name, value in record.items()}
        return next((lower[name.lower()] for name in self.names if lower.get(name.lower()) is not None), None)


class Sources:
    """Reads the user's files into the spool.

    Args:
        spool: takes the items.
        finder: finds the pictures.
        report: is told of bad rows and of changes.
        take: (field, value) that a record must have, or it is passed over.
    """

    def __init__(self, spool: Spool, finder: PictureFinder, report: Report, take: Sequence[tuple[str, str]] = ()):
        self.spool, self.finder, self.report, self.take = spool, finder, report, take

    def read_captions(self, path: Path) -> None:
        """COCO captions, or `{"image": path, "caption": text or [text, ...], "id"?, "objects"?}`."""
        file = RecordFile(path, "--captions")
        if file.tables:
            self._read_pictures(file)

        def use(record: Record, value: dict[str, Any], changes: set[str]) -> None:
            texts = value.get("caption", value.get("captions"))
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
        """COCO instances, or `{"image", "objects": [{"box", "name"}, ...]}`, or `{"image", "text", "box"}`, or VOC."""
        files = voc_files(path)
        if files is not None:
            if not files:
                raise UserError(f"--boxes {path}: no .xml of Pascal VOC in this folder")
            for each in files:
                self._read_voc(each)
            return
        file = RecordFile(path, "--boxes")
        if file.tables:
            self._read_instances(file)
        else:
            self._each(file, "", "", lambda *row: self._use_boxes(file, *row))

    def read_refs(self, path: Path) -> None:
        """Referring expressions: RefCOCO's refs, or `{"image", "text", "box"}`, as JSON, JSONL or a table.

        A ref names its picture by `image_id` (the file name of RefCOCO's is no picture's), its sentences stand in
        `sentences`, and its box in `bbox` (x, y, width, height) or behind its `ann_id` in COCO instances
        (`keep_boxes`). Columns x0, y0, x1, y1 and x, y, width, height are read, too.
        """
        file = RecordFile(path, "--refs")

        def use(record: Record, value: dict[str, Any], changes: set[str]) -> None:
            texts = value.get("sentences")
            if texts is None:
                texts = next((value[name] for name in _EXPRESSION if value.get(name) is not None), None)
            texts = texts if isinstance(texts, list) else [texts]
            texts = [one.get("sent", one.get("raw")) if isinstance(one, dict) else one for one in texts]
            texts = [tidy(text, "text", changes) for text in texts]
            if not texts:
                raise RowProblem("sentences is an empty list", "write one, or delete the row")
            box = list(self._box(value))
            key = _id(record, changes, "ref_id")
            picture = self._picture(file, record, numbered="sentences" in value)
            for number, text in enumerate(texts):
                own = key if len(texts) == 1 else f"{key}_{number}"
                self._add(picture, Region(record.place, own, text, box, dataset_name(path)))

        self._each(file, "refs" if file.tables else "", "image_id", use)

    def keep_boxes(self, path: Path) -> None:
        """Keeps the boxes and pictures of COCO instances, to which refs point by `ann_id` and `image_id`."""
        file = RecordFile(path, "--boxes")
        if not file.tables:
            raise UserError(f"--boxes {path}: beside --refs it gives COCO instances, the boxes by ann_id; give these")
        for record in file:
            if record.table not in ("images", "annotations") or isinstance(record.value, RowProblem):
                continue
            key = str(record.value.get("id"))
            if record.table == "images":
                self.spool.put_entry("images of refs", key, record.value.get("file_name"))
            else:
                self.spool.put_entry("boxes of refs", key, record.value.get("bbox"))

    def read_rows(self, path: Path, texts: Sequence[Column], label: Column | None, pictures: bool, labels: Any) -> None:
        """A task's rows: JSONL, JSON or a table, with the columns' names as fields.

        Args:
            path: the file.
            texts: the columns of text.
            label: the column of the label, if there is one.
            pictures: whether a row has a picture; else rows are kept by their first text.
            labels: label as given, and the record's place, to the label to write; None leaves the row out, counted.

        Raises:
            UserError: the first record has none of the columns.
        """
        file, wanted = RecordFile(path, "--rows"), [*texts, *([label] if label else [])]
        checked = False

        def use(record: Record, value: dict[str, Any], changes: set[str]) -> None:
            nonlocal checked
            if not checked and not any(column.find(value) is not None for column in wanted):
                names = ", ".join(column.names[0] for column in wanted)
                there = ", ".join(list(value)[:6])
                raise UserError(f"--rows {record.place} has none of the fields {names}, but {there}: name them so")
            checked = True
            found = []
            for column in texts:
                text = column.find(value)
                if text is None and column.optional:
                    found.append("")
                else:
                    found.append(tidy(text, column.names[0], changes, separators=False))
            given = None if label is None else label.find(value)
            text = ""
            if label is not None:
                given = str(given) if isinstance(given, (int, float)) and not isinstance(given, bool) else given
                text = labels("" if given is None else tidy(given, "label", changes) if given != "" else "")
                if text is None:
                    self.report.change(UNLABELLED, record.place)
                    return
            key = _id(record, changes, "idx", "index", "uniq_id", "pairID")
            if pictures:
                picture = self._picture(file, record)
            else:
                picture = self.spool.picture(found[0], found[0])
            self._add(picture, Labelled(record.place, key, found, text, dataset_name(path)))

        self._each(file, "", "", use)

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
            self._add_objects(picture, record, key, objects, str(record.place), changes)
        elif "text" in value or "box" in value:
            text, box = tidy(value.get("text"), "text", changes), list(tidy_box(value.get("box"), sized=False))
            self._add(self._picture(file, record), Region(record.place, key, text, box, dataset_name(file.path)))
        else:
            raise RowProblem("neither a list of objects nor a text and its box", "docs/own-data.md shows both forms")

    def _read_voc(self, path: Path) -> None:
        place, changes = Place(str(path), "annotation"), set()
        value = voc_record(path)
        record = Record(place, "", value, 1)
        try:
            if isinstance(value, RowProblem):
                raise value
            picture = self.spool.picture(found := self.finder.find(value["image"], place), self.finder.name(found))
            self._add(picture, ObjectList(place, dataset_name(path), _size(record.value), str(path)))
        except RowProblem as problem:
            self.report.bad(place, problem)
            return
        self._add_objects(picture, record, dataset_name(path), value["objects"], str(path), changes)
        for kind in sorted(changes):
            self.report.change(kind, place)

    def _add_objects(
        self, picture: int, record: Record, key: str, objects: list[Any], of: str, changes: set[str]
    ) -> None:
        """Keeps the objects of a list that the user wrote; a bad one is named, and noted as one that is lacking."""
        for number, one in enumerate(objects):
            place = Place(record.place.file, f"{record.place.where}: objects[{number}]")
            try:
                if not isinstance(one, dict):
                    raise RowProblem("no JSON object", 'write {"box": [x0, y0, x1, y1], "name": text}')
                name, box = tidy(one.get("name"), "name", changes), list(tidy_box(one.get("box"), sized=False))
            except RowProblem as problem:
                self.report.bad(place, problem)
                self.spool.add(picture, Object(place, of, "", 0, "", [], False, False))
                continue
            self.spool.add(picture, Object(place, of, f"{key}_{number}", 0, name, box, False, False))

    def _box(self, value: dict[str, Any]) -> tuple[float, float, float, float]:
        """The box of an expression, as corners."""
        if value.get("box") is not None:
            return tidy_box(_numbers(value["box"]), sized=False)
        if value.get("bbox") is not None:
            return tidy_box(_numbers(value["bbox"]), sized=True)
        for names, sized in (*((names, True) for names in _SIZED), *((names, False) for names in _CORNERS)):
            if all(name in value for name in names):
                return tidy_box(_numbers([value[name] for name in names]), sized=sized)
        if (key := value.get("ann_id")) is not None:
            box = self.spool.entry("boxes of refs", str(key))
            if box is None:
                raise RowProblem(f"ann_id {key} has no box", "give the COCO instances that hold it as --boxes")
            return tidy_box(box, sized=True)
        raise RowProblem("no box", "write box: x0,y0,x1,y1, or bbox: x,y,width,height, in pixels")

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
                if any(str(record.value.get(name)) != wanted for name, wanted in self.take):
                    self.report.change(NOT_TAKEN, record.place)
                    continue
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

    def _picture(self, file: RecordFile, record: Record, numbered: bool = False) -> int:
        """The number of the picture that a record is about.

        Args:
            file, record: where it stands.
            numbered: its `image_id` counts, whatever file name stands beside it.

        Raises:
            RowProblem: there is none.
        """
        value = record.value
        image = next((value[name] for name in PICTURE_FIELDS if value.get(name) is not None), None)
        key = next((value[name] for name in PICTURE_IDS if value.get(name) is not None), None)
        if numbered and key is not None:
            image = self.spool.entry("images of refs", str(key))
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


def _numbers(value: Any) -> Any:
    """A box of a table, `"10,20,30.5,40"` or four cells, as numbers; anything else as it stands, to be refused."""
    parts = _SEPARATORS.split(value.strip(" []()")) if isinstance(value, str) else value
    if not isinstance(parts, list):
        return value
    try:
        return [float(part) if isinstance(part, str) else part for part in parts]
    except ValueError:
        return value


def dataset_name(path: str | Path) -> str:
    """What the rows of a file are named after: its name, without the ending, on one line."""
    return plain(" ".join(Path(path).stem.split()))


def _id(record: Record, changes: set[str], *others: str) -> str:
    names = ("question_id", *others, "id")
    value = next((record.value[name] for name in names if record.value.get(name) is not None), None)
    return tidy_id(value, f"{dataset_name(record.place.file)}-{record.number}", changes)


def _size(value: dict[str, Any]) -> list[int] | None:
    """Width and height that a record says its picture has."""
    size = [value.get("width"), value.get("height")]
    return size if all(isinstance(side, int) and side > 0 for side in size) else None
