"""What several verbs need: a number within its limits, and a bar that shows how far the work is."""

from __future__ import annotations

import sys
from typing import Any

from ..errors import UserError


def within(flag: str, value: int, least: int, most: int | None = None) -> int:
    """The value of a flag. Raises UserError where it is too small, or too large."""
    if value < least or (most is not None and value > most):
        limits = f"from {least} on" if most is None else f"from {least} to {most}"
        raise UserError(f"{flag} {value}: give a number {limits}")
    return value


def progress_bar(total: int, unit: str, name: str) -> Any:
    """A tqdm on standard error; a log file gets few lines of it."""
    from tqdm import tqdm

    pause = 0.2 if sys.stderr.isatty() else 10
    return tqdm(total=total, unit=unit, mininterval=pause, desc=name, file=sys.stderr)
