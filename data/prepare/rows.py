"""A picture and what was said of it become rows: what every task's row maker shares.

Makers touch nothing else, so any number of threads may call one.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ..boxes import BoxProblem, area, fit
from ..text import SEPARATOR
from .clean import box_text
from .pictures import Stored
from .report import Place, Report, RowProblem
from .sources import LOST_OBJECTS, Object, ObjectList, Region
from .spool import Picture

CLAMPED = "box corners up to 1 px outside, clamped"
NO_AREA = "objects without an area, left out"
CROWD = "objects with iscrowd, left out"
NO_OBJECTS = "pictures without objects, kept as negatives of detection"
ONLY_CROWDS = "pictures with nothing but crowds, without a detection row"
SHORT_LIST = "detection rows that lack an object named above"


@dataclass
class Made:
    """What became of one picture; `rows` are (file, kind, what stands before the picture's cell, what after)."""

    picture: Picture
    stored: Stored | None = None
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    bad: list[tuple[Place, RowProblem]] = field(default_factory=list)
    changes: list[tuple[str, object]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)

    def tell(self, report: Report) -> None:
        """Names the bad rows, and counts the changes."""
        for place, problem in self.bad:
            report.bad(place, problem)
        for kind, place in self.changes:
            report.change(kind, place)


class RowMaker:
    """Subclasses say which rows a picture has (`write`).

    Args:
        store: makes the picture's cell; None for a task without pictures.
    """

    def __init__(self, store: Callable[[str], Stored] | None):
        self.store = store

    def __call__(self, picture: Picture) -> Made:
        """All rows of a picture."""
        made = Made(picture)
        if self.store is not None:
            try:
                made.stored = self.store(picture.path)
            except RowProblem as problem:
                rows = [item.place for item in picture.items if not isinstance(item, Object)]
                made.bad = [(place, problem) for place in rows or [Place(picture.path, "picture")]]
                made.changes = [(LOST_OBJECTS, item.place) for item in picture.items if isinstance(item, Object)]
                return made
            made.changes = [(kind, picture.name) for kind in made.stored.changes]
        self.write(made)
        return made

    def write(self, made: Made) -> None:
        """Adds the rows of a picture that was stored."""
        raise NotImplementedError


def objects_of(picture: Picture) -> dict[str, list[Object]]:
    """The objects that were said to be in a picture, by the list that they belong to."""
    objects: dict[str, list[Object]] = {}
    for item in picture.items:
        if isinstance(item, Object):
            objects.setdefault(item.source, []).append(item)
    return objects


def region_box(made: Made, item: Region) -> str | None:
    """The box of an expression, in pixels of the stored picture; None where it is a bad row."""
    try:
        box = _fitted(made, item.box, item.place)
        if not area(box):
            raise RowProblem(f"box {box_text(item.box)} has no area", "give one with x0<x1 and y0<y1")
    except (RowProblem, BoxProblem) as problem:
        made.bad.append((item.place, RowProblem(problem.reason, problem.remedy)))
        return None
    return box_text(_scaled(made, box))


def kept_objects(made: Made, item: ObjectList, objects: list[Object]) -> list[tuple[Object, tuple[float, ...]]] | None:
    """The objects of a list that can be used, with their boxes in pixels of the stored picture.

    None where the picture has no row of objects: its annotations are of another picture, or to call it empty would be
    wrong, since crowds and bad rows are all that it has.
    """
    size = made.stored.size
    if item.size and objects and tuple(item.size) != size:
        turned = " (EXIF rotation is not applied)" if tuple(item.size) == size[::-1] else ""
        reason = f"boxes of a picture of {item.size[0]} x {item.size[1]}, but it has {size[0]} x {size[1]}{turned}"
        made.bad.append((item.place, RowProblem(reason, "give the pictures that were annotated")))
        return None
    kept, lacking = [], sum(not each.box for each in objects)
    for each in objects:
        if each.crowd:
            made.changes.append((CROWD, each.place))
        elif each.box:
            try:
                box = _fitted(made, each.box, each.place)
            except BoxProblem as problem:
                made.bad.append((each.place, _explained(problem, each, size)))
                lacking += 1
                continue
            if area(box):
                kept.append((each, _scaled(made, box)))
            else:
                made.changes.append((NO_AREA, f"{each.place}: {each.name} {box_text(each.box)}"))
    if not kept and (lacking or any(each.crowd for each in objects)):  # to call it empty would be a lie
        if not lacking:
            made.changes.append((ONLY_CROWDS, item.place))
        return None
    if not kept:
        made.changes.append((NO_OBJECTS, item.place))
    elif lacking:
        made.changes.append((SHORT_LIST, item.place))
    return kept


def objects_cell(kept: list[tuple[Object, tuple[float, ...]]]) -> str:
    """The cell of a detection row, the largest object first."""
    largest_first = sorted(kept, key=lambda pair: -area(pair[1]))
    return SEPARATOR.join(f"{box_text(box)},{each.number},{each.name}" for each, box in largest_first)


def named_once(kept: list[tuple[Object, tuple[float, ...]]], objects: list[Object]) -> Iterator[tuple[Object, str]]:
    """The objects whose name occurs once among all of a picture, so that it is an expression, with their boxes."""
    times = collections.Counter(each.name for each in objects)
    return ((each, box_text(box)) for each, box in kept if times[each.name] == 1)


def _fitted(made: Made, box: list[float], place: Place) -> tuple[float, ...]:
    """A box inside its picture. Raises BoxProblem."""
    fitted, clamped = fit(tuple(box), *made.stored.size)
    if clamped:
        made.changes.append((CLAMPED, place))
    return fitted


def _scaled(made: Made, box: tuple[float, ...]) -> tuple[float, ...]:
    """A box in the pixels of the picture as it is stored."""
    across, down = made.stored.scale
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _explained(problem: BoxProblem, item: Object, size: tuple[int, int]) -> RowProblem:
    """A COCO box that would fit as corners is likely to be corners."""
    x0, y0, x1, y1 = item.box
    given = (x0, y0, x1 - x0, y1 - y0)
    if item.sized and x0 < given[2] <= size[0] + 1 and y0 < given[3] <= size[1] + 1:
        reason = f"{problem.reason}: looks like x0,y0,x1,y1 where COCO has x,y,width,height"
        return RowProblem(reason, "write width = x1 - x0 and height = y1 - y0")
    return RowProblem(problem.reason, problem.remedy)


def in_order(maker: Callable[[Picture], Made], pictures: Iterator[Picture], workers: int) -> Iterator[Made]:
    """`maker` on every picture by threads (Pillow frees the interpreter lock), a few pictures ahead of the writer."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque[Future[Made]] = collections.deque()
        try:
            for picture in pictures:
                waiting.append(pool.submit(maker, picture))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
