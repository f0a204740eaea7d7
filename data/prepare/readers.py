"""Records out of the user's files, one at a time: JSON of any size, JSONL, CSV and TSV with a header, Pascal VOC, text.

Content decides, never a name.
"""

from __future__ import annotations

import csv
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError
from ...progress import progress_bar
from .report import DELAY, Place, RowProblem, plain

_CHUNK = 1 << 20  # characters read at once
_SNIFFED = 1 << 20  # bytes of a first line that are looked at; one that is longer is JSON written in one line
_TABLES = ("annotations", "images", "questions", "categories")  # keys that make a JSON object COCO's or VQAv2's


_HEADER_CELL = re.compile(r"[A-Za-z#][\w .#-]{0,40}")
_AS_JSON = ("answers", "objects", "box", "bbox", "caption", "captions")  # cells that may hold a list or a dict
_LONGEST_CELL = 1 << 27  # characters; csv's own limit is 2 ** 17, less than a picture
_XML_UP_TO = 1 << 24  # bytes


class Record(NamedTuple):
    """One record.

    `table` is the list that it stands in ("annotations", "images", ...), "" for a line of JSONL or an element of a
    plain list; `value` what it holds, or the problem that kept it from being read; `number` its line or position.
    """

    place: Place
    table: str
    value: dict[str, Any] | RowProblem
    number: int


class RecordFile:
    """A file of records: JSON with tables (COCO, VQAv2), a JSON list, JSONL, or a table whose first line names columns.

    A table's columns are separated by tabs, and then a quotation mark is text, or by commas or semicolons (CSV).

    Args:
        path: the file.
        flag: the option that named it, for messages.

    Raises:
        UserError: none of these.
    """

    def __init__(self, path: Path, flag: str):
        self.path, self.flag = path, flag
        self.delimiter = ""  # of a table
        self.lines, self.tables = self._sniff()

    def __iter__(self) -> Iterator[Record]:
        """All records, in order.

        Raises:
            UserError: the JSON of a whole file is broken; a broken line of JSONL is a record with a problem.
        """
        if self.delimiter:
            return self._from_table()
        return self._from_lines() if self.lines else self._from_json()

    def _sniff(self) -> tuple[bool, bool]:
        """(it is JSONL, it has tables)."""
        with open(self.path, "rb") as file:
            head = file.read(3)
            file.seek(3 if head == b"\xef\xbb\xbf" else 0)
            line = b"\n"
            while line and not line.strip():
                line = file.readline(_SNIFFED)
            if not line:
                raise UserError(f"{self.flag} {self.path}: the file is empty")
            start = line.lstrip()[:1]
            if start == b"[":
                return False, False
            if start == b"{" and (value := parsed(line)) is None:
                return (True, False) if line.rstrip().endswith(b"}") and line.endswith(b"\n") else (False, True)
            if start == b"{" and any(isinstance(value.get(table), list) for table in _TABLES):
                return False, True
            if start == b"{":
                return True, False
            self.delimiter = _delimiter(line)
            if self.delimiter:
                return False, False
            if any(parsed(file.readline(_SNIFFED)) for _ in range(20)):
                return True, False
        raise UserError(
            f"{self.flag} {self.path}: neither JSON nor JSONL, nor a table whose first line names its columns: "
            "docs/own-data.md shows what is read"
        )

    def _from_table(self) -> Iterator[Record]:
        rows = _table_rows(self.path, self.delimiter)
        names: list[str] | None = None
        for number, cells in rows:
            place = Place(str(self.path), str(number))
            if names is None and not isinstance(cells, RowProblem):
                names = [name.strip().lstrip("\ufeff").strip() for name in cells]
            elif isinstance(cells, RowProblem):
                yield Record(place, "", cells, number)
            elif len(cells) != len(names):
                reason = f"{len(cells)} column{'s' if len(cells) != 1 else ''}, the first line names {len(names)}"
                quoted = f'put a text that holds {self.delimiter!r} in "double quotes"'
                remedy = "a tab inside a text, or a cell left out?" if self.delimiter == "\t" else quoted
                yield Record(place, "", RowProblem(reason, remedy), number)
            else:
                values = {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell.strip()}
                yield Record(place, "", values, number)

    def _from_lines(self) -> Iterator[Record]:
        for number, text in text_lines(self.path):
            place = Place(str(self.path), str(number))
            if isinstance(text, RowProblem):
                yield Record(place, "", text, number)
            elif text.strip():
                try:
                    value = _object(json.loads(text))
                except (ValueError, RecursionError) as error:
                    value = RowProblem(f"not readable as JSON ({error})", "one JSON object a line, in double quotes")
                yield Record(place, "", value, number)

    def _from_json(self) -> Iterator[Record]:
        try:
            for table, number, value in _elements(self.path):
                value = _object(value)
                known = None if isinstance(value, RowProblem) else value.get("id", value.get("question_id"))
                where = f"{table}[{number}]" if table else f"[{number}]"
                place = Place(str(self.path), where if known is None else f"{where} (id {plain(str(known))})")
                yield Record(place, table, value, number)
        except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError too
            raise UserError(f"{self.flag} {self.path}: not readable as JSON ({error})") from None


