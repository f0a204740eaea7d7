"""Image captioning: a picture in, one sentence out, scored by CIDEr-D, BLEU-4 and ROUGE-L, rewarded by the first."""

# ruff: noqa: UP045  fairseq reads the field types at run time: no postponed annotations, Optional spelt out

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import numpy as np
import torch
from fairseq.tasks import register_task
from torch import nn

from ..data.builder import Builder, Row
from ..data.example import Example
from ..data.text import SEPARATOR, strip_punctuation
from ..errors import UserError
from .base import OFATask, OFATaskConfig, parse_settings, unwrapped
from .metrics.base import Metric
from .metrics.bleu import BLEU, BLEU1, BLEU2, BLEU3
from .metrics.cider import CIDErD
from .metrics.frequencies import Frequencies, read_frequencies
from .metrics.rouge import ROUGEL

logger = logging.getLogger(__name__)

INSTRUCTION = " what does the image describe?"
CHINESE_INSTRUCTION = "图片描述了什么内容?"
REWARD = "scst_reward_criterion"


def plain(caption: str) -> str:
    """The caption without ASCII punctuation and outer space; as it was written where nothing else would be left of it.

    Officially `"` or `:-)` would become an empty target, which teaches the model to say nothing.
    """
    return strip_punctuation(caption).strip() or caption.strip()


def references_of(cell: str) -> list[str]:
    """The captions of a cell, which `&&` joins, without punctuation; empty ones are left out."""
    captions = [plain(" ".join(part.split())) for part in cell.split(SEPARATOR)]
    return [caption for caption in captions if caption]


@dataclass
class CaptionConfig(OFATaskConfig):
    """Options of captioning."""

    eval_cider: bool = field(
        default=False,
        metadata={"help": "caption the validation pictures and log cider (on by itself when cider selects the best)"},
    )
    eval_bleu: bool = field(
        default=False,
        metadata={
            "help": "log bleu1 to bleu4 and rouge_l beside cider (on by itself when one of them selects the best)"
        },
    )
    eval_cider_cached_tokens: Optional[str] = field(
        default=None,
        metadata={"help": "document frequencies for cider, of `ofa cider-df` (default: of the references at hand)"},
    )
    scst: bool = field(
        default=False, metadata={"help": "train on the reward of generated captions, with scst_reward_criterion"}
    )
    scst_args: Optional[str] = field(
        default=None,
        metadata={"help": 'generation settings of the captions that are rewarded, as JSON, e.g. {"beam": 5}'},
    )


class CaptionBuilder(Builder):
    """Official `data/mm_data/caption_dataset.py`: row `790 <image> "A dog, asleep."` becomes the pair
    " what does the image describe?" and " A dog asleep".

    In training the first `--max-tgt-length` words are the target. Elsewhere the loss is that of the first reference
    (officially that of all references joined, which means nothing), and the metric sees every one. Targets,
    references and answers all go through `plain`. A Chinese caption is treated the same, as officially: words are what
    stands between spaces.

    Attributes:
        rewarded: whether training rows are as those elsewhere, all references of a picture in one row.
    """

    rewarded: ClassVar[bool] = False

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
        if self.training and not self.rewarded:
            caption = " ".join(plain(row.caption).split()[: self.cfg.max_tgt_length])
            if not caption:
                raise self.bad(index, "caption", "it is empty", "write a caption, or leave the row out")
            parts["target"] = self.target(f" {caption}")
        else:
            references = self.reference(row)
            parts["reference"] = references
            if references is None and self.training:
                raise self.bad(index, "caption", "it is empty", "write captions, joined by &&, or leave the row out")
            if references is None:  # nothing to learn or to score: the target is one pad
                parts["target"] = torch.tensor([self.codec.pad])
            else:
                parts["target"] = self.target(f" {references[0]}")
                parts["reference_tokens"] = self.target(f" {SEPARATOR.join(references)}")
        yield self.example(index, row.id, **parts)

    def reference(self, row: Row) -> list[str] | None:
        """The row's captions, without punctuation; None where there is none."""
        return references_of(row.caption or "") or None


class RewardedCaptionBuilder(CaptionBuilder):
    """With `--scst`: each picture once, with all its references (official second stage)."""

    selected = {"train": "1,4,2", "other": "1,4,2"}
    rewarded = True


