"""Visual question answering: a picture and a question in, an answer of a closed set (or a free one) out."""

# ruff: noqa: UP045  fairseq reads the field types at run time: no postponed annotations, Optional spelt out

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from fairseq.tasks import register_task

from ..data.answers import parse_answer_json, read_answers
from ..data.builder import Builder, Row
from ..data.codec import Codec
from ..data.example import Example
from ..data.image import PictureLoader
from ..data.text import vqa_source
from ..data.tsv import TSVStore
from ..errors import UserError
from ..models.generation.trie import Trie
from .base import OFATask, OFATaskConfig
from .metrics.accuracy import VQAScore, parse_answers


@dataclass
class VQAConfig(OFATaskConfig):
    """Options of visual question answering."""

    ans2label_file: Optional[str] = field(
        default=None, metadata={"help": "the answer set: one answer a line, or JSON, or the official .pkl"}
    )
    ans2label_dict: Optional[str] = field(
        default=None, metadata={"help": 'the answer set as JSON, e.g. {"no": 0, "yes": 1}'}
    )
    unconstrained_training: bool = field(default=False, metadata={"help": "no answer set: free answers"})
    prompt_type: Optional[str] = field(default=None, metadata={"help": "what the decoder is given first: none"})
    val_inference_type: Optional[str] = field(default=None, metadata={"help": "how validation answers: beamsearch"})
    answers: Optional[str] = field(default=None, metadata={"help": "JSON list that a checkpoint carries"})


class VQABuilder(Builder):
    """Official `data/mm_data/vqa_gen_dataset.py`: row `7 <image> "Is it red" "0.6|!+no&&1.0|!+yes"` becomes the pair
    " is it red?" and " yes" with weight 1.0.

    With an answer set the target is the row's best answer that the set holds, since no other can be generated.
    """

    columns = ("id", "image", "question", "answers", "objects", "caption")
    required = 4
    selected = {"train": "0,5,2,3,4", "other": "0,5,2,3,4"}
    typed = ("image", "question")

    def __init__(
        self,
        store: TSVStore,
        codec: Codec,
        cfg: Any,
        training: bool,
        pictures: PictureLoader | None,
        trie: Trie | None,
        answer_set: frozenset[str],
        answers_from: str,
    ):
        super().__init__(store, codec, cfg, training, pictures)
        self.trie, self.answer_set, self.answers_from = trie, answer_set, answers_from

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        try:
            answers = {} if row.answers is None else parse_answers(row.answers)
        except ValueError as error:
            raise self.bad(index, "answers", str(error), "write 1.0|!+yes, several joined by &&") from None
        answer, confidence = self._best(index, answers)
        if answer is None:
            target, allowed = torch.tensor([self.codec.pad]), None
        else:
            target = self.target(f" {answer}", self.cfg.max_tgt_length)
            allowed = self.trie.allowed(target.tolist()) if self.trie else None
        yield self.example(
            index,
            row.id,
            source=self.source(vqa_source(row.question, self.cfg.max_src_length)),
            target=target,
            image=self.image(index, row.image),
            confidence=confidence,
            allowed=allowed,
            reference=answers or None,
            reference_tokens=self.target(f" {next(iter(answers))}") if answers and answer is None else None,
        )

    def _best(self, index: int, answers: dict[str, float]) -> tuple[str | None, float]:
        """The first of the surest answers that can be given; (None, 0) where an evaluated row has none such."""
        possible = {answer: sure for answer, sure in answers.items() if not self.trie or answer in self.answer_set}
        if possible:
            return max(possible.items(), key=lambda item: item[1])
        if self.training:
            reason = f"no answer of this row is in {self.answers_from} ({', '.join(answers)})"
            raise self.bad(index, "answers", reason, "add one to the set, or leave the row out")
        return None, 0.0

    def reference(self, row: Row) -> dict[str, float] | None:
        """Answer to confidence."""
        try:
            return parse_answers(row.answers)
        except ValueError:
            return None  # reported with its line when the row is read as an example


@register_task("vqa_gen", dataclass=VQAConfig)
class VQATask(OFATask):
    """`--task vqa_gen`."""

    builder = VQABuilder
    metric = VQAScore
    evaluation_defaults = {"beam": 5, "unnormalized": True, "temperature": 1.0}

    def setup(self) -> None:
        """Reads the answer set and builds the trie; both go into the checkpoint."""
        cfg = self.cfg
        if cfg.prompt_type not in (None, "none"):
            raise UserError(f"--prompt-type {cfg.prompt_type} is not available: use none")
        if cfg.val_inference_type not in (None, "beamsearch"):
            raise UserError(f"--val-inference-type {cfg.val_inference_type} is not available: use beamsearch")
        self.answer_set: tuple[str, ...] = ()
        self.answers_from = ""
        if cfg.unconstrained_training:
            cfg.answers = None
            return
        self.answers_from = cfg.ans2label_file or "the answer set"
        if cfg.ans2label_file:
            self.answer_set = tuple(read_answers(cfg.ans2label_file))
        elif cfg.ans2label_dict:
            self.answer_set = tuple(parse_answer_json(cfg.ans2label_dict, "--ans2label-dict"))
        elif cfg.answers:
            self.answer_set = tuple(json.loads(cfg.answers))
        else:
            raise UserError(
                "--task vqa_gen needs its answer set: give --ans2label-file FILE (one answer a line), "
                "or --unconstrained-training for free answers"
            )
        cfg.answers = json.dumps(self.answer_set, ensure_ascii=False)
        cfg.ans2label_file = cfg.ans2label_dict = None  # a checkpoint needs no file beside it
        self.trie = Trie.from_answers(
            [self.codec.encode(f" {answer}", cfg.max_tgt_length).tolist() for answer in self.answer_set],
            bos=self.codec.bos,
            eos=self.codec.eos,
        )

    def make_builder(self, store: TSVStore, training: bool, pictures: PictureLoader | None) -> VQABuilder:
        """The builder of a split, which knows the answer set."""
        return VQABuilder(
            store, self.codec, self.cfg, training, pictures, self.trie, frozenset(self.answer_set), self.answers_from
        )

    def entry(self, uniq_id: str | int, answer: str) -> dict[str, Any]:
        """The VQA challenge's result format."""
        return {"question_id": uniq_id, "answer": answer}
