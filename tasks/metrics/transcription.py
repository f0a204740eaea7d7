"""What read texts are judged by: all of it right, and how near it comes. White space does not count (official)."""

from __future__ import annotations

from .base import Metric


class TranscriptionAccuracy(Metric):
    """Share of the texts that were read without a mistake, under its official name."""

    name = "acc"

    def score(self, hypothesis: str, reference: str) -> float:
        """1 or 0."""
        return float(without_spaces(hypothesis) == without_spaces(reference))


class NormalisedEditDistance(Metric):
    """One minus the edit distance by the length of the longer text, mean over rows, under its official name.

    Two empty texts are equal; officially they are a division by zero.
    """

    name = "ned"

    def score(self, hypothesis: str, reference: str) -> float:
        """From 0, nothing in common, to 1."""
        ours, theirs = without_spaces(hypothesis), without_spaces(reference)
        longer = max(len(ours), len(theirs))
        return 1 - edit_distance(ours, theirs) / longer if longer else 1.0


def without_spaces(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def edit_distance(first: str, second: str) -> int:
    """How many characters must be put in, taken out or exchanged to make one text of the other (Levenshtein)."""
    above = list(range(len(second) + 1))  # from the beginning of `first` so far to each beginning of `second`
    for row, letter in enumerate(first, start=1):
        current = [row]
        for column, other in enumerate(second, start=1):
            current.append(min(above[column] + 1, current[-1] + 1, above[column - 1] + (letter != other)))
        above = current
    return above[-1]
