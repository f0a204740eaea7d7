"""Typed lines as rows, and what the tasks' builders make of rows that have nothing but what was typed."""

from __future__ import annotations

import functools
from argparse import Namespace

import numpy as np
import pytest
from fairseq import options
from PIL import Image

from ofa_plugin.data.builder import Builder
from ofa_plugin.data.codec import Codec
from ofa_plugin.data.image import PictureLoader
from ofa_plugin.errors import BadRow, UserError
from ofa_plugin.models.generation.trie import Trie
from ofa_plugin.tasks.answering import AnswerSet
from ofa_plugin.tasks.caption import CaptionBuilder
from ofa_plugin.tasks.interactive import Interactive, TypedLines
from ofa_plugin.tasks.vqa import VQABuilder
from tests.helpers.golden import settings

COLUMNS = ("id", "image", "question", "answers")


def lines(*typed: str) -> TypedLines:
    return TypedLines("stdin", typed, 7, COLUMNS, ("image", "question"))


def test_a_line_is_a_row_with_its_number_and_what_nobody_typed_is_none():
    store = lines("a b.png\t is it red? ", "c.png\tWhy")
    assert len(store) == 2 and store[1] == ("8", "c.png", "Why", None)
    assert store[0].image == "a b.png" and store[0].question == "is it red?"
    assert store.row_bytes.tolist() == [20, 9]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("a.png", "stdin:7: line: 1 part, not 2: write picture-path<TAB>question"),
        ("a.png\t", "stdin:7: line: 2 parts, not 2: write picture-path<TAB>question"),
        ("a\tb\tc", "stdin:7: line: 3 parts, not 2: write picture-path<TAB>question"),
        (" ", "stdin:7: line: blank line: write picture-path<TAB>question"),
    ],
)
def test_a_line_of_another_form_is_refused_by_number(typed, message):
    with pytest.raises(BadRow) as refused:
        lines(typed)[0]
    assert str(refused.value) == message


@pytest.fixture
def codec(world):
    return Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)


def test_builders_need_no_more_than_they_ask_for(codec, tmp_path, monkeypatch):
    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    pictures, draw = PictureLoader(None, 32), np.random.default_rng(0)
    store = TypedLines("stdin", ["a.png"], 1, CaptionBuilder.columns, CaptionBuilder.typed(None))
    [captioned] = CaptionBuilder(store, codec, settings(), False, pictures).examples(0, store[0], draw)
    assert captioned.reference is None and captioned.place == "stdin:1" and captioned.image.shape == (3, 32, 32)
    store = TypedLines("stdin", ["a.png\tIs it-red"], 1, VQABuilder.columns, ("image", "question"))
    trie = Trie.from_answers([codec.encode(" yes").tolist()], bos=codec.bos, eos=codec.eos)
    cfg = settings(prompt_type="none", add_object=False, multiple_choice=False)
    answers = AnswerSet(frozenset(["yes"]), trie, "answers.txt")
    [example] = VQABuilder(store, codec, cfg, False, pictures, answers).examples(0, store[0], draw)
    assert codec.decode(example.source) == " is it red?" and example.target.tolist() == [codec.pad]
    assert example.reference is None and example.allowed is None and example.confidence == 0.0


@pytest.mark.parametrize("before", [0, 2, 3, 5])
def test_data_is_taken_wherever_it_stands_and_may_be_left_out(before):
    flags = ["--task", "caption", "--cpu", "--bpe-dir", "bpe"]
    parse = functools.partial(options.parse_args_and_arch, options.get_interactive_generation_parser())
    assert parse([*flags[:before], "data", *flags[before:]]).data == "data"
    assert parse(flags).data is None


def test_a_task_that_takes_no_typed_lines_says_so():
    task = Interactive()
    task.cfg, task.builder = Namespace(_name="pretrain"), Builder
    with pytest.raises(UserError, match="--task pretrain takes no typed lines: .*fairseq-generate"):
        task.get_interactive_tokens_and_lengths(["a.png"], None)
