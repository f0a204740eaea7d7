"""What boxes are judged by: overlap with the right one, and average precision of a list of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...data.boxes import Box, LabelledBox, hits, iou
from .base import Metric

THRESHOLD = 0.5  # of the overlap: at least so much is a hit
STEPS = 50  # of confidence, in which objects are ranked


class RegionAccuracy(Metric):
    """Share of the regions found: overlap (intersection over union, no + 1) of 0.5 at least, under its official name.

    An answer that is no box (None) is a miss.
    """

    name = "score"

    def score(self, hypothesis: Box | None, reference: Box) -> float:
        """1 or 0; both in pixels of the stored picture."""
        return float(hypothesis is not None and hits(hypothesis, reference, THRESHOLD))


class FirstRegionAccuracy(RegionAccuracy):
    """Of texts that describe several regions: share of those whose first box hits one of theirs."""

    def score(self, hypothesis: Sequence[Box], reference: Sequence[Box]) -> float:
        """1 or 0."""
        return float(bool(hypothesis) and any(hits(hypothesis[0], box, THRESHOLD) for box in reference))


class BoxRecall(Metric):
    """Mean share of a text's regions that are found: by an overlap of 0.5 at least, each box finding one of them."""

    name = "box_recall"

    def score(self, hypothesis: Sequence[Box], reference: Sequence[Box]) -> float:
        """0 to 1."""
        return pairs(hypothesis, reference) / len(reference)


class BoxF1(Metric):
    """Mean over texts of twice the regions found by the number of boxes answered and wanted."""

    name = "box_f1"

    def score(self, hypothesis: Sequence[Box], reference: Sequence[Box]) -> float:
        """0 to 1."""
        return 2 * pairs(hypothesis, reference) / (len(hypothesis) + len(reference))


def pairs(hypothesis: Sequence[Box], reference: Sequence[Box]) -> int:
    """How many boxes can be paired with a region each, the most by an overlap of 0.5 at least."""
    owner: dict[int, int] = {}  # region to box

    def placed(box: int, tried: set[int]) -> bool:
        for region in range(len(reference)):
            if region not in tried and hits(hypothesis[box], reference[region], THRESHOLD):
                tried.add(region)
                if region not in owner or placed(owner[region], tried):
                    owner[region] = box
                    return True
        return False

    return sum(placed(box, set()) for box in range(len(hypothesis)))


@dataclass(frozen=True)
class Detected:
    """An object that the model saw.

    Attributes:
        box: in pixels of the stored picture.
        name: what it is.
        confidence: 0..1, the mean probability of its tokens.
    """

    box: Box
    name: str
    confidence: float


class DetectionAP(Metric):
    """Average precision at an overlap of 0.5, over all objects of all pictures, 0..1.

    An object is found when an answer of its name overlaps it by 0.5 at least; answers take their turn by confidence,
    and an object is found once. Answers are ranked by confidence in `STEPS` steps, so that a row adds numbers and
    nothing else. Names are not averaged over, since the model may use any: a frequent one counts for more.
    """

    name = "detection_ap50"
    width = 2 * STEPS + 1  # right and wrong answers by confidence, from low to high; objects

    def sums(self, hypothesis: Sequence[Detected], reference: Sequence[LabelledBox]) -> tuple[float, ...]:
        """One picture's counts."""
        right, wrong = [0.0] * STEPS, [0.0] * STEPS
        left = list(reference)
        for seen in sorted(hypothesis, key=lambda one: -one.confidence):
            same = [one for one in left if one.name == seen.name]
            nearest = max(same, key=lambda one: iou(seen.box, one.box), default=None)
            found = nearest is not None and hits(seen.box, nearest.box, THRESHOLD)
            if found:
                left.remove(nearest)
            step = min(int(seen.confidence * STEPS), STEPS - 1)
            (right if found else wrong)[step] += 1
        return (*right, *wrong, float(len(reference)))

    def value(self, *sums: float) -> float:
        """The area under precision over recall, each precision being the best at that recall or beyond."""
        *counts, objects = map(float, sums)
        right, wrong = counts[:STEPS], counts[STEPS:]
        if not objects:
            return 0.0
        found = given = 0.0
        points = []  # recall, precision: from the surest answers on
        for step in reversed(range(STEPS)):
            if not right[step] + wrong[step]:
                continue
            found, given = found + right[step], given + right[step] + wrong[step]
            points.append((found / objects, found / given))
        area = best = 0.0
        for index in reversed(range(len(points))):
            best = max(best, points[index][1])
            area += best * (points[index][0] - (points[index - 1][0] if index else 0.0))
        return round(area, self.digits)


class ObjectAP(DetectionAP):
    """`DetectionAP` of the task that has nothing but objects."""

    name = "ap50"
