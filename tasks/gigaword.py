"""Abstractive summarisation, as of Gigaword: a sentence or more in, a headline out, scored by ROUGE."""

# no `from __future__ import annotations`: fairseq reads the field types at run time

import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fairseq.tasks import register_task

from ..data.builder import Builder, Row
from ..data.example import Example
from ..data.noise import with_random_tokens
from ..data.text import tidy_caption
from ..errors import UserError
from .base import OFATask, OFATaskConfig
from .metrics.base import Metric
from .metrics.rouge import Rouge1F1, Rouge1Recall, Rouge2F1, Rouge2Recall, RougeLF1, RougeLRecall

INSTRUCTION = ' what is the summary of article " {} "?'
CHINESE_INSTRUCTION = "{} 请用一个句子简单总结上文："
ESCAPES = {  # how Gigaword's files write these words
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"[UNK]": "UNK", "&": "&amp;", "<": "&lt;", ">": "&gt;"},
}


@dataclass
class GigawordConfig(OFATaskConfig):
    """Options of summarisation."""

    eval_rouge: bool = field(
        default=False,
        metadata={"help": "summarise the validation rows and log rouge (on by itself when it selects the best)"},
    )
    noise_ratio: float = field(
        default=0.0, metadata={"help": "share of the decoder's input that is random tokens in training"}
    )


class GigawordBuilder(Builder):
    """Official `data/nlg_data/summary_dataset.py`: row `"Orders rose #.# percent ."  "orders up"` becomes the pair
    ` what is the summary of article " orders rose #.# percent . "?` and `orders up`, which has no space before it.

    The source has at most `--max-src-length` tokens: a long article is cut, the instruction around it is not.
    In training `--noise-ratio` of the tokens that the decoder is shown are random. The reference is the target in lower
    case, else as it was written.
    """

    columns = ("source", "target")
    required = 1
    selected = {"train": "0,1", "other": "0,1"}
    instructions = (INSTRUCTION,)

    def __init__(self, *rest: Any):
        super().__init__(*rest)
        before, after = (CHINESE_INSTRUCTION if self.codec.chinese else INSTRUCTION).split("{}")
        self.before, self.after = self.codec.encode(before.rstrip()), self.codec.encode(after)
        fixed = len(self.before) + len(self.after)
        self.room = self.cfg.max_src_length - fixed
        if self.room < 1:
            raise UserError(
                f"--max-src-length {self.cfg.max_src_length}: the instruction alone has {fixed} tokens; "
                f"give at least {fixed + 1}"
            )

    @classmethod
    def typed(cls, cfg: Any) -> tuple[str, ...]:
        """The article."""
        return ("source",)

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        article = self._tidy(row.source, self.cfg.max_src_length)
        if not article:
            raise self.bad(index, "source", "it is empty", "write the article, or leave the row out")
        summary = self._tidy(row.target or "", self.cfg.max_tgt_length)
        if not summary and self.training:
            raise self.bad(index, "target", "it is empty", "write the summary, or leave the row out")
        reference = self.reference(row)
        target = self.target(summary) if summary else torch.tensor([self.codec.pad])
        previous = None
        if self.training and self.cfg.noise_ratio:  # officially in validation too; <mask> is one of the random tokens
            previous = with_random_tokens(target[:-1], self.cfg.noise_ratio, self.codec.mask + 1, draw)
        yield self.example(
            index,
            self.uniq_id(index, row),
            source=self.source(self.before, self.codec.encode(f" {article}", self.room), self.after),
            target=target,
            previous=previous,
            reference=reference,
            reference_tokens=self.target(reference) if reference else None,
        )

    def reference(self, row: Row) -> str | None:
        """The summary in lower case; None where there is none."""
        return (row.target or "").strip().lower() or None

    @staticmethod
    def _tidy(text: str, max_words: int) -> str:
        return tidy_caption(text, max_words).replace("<unk>", "unk")


def fix_tokenization(text: str) -> str:
    """A text in which Gigaword's words are put together again: `"pi - day : 3 . 14 ( ok )"` gives
    `"pi-day : 3.14 -lrb- ok -rrb-"`. (Official function of this name, tasks/nlg_tasks/gigaword.py.)
    """
    words, written = text.split(), []
    in_double = in_single = after_dash = False
    at = 0
    while at < len(words):
        word, following = words[at], words[at + 1 : at + 3]
        last, after = written[-1] if written else "", following[0] if following else ""
        used, dashed = 1, False
        if word in ESCAPES:
            written.append(ESCAPES[word])
        elif word == '"':
            written.append("''" if in_double else "``")
            in_double = not in_double
        elif word == "'" and last.endswith("n") and after == "t":
            written[-1:], used = [last[:-1], "n't"], 2
        elif word == "'" and after in ("s", "d", "ll"):
            written.append(f"'{after}")
            used = 2
        elif word == "'":
            written.append("'" if in_single else "`")
            in_single = not in_single
        elif word == "." and following == [".", "."]:
            written.append("...")
            used = 3
        elif word in ".," and _is_figure(last, word) and _is_figure(after, word):
            written[-1], used = f"{last}{word}{after}", 2
        elif word == "." and following[1:] == ["."] and _is_initial(last) and _is_initial(after):
            written[-1], used = f"{last}.{after}.", 2  # the second full stop stays behind, as officially
        elif word == "-" and after == "-":
            written.append("--")
            used = 2
        elif word == "-" and after and last not in string.punctuation and after[0] not in string.punctuation:
            written[-1], dashed = f"{last}-", True
        elif word != "-" and after_dash and word[0] not in string.punctuation:
            written[-1] = f"{last}{word}"
        else:
            written.append(word)
        at, after_dash = at + used, dashed
    return " ".join(written)


def _is_figure(word: str, sign: str) -> bool:
    figures = word.replace(",", "0") if sign == "," else word  # thousands may have been joined already
    return figures.isdigit()


def _is_initial(word: str) -> bool:
    return len(word) == 1 and word.isupper()


def as_gigaword(text: str) -> str:
    """A generated summary as Gigaword's references are written: lower case, its tokens, # for the figure 1."""
    return fix_tokenization(text.lower().strip()).replace("<unk>", " unk").replace("1", "#")


@register_task("gigaword", dataclass=GigawordConfig)
class GigawordTask(OFATask):
    """`--task gigaword`."""

    builder = GigawordBuilder
    metric = RougeLF1
    more_metrics = (Rouge1F1, Rouge2F1, RougeLRecall, Rouge1Recall, Rouge2Recall)
    evaluation_defaults = {"beam": 6, "lenpen": 0.7, "max_len_b": 32, "no_repeat_ngram_size": 3}

    def setup(self) -> None:
        """Checks the options of its own."""
        if not 0 <= self.cfg.noise_ratio <= 1:
            raise UserError(f"--noise-ratio {self.cfg.noise_ratio}: give a share from 0 to 1")

    def _scores(self) -> tuple[type[Metric], ...]:
        cfg, metrics = self.cfg, self.all_metrics()
        wanted = cfg.path or cfg.eval_rouge or cfg.best_checkpoint_metric in [metric.name for metric in metrics]
        return metrics if wanted else ()

    def answer(self, tokens: torch.Tensor) -> str:
        """The summary as the references are written."""
        return as_gigaword(super().answer(tokens))

    def entry(self, uniq_id: str | int, answer: str) -> dict[str, Any]:
        """The answer under its official name; the id is the number of the line."""
        return {"uniq_id": uniq_id, "hyp": answer}
