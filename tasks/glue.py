"""Seven tasks of GLUE: one sentence or two, and an answer of two or three words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fairseq.tasks import register_task

from ..data.builder import Row
from .answering import AnsweringBuilder, AnsweringConfig, AnsweringTask
from .metrics.accuracy import F1, Accuracy, MatthewsCorrelation
from .metrics.base import Metric

UNLABELLED = ("", "-", "-1")  # GLUE's test files hide their labels


@dataclass(frozen=True)
class Form:
    """What tells one of these tasks from the others.

    Attributes:
        instruction: with the names of its columns of text in braces.
        columns: the texts, in the order of the file.
        selected: the official `--selected-cols`: those columns, then the label's.
        answers: to each label, in lower case.
        metrics: the one that the task is judged by first.
    """

    instruction: str
    columns: tuple[str, ...]
    selected: str
    answers: Mapping[str, str]
    metrics: tuple[type[Metric], ...] = (Accuracy,)


YES = {"0": "no", "1": "yes"}
ENTAILED = {"not_entailment": "no", "entailment": "yes"}
# Official data/nlu_data. MNLI's numbers are its files', not Hugging Face's (0 entailment, 1 neutral, 2 contradiction).
NLI = {"0": "maybe", "1": "yes", "2": "no", "neutral": "maybe", "entailment": "yes", "contradiction": "no"}
FORMS = {
    "cola": Form(
        instruction=' is the text " {sentence} " grammatically correct?',
        columns=("sentence",),
        selected="1,2",
        answers=YES,
        metrics=(MatthewsCorrelation, Accuracy),
    ),
    "mnli": Form(
        instruction=' can text1 " {premise} " imply text2 " {hypothesis} "?',
        columns=("premise", "hypothesis"),
        selected="0,1,2",
        answers=NLI,
    ),
    "mrpc": Form(
        instruction=' does text1 " {sentence1} " and text2 " {sentence2} " have the same semantics?',
        columns=("sentence1", "sentence2"),
        selected="0,1,2",
        answers=YES,
        metrics=(Accuracy, F1),
    ),
    "qnli": Form(
        instruction=' does " {sentence} " contain the answer to question " {question} "?',
        columns=("question", "sentence"),
        selected="1,2,3",
        answers=YES | ENTAILED,
    ),
    "qqp": Form(
        instruction=' is question " {question1} " and question " {question2} " equivalent?',
        columns=("question1", "question2"),
        selected="3,4,5",
        answers=YES,
        metrics=(Accuracy, F1),
    ),
    "rte": Form(
        instruction=' can text1 " {sentence1} " imply text2 " {sentence2} "?',
        columns=("sentence1", "sentence2"),
        selected="1,2,3",
        answers=ENTAILED,
    ),
    "sst2": Form(
        instruction=' is the sentiment of text " {sentence} " positive or negative?',
        columns=("sentence",),
        selected="0,1",
        answers={"0": "negative", "1": "positive"},
    ),
}


class GlueBuilder(AnsweringBuilder):
    """Official `data/nlu_data`: of `--task cola` the row `"He are GOOD ."  0` becomes the pair
    ` is the text " he are good . " grammatically correct?` and ` no`. The loss is the answer's alone, without its end.
    """

    form: ClassVar[Form]
    answer_column = "label"
    learns_end = False

    @classmethod
    def typed(cls, cfg: Any) -> tuple[str, ...]:
        """The texts."""
        return cls.form.columns

    def asked(self, index: int, row: Row) -> str:
        """The instruction around the texts, each of at most `--max-src-length` words."""
        texts = {}
        for column in self.form.columns:
            texts[column] = " ".join(getattr(row, column).lower().split()[: self.cfg.max_src_length])
            if not texts[column]:
                raise self.bad(index, column, "it is empty", "write a sentence, or leave the row out")
        return self.form.instruction.format(**texts)

    def answers(self, row: Row) -> dict[str, float] | None:
        """The label's answer, surely; case does not count."""
        label = (row.label or "").strip().lower()
        if label in UNLABELLED and not self.training:
            return None
        if label not in self.form.answers:
            raise ValueError(f"label {row.label!r} is unknown" if label else "it is empty")
        return {self.form.answers[label]: 1.0}


def register(name: str, form: Form) -> None:
    """Makes `--task name` of a row of the table."""
    builder = type(
        f"{name.title()}Builder",
        (GlueBuilder,),
        {
            "form": form,
            "columns": (*form.columns, "label"),
            "required": len(form.columns),
            "selected": dict.fromkeys(("train", "other"), form.selected),
            "instructions": (form.instruction.format(**dict.fromkeys(form.columns, "{}")),),
            "answer_remedy": f"write one of {', '.join(form.answers)}, or leave the row out",
        },
    )
    globals()[builder.__name__] = builder  # where data workers that are spawned look for it
    task = type(
        f"{name.title()}Task",
        (AnsweringTask,),
        {
            "__doc__": f"`--task {name}`.",
            "builder": builder,
            "metric": form.metrics[0],
            "more_metrics": form.metrics[1:],
            "default_answers": tuple(dict.fromkeys(form.answers.values())),
        },
    )
    register_task(name, dataclass=AnsweringConfig)(task)


for _name, _form in FORMS.items():
    register(_name, _form)