@register_task("caption", dataclass=CaptionConfig)
class CaptionTask(OFATask):
    """`--task caption`."""

    builder = CaptionBuilder
    metric = CIDErD
    more_metrics = (BLEU1, BLEU2, BLEU3, BLEU, ROUGEL)
    evaluation_defaults = {"beam": 5, "max_len_b": 16, "no_repeat_ngram_size": 3}
    own_to_a_run = ("eval_cider_cached_tokens", "scst", "scst_args")

    def setup(self) -> None:
        """Reads the document frequencies of validation, and checks the settings of rewarded captions."""
        path, flag = self.cfg.eval_cider_cached_tokens, "--eval-cider-cached-tokens"
        self.frequencies: Frequencies | None = read_frequencies(path, flag) if path else None
        self.cfg.eval_cider_cached_tokens = None  # evaluation of the checkpoint may lack the file
        self.reward: CIDErD | None = None
        self._sampling: tuple[nn.Module, Any] | None = None  # model, and the generator of rewarded captions
        self._scst_args = parse_settings("--scst-args", self.cfg.scst_args)
        if self.cfg.scst:
            self.builder = RewardedCaptionBuilder
            beam = self.generation_settings(chosen=self._scst_args).beam
            if beam < 2:
                raise UserError(
                    f"--scst-args: beam {beam} is one caption of each picture, and its reward is its score above the "
                    "mean of the picture's others: give a beam of 2 or more (5, officially)"
                )

    def make_metric(self, metric: type[Metric]) -> Metric:
        """CIDEr-D with the frequencies of `--eval-cider-cached-tokens`, where there are any."""
        return CIDErD(*self.frequencies) if metric is CIDErD and self.frequencies else metric()

    def build_criterion(self, cfg: Any, *rest: Any) -> Any:
        """Stock's, after a look whether it is the one that `--scst` is for."""
        if self.cfg.scst and cfg._name != REWARD:
            raise UserError(f"--scst goes with --criterion {REWARD}, not with {cfg._name}: change one of them")
        return super().build_criterion(cfg, *rest)

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

    # -------------------------------------------------------------------------- what `scst_reward_criterion` asks for

    def prepare_rewards(self, path: str | None) -> None:
        """Readies `rewards`.

        Args:
            path: document frequencies, a file of `ofa cider-df`; None: counted on the training file when first needed.

        Raises:
            UserError: `--scst` is missing, or the frequencies.
        """
        if self.cfg.path:  # fairseq-validate, which asks for no reward and may lack the file
            return
        if not self.cfg.scst:
            raise UserError(f"--criterion {REWARD} needs --scst, which gives it all references of a picture: add it")
        if path:
            self.reward = CIDErD(*read_frequencies(path, "--scst-cider-cached-tokens"), end=True)

    def sampled(self, model: nn.Module, sample: dict[str, Any]) -> list[list[torch.Tensor]]:
        """K captions of each picture, as the model in eval mode generates them by the settings of `--scst-args`.

        Its mode is then as before, its BatchNorm statistics are untouched.

        Args:
            model: fairseq's or a wrapper around it.
            sample: a batch of B rows.

        Returns:
            B lists of K captions, int64[T] each, ending in eos, the likeliest first.

        Raises:
            UserError: the search found fewer for a picture.
        """
        model = unwrapped(model)
        training = model.training
        if self._sampling is None or self._sampling[0] is not model:
            self._sampling = model, self._make_generator([model], chosen=self._scst_args)
        generator = self._sampling[1]
        model.eval()
        try:
            beams = self._generate(generator, [model], sample)
        finally:
            model.train(training)
        torch.clear_autocast_cache()  # older torch would use its 16-bit weights, made without gradients, to learn
        for row, beam in enumerate(beams):
            if len(beam) < generator.beam_size:
                raise UserError(
                    f"{sample['places'][row]}: the search found {len(beam)} captions of the {generator.beam_size} that "
                    "--scst-args asks for: lower its beam, or widen --constraint-range"
                )
        return [[hypothesis["tokens"] for hypothesis in beam] for beam in beams]

    def rewards(self, sample: dict[str, Any], captions: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """CIDEr-D, ends included, of K captions of each of B rows: float64[B, K]; of a row without references 0.

        Raises:
            UserError: there are several training files, and no frequencies.
        """
        if self.reward is None:
            if self.has_sharded_data("train"):
                raise UserError(
                    "several training files: their frequencies must not change between epochs, so count them once with "
                    "`ofa cider-df df.json TSV...` and give --scst-cider-cached-tokens df.json"
                )
            subset = self.cfg.train_subset.split(",")[0]
            dataset = self.datasets[subset]
            logger.info("document frequencies of the %d rows of %s (`ofa cider-df` keeps them)", len(dataset), subset)
            self.reward = CIDErD(end=True)
            self.reward.prepare(references for references in self.references(dataset, training=True) if references)
        scores = []
        for references, group in zip(sample["references"], captions, strict=True):
            texts = [self.answer(tokens) for tokens in group]
            scores.append(self.reward.scores(texts, references) if references else [0.0] * len(texts))
        return torch.tensor(scores, dtype=torch.float64)
