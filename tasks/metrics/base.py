"""The contract between a task and what its answers are judged by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Metric:
    """A mean over rows, so that workers and batches may be summed in any order.

    Attributes:
        name: key in the logs, and what `--best-checkpoint-metric` and `--scoring` call it.
        digits: decimals of the reported value.
    """

    name: str = ""
    digits: int = 4

    def prepare(self, references: Iterable[Any]) -> None:
        """Takes what statistics it needs from the references of a whole split, before the first `score`."""

    def score(self, hypothesis: str, reference: Any) -> float:
        """One row's summand."""
        raise NotImplementedError

    def value(self, total: float, count: int) -> float:
        """The reported value of `count` rows whose scores sum to `total`; 0 without rows."""
        return round(float(total) / count, self.digits) if count else 0.0
