"""BLEU-1 to 4 of a corpus (Papineni et al. 2002), as COCO counts it for captions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar

from sacrebleu.metrics.bleu import BLEU as SacreBLEU
from sacrebleu.metrics.bleu import BLEUScore

from .base import Metric
from .tokens import tokenize


class BLEU(Metric):
    """Corpus BLEU-4 in 0..1 of captions against their references (list[str], as many as each row has), by sacrebleu.

    Not smoothed: 0 where no four words in a row agree anywhere. The length to compare with is that of the reference
    closest in length, of two as close the shorter (coco-caption, `bleu_scorer.py`, option "closest").
    """

    name = "bleu4"
    order: ClassVar[int] = 4  # words of the longest n-grams
    width = 2 + 2 * order  # our words, reference words; matching, then possible n-grams for n = 1, 2, ...

    def sums(self, hypothesis: str, reference: Sequence[str]) -> tuple[float, ...]:
        """A row's lengths and n-gram counts.

        Raises:
            ValueError: there is no reference.
        """
        if not reference:
            raise ValueError("BLEU needs at least one reference")
        row = counted(hypothesis, tuple(reference))
        return tuple(map(float, (row.sys_len, row.ref_len, *row.counts[: self.order], *row.totals[: self.order])))

    def value(self, *sums: float) -> float:
        """0..1, of the counts of all rows."""
        ours, theirs, *counts = (round(number) for number in sums)
        matching, possible = counts[: self.order], counts[self.order :]
        score = SacreBLEU.compute_bleu(matching, possible, ours, theirs, max_ngram_order=self.order).score
        return round(score / 100, self.digits)


class BLEU1(BLEU):
    """Of single words."""

    name, order, width = "bleu1", 1, 4


class BLEU2(BLEU):
    """Of one and two words in a row."""

    name, order, width = "bleu2", 2, 6


class BLEU3(BLEU):
    """Of one to three words in a row."""

    name, order, width = "bleu3", 3, 8


@functools.lru_cache(maxsize=1)  # BLEU-1 to 4 are asked about a row one after the other
def counted(hypothesis: str, references: tuple[str, ...]) -> BLEUScore:
    """The lengths and counts of one row, up to four words in a row."""
    # effective_order stops sacrebleu's advice, on every row, about scores of single sentences; counts are the same
    counter = SacreBLEU(tokenize="none", force=True, effective_order=True)
    return counter.sentence_score(words(hypothesis), [words(caption) for caption in references])


def words(caption: str) -> str:
    """The caption's tokens, joined by spaces for sacrebleu to split."""
    return " ".join(tokenize(caption))
