"""What `fairseq-generate` leaves behind: the result file, the scores, and how long it will still take."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import SCORER_REGISTRY, BaseScorer, register_scorer

from ..errors import UserError
from ..shards import is_shard
from ..whole_file import replacing
from .metrics.base import Metric, Tally

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10

Conclude = Callable[[Mapping[int, dict[str, Any]], Mapping[int, Any], str, Path | None], dict[str, float]]
"""From entries and records by row, subset and folder to further metrics, see `OFATask.conclude`."""

_latest: Evaluation | None = None  # stock hands a scorer strings only; this is where it finds the references


class Evaluation:
    """The answers of one run over one subset, and their scores; written once the last row has been answered.

    The answers are in row order, whatever order the batches came in, and a file appears whole or not at all.

    Args:
        metrics: score an answer against the row's reference, see `Tally`.
        subset: name of the subset, part of the file's name.
        rows: how many rows this process will see.
        folder: where `<subset>_predict.json` and `<subset>_scores.json` go; None to write nothing.
        conclude: computes what is no sum over rows.
    """

    def __init__(
        self,
        metrics: Sequence[Metric] | Mapping[str, Sequence[Metric]],
        subset: str,
        rows: int,
        folder: str | None,
        conclude: Conclude,
    ):
        global _latest
        self.subset, self.rows, self.folder = subset, rows, folder
        self.tally = Tally(metrics)
        self.entries: dict[int, dict[str, Any]] = {}
        self.records: dict[int, Any] = {}
        self.conclude, self.more = conclude, {}
        self.started = self.reported = time.monotonic()
        _latest = self

    def add(
        self, row: int, entry: dict[str, Any], answer: Any, reference: Any, kind: str = "", record: Any = None
    ) -> None:
        """Takes one row's entry in the result file, and its answer; after the last of them the files are written.

        `record` is what `conclude` needs of the row beside its entry, as JSON can hold it; None: nothing.
        """
        self.entries[row] = entry
        if record is not None:
            self.records[row] = record
        self.tally.add(answer, reference, kind)
        done, now = len(self.entries), time.monotonic()
        if done == self.rows:
            self._finish()
        elif now - self.reported > PROGRESS_SECONDS:
            self.reported = now
            left = (now - self.started) / done * (self.rows - done)
            logger.info("%d of %d rows answered, about %.0f s left", done, self.rows, left)

    def result(self, name: str | None = None) -> str:
        """One metric in words; without a name the first, then the others in brackets."""
        return in_words({**self.tally.values(), **self.more}, self.tally.rows, self.subset, name)

    def _finish(self) -> None:
        folder = None if self.folder is None else Path(self.folder)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        if not is_shard():
            self.more = self.conclude(self.entries, self.records, self.subset, folder)
        logger.info(self.result())
        if folder is None:
            return
        if is_shard():
            totals = {metric.name: sums for group in self.tally.totals.values() for metric, sums in group}
            share = {"scored": self.tally.rows, "totals": totals, "entries": self.entries, "records": self.records}
            write_json(folder / f"{self.subset}_share.json", share)
        else:
            finish(self.entries, self.tally, self.more, self.subset, folder)


def in_words(values: Mapping[str, float], rows: int, subset: str, name: str | None = None) -> str:
    """One metric of a subset, of which so many rows are scored, in words; without a name the first, then the others in
    brackets.
    """
    first = name or next(iter(values))
    if not rows:
        return f"{first} not computed: no row of {subset} has a reference"
    others = () if name else tuple(f"{other} = {value}" for other, value in values.items() if other != first)
    text = f"{first} = {values[first]} on {rows} rows of {subset}"
    return f"{text} ({', '.join(others)})" if others else text


def finish(
    entries: Mapping[int, dict[str, Any]], tally: Tally, more: Mapping[str, float], subset: str, folder: Path
) -> str:
    """Writes the two files of a subset whose every row has its entry, and returns the metrics in words."""
    counts = {"rows": len(entries), "scored": tally.rows}
    if rejected := sum("rejected" in entry for entry in entries.values()):
        counts["rejected"] = rejected
    values = {**tally.values(), **more}
    write_json(folder / f"{subset}_scores.json", {**counts, **(values if tally.rows else {})})
    path = folder / f"{subset}_predict.json"
    write_json(path, [entries[row] for row in sorted(entries)])
    logger.info("wrote %d entries to %s", len(entries), path)
    return in_words(values, tally.rows, subset)


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is either the old one or wholly the new one."""
    with replacing(path, text=True) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def typed_id(uniq_id: str) -> str | int:
    """An id that is a canonical decimal integer as an integer, any other as the text it is ("5" -> 5, "05" -> "05")."""
    try:
        return int(uniq_id) if str(int(uniq_id)) == uniq_id else uniq_id
    except ValueError:
        return uniq_id


@dataclass
class TaskScorerConfig(FairseqDataclass):
    """No options: the task has them all (fairseq's command line needs a dataclass all the same)."""


def _scorer(name: str) -> type[BaseScorer]:
    class TaskScorer(BaseScorer):
        """`--scoring`: reports the task's own metrics, computed on references that strings would not carry."""

        def add_string(self, ref: str, pred: str) -> None:
            """Nothing to do: the task has scored the row already."""

        def score(self) -> float:
            """The metric's value; of `ofa` that of the first."""
            values = _latest.tally.values() if _latest else {}
            return values.get(name, next(iter(values.values()), 0.0))

        def result_string(self) -> str:
            """The numbers that validation inside training gives for the same checkpoint."""
            if _latest is None:
                raise UserError(f"--scoring {name} belongs to the tasks of this plugin (--task caption, vqa_gen, ...)")
            names = [metric.name for metric in _latest.tally.metrics]
            if name not in ("ofa", *names):
                raise UserError(f"--scoring {name}: this task reports {', '.join(names)}; leave --scoring out")
            return _latest.result(None if name == "ofa" else name)

    TaskScorer.__name__ = f"{name.title().replace('_', '')}Scorer"  # fairseq refuses a second class of one name
    return TaskScorer


def offer_scoring(name: str) -> None:
    """Makes `--scoring name` known to fairseq; a name may be offered again, but not one of stock's own.

    Raises:
        ValueError: stock has a scorer of this name.
    """
    if getattr(SCORER_REGISTRY.get(name), "__module__", None) != __name__:
        register_scorer(name, dataclass=TaskScorerConfig)(_scorer(name))


offer_scoring("ofa")
