"""What tasks with a closed answer set share: the set, the trie made of it, and what the decoder is given first."""

# ruff: noqa: UP045  fairseq reads the field types at run time: no postponed annotations, Optional spelt out

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import numpy as np
import torch
from fairseq.dataclass.configs import GenerationConfig
from torch import nn

from ..data.answers import parse_answer_json, read_answers
from ..data.builder import Builder, Row
from ..data.codec import Codec
from ..data.example import Example
from ..data.image import PictureLoader
from ..data.text import SEPARATOR
from ..data.tsv import TSVStore
from ..errors import UserError
from ..machine import cache_folder
from ..models.generation.candidates import AllCandidateGenerator
from ..models.generation.trie import Trie
from .base import OFATask, OFATaskConfig

logger = logging.getLogger(__name__)

PROMPT_TYPES = ("none", "src", "prev_output")
INFERENCE_TYPES = ("allcand", "beamsearch")
CARRIED = 2**20  # characters of an answer set, as JSON, up to which a checkpoint has it whole
KEPT_FROM = 20_000  # answers from which to encode them takes long enough that their trie is kept
REMEDY = "give the answers that it was trained with as --ans2label-file FILE"
MOST_CANDIDATES = 4000  # answers that are all scored unless told otherwise: the cost grows with their number
ONLY_SEARCHED = ("sampling", "diverse_beam_groups", "diversity_rate", "lm_path", "prefix_size", "constraints")
"""Settings of generation that mean nothing where every answer is scored."""


@dataclass
class AnsweringConfig(OFATaskConfig):
    """Options of every task with a closed answer set."""

    ans2label_file: Optional[str] = field(
        default=None, metadata={"help": "the answer set: one answer a line, or JSON, or the official .pkl"}
    )
    ans2label_dict: Optional[str] = field(
        default=None, metadata={"help": 'the answer set as JSON, e.g. {"no": 0, "yes": 1}'}
    )
    prompt_type: Optional[str] = field(
        default=None,
        metadata={"help": "what the decoder is given first: none (default), src, or prev_output (src without eos)"},
    )
    val_inference_type: Optional[str] = field(
        default=None,
        metadata={
            "help": "how the answer is found: allcand scores every answer, beamsearch follows the likeliest "
            "(default: allcand where there are at most 4000 answers)"
        },
    )
    answers: Optional[str] = field(default=None, metadata={"help": "JSON list that a checkpoint carries"})
    answers_file: Optional[str] = field(default=None, metadata={"help": argparse.SUPPRESS})  # where a large set lies
    answers_digest: Optional[str] = field(default=None, metadata={"help": argparse.SUPPRESS})  # and its sha256


@dataclass(frozen=True)
class AnswerSet:
    """The answers that may be given.

    Attributes:
        answers: as texts.
        trie: as token paths.
        name: of the file, for messages.
    """

    answers: frozenset[str]
    trie: Trie
    name: str


def token_paths(answers: Sequence[str], codec: Codec, most: int) -> tuple[tuple[int, ...], ...]:
    """Each answer's ids as a target of at most so many tokens has them, without eos."""
    return tuple(tuple(codec.encode(f" {answer}", most).tolist()) for answer in answers)


