"""The contract between a task and what its answers are judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

    def score(self, hypothesis: Any, reference: Any) -> float:
        """One row's summand in the mean."""
        raise NotImplementedError

    def sums(self, hypothesis: Any, reference: Any) -> tuple[float, ...]:
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
        metrics: those to report, the one that the task is judged by first; where a task has several kinds of example,
            those of each kind by its name.
    """

    def __init__(self, metrics: Sequence[Metric] | Mapping[str, Sequence[Metric]]):
        by_kind = metrics if isinstance(metrics, Mapping) else {"": metrics}
        self.totals = {kind: [(metric, [0.0] * metric.width) for metric in group] for kind, group in by_kind.items()}
        self.rows = 0

    def add(self, hypothesis: Any, reference: Any, kind: str = "") -> None:
        """Adds a row to every metric of its kind; one without reference (None) is not scored."""
        if reference is None:
            return
        self.rows += 1
        for metric, totals in self.totals[kind]:
            for number, value in enumerate(metric.sums(hypothesis, reference)):
                totals[number] += value

    @property
    def metrics(self) -> list[Metric]:
        """All of them, in order."""
        return [metric for metric, _ in self._pairs()]

    def values(self) -> dict[str, float]:
        """Name to value, in the order of the metrics."""
        return {metric.name: metric.value(*totals) for metric, totals in self._pairs()}

    def log(self) -> dict[str, float]:
        """The sums for a logging output: the same keys in the same order, all float, whatever rows there were.

        fairseq adds logging outputs up across workers by position, not by key.
        """
        pairs = self._pairs()
        return {key: total for metric, totals in pairs for key, total in zip(metric.log_keys(), totals, strict=True)}

    def _pairs(self) -> list[tuple[Metric, list[float]]]:
        return [pair for group in self.totals.values() for pair in group]
