"""Question answering rows against the official dataset's, and what a closed answer set does to targets."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_plugin.data.codec import Codec
from ofa_plugin.data.image import PictureLoader
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow
from ofa_plugin.models.generation.trie import Trie
from ofa_plugin.tasks.vqa import VQABuilder
from tests.helpers.golden import golden, settings, synthetic_image


def only(tmp_path, codec, row, answers, training=True, **given):
    (tmp_path / "rows.tsv").write_text("\t".join(row) + "\n", encoding="utf-8")
    store = TSVStore(str(tmp_path / "rows.tsv"), VQABuilder.columns, None, VQABuilder.required)
    trie = Trie.from_answers([codec.encode(f" {answer}").tolist() for answer in answers], bos=codec.bos, eos=codec.eos)
    pictures = PictureLoader(tmp_path, 32)
    made = VQABuilder(store, codec, settings(**given), training, pictures, trie, frozenset(answers), "answers.txt")
    [example] = made.examples(0, store[0], np.random.default_rng(0))
    return example


@pytest.fixture
def codec(world):
    return Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)


CASES = golden("dataset_vqa_gen.json")
PLAIN = [case for case in CASES["cases"] if case["prompt_type"] == "none" and not case["add_object"]]


@pytest.mark.parity
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case["row"][0])
def test_rows_match_the_official_dataset(shared, tmp_path, case):
    codec = Codec.build("gpt2", str(shared("bpe/gpt2")), 1000, 8192)
    row = [case["row"][0], synthetic_image(40, 30), *case["row"][2:]]
    example = only(tmp_path, codec, row, CASES["answers_in_trie"], max_src_length=CASES["max_src_length_words"])
    expected = case["example"]
    assert example.uniq_id == expected["id"]
    assert example.source.tolist() == expected["source"]
    assert example.target.tolist() == expected["target"]
    assert example.confidence == pytest.approx(expected["conf"][0])
    assert example.reference == expected["ref_dict"]
    assert [sorted(ids) for ids in example.allowed] == expected["constraint_mask_allowed"]


def test_the_best_answer_inside_the_set_is_learned(codec, tmp_path):
    row = ["1", synthetic_image(8, 8), "what colour", "0.9|!+crimson&&0.6|!+red", ""]
    example = only(tmp_path, codec, row, ["yes", "red"])
    assert codec.decode(example.target).strip() == "red" and example.confidence == 0.6


def test_a_training_row_outside_the_set_is_a_bad_row_and_an_evaluated_one_scores_nothing(codec, tmp_path):
    row = ["1", synthetic_image(8, 8), "what colour", "0.9|!+crimson", ""]
    with pytest.raises(BadRow, match=r"rows.tsv:1: answers: no answer of this row is in answers.txt \(crimson\)"):
        only(tmp_path, codec, row, ["yes", "red"])
    example = only(tmp_path, codec, row, ["yes", "red"], training=False)
    assert example.target.tolist() == [codec.pad] and example.reference == {"crimson": 0.9}


def test_an_answer_column_of_another_form_is_a_bad_row(codec, tmp_path):
    with pytest.raises(BadRow, match=r"rows.tsv:1: answers: "):
        only(tmp_path, codec, ["1", synthetic_image(8, 8), "why", "yes", ""], ["yes"])
