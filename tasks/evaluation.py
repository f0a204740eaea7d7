"""What `fairseq-generate` leaves behind: the result file, the metric, and how long it will still take."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.scoring import BaseScorer, register_scorer

from ..errors import UserError
from .metrics.base import Metric

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10

_latest: Evaluation | None = None  # stock hands a scorer strings only; this is where it finds the references


class Evaluation:
    """The answers of one run over one subset, written once the last row has been answered.

    The file is in row order, whatever order the batches came in, and appears whole or not at all.

    Args:
        metric: scores an answer against the row's reference.
        subset: name of the subset, part of the file's name.
        rows: how many rows this process will see.
        folder: where `<subset>_predict.json` goes; None to write nothing.
        entry: makes one entry of the official result format from (id, answer).
    """

    def __init__(
        self,
        metric: Metric,
        subset: str,
        rows: int,
        folder: str | None,
        entry: Callable[[str | int, str], dict[str, Any]],
    ):
        global _latest
        self.metric, self.subset, self.rows, self.folder, self.entry = metric, subset, rows, folder, entry
        self.entries: dict[int, dict[str, Any]] = {}
        self.total, self.scored = 0.0, 0
        self.started = self.reported = time.monotonic()
        _latest = self

    def add(self, row: int, uniq_id: str, answer: str, reference: Any) -> None:
        """Takes the answer to one row; after the last of them the file is written."""
        self.entries[row] = self.entry(typed_id(uniq_id), answer)
        if reference is not None:
            self.total += self.metric.score(answer, reference)
            self.scored += 1
        done, now = len(self.entries), time.monotonic()
        if done == self.rows:
            self._finish()
        elif now - self.reported > PROGRESS_SECONDS:
            self.reported = now
            left = (now - self.started) / done * (self.rows - done)
            logger.info("%d of %d rows answered, about %.0f s left", done, self.rows, left)

    @property
    def value(self) -> float:
        """The metric, rounded as it is reported."""
        return self.metric.value(self.total, self.scored)

    def result(self) -> str:
        """The metric in words."""
        if not self.scored:
            return f"{self.metric.name} not computed: no row of {self.subset} has a reference"
        return f"{self.metric.name} = {self.value} on {self.scored} rows of {self.subset}"

    def _finish(self) -> None:
        logger.info(self.result())
        if self.folder is None:
            return
        path = Path(self.folder) / f"{self.subset}_predict.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        entries = [self.entries[row] for row in sorted(self.entries)]
        temporary.write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        logger.info("wrote %d entries to %s", len(entries), path)


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
        """`--scoring`: reports the task's own metric, computed on references that strings would not carry."""

        def add_string(self, ref: str, pred: str) -> None:
            """Nothing to do: the task has scored the row already."""

        def score(self) -> float:
            """The metric's value."""
            return _latest.value if _latest else 0.0

        def result_string(self) -> str:
            """The number that validation inside training gives for the same checkpoint."""
            if _latest is None:
                raise UserError(f"--scoring {name} belongs to the tasks of this plugin (--task caption, vqa_gen, ...)")
            if name not in ("ofa", _latest.metric.name):
                raise UserError(f"--scoring {name}: this task is scored by {_latest.metric.name}; leave --scoring out")
            return _latest.result()

    TaskScorer.__name__ = f"{name.title().replace('_', '')}Scorer"  # fairseq refuses a second class of one name
    return TaskScorer


for _name in ("ofa", "cider", "snli_score", "vqa_score"):
    register_scorer(_name, dataclass=TaskScorerConfig)(_scorer(_name))
