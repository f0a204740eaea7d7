"""What answers of a closed set are judged by: accuracy, soft or not, and what is made of the counts of yes and no."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ...data.text import MARK, SEPARATOR
from .base import Metric


class VQAScore(Metric):
    """The confidence of the predicted answer, 0 if nobody gave it; answers are compared as exact strings (official)."""

    name = "vqa_score"
    digits = 4

    def score(self, hypothesis: str, reference: Mapping[str, float]) -> float:
        """Looks `hypothesis` up in `reference`, answer to confidence."""
        return float(reference.get(hypothesis, 0.0))


class SNLIScore(VQAScore):
    """Share of the pairs whose label was predicted, under its official name."""

    name = "snli_score"


class ClassScore(Metric):
    """Share of the pictures whose class is the likeliest answer, under its official name."""

    name = "score"
    digits = 3
    within: ClassVar[int] = 1  # of how many of the likeliest answers one has to be right

    def score(self, hypothesis: Sequence[str], reference: Mapping[str, float]) -> float:
        """1 or 0; `hypothesis` are the likeliest answers, the likeliest first, `reference` has the class as its key."""
        return float(any(answer in reference for answer in hypothesis[: self.within]))


class TopFive(ClassScore):
    """Share of the pictures whose class is among the five likeliest answers."""

    name = "top5"
    within = 5


class Accuracy(VQAScore):
    """Share of the rows answered rightly, under its official name."""

    name = "acc"


class YesNo(Metric):
    """A metric of how often yes and no were answered rightly and wrongly. Whatever is not the right answer is wrong."""

    width = 4  # rightly yes, wrongly yes, rightly no, wrongly no

    def sums(self, hypothesis: str, reference: Mapping[str, float]) -> tuple[float, ...]:
        """A row's 1 among three zeros; the one answer of `reference` is the right one."""
        right, yes = hypothesis in reference, "yes" in reference
        return float(right and yes), float(not right and not yes), float(right and not yes), float(not right and yes)


class F1(YesNo):
    """Harmonic mean of precision and recall of the answer yes, 0..1; 0 where no yes is right."""

    name = "F1"
    digits = 3

    def value(self, *sums: float) -> float:
        """From the counts of all rows."""
        right, false_yes, _, false_no = map(float, sums)
        return round(2 * right / (2 * right + false_yes + false_no), self.digits) if right else 0.0


class MatthewsCorrelation(YesNo):
    """Correlation of answers and labels, -1..1; 0 where one of them is always the same, and it is not defined."""

    name = "mcc"

    def value(self, *sums: float) -> float:
        """From the counts of all rows."""
        right_yes, false_yes, right_no, false_no = map(float, sums)
        said = (right_yes + false_yes) * (right_no + false_no)
        true = (right_yes + false_no) * (right_no + false_yes)
        if not said * true:
            return 0.0
        return round((right_yes * right_no - false_yes * false_no) / math.sqrt(said * true), self.digits)


def parse_answers(cell: str) -> dict[str, float]:
    """`"0.6|!+no&&1.0|!+yes"` to `{"no": 0.6, "yes": 1.0}`, in the order written; of equal answers the last counts.

    Raises:
        ValueError: what is wrong, with the text concerned.
    """
    answers = {}
    for item in cell.split(SEPARATOR):
        parts = item.split(MARK)
        if len(parts) != 2:
            raise ValueError(f"expected confidence{MARK}answer, found {item!r}")
        text, answer = parts
        try:
            confidence = float(text)
        except ValueError:
            raise ValueError(f"confidence {text!r} is not a number") from None
        if not 0 <= confidence <= 1:  # also refuses nan
            raise ValueError(f"confidence {text} is not between 0 and 1")
        if not answer.strip():
            raise ValueError(f"empty answer after {text}{MARK}")
        answers[answer] = confidence
    return answers


def best_answer(answers: Mapping[str, float]) -> str:
    """The answer of the highest confidence; of several, the first."""
    return max(answers, key=lambda answer: answers[answer])
