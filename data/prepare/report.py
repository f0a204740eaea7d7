"""What happened to the rows: the bad ones, each by its place, and how often each kind of change was made."""

from __future__ import annotations

import sys
import time
from typing import IO, NamedTuple

from ...errors import Problem

NAMED = 3  # places that the summary names of each kind of change


class Place(NamedTuple):
    """Where a record stands: `rows.jsonl:12`, `rows.jsonl:12: objects[3]`, or `coco.json: annotations[17] (id 5)`."""

    file: str
    where: str

    def __str__(self) -> str:
        return f"{self.file}:{self.where}" if self.where[:1].isdigit() else f"{self.file}: {self.where}"


def plain(text: str) -> str:
    """A text that any file and any terminal takes: half characters, as in odd file names, are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


class RowProblem(Problem):
    """Why a record cannot become a row."""


class Report:
    """Names bad rows at once, on standard error and in a file, and counts what was changed.

    Args:
        ledger: takes one line for each bad row: file, place in it, reason, what to do, separated by tabs.
    """

    def __init__(self, ledger: IO[str]):
        self.ledger = ledger
        self.bad_rows = 0
        self.rows: dict[str, dict[str, int]] = {}  # file -> kind of row -> number of rows
        self.changes: dict[str, int] = {}
        self.named: dict[str, list[str]] = {}
        self.summary: list[str] = []

    def bad(self, place: Place, problem: RowProblem) -> None:
        """Names one row that is left out."""
        self.bad_rows += 1
        print(f"{place}: {problem}", file=sys.stderr)
        cells = (place.file, place.where, problem.reason, problem.remedy)
        self.ledger.write("\t".join(plain(" ".join(cell.split())) for cell in cells) + "\n")

    def change(self, kind: str, place: object) -> None:
        """Counts one change, and keeps its place if it is among the first of its kind."""
        self.changes[kind] = self.changes.get(kind, 0) + 1
        named = self.named.setdefault(kind, [])
        if len(named) < NAMED:
            named.append(plain(str(place)))

    def row(self, file: str, kind: str) -> None:
        """Counts one row written."""
        kinds = self.rows.setdefault(file, {})
        kinds[kind] = kinds.get(kind, 0) + 1

    def change_lines(self) -> list[str]:
        """One line for each kind of change: how many, and the first few."""
        return [
            f"{kind}: {count} ({'; '.join(self.named[kind])}{'; ...' if count > len(self.named[kind]) else ''})"
            for kind, count in self.changes.items()
        ]


class Progress:
    """How far a long job is, on standard error: nothing in the first three seconds, then a line every five.

    Args:
        what: the job, for example `captions.json`.
        unit: what is counted, in the plural.
        total: how many there are.
        clock: seconds.
    """

    def __init__(self, what: str, unit: str, total: int, clock=time.monotonic):
        self.what, self.unit, self.total, self.clock = what, unit, total, clock
        self.begin = clock()
        self.next = self.begin + 3

    def show(self, done: int) -> None:
        """Prints a line if one is due."""
        now = self.clock()
        if now < self.next or not done:
            return
        rate = done / (now - self.begin)
        left = max(self.total - done, 0) / rate
        share = 100 * done // max(self.total, 1)
        line = f"{self.what}: {done} of {self.total} {self.unit} ({share} %), {rate:.0f}/s, {_time(left)} left"
        print(line, file=sys.stderr, flush=True)
        self.next = now + 5


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
