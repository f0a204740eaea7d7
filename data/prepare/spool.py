"""What was read, on disk until it is written: items in the order of their pictures, ids seen, captions seen.

Annotation files name pictures in any order, and a picture's captions, questions and boxes stand in different files. A
temporary SQLite database brings them together, so that memory does not grow with the number of rows.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .report import Place, plain

_TABLES = """
CREATE TABLE picture (number INTEGER PRIMARY KEY, path BLOB UNIQUE, name TEXT);
CREATE TABLE item (picture INTEGER, kind TEXT, value TEXT);
CREATE TABLE entry (file TEXT, id TEXT, value TEXT, PRIMARY KEY (file, id)) WITHOUT ROWID;
CREATE TABLE answer (question TEXT, value TEXT);
CREATE INDEX answers ON answer (question);
CREATE TABLE stored (path BLOB, stem TEXT, number INTEGER);
CREATE INDEX stems ON stored (stem);
CREATE INDEX numbers ON stored (number);
CREATE TABLE seen (kind TEXT, id TEXT, place TEXT);
CREATE TABLE caption (text TEXT);
"""


class Picture(NamedTuple):
    """A picture that something was said of: its file, its name in the rows, and what was said."""

    path: str
    name: str
    items: list[Any]
    number: int = 0  # in the order first named, from 1


class Spool:
    """The temporary database; close it to delete it.

    Args:
        folder: where it may lie; as large as the annotations, without the pictures.
        kinds: the item types by name; each is a NamedTuple of what JSON can hold, its first field a `Place`.
    """

    def __init__(self, folder: Path, kinds: dict[str, Any]):
        self.file = folder / f".prepare.{os.getpid()}.sqlite"
        self.kinds = kinds
        self.names = {kind: name for name, kind in kinds.items()}
        self.file.unlink(missing_ok=True)
        self.base = sqlite3.connect(self.file, isolation_level=None)
        self.base.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _TABLES + "BEGIN;")

    def close(self) -> None:
        """Deletes it."""
        self.base.close()
        self.file.unlink(missing_ok=True)

    def picture(self, path: str, name: str) -> int:
        """The number of a picture; the first name that it is given stays."""
        key = os.fsencode(path)
        self.base.execute("INSERT OR IGNORE INTO picture (path, name) VALUES (?, ?)", (key, plain(name)))
        return self.base.execute("SELECT number FROM picture WHERE path = ?", (key,)).fetchone()[0]

    def add(self, picture: int, item: Any) -> None:
        """Keeps something that was said of a picture."""
        self.base.execute("INSERT INTO item VALUES (?, ?, ?)", (picture, self.names[type(item)], json.dumps(item)))

    def pictures(self) -> Iterator[Picture]:
        """All pictures in the order in which they were first named, each with its items in the order added."""
        self.base.execute("CREATE INDEX IF NOT EXISTS items ON item (picture)")
        rows = self.base.execute(
            "SELECT number, path, name, kind, value FROM picture LEFT JOIN item ON picture = number "
            "ORDER BY number, item.rowid"
        )
        for _, group in itertools.groupby(rows, key=lambda row: row[1]):
            items, number, path, name = [], 0, b"", ""
            for number, path, name, kind, value in group:  # noqa: B007  the last ones are used
                if kind is not None:
                    place, *fields = json.loads(value)
                    items.append(self.kinds[kind](Place(*place), *fields))
            yield Picture(os.fsdecode(path), name, items, number)

    def names_of_pictures(self) -> Iterator[tuple[int, str]]:
        """(number, name) of every picture."""
        return iter(self.base.execute("SELECT number, name FROM picture ORDER BY number"))

    def count(self, table: str = "item") -> int:
        """The number of rows of a table."""
        return self.base.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]

    # What files say of pictures and answers, by id

    def put_entry(self, file: str, key: str, value: Any) -> bool:
        """Keeps a value by file and id; False if that id had one, which stays."""
        done = self.base.execute(
            "INSERT OR IGNORE INTO entry VALUES (?, ?, ?)", (plain(file), plain(key), json.dumps(value))
        )
        return done.rowcount > 0

    def entry(self, file: str, key: str) -> Any:
        """What `put_entry` kept, or None."""
        row = self.base.execute(
            "SELECT value FROM entry WHERE file = ? AND id = ?", (plain(file), plain(key))
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def put_answer(self, question: str, value: Any) -> None:
        """Keeps the annotation of a question."""
        self.base.execute("INSERT INTO answer VALUES (?, ?)", (plain(question), json.dumps(value)))

    def take_answer(self, question: str) -> Any:
        """The first annotation of a question that was not yet taken, or None."""
        row = self.base.execute(
            "SELECT rowid, value FROM answer WHERE question = ? ORDER BY rowid LIMIT 1", (plain(question),)
        ).fetchone()
        if row is None:
            return None
        self.base.execute("DELETE FROM answer WHERE rowid = ?", (row[0],))
        return json.loads(row[1])

    def answers_left(self) -> Iterator[str]:
        """The question ids of the annotations that nobody took."""
        return (row[0] for row in self.base.execute("SELECT question FROM answer ORDER BY rowid"))

    # The files of the folder of pictures

    def put_stored(self, path: str, stem: str, number: int | None) -> None:
        """Keeps a file by its stem and by the number at its end."""
        self.base.execute("INSERT INTO stored VALUES (?, ?, ?)", (os.fsencode(path), plain(stem), number))

    def stored(self, column: str, value: str | int) -> list[str]:
        """At most two files whose `stem` or `number` is this."""
        key = plain(value) if isinstance(value, str) else value
        found = self.base.execute(f"SELECT path FROM stored WHERE {column} = ? ORDER BY rowid LIMIT 2", (key,))
        return [os.fsdecode(row[0]) for row in found]

    # What is seen twice

    def see(self, kind: str, key: str, place: Place) -> None:
        """Notes the id of a row."""
        self.base.execute("INSERT INTO seen VALUES (?, ?, ?)", (kind, key, plain(str(place))))

    def duplicates(self) -> Iterator[tuple[str, str, list[str]]]:
        """(kind, id, its first places) for each id that was seen more than once, in order."""
        twice = self.base.execute(
            "SELECT kind, id FROM seen GROUP BY kind, id HAVING COUNT(*) > 1 ORDER BY MIN(rowid)"
        ).fetchall()
        if twice:
            self.base.execute("CREATE INDEX ids ON seen (kind, id)")
        for kind, key in twice:
            places = self.base.execute("SELECT place FROM seen WHERE kind = ? AND id = ? LIMIT 3", (kind, key))
            yield kind, key, [place for (place,) in places]

    def see_caption(self, text: str) -> None:
        """Notes a caption that was written."""
        self.base.execute("INSERT INTO caption VALUES (?)", (text,))

    def captions(self) -> Iterator[str]:
        """The different captions, in the order in which they were first seen."""
        return (row[0] for row in self.base.execute("SELECT text FROM caption GROUP BY text ORDER BY MIN(rowid)"))
