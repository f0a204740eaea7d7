"""Records out of the user's files, one at a time: JSON of any size, JSONL, text. Content decides, never a name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UserError
from .report import Place, Progress, RowProblem, plain

_CHUNK = 1 << 20  # characters read at once
_SNIFFED = 1 << 20  # bytes of a first line that are looked at; one that is longer is JSON written in one line
_TABLES = ("annotations", "images", "questions", "categories")  # keys that make a JSON object COCO's or VQAv2's


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
    """A file of records: JSON with tables (COCO, VQAv2), a JSON list, or JSONL.

    Args:
        path: the file.
        flag: the option that named it, for messages.

    Raises:
        UserError: none of the three.
    """

    def __init__(self, path: Path, flag: str):
        self.path, self.flag = path, flag
        self.lines, self.tables = self._sniff()

    def __iter__(self) -> Iterator[Record]:
        """All records, in order.

        Raises:
            UserError: the JSON of a whole file is broken; a broken line of JSONL is a record with a problem.
        """
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
            if start == b"{" or any(parsed(file.readline(_SNIFFED)) for _ in range(20)):
                return True, False
        raise UserError(f"{self.flag} {self.path}: neither JSON nor JSONL: docs/prepare.md shows what is read")

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


def text_lines(path: Path) -> Iterator[tuple[int, str | RowProblem]]:
    """The lines of a file, counted from 1, ended by a newline byte and nothing else, with progress on long ones."""
    progress, done = Progress(str(path), "bytes", os.path.getsize(path)), 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            done += len(line)
            progress.show(done)
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
    size = os.path.getsize(path)
    progress = Progress(str(path), "bytes", size)
    with open(path, encoding="utf-8-sig") as file:
        stream = _JsonStream(file)
        if stream.take("["):
            for number, value in enumerate(stream.elements()):
                progress.show(stream.read)
                yield "", number, value
        elif stream.take("{"):
            more = not stream.take("}")
            while more:
                key = stream.value()
                stream.expect(":")
                if stream.take("["):
                    for number, value in enumerate(stream.elements()):
                        progress.show(stream.read)
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