def _delimiter(line: bytes) -> str:
    """What separates the cells of a table's first line; "" where it does not look like names of columns."""
    try:
        text = line.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError:
        return ""
    for sign in "\t,;":
        names = [name.strip().strip('"') for name in text.split(sign)]
        if len(names) > 1 and len(set(names)) == len(names) and all(_HEADER_CELL.fullmatch(name) for name in names):
            return sign
    return ""


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | RowProblem]]:
    """The rows of a table with the line on which each begins; blank lines are passed over."""
    problem: list[tuple[int, RowProblem]] = []

    def lines() -> Iterator[str]:
        for number, text in text_lines(path):
            if isinstance(text, RowProblem):
                problem.append((number, text))
                text = ""
            yield f"{text}\n"

    if delimiter == "\t":
        for number, text in text_lines(path):
            if isinstance(text, RowProblem) or text.strip():
                yield number, text if isinstance(text, RowProblem) else text.split("\t")
        return
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    limit, begin = csv.field_size_limit(_LONGEST_CELL), 1
    try:
        for cells in reader:
            number, begin = begin, reader.line_num + 1
            if problem:
                yield problem[0][0], problem[0][1]
                problem.clear()
            elif any(cell.strip() for cell in cells):
                yield number, cells
    except csv.Error as error:  # a quotation mark that is never closed would swallow what follows
        raise UserError(
            f"{path}:{begin}: not readable as CSV ({error}): double the quotation marks inside a text, or separate "
            "the columns by tabs, where they mean nothing"
        ) from None
    finally:
        csv.field_size_limit(limit)


