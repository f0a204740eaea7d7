"""What happened to the rows: the bad ones, each by its place, and how often each kind of change was made."""

from __future__ import annotations

from typing import IO, NamedTuple

from ...errors import Problem
from ...progress import say

NAMED = 3  # places that the summary names of each kind of change
DELAY = 3.0  # seconds after which a job shows how far it is


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
        say(f"{place}: {problem}")
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
