"""ROUGE-L of captions, and the subsequence it rests on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_plugin.tasks.metrics import ROUGEL, common_subsequence

words = st.lists(st.sampled_from("abc"), max_size=7)


def f_measure(precision: float, recall: float) -> float:
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [
        ("police killed the gunman", "police kill the gunman", 3),  # Lin 2004, section 3.1
        ("police killed the gunman", "the gunman kill police", 2),
        ("a b c d", "d c b a", 1),
        ("a b", "a b", 2),
        ("a a a", "a", 1),
        ("", "a b", 0),
        ("a b", "", 0),
    ],
)
def test_common_subsequences_by_hand(first, second, length):
    assert common_subsequence(first.split(), second.split()) == length


@given(words, words)
def test_the_common_subsequence_is_the_longest(first, second):
    def subsequences(sequence):
        found = {()}
        for word in sequence:
            found |= {(*start, word) for start in found}
        return found

    assert common_subsequence(first, second) == max(map(len, subsequences(first) & subsequences(second)))


def test_recall_weighs_more_than_precision():
    assert ROUGEL().score("a b", ["a b c d"]) == pytest.approx(f_measure(1, 1 / 2))
    assert ROUGEL().score("a b c d", ["a b"]) == pytest.approx(f_measure(1 / 2, 1))
    assert ROUGEL().score("a b c d", ["a b"]) > ROUGEL().score("a b", ["a b c d"])


def test_precision_and_recall_may_come_from_different_references():
    hypothesis, wordy, terse = "a red bus there", "a red bus is on a street", "bus there"
    assert ROUGEL().score(hypothesis, [wordy, terse]) == pytest.approx(f_measure(3 / 4, 1))
    assert ROUGEL().score(hypothesis, [wordy]) == pytest.approx(f_measure(3 / 4, 3 / 7))


def test_words_are_compared_without_case_and_punctuation():
    assert ROUGEL().score("Two men, playing.", ["two men playing"]) == 1
    assert ROUGEL().score("一只狗。", ["一只猫"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("hypothesis", "reference"), [("", "a dog"), ("a dog", "..."), ("", ""), ("a", "b")])
def test_nothing_shared_is_nothing(hypothesis, reference):
    assert ROUGEL().score(hypothesis, [reference]) == 0


def test_a_row_needs_a_reference():
    with pytest.raises(ValueError, match="ROUGE-L needs at least one reference"):
        ROUGEL().score("a dog", [])


def test_human_captions_of_coco_score_as_with_the_java_tokenizer(shared):
    """Each image's first caption against its others; pycocoevalcap 1.2 with its Java tokenizer gives 0.4718."""
    lines = shared("data/coco/captions_val2017.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line)["captions"] for line in lines if line]
    mean = sum(ROUGEL().score(captions[0], captions[1:]) for captions in rows) / len(rows)
    assert mean == pytest.approx(0.4718, rel=0.01)
