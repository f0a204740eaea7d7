"""Visual question answering: a picture and a question in, an answer of a closed set (or a free one) out."""

# ruff: noqa: UP045  fairseq reads the field types at run time: no postponed annotations, Optional spelt out

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.tasks import register_task

from ..data.builder import Row
from ..data.text import SEPARATOR, vqa_source
from ..errors import UserError
from .answering import AnsweringBuilder, AnsweringConfig, AnsweringTask
from .metrics.accuracy import VQAScore, parse_answers


@dataclass
class VQAConfig(AnsweringConfig):
    """Options of visual question answering."""

    unconstrained_training: bool = field(default=False, metadata={"help": "no answer set: free answers"})
    multiple_choice: bool = field(
        default=False, metadata={"help": "each row has its own answers, joined by && (seventh of --selected-cols)"}
    )
    add_object: bool = field(
        default=False, metadata={"help": "the picture's object labels (fifth of --selected-cols) follow the question"}
    )
    max_object_length: Optional[int] = field(default=None, metadata={"help": "most object labels of a picture (30)"})


class VQABuilder(AnsweringBuilder):
    """Official `data/mm_data/vqa_gen_dataset.py`: row `7 <image> "Is it red" "0.6|!+no&&1.0|!+yes"` becomes the pair
    " is it red?" and " yes" with weight 1.0; with `--add-object`, " is it red? object: ball grass" and " yes".
    """

    columns = ("id", "image", "question", "answers", "objects", "caption", "choices")
    required = 4
    selected = {"train": "0,5,2,3,4", "other": "0,5,2,3,4"}
    answer_remedy = "write 1.0|!+yes, several joined by &&"

    @classmethod
    def typed(cls, cfg: Any) -> tuple[str, ...]:
        """Picture and question, and the object labels and the answers to choose from where they are wanted."""
        more = {"objects": cfg.add_object, "choices": cfg.multiple_choice}
        return ("image", "question", *(name for name, wanted in more.items() if wanted))

    def asked(self, index: int, row: Row) -> str:
        """The tidied question, and the object labels where they are wanted."""
        question = vqa_source(row.question, self.cfg.max_src_length)
        if not self.cfg.add_object:
            return question
        if row.objects is None:
            raise UserError(
                f"--add-object reads a fifth column, but --selected-cols names four for {self.store.path}; "
                "add the column of the object labels (4 in the official files)"
            )
        labels = [label.strip() for label in row.objects.split(SEPARATOR)]
        labels = [label for label in labels if label][: self.cfg.max_object_length]
        return f"{question} object: {' '.join(labels)}" if labels else question

    def choices(self, row: Row) -> str | None:
        """The seventh column where `--multiple-choice` was given."""
        if not self.cfg.multiple_choice:
            return None
        if row.choices is None:
            raise UserError(
                f"--multiple-choice reads a seventh column, but --selected-cols names none for {self.store.path}: "
                f"in their order they are {', '.join(self.columns)}; write - for one that the file lacks"
            )
        return row.choices

    def answers(self, row: Row) -> dict[str, float]:
        """Answer to confidence, as in `1.0|!+yes`."""
        return parse_answers(row.answers)


@register_task("vqa_gen", dataclass=VQAConfig)
class VQATask(AnsweringTask):
    """`--task vqa_gen`."""

    builder = VQABuilder
    metric = VQAScore

    def setup(self) -> None:
        """Reads the answer set, unless answers are free or each row has its own."""
        cfg = self.cfg
        if cfg.max_object_length is None:
            cfg.max_object_length = 30
        others = {"--unconstrained-training": cfg.unconstrained_training, "--ans2label-file": cfg.ans2label_file}
        others["--ans2label-dict"] = cfg.ans2label_dict
        for flag in (flag for flag, given in others.items() if given and cfg.multiple_choice):
            raise UserError(f"{flag} does not go with --multiple-choice, which gives each row its own: leave one out")
        super().setup()

    def free(self) -> bool:
        """Whether `--unconstrained-training` or `--multiple-choice` was given, now or in training."""
        return self.cfg.unconstrained_training or self.cfg.multiple_choice

    def chooses(self) -> bool:
        """Whether `--multiple-choice` was given, now or in training."""
        return self.cfg.multiple_choice

    def entry(self, uniq_id: str | int, answer: str) -> dict[str, Any]:
        """The VQA challenge's result format."""
        return {"question_id": uniq_id, "answer": answer}
