"""The machine that this runs on; costs nothing to import."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Where files are kept that can be made again: $OFA_CACHE, else `ofa` in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("OFA_CACHE")
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ofa").absolute()
