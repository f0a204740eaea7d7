"""Files that appear whole: written under other names, renamed when all of them are finished."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ...errors import UserError

_LEFT = re.compile(r"\.(?:.+\.(?:tsv|txt|json)\.(\d+)\.tmp|prepare\.(\d+)\.sqlite)")


def clear_leftovers(folder: Path) -> None:
    """Deletes what a run that was killed had not finished, so that the next starts over; a living run's stays."""
    left = []
    for path in [*folder.glob(".*"), *folder.glob("*/.*")]:
        found = _LEFT.fullmatch(path.name)
        if found and not _lives(int(found[1] or found[2])):
            path.unlink(missing_ok=True)
            left.append(path)
    if left:
        print(f"{folder}: an earlier run did not finish; its {len(left)} files are deleted", file=sys.stderr)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


class Outputs:
    """The files of one run, below one folder.

    `with Outputs(folder) as outputs:` leaves nothing behind if the body raises or `finish` is not called.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, IO[str]] = {}

    def refuse_existing(self, names: Iterable[str]) -> None:
        """Raises UserError if one of these is there."""
        if there := [str(self.folder / name) for name in names if (self.folder / name).exists()]:
            files = there[0] if len(there) == 1 else f"{there[0]} and {len(there) - 1} more"
            raise UserError(f"{files}: already there; --force replaces them, another OUT or --subset keeps them")

    def open(self, name: str) -> IO[str]:
        """A file to write, UTF-8 with plain newlines; the same one for the same name."""
        if name not in self.files:
            self._temporary(name).parent.mkdir(parents=True, exist_ok=True)
            self.files[name] = open(self._temporary(name), "w", encoding="utf-8", newline="\n", buffering=1 << 20)
        return self.files[name]

    def finish(self, empty: Iterable[str] = ()) -> None:
        """Gives every file its name. Of those in `empty`, one without content does not appear, nor stays an old one."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name in list(self.files):
            if name in empty and not self._temporary(name).stat().st_size:
                (self.folder / name).unlink(missing_ok=True)
            else:
                os.replace(self._temporary(name), self.folder / name)
                del self.files[name]

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *_: object) -> None:
        for name, file in self.files.items():
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                self._temporary(name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds something
                self._temporary(name).parent.rmdir()

    def _temporary(self, name: str) -> Path:
        path = self.folder / name
        return path.with_name(f".{path.name}.{os.getpid()}.tmp")
