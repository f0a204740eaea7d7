"""ROUGE-L of captions, ROUGE of summaries, and the subsequence they rest on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_plugin.tasks.metrics import ROUGEL, Tally, common_subsequence
from ofa_plugin.tasks.metrics.rouge import (
    Rouge1F1,
    Rouge1Recall,
    Rouge2F1,
    Rouge2Recall,
    RougeLF1,
    RougeLRecall,
    stemmed,
)
from tests.helpers.golden import golden

SUMMARY = {
    "rouge1": (Rouge1Recall, Rouge1F1),
    "rouge2": (Rouge2Recall, Rouge2F1),
    "rougeL": (RougeLRecall, RougeLF1),
}
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


# ---- summaries -------------------------------------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize(
    "case", golden("rouge.json")["cases"] + golden("stems.json")["rouge"], ids=lambda case: case["ref"]
)
def test_summaries_score_as_with_rouge_score(case):
    for kind, metrics in SUMMARY.items():
        _, *expected = case["scores"][kind]
        found = [metric().score(case["pred"], case["ref"]) / 100 for metric in metrics]
        assert found == pytest.approx(expected, abs=1e-6)  # the fixture's decimals


@pytest.mark.parity
def test_scores_of_summaries_are_reported_as_officially():
    (case,) = (case for case in golden("metrics.json")["cases"] if case["name"] == "gigaword")
    (log,) = case["logs"]
    metrics = [metric for group in SUMMARY.values() for metric in group]
    count = log["_rouge_cnt"]
    assert {one.name: one().value(log[f"_{one.name}_sum"], count) for one in metrics} == case["metrics"]


def test_ranks_add_up_to_the_score_of_all():
    rows = [(case["pred"], case["ref"]) for case in golden("stems.json")["rouge"]]
    whole, parts = Tally([RougeLF1()]), (Tally([RougeLF1()]), Tally([RougeLF1()]))
    for number, row in enumerate(rows):
        whole.add(*row)
        parts[number % 2].add(*row)
    sums = [sum(values) for values in zip(*(part.log().values() for part in parts), strict=True)]
    assert RougeLF1().value(*sums) == whole.values()["rougeL_f1"] > 0


def test_words_of_a_summary_are_stems_figures_and_chinese_characters():
    assert stemmed("The U.S. won't be buying ##.5 jets") == ["the", "u", "s", "won", "t", "be", "buy", "5", "jet"]
    assert stemmed("新闻内容。 ok") == ["新", "闻", "内", "容", "ok"]
    assert RougeLF1().score("新 闻 内", "新闻内容") == pytest.approx(100 * 6 / 7)