class AnsweringBuilder(Builder):
    """A row is a question of some kind, and answers with confidences: subclasses say which (`asked`, `answers`).

    With an answer set, or where a row has one of its own (`choices`), the target is the row's surest answer that the
    set holds, since no other can be generated.
    """

    def __init__(
        self,
        store: TSVStore,
        codec: Codec,
        cfg: Any,
        training: bool,
        pictures: PictureLoader | None,
        answer_set: AnswerSet | None,
    ):
        super().__init__(store, codec, cfg, training, pictures)
        self.answer_set = answer_set

    def asked(self, index: int, row: Row) -> str:
        """The source's text."""
        raise NotImplementedError

    def answers(self, row: Row) -> dict[str, float] | None:
        """Answer to confidence; None where the row has none (only evaluated rows may).

        Raises:
            ValueError: what is wrong with the column `answer_column`.
        """
        raise NotImplementedError

    def choices(self, row: Row) -> str | None:
        """The cell with the answers among which this row's is to be found; None where it has none of its own."""
        return None

    def seen(self, index: int, row: Row, draw: np.random.Generator) -> dict[str, Any]:
        """The fields of the example that hold its picture."""
        return {"image": None if self.pictures is None else self.image(index, row.image)}

    answer_column: ClassVar[str] = "answers"
    answer_remedy: ClassVar[str] = ""  # how to write it
    learns_end: ClassVar[bool] = True  # whether the loss counts an end symbol for which the set leaves no alternative

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        try:
            unasked = getattr(row, self.answer_column) is None  # a typed line has no such column
            answers = None if unasked else self.answers(row)
            if answers is None and self.training:
                raise ValueError("it is empty")
        except ValueError as error:
            raise self.bad(index, self.answer_column, str(error), self.answer_remedy) from None
        choices = self._choices(index, row)
        allowed, paths = self.answer_set, None
        if choices is not None:
            paths = token_paths(choices, self.codec, self.cfg.max_tgt_length)
            trie = Trie.from_answers(paths, self.codec.bos, self.codec.eos)
            allowed = AnswerSet(frozenset(choices), trie, "its choices")
        answer, confidence = self._best(index, answers or {}, allowed)
        source = self.source(self.asked(index, row))
        if answer is None:
            target = torch.tensor([self.codec.pad])
        else:
            target = self.target(f" {answer}", max_tokens=self.cfg.max_tgt_length)
        steps = allowed.trie.allowed(target.tolist()) if allowed and answer is not None else None
        if steps and not self.learns_end and steps[-1] == [self.codec.eos]:
            target, steps = target[:-1], steps[:-1]
        yield self.example(
            index,
            self.uniq_id(index, row),
            source=source,
            target=target,
            prompt={"src": source, "prev_output": source[:-1]}.get(self.cfg.prompt_type),
            **self.seen(index, row, draw),
            confidence=confidence,
            allowed=steps,
            choices=paths,
            reference=answers,
            reference_tokens=self.target(f" {next(iter(answers))}") if answer is None and answers else None,
        )

    def _choices(self, index: int, row: Row) -> list[str] | None:
        cell = self.choices(row)
        if cell is None:
            return None
        choices = [choice.strip() for choice in cell.split(SEPARATOR)]
        if not all(choices) or len(set(choices)) < len(choices):
            fault = "one of them is empty" if not all(choices) else "one of them is there twice"
            raise self.bad(index, "choices", f"{cell!r}: {fault}", "write the row's answers, joined by &&")
        return choices

    def _best(self, index: int, answers: Mapping[str, float], allowed: AnswerSet | None) -> tuple[str | None, float]:
        """The first of the surest answers that can be given; (None, 0) where an evaluated row has none such."""
        possible = {answer: sure for answer, sure in answers.items() if not allowed or answer in allowed.answers}
        if possible:
            return max(possible.items(), key=lambda item: item[1])
        if self.training:
            reason = f"no answer of this row is in {allowed.name} ({', '.join(answers)})"
            raise self.bad(index, self.answer_column, reason, "add one to the set, or leave the row out")
        return None, 0.0

    def reference(self, row: Row) -> dict[str, float] | None:
        """Answer to confidence."""
        try:
            return self.answers(row)
        except ValueError:
            return None  # reported with its line when the row is read as an example


