"""The contract between a task and what its answers are judged by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar


class Metric:
    """Numbers that each row adds, and one value derived from their sums: rows, batches and workers add up in any order.

    As it stands a mean over rows: a row adds its `score` and 1. A metric of the whole corpus (BLEU, a correlation)
    sets `width` and overrides `sums` and `value` instead.

    Attributes:
        name: key in the logs, and what `--best-checkpoint-metric` and `--scoring` call it.
        digits: decimals of the reported value.
        width: how many numbers a row adds.
    """

    name: ClassVar[str] = ""
    digits: ClassVar[int] = 4
    width: ClassVar[int] = 2

    def prepare(self, references: Iterable[Any]) -> None:
        """Takes what statistics it needs from the references of a whole split, before the first row."""

    def score(self, hypothesis: str, reference: Any) -> float:
        """One row's summand in the mean."""
        raise NotImplementedError

    def sums(self, hypothesis: str, reference: Any) -> tuple[float, ...]:
        """What one row adds: `width` numbers."""
        return self.score(hypothesis, reference), 1.0

    def value(self, *sums: float) -> float:
        """The reported value, from the `width` sums over all rows; 0 without rows."""
        total, count = sums
        return round(float(total) / count, self.digits) if count else 0.0

    @classmethod
    def log_keys(cls) -> tuple[str, ...]:
        """What its sums are called in a logging output; fairseq prints no key that starts with an underscore."""
        return tuple(f"_{cls.name}_{number}" for number in range(cls.width))


class Tally:
    """The sums of several metrics over the rows seen so far.

    Args:
        metrics: those to report, the one that the task is judged by first.
    """

    def __init__(self, metrics: Sequence[Metric]):
        self.metrics = tuple(metrics)
        self.rows = 0
        self.totals = [[0.0] * metric.width for metric in self.metrics]

    def add(self, hypothesis: str, reference: Any) -> None:
        """Adds a row to every metric; one without reference (None) is not scored."""
        if reference is None:
            return
        self.rows += 1
        for metric, totals in zip(self.metrics, self.totals, strict=True):
            for number, value in enumerate(metric.sums(hypothesis, reference)):
                totals[number] += value

    def values(self) -> dict[str, float]:
        """Name to value, in the order of the metrics."""
        pairs = zip(self.metrics, self.totals, strict=True)
        return {metric.name: metric.value(*totals) for metric, totals in pairs}

    def log(self) -> dict[str, float]:
        """The sums for a logging output: the same keys in the same order, all float, whatever rows there were.

        fairseq adds logging outputs up across workers by position, not by key.
        """
        pairs = zip(self.metrics, self.totals, strict=True)
        return {key: total for metric, totals in pairs for key, total in zip(metric.log_keys(), totals, strict=True)}
