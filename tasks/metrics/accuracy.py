"""Answer accuracy: the soft score of VQA, where each accepted answer has its own confidence."""

from __future__ import annotations

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
