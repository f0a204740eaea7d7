"""What is scored without a model: the numbers that every learned result stands beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..data import palette
from ..data.boxes import LabelledBox
from .metrics.base import Tally
from .metrics.boxes import Detected, DetectionAP
from .metrics.cider import CIDErD
from .metrics.infilling import CodeAccuracy, Gapped, InfilledAccuracy

MOST_BOXES = 3000  # of the training boxes, for time: each is held against each
MOST_TIES = 20


def majority_answer(training: Sequence[str], tested: Sequence[str]) -> float:
    """How many of `tested` are the most frequent answer of `training`, 0..1."""
    return tested.count(Counter(training).most_common(1)[0][0]) / len(tested)


def majority_by_question(training: Sequence[tuple[str, str]], tested: Sequence[tuple[str, str]]) -> float:
    """The same with the most frequent answer to the same question; to an unknown question that of all.

    Both are pairs of question and answer.
    """
    by_question: dict[str, Counter[str]] = {}
    for question, answer in training:
        by_question.setdefault(question, Counter())[answer] += 1
    usual = Counter(answer for _, answer in training)
    right = sum(by_question.get(question, usual).most_common(1)[0][0] == answer for question, answer in tested)
    return right / len(tested)


def constant_box(training: np.ndarray, tested: np.ndarray) -> float:
    """Acc@0.5 of the training box that hits most training boxes.

    Args:
        training: float[N, 4], x0 y0 x1 y1 in pixels; the first `MOST_BOXES` count.
        tested: float[M, 4], likewise.
    """
    return float((_overlap(_frequent_box(training), tested) >= 0.5).mean())


def constant_object(training: Sequence[Sequence[LabelledBox]], tested: Sequence[Sequence[LabelledBox]]) -> float:
    """AP@0.5 of one object given for every picture: the most frequent training name in the best of its own boxes."""
    objects = [one for picture in training for one in picture]
    name = Counter(one.name for one in objects).most_common(1)[0][0]
    box = _frequent_box(np.array([one.box for one in objects if one.name == name], float))
    tally = Tally([DetectionAP()])
    for reference in tested:
        tally.add([Detected(tuple(box.tolist()), name, 1.0)], reference)
    return tally.values()[DetectionAP.name]


def surrounding_code(pictures: Sequence[Image.Image], codes: Sequence[Sequence[int]]) -> float:
    """Share of the palette's codes of a picture's middle that are the most frequent one around it.

    Args:
        pictures: square, RGB.
        codes: of the middle of each, which is half as wide and half as high.
    """
    tally = Tally([CodeAccuracy()])
    for picture, right in zip(pictures, codes, strict=True):
        cells = picture.width // palette.CELL
        around = np.array(palette.encode(picture, picture.width)).reshape(cells, cells)
        first, last = cells // 4, -(-3 * cells // 4)  # every cell with a part of the middle is out
        around[first:last, first:last] = -1
        tally.add([Counter(around[around >= 0].tolist()).most_common(1)[0][0]] * len(right), right)
    return tally.values()[CodeAccuracy.name]


def another_text(texts: Sequence[Gapped]) -> float:
    """Share of the removed tokens that the next text has in the same places, as far as the two can be aligned."""
    tally = Tally([InfilledAccuracy()])
    for text, other in zip(texts, [*texts[1:], *texts[:1]], strict=True):
        tally.add(other.tokens, text)
    return tally.values()[InfilledAccuracy.name]


def frequent_caption(training: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D (times ten) of the most frequent training caption, given as the caption of every picture.

    Where several are as frequent, the mean over the first `MOST_TIES` of them: which comes first would be luck.
    """
    counts = Counter(training)
    most = max(counts.values())
    captions = [caption for caption, count in counts.items() if count == most][:MOST_TIES]
    metric = CIDErD()
    metric.prepare(references)
    scores = [metric.score(caption, told) for caption in captions for told in references]
    return sum(scores) / len(scores)


def _frequent_box(boxes: np.ndarray) -> np.ndarray:
    """The one of float[N, 4] boxes, the first `MOST_BOXES` of them, that overlaps most of these by half."""
    candidates = boxes[:MOST_BOXES]
    hits = [int((_overlap(box, candidates) >= 0.5).sum()) for box in candidates]
    return candidates[int(np.argmax(hits))]


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each: float[N]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = sides.clip(0).prod(1)
    return common / (np.prod(box[2:] - box[:2]) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common)
