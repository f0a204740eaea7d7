"""What answers are judged by; a metric sees strings only."""

from __future__ import annotations

from .accuracy import VQAScore, best_answer, parse_answers
from .base import Metric, Tally
from .bleu import BLEU, BLEU1, BLEU2, BLEU3
from .cider import CIDErD, document_frequencies
from .frequencies import Frequencies, count_frequencies, read_frequencies, read_official, write_frequencies
from .rouge import ROUGEL, common_subsequence
from .tokens import tokenize

__all__ = [
    "BLEU",
    "BLEU1",
    "BLEU2",
    "BLEU3",
    "CIDErD",
    "Frequencies",
    "Metric",
    "ROUGEL",
    "Tally",
    "VQAScore",
    "best_answer",
    "common_subsequence",
    "count_frequencies",
    "document_frequencies",
    "parse_answers",
    "read_frequencies",
    "read_official",
    "tokenize",
    "write_frequencies",
]
