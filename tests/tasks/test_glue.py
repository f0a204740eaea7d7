"""GLUE's rows against the official datasets', and what a label may be."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from ofa_plugin.data.example import collate
from ofa_plugin.data.tsv import TSVStore, parse_selected_cols
from ofa_plugin.errors import BadRow
from ofa_plugin.models.generation.trie import Trie
from ofa_plugin.tasks import glue, instructions
from ofa_plugin.tasks.answering import AnswerSet
from ofa_plugin.tasks.glue import FORMS
from tests.helpers.golden import golden, settings

CASES = [(name, case) for name in FORMS for case in golden(f"dataset_{name}.json")["cases"]]


def builder_of(name):
    return getattr(glue, f"{name.title()}Builder")


def only(tmp_path, codec, name, row, training=True, answers=None, **given):
    (tmp_path / "rows.tsv").write_text("\t".join(row) + "\n", encoding="utf-8")
    builder = builder_of(name)
    store = TSVStore(str(tmp_path / "rows.tsv"), builder.columns, None, builder.required)
    answers = answers or list(FORMS[name].answers.values())
    trie = Trie.from_answers([codec.encode(f" {answer}").tolist() for answer in answers], bos=codec.bos, eos=codec.eos)
    answer_set = AnswerSet(frozenset(answers), trie, "the answer set")
    made = builder(store, codec, settings(**{"prompt_type": "none", **given}), training, None, answer_set)
    [example] = made.examples(0, store[0], np.random.default_rng(0))
    return example


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "case"), CASES, ids=lambda part: part if isinstance(part, str) else part["prompt_type"]
)
def test_rows_match_the_official_dataset(shared, released, tmp_path, name, case):
    codec, expected = released(shared("bpe/gpt2")), case["example"]
    example = only(tmp_path, codec, name, case["row"], prompt_type=case["prompt_type"], max_src_length=512)
    batch = collate([example], codec.bos, codec.pad)
    assert codec.decode(example.source) == case["src_text"]
    assert example.source.tolist() == expected["source"]
    assert batch["target"].tolist() == [expected["target"]] and batch["ntokens"] == 1
    assert batch["net_input"]["prev_output_tokens"].tolist() == [expected["prev_output_tokens"]]
    assert example.reference == expected["ref_dict"]
    *before, allowed = batch["allowed_tokens"].split(batch["allowed_counts"][0].tolist())
    assert not any(map(len, before))
    assert [sorted(allowed.tolist())] == expected["constraint_mask_allowed"]


@pytest.mark.parametrize("name", FORMS)
def test_the_answers_of_a_task_are_those_of_the_official_one(name):
    assert sorted(set(FORMS[name].answers.values())) == sorted(golden(f"dataset_{name}.json")["labels"])


@pytest.mark.parametrize("name", FORMS)
def test_official_columns_are_the_texts_and_the_label(name):
    builder = builder_of(name)
    assert builder.columns == (*FORMS[name].columns, "label")
    assert len(parse_selected_cols(builder.selected["train"])) == len(builder.columns)
    assert pickle.loads(pickle.dumps(builder)) is builder  # spawned workers get it so


def test_a_vocabulary_learns_the_instructions_of_texts_where_it_is_told_to():
    of_texts = instructions(text_tasks=True)
    assert ' does " " contain the answer to question " "?' in of_texts and len(of_texts) == 7  # RTE asks as MNLI does
    assert not set(of_texts) & set(instructions())


def test_texts_are_cut_to_words_one_by_one(codec, tmp_path):
    example = only(tmp_path, codec, "mrpc", ["A  dog runs", "two MEN play ball", "1"], max_src_length=2)
    assert codec.decode(example.source) == ' does text1 " a dog " and text2 " two men " have the same semantics?'


def test_only_an_end_without_alternative_is_left_out(codec, tmp_path):
    row = ["a dog", "1"]
    assert only(tmp_path, codec, "cola", row).target.tolist() == codec.encode(" yes").tolist()
    longer = only(tmp_path, codec, "cola", row, answers=["yes", "yes yes", "no"])
    assert longer.target.tolist() == [*codec.encode(" yes").tolist(), codec.eos]
    assert len(longer.allowed) == len(longer.target)


@pytest.mark.parametrize(
    ("name", "label", "answer"),
    [("mnli", "Neutral ", "maybe"), ("rte", "ENTAILMENT", "yes"), ("qnli", "Not_entailment", "no")],
)
def test_case_of_a_label_does_not_count(codec, tmp_path, name, label, answer):
    texts = ["a dog"] * len(FORMS[name].columns)
    assert only(tmp_path, codec, name, [*texts, label]).reference == {answer: 1.0}


@pytest.mark.parametrize("label", ["", "-1", "-", None])
def test_a_row_without_label_is_answered_but_not_learned(codec, tmp_path, label):
    row = ["a dog", "two men"] + ([] if label is None else [label])
    example = only(tmp_path, codec, "rte", row, training=False)
    assert example.reference is None and example.target.tolist() == [codec.pad] and example.allowed is None
    reason = f"label '{label}' is unknown" if label in ("-1", "-") else "it is empty"
    with pytest.raises(BadRow, match=f"rows.tsv:1: label: {reason}: write one of not_entailment, entailment, or leave"):
        only(tmp_path, codec, "rte", row)


def test_an_unknown_label_and_an_empty_text_are_bad_rows_everywhere(codec, tmp_path):
    for training in (True, False):
        with pytest.raises(BadRow, match="rows.tsv:1: label: label '2' is unknown: write one of 0, 1, or leave"):
            only(tmp_path, codec, "qqp", ["a dog", "two men", "2"], training)
        with pytest.raises(BadRow, match="rows.tsv:1: question2: it is empty: write a sentence"):
            only(tmp_path, codec, "qqp", ["a dog", " ", "1"], training)
