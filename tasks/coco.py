"""Objects in COCO's format, and what pycocotools makes of them."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

Seen = tuple[Sequence[float], str, float]  # x0 y0 x1 y1 in pixels of the stored picture, name, confidence
Known = tuple[Sequence[float], str, str]  # the same, and the number that the file gives the object


def categories(known: Mapping[int, Sequence[Known]], seen: Mapping[int, Sequence[Seen]]) -> dict[str, int]:
    """The id of every name: the number that the file gives it, or from 1 on in the order of the alphabet.

    The file's numbers count where each name has a whole number of its own; names that only the answers have follow.
    """
    given: dict[str, set[str]] = {}
    for row in sorted(known):
        for _, name, number in known[row]:
            given.setdefault(name, set()).add(number)
    numbers = [next(iter(found)) for found in given.values() if len(found) == 1]
    if given and len(set(numbers)) == len(given) and all(number.isascii() and number.isdigit() for number in numbers):
        ids = {name: int(number) for name, number in zip(given, numbers, strict=True)}
    else:
        ids = {name: number for number, name in enumerate(sorted(given), 1)}
    unknown = sorted({name for objects in seen.values() for _, name, _ in objects} - ids.keys())
    return ids | {name: number for number, name in enumerate(unknown, max(ids.values(), default=0) + 1)}


def results(
    seen: Mapping[int, Sequence[Seen]], ids: Mapping[str, int], images: Mapping[int, Any]
) -> list[dict[str, Any]]:
    """The list that `COCO.loadRes` reads; `images` are the ids of the pictures by row."""
    return [
        {"image_id": images[row], "category_id": ids[name], "bbox": _sides(box), "score": confidence}
        for row in sorted(seen)
        for box, name, confidence in seen[row]
    ]


def annotations(
    known: Mapping[int, Sequence[Known]], ids: Mapping[str, int], images: Mapping[int, Any]
) -> dict[str, Any]:
    """What is there to be found, as `COCO` reads it."""
    found = []
    for row in sorted(known):
        for box, name, _ in known[row]:
            sides = _sides(box)
            whose = {"id": len(found) + 1, "image_id": images[row], "category_id": ids[name]}
            found.append({**whose, "bbox": sides, "area": sides[2] * sides[3], "iscrowd": 0})
    return {
        "images": [{"id": images[row]} for row in sorted(known)],
        "annotations": found,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }


def average_precision(known: Mapping[int, Sequence[Known]], seen: Mapping[int, Sequence[Seen]]) -> dict[str, float]:
    """COCO's average precision, over overlaps of 0.5 to 0.95 and at 0.5; mean over names; {} without pycocotools.

    Args:
        known: objects by row, of the rows that have a reference.
        seen: answers by row; those of other rows do not count.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        logger.warning("coco_ap and coco_ap50 need pycocotools: pip install 'ofa-plugin[eval]'")
        return {}
    seen = {row: objects for row, objects in seen.items() if row in known}
    ids, rows = categories(known, seen), {row: row for row in known}
    if not any(known.values()) or not any(seen.values()):  # pycocotools fails on an empty list
        return {"coco_ap": 0.0, "coco_ap50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        right = COCO()
        right.dataset = annotations(known, ids, rows)
        right.createIndex()
        judge = COCOeval(right, right.loadRes(results(seen, ids, rows)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {"coco_ap": round(float(judge.stats[0]), 4), "coco_ap50": round(float(judge.stats[1]), 4)}


def _sides(box: Sequence[float]) -> list[float]:
    """x0 y0 x1 y1 as x y width height."""
    x0, y0, x1, y1 = map(float, box)
    return [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
