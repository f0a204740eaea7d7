"""The exceptions that stand for a mistake of the user's: shown as one line, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right. The message says what was wrong, where (file, line or flag), and what to do."""


class BadRow(UserError):
    """One row of a data file that cannot be used, printed as `file:line: column: reason: what to do`.

    Args:
        path: the data file as the user named it.
        line: 1-based line number.
        column: name of the column, or "row" where no single column is at fault.
        reason: what is wrong, with the value.
        remedy: what to do, with the flag where there is one.
    """

    def __init__(self, path: str, line: int, column: str, reason: str, remedy: str):
        super().__init__(path, line, column, reason, remedy)  # all five, so that a worker's copy unpickles
        self.path, self.line, self.column, self.reason, self.remedy = str(path), line, column, reason, remedy

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.column}: {self.reason}: {self.remedy}"


class Problem(UserError):
    """Something wrong with a cell, found by who knows neither file nor line: whoever reads the row adds them.

    Args:
        reason: what is wrong, with the value.
        remedy: what to do.
    """

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason, remedy)  # both, so that a worker's copy unpickles
        self.reason, self.remedy = reason, remedy

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"
