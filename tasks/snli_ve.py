"""Visual entailment: does the picture (and, if you like, its caption) imply the sentence? yes, no or maybe."""

# no `from __future__ import annotations`: fairseq reads the field types at run time

from dataclasses import dataclass, field
from typing import Any

from fairseq.tasks import register_task

from ..data.builder import Row
from ..data.text import tidy_caption
from .answering import AnsweringBuilder, AnsweringConfig, AnsweringTask
from .metrics.accuracy import SNLIScore

OF_HYPOTHESIS = ' does the image describe " {} "?'
OF_BOTH = ' can image and text1 " {} " imply text2 " {} "?'
ANSWERS = {"contradiction": "no", "entailment": "yes", "neutral": "maybe"}
UNLABELLED = ("", "-")  # SNLI marks pairs on which its annotators did not agree with a dash


@dataclass
class SnliVeConfig(AnsweringConfig):
    """Options of visual entailment."""

    add_caption: bool = field(default=False, metadata={"help": "the picture's caption is a premise beside the picture"})


class SnliVeBuilder(AnsweringBuilder):
    """Official `data/mm_data/snli_ve_dataset.py`: row `x <image> "Two dogs." "A dog runs" neutral` becomes the pair
    ` does the image describe " two dogs. "?` and " maybe"; with `--add-caption` the source is
    ` can image and text1 " a dog runs " imply text2 " two dogs. "?`.
    """

    columns = ("id", "image", "hypothesis", "caption", "label")
    selected = {"train": "0,2,3,4,5", "other": "0,2,3,4,5"}
    instructions = (OF_HYPOTHESIS, OF_BOTH)
    answer_column = "label"
    answer_remedy = f"write one of {', '.join(ANSWERS)}, or leave the row out"

    @classmethod
    def typed(cls, cfg: Any) -> tuple[str, ...]:
        """Picture and hypothesis, and the caption where it is a premise."""
        return ("image", "hypothesis", "caption") if cfg.add_caption else ("image", "hypothesis")

    def asked(self, index: int, row: Row) -> str:
        """The instruction around the hypothesis, and around the caption where it is wanted."""
        hypothesis = tidy_caption(row.hypothesis, self.cfg.max_src_length)
        if not hypothesis:
            raise self.bad(index, "hypothesis", "it is empty", "write a sentence, or leave the row out")
        if not self.cfg.add_caption:
            return OF_HYPOTHESIS.format(hypothesis)
        caption = tidy_caption(row.caption, self.cfg.max_src_length)
        if not caption:
            raise self.bad(index, "caption", "it is empty, but --add-caption reads it", "leave --add-caption out")
        return OF_BOTH.format(caption, hypothesis)

    def answers(self, row: Row) -> dict[str, float] | None:
        """The label's answer, surely; case does not count."""
        label = row.label.strip().lower()
        if label in UNLABELLED and not self.training:
            return None
        if label not in ANSWERS:
            raise ValueError(f"label {row.label!r} is unknown" if label else "it is empty")
        return {ANSWERS[label]: 1.0}


@register_task("snli_ve", dataclass=SnliVeConfig)
class SnliVeTask(AnsweringTask):
    """`--task snli_ve`."""

    builder = SnliVeBuilder
    metric = SNLIScore
    default_answers = ("no", "yes", "maybe")
