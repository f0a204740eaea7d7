"""Corpus BLEU-1 to 4."""

from __future__ import annotations

import json
import math

import pytest

from ofa_plugin.tasks.metrics import BLEU, BLEU1, BLEU2, BLEU3, Tally


def bleu(*rows) -> float:
    tally = Tally([BLEU()])
    for hypothesis, references in rows:
        tally.add(hypothesis, references)
    return tally.values()["bleu4"]


def test_matches_are_clipped_by_the_reference_that_has_most():
    """The example of Papineni et al. 2002, section 2.1: modified unigram precision 2/7, no bigram."""
    references = ["The cat is on the mat.", "There is a cat on the mat."]
    sums = BLEU().sums("the the the the the the the.", references)
    assert sums == (7, 7, 2, 0, 0, 0, 7, 6, 5, 4)


def test_a_corpus_by_hand():
    """Counts are added before they are divided; a row without a common 4-gram does not make the corpus 0."""
    rows = (
        # 5 of 6 words; a man, a brown, brown horse; a brown horse; nothing
        ("A man rides a brown horse.", ["A man is riding a brown horse"]),
        ("two dogs play in the snow", ["two dogs play in the snow"]),
    )
    precisions = (5 + 6) / (6 + 6), (3 + 5) / (5 + 5), (1 + 4) / (4 + 4), (0 + 3) / (3 + 3)
    expected = math.exp(1 - (7 + 6) / (6 + 6)) * math.prod(precisions) ** 0.25
    assert bleu(*rows) == round(expected, 4) == bleu(*reversed(rows))
    assert bleu(rows[0]) == 0
    tally = Tally([BLEU1(), BLEU2(), BLEU3()])
    for hypothesis, references in rows:
        tally.add(hypothesis, references)
    brevity = math.exp(1 - (7 + 6) / (6 + 6))
    shorter = {f"bleu{n}": round(brevity * math.prod(precisions[:n]) ** (1 / n), 4) for n in (1, 2, 3)}
    assert tally.values() == shorter


def test_rows_may_have_any_number_of_references():
    rows = (
        ("a red bus on the street", ["a red bus on the street"]),
        ("two men play tennis", ["people", "two men play tennis", "they play"]),
    )
    assert bleu(*rows) == 1


@pytest.mark.parametrize(
    ("references", "length"),
    [
        (["a b c", "a b c d e f g h"], 3),  # 2 away, 3 away
        (["a b c d e f g", "a b c"], 3),  # both 2 away: the shorter
        (["a b c d e f", "a b"], 6),
    ],
)
def test_the_length_to_compare_with_is_the_closest(references, length):
    assert BLEU().sums("a b c d e", references)[:2] == (5, length)


def test_words_are_compared_without_case_and_punctuation():
    assert bleu(("A dog's ball, on the grass!", ["a dog's ball on the grass"])) == 1


def test_chinese_is_compared_by_characters():
    assert BLEU().sums("一只狗", ["一只猫。"]) == (3, 3, 2, 1, 0, 0, 3, 2, 1, 0)


@pytest.mark.parametrize("hypothesis", ["", "...", "a b c"])
def test_what_has_no_four_words_scores_nothing(hypothesis):
    assert bleu((hypothesis, ["a b c d e"])) == 0


def test_a_row_needs_a_reference():
    with pytest.raises(ValueError, match="BLEU needs at least one reference"):
        BLEU().sums("a dog", [])


def test_nothing_is_logged_for_each_row(caplog):
    bleu(("a dog .", ["a cat ."]))
    assert not caplog.records


def test_human_captions_of_coco_score_as_published(shared):
    """Each image's first caption against its others; coco-caption with its Java tokenizer gives 0.196 (0.1955)."""
    lines = shared("data/coco/captions_val2017.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line)["captions"] for line in lines if line]
    assert bleu(*((captions[0], captions[1:]) for captions in rows)) == pytest.approx(0.196, rel=0.01)
