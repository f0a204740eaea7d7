"""Entailment rows against the official dataset's, and what a label may be."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_plugin.data.codec import Codec
from ofa_plugin.data.image import PictureLoader
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow
from ofa_plugin.models.generation.trie import Trie
from ofa_plugin.tasks.answering import AnswerSet
from ofa_plugin.tasks.metrics.accuracy import SNLIScore
from ofa_plugin.tasks.snli_ve import SnliVeBuilder, SnliVeTask
from tests.helpers.golden import golden, settings, synthetic_image
from tests.tasks.test_vqa import check_answered


def only(tmp_path, codec, row, training=True, **given):
    (tmp_path / "rows.tsv").write_text("\t".join(row) + "\n", encoding="utf-8")
    store = TSVStore(str(tmp_path / "rows.tsv"), SnliVeBuilder.columns)
    answers = SnliVeTask.default_answers
    trie = Trie.from_answers([codec.encode(f" {answer}").tolist() for answer in answers], bos=codec.bos, eos=codec.eos)
    cfg = settings(**{"prompt_type": "none", "add_caption": False, **given})
    answer_set = AnswerSet(frozenset(answers), trie, "the answer set")
    made = SnliVeBuilder(store, codec, cfg, training, PictureLoader(tmp_path, 32), answer_set)
    [example] = made.examples(0, store[0], np.random.default_rng(0))
    return example


@pytest.fixture
def codec(world):
    return Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)


@pytest.mark.parity
@pytest.mark.parametrize(
    "case",
    golden("dataset_snli_ve.json")["cases"],
    ids=lambda case: f"{case['prompt_type']}-{case['add_caption']}-{case['row'][4]}",
)
def test_rows_match_the_official_dataset(shared, tmp_path, case):
    codec = Codec.build("gpt2", str(shared("bpe/gpt2")), 1000, 8192)
    row = [case["row"][0], synthetic_image(40, 30), *case["row"][2:]]
    example = only(tmp_path, codec, row, prompt_type=case["prompt_type"], add_caption=case["add_caption"])
    check_answered(codec, example, case["example"])
    assert example.confidence == 1.0


@pytest.mark.parity
def test_the_score_is_reported_as_officially():
    case = next(case for case in golden("metrics.json")["cases"] if case["name"] == "snli_ve")
    [log] = case["logs"]
    assert {SNLIScore.name: SNLIScore().value(log["_snli_score_sum"], log["_snli_cnt"])} == case["metrics"]


@pytest.mark.parametrize(("label", "answer"), [("Entailment", "yes"), ("NEUTRAL ", "maybe"), ("contradiction", "no")])
def test_case_of_a_label_does_not_count(codec, tmp_path, label, answer):
    example = only(tmp_path, codec, ["1", synthetic_image(8, 8), "a dog", "", label])
    assert codec.decode(example.target).strip() == answer and example.reference == {answer: 1.0}


@pytest.mark.parametrize(("label", "reason"), [("-", "label '-' is unknown"), ("", "it is empty")])
def test_a_pair_without_gold_label_cannot_be_learned_and_is_not_scored(codec, tmp_path, label, reason):
    row = ["1", synthetic_image(8, 8), "a dog", "", label]
    with pytest.raises(BadRow, match=f"rows.tsv:1: label: {reason}: write one of contradiction, entailment, neutral"):
        only(tmp_path, codec, row)
    example = only(tmp_path, codec, row, training=False)
    assert example.target.tolist() == [codec.pad] and example.reference is None and example.allowed is None


def test_an_unknown_label_is_a_bad_row_everywhere(codec, tmp_path):
    with pytest.raises(BadRow, match="label 'true' is unknown"):
        only(tmp_path, codec, ["1", synthetic_image(8, 8), "a dog", "", "true"], training=False)


def test_an_empty_premise_or_hypothesis_is_a_bad_row(codec, tmp_path):
    with pytest.raises(BadRow, match="rows.tsv:1: caption: it is empty, but --add-caption reads it"):
        only(tmp_path, codec, ["1", synthetic_image(8, 8), "a dog", " ", "neutral"], add_caption=True)
    with pytest.raises(BadRow, match="rows.tsv:1: hypothesis: it is empty"):
        only(tmp_path, codec, ["1", synthetic_image(8, 8), "", "a dog", "neutral"])
