"""What filled gaps are judged by: image codes in their places, and the tokens that were taken out of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from .base import Metric


class CodeAccuracy(Metric):
    """Share of the image codes that are the right ones, in their places."""

    name = "code_acc"

    def sums(self, hypothesis: Sequence[int], reference: Sequence[int]) -> tuple[float, ...]:
        """How many codes of a picture are right, and how many there are; a missing one is wrong."""
        return float(sum(map(int.__eq__, hypothesis, reference))), float(len(reference))


@dataclass(frozen=True)
class Gapped:
    """A text with gaps.

    Attributes:
        tokens: ids of the whole text.
        removed: which of them the model was not shown.
    """

    tokens: tuple[int, ...]
    removed: tuple[bool, ...]


class InfilledAccuracy(Metric):
    """Share of the removed tokens that stand in the answer where they belong.

    Where that is, when a gap was filled with too many tokens or too few, the aligned rest says (difflib).
    """

    name = "infilled_acc"

    def sums(self, hypothesis: Sequence[int], reference: Gapped) -> tuple[float, ...]:
        """How many removed tokens of a text are back, and how many there are."""
        blocks = SequenceMatcher(None, list(hypothesis), reference.tokens, autojunk=False).get_matching_blocks()
        back = sum(sum(reference.removed[block.b : block.b + block.size]) for block in blocks)
        return float(back), float(sum(reference.removed))
