"""What a user asks of `ofa prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FILES = ("captions", "questions", "annotations", "boxes", "text", "refs", "rows")
"""The flags that name the user's files."""


@dataclass(frozen=True)
class Request:
    """What was asked for; the fields are the command's flags."""

    out: Path
    images: Path | None = None
    captions: tuple[Path, ...] = ()
    questions: tuple[Path, ...] = ()
    annotations: tuple[Path, ...] = ()
    boxes: tuple[Path, ...] = ()
    text: tuple[Path, ...] = ()
    refs: tuple[Path, ...] = ()
    rows: tuple[Path, ...] = ()
    task: str = "unify_task"
    take: tuple[tuple[str, str], ...] = ()  # (field, value): only records that have it
    subset: str = "train"
    split: tuple[tuple[str, float], ...] = ()  # (subset, share of the pictures); instead of `subset`
    seed: int = 1
    answers: int = 3129  # most frequent answers that make the set
    min_count: int = 1  # times that an answer of the set must occur
    join_captions: bool = False
    label_order: tuple[str, ...] = ()
    class_names: Path | None = None
    embed_images: bool = True
    max_side: int | None = None
    code_image_size: int = 128
    codes: bool = True
    grounding: bool = True
    workers: int = 1
    force: bool = False
