"""The bad rows that a training run has met and gone on without: counted against a cap, and written down."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from torch import distributed

from ..errors import BadRow, UserError

logger = logging.getLogger(__name__)


class Ledger:
    """Each bad row once, in `bad_rows.tsv` of the save folder: file, line, column, reason, remedy.

    Every process writes a file of its own (`bad_rows.rank1.tsv`). What an earlier part of the run has written counts.

    Args:
        folder: `--save-dir`; made with the first bad row.
        files: the training files; what other runs wrote of other files does not count.
        allowed: how many bad rows there may be.
        rows: how many rows there are, for messages.
    """

    def __init__(self, folder: str, files: Collection[str], allowed: int, rows: int):
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
        self.path = Path(folder) / ("bad_rows.tsv" if rank == 0 else f"bad_rows.rank{rank}.tsv")
        self.allowed, self.rows, self._files = allowed, rows, files
        self.known: set[tuple[str, int]] = set()
        self._mend()
        self.read()

    def read(self) -> None:
        """Takes in what all processes have written; at the beginning of an epoch, when other rows come to this one."""
        for written in self.path.parent.glob("bad_rows*.tsv"):
            for line in written.read_text(encoding="utf-8").split("\n")[:-1]:
                path, number = line.split("\t")[:2]
                if path in self._files:
                    self.known.add((path, int(number)))
        self.met = len(self.known)  # by all processes

    def count(self, new: int) -> None:
        """Adds the rows that all processes have noted in an update.

        Raises:
            UserError: together they are too many, though no process has met as many.
        """
        self.met += new
        if self.met > self.allowed:
            raise UserError(
                f"{self.met} bad rows of {self.rows}, and --max-bad-fraction allows {self.allowed}: see "
                f"{self.path.parent}/bad_rows*.tsv"
            )

    def _mend(self) -> None:
        """Takes off what a killed process left of a last line, to which the next one would be joined."""
        if self.path.exists():
            with self.path.open("rb+") as ledger:
                ledger.truncate(ledger.read().rfind(b"\n") + 1)

    def note(self, bad_rows: Iterable[BadRow]) -> list[BadRow]:
        """Writes down those that are new, and returns them.

        Raises:
            BadRow: the first that is too many.
        """
        new = []
        for bad in bad_rows:
            if (bad.path, bad.line) in self.known:
                continue
            self.known.add((bad.path, bad.line))
            new.append(bad)
            if len(self.known) > self.allowed:
                share = f"bad row {len(self.known)} of {self.rows} rows, and --max-bad-fraction allows {self.allowed}"
                raise BadRow(bad.path, bad.line, bad.column, bad.reason, f"{bad.remedy} ({share})")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as ledger:
                said = (" ".join(cell.split()) for cell in (bad.column, bad.reason, bad.remedy))
                ledger.write("\t".join((bad.path, str(bad.line), *said)) + "\n")  # the path as a resumed run has it
            logger.warning("%s (left out of training; see %s)", bad, self.path)
        return new
