"""Runs `ofa prepare unify_task` in this process and reads what it wrote as training does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ofa_plugin import cli
from ofa_plugin.data.tsv import TSVStore

COLUMNS = {
    "vision_language": ("id", "image", "caption", "question", "refs", "objects", "dataset", "type"),
    "text": ("id", "text"),
    "image": ("id", "image", "codes"),
    "detection": ("id", "image", "objects"),
}


def prepare(out: Path, *flags: object) -> int:
    """The exit code of `ofa prepare unify_task OUT flags`."""
    return cli.main(["prepare", "unify_task", str(out), *map(str, flags)])


def rows(out: Path, kind: str, subset: str = "train") -> list[Any]:
    """The rows of one file, with the official columns as fields."""
    return list(TSVStore(out / subset / f"{kind}_examples.tsv", COLUMNS[kind]))


def bad_rows(out: Path, subset: str = "train") -> list[list[str]]:
    """(file, place, reason, what to do) of every bad row; none where there is no such file."""
    file = out / subset / "bad_rows.tsv"
    return [line.split("\t") for line in file.read_text(encoding="utf-8").split("\n")[:-1]] if file.exists() else []


def negatives(out: Path) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Captions, objects, answers by type."""
    texts = [(out / "negative_sample" / name).read_text("utf-8") for name in ("all_captions.txt", "object.txt")]
    types = json.loads((out / "negative_sample" / "type2ans.json").read_text("utf-8"))
    return texts[0].split("\n")[:-1], texts[1].split("\n")[:-1], types


def picture(path: Path, width: int = 100, height: int = 80, colour: tuple[int, int, int] = (200, 30, 30)) -> Path:
    """A picture of one colour in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


def jsonl(path: Path, records: Sequence[object]) -> Path:
    """Writes a record a line; a text is a line as it stands."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def coco(path: Path, **tables: list[dict[str, Any]]) -> Path:
    """Writes tables as COCO does, in one line."""
    path.write_text(json.dumps({"info": {"year": 2017}, **tables, "licenses": []}), encoding="utf-8")
    return path
