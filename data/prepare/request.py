"""What a user asks of `ofa prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    subset: str = "train"
    embed_images: bool = True
    max_side: int | None = None
    code_image_size: int = 128
    codes: bool = True
    grounding: bool = True
    workers: int = 1
    force: bool = False