class AnsweringTask(OFATask):
    """Subclasses set what `OFATask` asks for, and `default_answers` where a task has a set of its own."""

    evaluation_defaults: ClassVar[dict[str, Any]] = {"beam": 5, "unnormalized": True, "temperature": 1.0}
    default_answers: ClassVar[tuple[str, ...]] = ()
    ranked: ClassVar[int] = 1  # how many of the likeliest answers its metrics look at

    def setup(self) -> None:
        """Reads the answer set, which goes into the checkpoint, and builds the trie."""
        cfg = self.cfg
        cfg.prompt_type = cfg.prompt_type or "none"
        if cfg.prompt_type not in PROMPT_TYPES:
            raise UserError(f"--prompt-type {cfg.prompt_type}: one of {', '.join(PROMPT_TYPES)}")
        if cfg.val_inference_type not in (None, *INFERENCE_TYPES):
            raise UserError(f"--val-inference-type {cfg.val_inference_type}: one of {', '.join(INFERENCE_TYPES)}")
        self.answer_set = None if self.free() else self._read_answer_set()
        self.trie = self.answer_set.trie if self.answer_set else None
        cfg.ans2label_file = cfg.ans2label_dict = None  # a checkpoint needs no file beside it

    def free(self) -> bool:
        """Whether answers are free text."""
        return False

    def chooses(self) -> bool:
        """Whether each row has its own answers."""
        return False

    def prompted(self) -> bool:
        """Whether the decoder repeats the source before it answers."""
        return self.cfg.prompt_type != "none"

    def _read_answer_set(self) -> AnswerSet:
        """The set of the command line, else of the checkpoint, else the task's own; noted for the next checkpoint."""
        cfg = self.cfg
        file, remembered = cfg.ans2label_file, None
        if file:
            answers = read_answers(file)
        elif cfg.ans2label_dict:
            answers = parse_answer_json(cfg.ans2label_dict, "--ans2label-dict")
        elif cfg.answers:
            answers = json.loads(cfg.answers)
        elif cfg.answers_file:
            file, remembered = cfg.answers_file, cfg.answers_digest
            if not os.path.isfile(file):
                raise UserError(f"{file}: the answer set of {cfg.path} is not there any more; {REMEDY}")
            answers = read_answers(file)
        elif self.default_answers:
            answers = list(self.default_answers)
        else:
            free = ", or --unconstrained-training for free answers" if "unconstrained_training" in cfg else ""
            raise UserError(
                f"--task {cfg._name} needs its answer set: give --ans2label-file FILE (one answer a line){free}"
            )
        text = json.dumps(answers, ensure_ascii=False)
        cfg.answers, cfg.answers_file, cfg.answers_digest = text, None, None
        if file and len(text) > CARRIED:
            cfg.answers, cfg.answers_file, cfg.answers_digest = None, os.path.abspath(file), _digest(text)
        if remembered not in (None, cfg.answers_digest):
            raise UserError(f"{file}: the answer set of {cfg.path} has changed; {REMEDY}")
        return AnswerSet(frozenset(answers), self._trie_of(answers, text), file or "the answer set")

    def _trie_of(self, answers: Sequence[str], text: str) -> Trie:
        """The trie of a set (as JSON: `text`); a large one's is kept in the cache, under all that it depends on."""
        bos, eos, most = self.codec.bos, self.codec.eos, self.cfg.max_tgt_length
        if len(answers) < KEPT_FROM:
            return Trie.from_answers(token_paths(answers, self.codec, most), bos, eos)
        depends = repr((self.codec.fingerprint, most, bos, eos, text))
        place = cache_folder() / f"answers-{_digest(depends)[:32]}.npz"
        try:
            return Trie.read(place, bos, eos)
        except (OSError, ValueError) as error:
            logger.debug("%s: %s", place, error)
        logger.info("building the tree of %d answers", len(answers))
        trie = Trie.from_answers(token_paths(answers, self.codec, most), bos, eos)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            trie.write(place)
        except OSError as error:
            logger.warning("%s: the tree of the answers cannot be kept (%s): set OFA_CACHE", place, error.strerror)
        return trie

    def _make_generator(
        self, models: list[nn.Module], given: Any = None, seq_gen_cls: Any = None, *stock: Any, kind: str = ""
    ) -> Any:
        """Scores all candidates (always those of a row's own), or searches as stock does."""
        wanted, settings = self.cfg.val_inference_type, self.generation_settings(given, kind)
        stock_default = GenerationConfig()
        searched = [name for name in ONLY_SEARCHED if getattr(settings, name) != getattr(stock_default, name)]
        searched += ["mask_after_softmax"] if self.cfg.mask_after_softmax else []
        own = self.chooses() and not self.cfg.open_ended
        if own and wanted == "beamsearch":
            raise UserError("--multiple-choice scores all answers of a row: leave out --val-inference-type beamsearch")
        if wanted is None:
            few = self.trie is not None and len(self.trie) <= MOST_CANDIDATES and not self.cfg.open_ended
            wanted = "allcand" if own or few and not searched and seq_gen_cls is None else "beamsearch"
        if wanted == "beamsearch":
            return super()._make_generator(models, given, seq_gen_cls, *stock, kind=kind)
        if not own and (self.trie is None or self.cfg.open_ended):
            raise UserError("--val-inference-type allcand needs an answer set: give one, or take beamsearch")
        if searched:
            flag = f"--{searched[0].replace('_', '-')}"
            if own:
                raise UserError(f"{flag} does not go with --multiple-choice, which scores all answers: leave it out")
            raise UserError(f"{flag} does not go with --val-inference-type allcand: leave it out, or take beamsearch")
        best = max(settings.beam, self.cfg.write_ranking, self.ranked)
        return AllCandidateGenerator(
            models, self.target_dictionary, self.trie, beam_size=best, temperature=settings.temperature
        )

    def make_builder(self, store: TSVStore, training: bool, pictures: PictureLoader | None) -> AnsweringBuilder:
        """The builder of a split, which knows the answer set."""
        return self.builder(store, self.codec, self.cfg, training, pictures, self.answer_set)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
