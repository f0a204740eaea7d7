"""Image captioning: a picture in, one sentence out, scored by CIDEr-D, BLEU-4 and ROUGE-L."""

# ruff: noqa: UP045  fairseq reads the field types at run time: no postponed annotations, Optional spelt out

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fairseq.tasks import register_task

from ..data.builder import Builder, Row
from ..data.example import Example
from ..data.text import SEPARATOR, strip_punctuation
from .base import OFATask, OFATaskConfig
from .metrics.base import Metric
from .metrics.bleu import BLEU
from .metrics.cider import CIDErD
from .metrics.rouge import ROUGEL

INSTRUCTION = " what does the image describe?"
CHINESE_INSTRUCTION = "图片描述了什么内容?"


def plain(caption: str) -> str:
    """The caption without ASCII punctuation and outer space; as it was written where nothing else would be left of it.

    Officially `"` or `:-)` would become an empty target, which teaches the model to say nothing.
    """
    return strip_punctuation(caption).strip() or caption.strip()


@dataclass
class CaptionConfig(OFATaskConfig):
    """Options of captioning."""

    eval_cider: bool = field(
        default=False,
        metadata={"help": "caption the validation pictures and log cider (on by itself when cider selects the best)"},
    )
    eval_bleu: bool = field(
        default=False,
        metadata={"help": "log bleu4 and rouge_l beside cider (on by itself when one of them selects the best)"},
    )


class CaptionBuilder(Builder):
    """Official `data/mm_data/caption_dataset.py`: row `790 <image> "A dog, asleep."` becomes the pair
    " what does the image describe?" and " A dog asleep".

    In training the first `--max-tgt-length` words are the target. Elsewhere the loss is that of the first reference
    (officially that of all references joined, which means nothing), and the metric sees every one. Targets,
    references and answers all go through `plain`. A Chinese caption is treated the same, as officially: words are what
    stands between spaces.
    """

    columns = ("id", "image", "caption")
    selected = {"train": "0,4,2", "other": "1,4,2"}
    instructions = (INSTRUCTION,)

    @classmethod
    def typed(cls, cfg: Any) -> tuple[str, ...]:
        """The picture."""
        return ("image",)

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        instruction = CHINESE_INSTRUCTION if self.codec.chinese else INSTRUCTION
        parts: dict[str, Any] = {"source": self.source(instruction), "image": self.image(index, row.image)}
        if self.training:
            caption = " ".join(plain(row.caption).split()[: self.cfg.max_tgt_length])
            if not caption:
                raise self.bad(index, "caption", "it is empty", "write a caption, or leave the row out")
            parts["target"] = self.target(f" {caption}")
        else:
            references = self.reference(row)
            parts["reference"] = references
            if references is None:  # nothing to learn or to score: the target is one pad
                parts["target"] = torch.tensor([self.codec.pad])
            else:
                parts["target"] = self.target(f" {references[0]}")
                parts["reference_tokens"] = self.target(f" {SEPARATOR.join(references)}")
        yield self.example(index, row.id, **parts)

    def reference(self, row: Row) -> list[str] | None:
        """The row's captions, without punctuation; None where there is none."""
        captions = [plain(" ".join(part.split())) for part in (row.caption or "").split(SEPARATOR)]
        return [caption for caption in captions if caption] or None


@register_task("caption", dataclass=CaptionConfig)
class CaptionTask(OFATask):
    """`--task caption`."""

    builder = CaptionBuilder
    metric = CIDErD
    more_metrics = (BLEU, ROUGEL)
    evaluation_defaults = {"beam": 5, "max_len_b": 16, "no_repeat_ngram_size": 3}

    def _scores(self) -> tuple[type[Metric], ...]:
        cfg, wanted = self.cfg, self.cfg.best_checkpoint_metric
        if cfg.path or cfg.eval_bleu or wanted in [metric.name for metric in self.more_metrics]:
            return self.all_metrics()
        return (self.metric,) if cfg.eval_cider or wanted == self.metric.name else ()

    def answer(self, tokens: torch.Tensor) -> str:
        """The caption without punctuation, as the references are compared."""
        return plain(super().answer(tokens))

    def entry(self, uniq_id: str | int, answer: str) -> dict[str, Any]:
        """COCO's result format."""
        return {"image_id": uniq_id, "caption": answer}
