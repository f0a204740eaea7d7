"""Image-text matching, as pretraining asks for it: does the picture show what is said? yes or no."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.negatives import Negatives
from .kinds import Kind
from .metrics.accuracy import VQAScore

OF_CAPTION = ' does the image describe " {} "?'
OF_ANSWER = ' what is the answer to question " {} ". is " {} "?'


class MatchingScore(VQAScore):
    """Share of the pairs judged rightly."""

    name = "matching_acc"


class Matching(Kind):
    """A picture and a statement in, yes or no out."""

    name = "matching"
    metrics = (MatchingScore,)
    answers = ("yes", "no")
    settings = {"beam": 5, "unnormalized": True}


def caption_statement(
    caption: str, objects: list[str], negatives: Negatives, draw: np.random.Generator, max_words: int
) -> dict[str, Any]:
    """The instruction about a caption, true or false with equal chance, and its answer.

    Args:
        caption: tidied.
        objects: what is in the picture; one of them may be exchanged in the caption.
        negatives: where false captions come from.
        max_words: that the caption was cut to, as a false one must be, or its length would tell.
    """
    if draw.random() >= 0.5:
        return {"text": OF_CAPTION.format(caption), "answer": "yes"}
    return {"text": OF_CAPTION.format(negatives.caption(caption, objects, draw, max_words)), "answer": "no"}


def answer_statement(
    question: str, answer: str, confidence: float, negatives: Negatives, draw: np.random.Generator
) -> dict[str, Any]:
    """The instruction about a question's answer, true or false with equal chance, and its own answer."""
    if draw.random() >= 0.5:
        return {"text": OF_ANSWER.format(question, answer), "answer": "yes"}
    return {"text": OF_ANSWER.format(question, negatives.answer(answer, confidence, draw)), "answer": "no"}