def _cell(name: str, cell: str) -> Any:
    """A cell of a table: a list or a dict where one is written as JSON in a column that may hold one."""
    if name.lower() in _AS_JSON and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def voc_files(path: Path) -> list[Path] | None:
    """The Pascal VOC files that a path means: every .xml below a folder, or itself; None where it is none of these."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*.xml") if not file.name.startswith("."))
    with open(path, "rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    return [path] if start.startswith((b"<?xml", b"<annotation")) else None


def voc_record(path: Path) -> dict[str, Any] | RowProblem:
    """A Pascal VOC file as `{"image", "width", "height", "objects": [{"name", "box"}, ...]}`."""
    if path.stat().st_size > _XML_UP_TO:
        return RowProblem(f"{path.stat().st_size} bytes, too much for one picture's annotation", "check the file")
    text = path.read_bytes()
    if b"<!ENTITY" in text or b"<!DOCTYPE" in text:
        return RowProblem("it defines entities, which no annotation needs", "remove the <!DOCTYPE ...>")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        return RowProblem(f"not readable as XML ({error})", "write it anew, or leave it out")
    if root.tag != "annotation":
        return RowProblem(f"<{root.tag}> where Pascal VOC has <annotation>", "give Pascal VOC files")
    objects = []
    for each in root.iter("object"):
        box = each.find("bndbox")
        corners = [None if box is None else _number(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")]
        objects.append({"name": each.findtext("name"), "box": corners})
    size = {name: _number(root.findtext(f"size/{name}")) for name in ("width", "height")}
    return {"image": root.findtext("filename") or path.stem, **size, "objects": objects}


def _number(text: str | None) -> float | int | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return int(value) if value.is_integer() else value


def text_lines(path: Path) -> Iterator[tuple[int, str | RowProblem]]:
    """The lines of a file, counted from 1, ended by a newline byte and nothing else, with progress on long ones."""
    with open(path, "rb") as file, progress_bar(os.path.getsize(path), "B", str(path), DELAY) as bar:
        for number, line in enumerate(file, 1):
            bar.update(len(line))
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                reason = f"byte 0x{line[error.start]:02x} after {error.start} bytes is not UTF-8"
                yield number, RowProblem(reason, "save the file as UTF-8")


def parsed(line: str | bytes) -> dict[str, Any] | None:
    """The JSON object that is a line, None if it is not one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _object(value: Any) -> dict[str, Any] | RowProblem:
    if isinstance(value, dict):
        return value
    return RowProblem(f"{json.dumps(value)[:60]} is no JSON object", 'write {"image": ..., ...}')


def _elements(path: Path) -> Iterator[tuple[str, int, Any]]:
    """The elements of a list, or of every list in an object, as (key, position, element); the rest is passed over."""
    with (
        open(path, encoding="utf-8-sig") as file,
        progress_bar(os.path.getsize(path), "B", str(path), DELAY) as bar,
    ):
        stream = _JsonStream(file)
        if stream.take("["):
            for number, value in enumerate(stream.elements()):
                bar.update(stream.read - bar.n)
                yield "", number, value
        elif stream.take("{"):
            more = not stream.take("}")
            while more:
                key = stream.value()
                stream.expect(":")
                if stream.take("["):
                    for number, value in enumerate(stream.elements()):
                        bar.update(stream.read - bar.n)
                        yield key, number, value
                else:
                    stream.value()
                more = stream.take(",")
                if not more:
                    stream.expect("}")
        if rest := stream.peek():
            raise ValueError(f"{rest!r} after {stream.read} characters, where the file should end")


class _JsonStream:
    """Values out of a JSON text of which only a part is in memory."""

    def __init__(self, file: Any):
        self.file = file
        self.buffer, self.at, self.ended = "", 0, False
        self.read = 0  # characters so far
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._more(_CHUNK):
                return ""

    def take(self, character: str) -> bool:
        """Passes over `character` if it comes next."""
        if self.peek() != character:
            return False
        self.at += 1
        return True

    def expect(self, character: str) -> None:
        if not self.take(character):
            found = self.peek()
            where = self.read - len(self.buffer) + self.at
            raise ValueError(f"{found!r} after {where} characters" if found else f"it ends before its {character!r}")

    def elements(self) -> Iterator[Any]:
        """The values up to the `]` of a list whose `[` was taken."""
        more = not self.take("]")
        while more:
            yield self.value()
            more = self.take(",")
            if not more:
                self.expect("]")

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        chunk = _CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
                if end < len(self.buffer) or self.ended:  # else a number might go on
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended:
                    where = self.read - len(self.buffer) + error.pos
                    raise ValueError(f"{error.msg} after {where} characters") from None
            self._more(chunk)
            chunk *= 2  # a value of any length is parsed a few times, not once a chunk

    def _more(self, length: int) -> bool:
        text = self.file.read(length)
        self.ended = not text
        self.read += len(text)
        self.buffer, self.at = self.buffer[self.at :] + text, 0
        return not self.ended
