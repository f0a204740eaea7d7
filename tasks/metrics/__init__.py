"""What answers are judged by; a metric sees strings only."""

from __future__ import annotations

from .accuracy import VQAScore, best_answer, parse_answers
from .base import Metric
from .cider import CIDErD, document_frequencies, tokenize

__all__ = ["CIDErD", "Metric", "VQAScore", "best_answer", "document_frequencies", "parse_answers", "tokenize"]
