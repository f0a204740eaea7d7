"""ROUGE (Lin 2004): how much of a text occurs in another; captions as COCO, summaries as rouge_score counts it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from ...data.text import CHINESE
from .base import Metric
from .stems import stem
from .tokens import tokenize

BETA = 1.2  # recall's weight against precision in coco-caption's rouge.py
SHORT = 3  # letters up to which rouge_score leaves a word as it is
WORDS = re.compile(rf"[a-z0-9]+|{CHINESE.pattern}")


class ROUGEL(Metric):
    """ROUGE-L of each caption against its references (list[str]), 0..1; the mean over rows is the corpus number.

    As COCO defines it for captions: the largest precision and the largest recall over the references, which need not
    come from one of them, make the F-measure. Summaries are scored by another ROUGE-L (`RougeLF1`).
    """

    name = "rouge_l"

    def score(self, hypothesis: str, reference: Sequence[str]) -> float:
        """The F-measure of one row; 0 where no word is shared.

        Raises:
            ValueError: there is no reference.
        """
        if not reference:
            raise ValueError("ROUGE-L needs at least one reference")
        ours = tokenize(hypothesis)
        precision = recall = 0.0
        for theirs in map(tokenize, reference):
            shared = common_subsequence(ours, theirs)
            if shared:
                precision, recall = max(precision, shared / len(ours)), max(recall, shared / len(theirs))
        weighed = recall + BETA**2 * precision
        return (1 + BETA**2) * precision * recall / weighed if weighed else 0.0


class SummaryROUGE(Metric):
    """Agreement of a summary with its one reference (str), times 100 as officially; the mean over rows is the number.

    As rouge_score 0.1.2 counts it with its stemmer, but that a Chinese character is a word, while it knows ASCII only.

    Attributes:
        order: words of the n-grams that are counted; 0: the longest common subsequence.
        recalls: whether the number is the recall, the shared share of the reference; else F1.
    """

    digits = 3
    order: ClassVar[int]
    recalls: ClassVar[bool] = False

    def score(self, hypothesis: str, reference: str) -> float:
        """0..100; 0 where nothing is shared."""
        shared, ours, theirs = overlap(stemmed(hypothesis), stemmed(reference), self.order)
        if not shared:
            return 0.0
        return 100 * shared / theirs if self.recalls else 200 * shared / (ours + theirs)


class Rouge1F1(SummaryROUGE):
    """F1 of the words."""

    name, order = "rouge1_f1", 1


class Rouge2F1(SummaryROUGE):
    """F1 of the pairs of words."""

    name, order = "rouge2_f1", 2


class RougeLF1(SummaryROUGE):
    """F1 of the words in the same order."""

    name, order = "rougeL_f1", 0


class Rouge1Recall(Rouge1F1):
    """Share of the reference's words that the summary has."""

    name, recalls = "rouge1_recall", True


class Rouge2Recall(Rouge2F1):
    """Share of the reference's pairs of words."""

    name, recalls = "rouge2_recall", True


class RougeLRecall(RougeLF1):
    """Share of the reference's words that come in its order."""

    name, recalls = "rougeL_recall", True


def stemmed(text: str) -> list[str]:
    """The stems of a text's words, in lower case; of short words, figures and Chinese characters they themselves."""
    words = WORDS.findall(text.lower())
    return [stem(word) if len(word) > SHORT else word for word in words]


def overlap(first: Sequence[str], second: Sequence[str], order: int) -> tuple[int, int, int]:
    """How many n-grams of `order` words (0: words in the same order) two texts share, and how many each has."""
    if not order:
        return common_subsequence(first, second), len(first), len(second)
    ours, theirs = (Counter(ngrams(words, order)) for words in (first, second))
    return (ours & theirs).total(), ours.total(), theirs.total()


def ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    """All runs of `order` words."""
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence of two lists of words."""
    longest = [0] * (len(second) + 1)  # by how many words of `second` have been seen
    for word in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            above = longest[column]
            longest[column] = diagonal + 1 if word == other else max(above, longest[column - 1])
            diagonal = above
    return longest[-1]
