"""Pictures that a run has made, kept until it is finished: one after a run that was killed goes on from them."""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import threading
from pathlib import Path

from ...progress import say
from .pictures import PictureStore, Stored

FILE = ".prepare.pictures.sqlite"
TOGETHER = 50  # pictures that a killed run may lose


class KeptPictures:
    """Makes the cells of pictures as its store does, but none twice: what was made stands in a file in OUT.

    A picture whose file has changed since, or that was made with other settings, is made anew. `with` deletes the file
    at the end, and leaves it there if the body raises. Any number of threads may call one.

    Args:
        store: makes cells.
        folder: OUT.
    """

    def __init__(self, store: PictureStore, folder: Path):
        self.store, self.file = store, folder / FILE
        self._lock = threading.Lock()
        self._new = 0

    def __enter__(self) -> KeptPictures:
        self._base = self._opened()
        if self._base is not None:
            (count,) = self._base.execute("SELECT COUNT(*) FROM made").fetchone()
            if count:
                say(f"{self.file.parent}: goes on with {count} pictures of a run that did not finish")
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._base is None:
            return
        if kind is not None:
            self._base.commit()
        self._base.close()
        if kind is None:
            self.file.unlink(missing_ok=True)

    def __call__(self, path: str) -> Stored:
        """The cells of a picture.

        Raises:
            RowProblem: it cannot be read.
        """
        if self._base is None:
            return self.store(path)
        stamp = _stamp(path)
        with self._lock:
            found = self._base.execute(
                "SELECT value FROM made WHERE path = ? AND stamp = ?", (os.fsencode(path), stamp)
            ).fetchone()
        if found:
            return self._read(path, json.loads(found[0]))
        stored = self.store(path)
        if stamp:
            own = self.store.keeps_file(stored)  # then its bytes stand in it already
            value = json.dumps(stored._replace(cell="" if own else stored.cell))
            with self._lock:
                self._base.execute("INSERT OR REPLACE INTO made VALUES (?, ?, ?)", (os.fsencode(path), stamp, value))
                self._new += 1
                if self._new % TOGETHER == 0:
                    self._base.commit()
        return stored

    def _read(self, path: str, value: list) -> Stored:
        cell, size, scale, code_cell, codes, changes = value
        if not cell:
            cell = base64.b64encode(self.store.reader.file(path)).decode()
        return Stored(cell, tuple(size), tuple(scale), code_cell, codes, changes)

    def _opened(self) -> sqlite3.Connection | None:
        """The file, empty unless it is of the same settings; None while another run has it."""
        settings = json.dumps(self.store.settings)
        for _ in range(2):
            base = sqlite3.connect(self.file, timeout=0, check_same_thread=False)
            try:
                base.execute("PRAGMA locking_mode = EXCLUSIVE")
                base.execute("PRAGMA synchronous = OFF")
                base.execute("CREATE TABLE IF NOT EXISTS settings (value TEXT)")
                base.execute("CREATE TABLE IF NOT EXISTS made (path BLOB PRIMARY KEY, stamp TEXT, value TEXT)")
                if base.execute("SELECT value FROM settings").fetchall() != [(settings,)]:
                    base.execute("DELETE FROM settings")
                    base.execute("DELETE FROM made")
                    base.execute("INSERT INTO settings VALUES (?)", (settings,))
                    base.commit()
                return base
            except sqlite3.OperationalError as error:
                base.close()
                if "locked" in str(error):
                    return None
                raise
            except sqlite3.DatabaseError:  # it is damaged
                base.close()
                self.file.unlink(missing_ok=True)
        return None


def _stamp(path: str) -> str:
    """What changes when a file does; empty where it cannot be looked at."""
    try:
        about = os.stat(path)
    except OSError:
        return ""
    return f"{about.st_size}:{about.st_mtime_ns}"
