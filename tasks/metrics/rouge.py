"""ROUGE-L (Lin 2004, section 3): how much of a sentence occurs in another in the same order."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Metric
from .tokens import tokenize

BETA = 1.2  # recall's weight against precision in coco-caption's rouge.py


class ROUGEL(Metric):
    """ROUGE-L of each caption against its references (list[str]), 0..1; the mean over rows is the corpus number.

    As COCO defines it for captions: the largest precision and the largest recall over the references, which need not
    come from one of them, make the F-measure. Summaries are scored by another ROUGE-L (stemmed words, F1).
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
