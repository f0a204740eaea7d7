"""A bar that shows how far a long job is, and how long it will take."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(total: int, unit: str, name: str, delay: float = 0) -> Any:
    """A tqdm on standard error; a log file gets few lines of it.

    Args:
        total: how many there are.
        unit: what is counted: "row"; "B" for bytes, which are shown in thousands and millions.
        name: the job, such as the file that is written.
        delay: seconds in which nothing is shown, so that a short job shows nothing at all.
    """
    from tqdm import tqdm

    pause = 0.2 if sys.stderr.isatty() else 10
    scaled = unit == "B"
    return tqdm(total=total, unit=unit, unit_scale=scaled, mininterval=pause, desc=name, file=sys.stderr, delay=delay)


def say(line: str) -> None:
    """Prints a line on standard error, above a bar that stands there."""
    if not sys.stderr.isatty():
        print(line, file=sys.stderr)
        return
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
