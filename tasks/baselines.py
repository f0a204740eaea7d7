"""What is scored without looking at a picture: the numbers that every learned result stands beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .metrics.cider import CIDErD

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
    candidates = training[:MOST_BOXES]
    hits = [int((_overlap(box, candidates) >= 0.5).sum()) for box in candidates]
    return float((_overlap(candidates[int(np.argmax(hits))], tested) >= 0.5).mean())


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


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each: float[N]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = sides.clip(0).prod(1)
    return common / (np.prod(box[2:] - box[:2]) + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common)
