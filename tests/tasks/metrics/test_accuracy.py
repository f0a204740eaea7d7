"""The soft score of VQA; accuracy, F1 and correlation of closed answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofa_plugin.tasks.metrics import Tally, VQAScore, best_answer, parse_answers
from ofa_plugin.tasks.metrics.accuracy import F1, Accuracy, ClassScore, MatthewsCorrelation, TopFive

FIXTURE = json.loads((Path(__file__).parents[2] / "fixtures" / "text" / "vqa_score.json").read_text())
REPORTED = json.loads((Path(__file__).parents[2] / "fixtures" / "text" / "metrics.json").read_text())["cases"]


@pytest.mark.parity
def test_answers_parsed_and_scored_as_official():
    assert [parse_answers(cell) for cell in FIXTURE["ref_strings"]] == FIXTURE["parsed"]
    assert [best_answer(answers) for answers in FIXTURE["parsed"]] == FIXTURE["best_answers"]
    metric = VQAScore()
    scores = [metric.score(hyp, ref) for hyp, ref in zip(FIXTURE["hyps"], FIXTURE["ref_dicts"], strict=True)]
    assert scores == FIXTURE["scores"]
    tie = FIXTURE["tie_break"]
    assert best_answer(parse_answers(tie["ref"])) == tie["best"]


@pytest.mark.parity
def test_value_rounds_as_official():
    (case,) = (case for case in REPORTED if case["name"] == "vqa")
    total, count = (sum(log[key] for log in case["logs"]) for key in ("_vqa_score_sum", "_vqa_cnt"))
    assert VQAScore().value(total, count) == case["metrics"]["vqa_score"]
    assert VQAScore().value(0.0, 0) == 0


@pytest.mark.parametrize("answer", ["black, white", "m&m's", "naïve café", "1.0", "a|b"])
def test_answers_survive(answer):
    assert parse_answers(f"1.0|!+{answer}") == {answer: 1.0}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("yes", r"expected confidence\|!\+answer, found 'yes'"),
        ("1.0|!+a|!+b", r"expected confidence\|!\+answer, found '1.0\|!\+a\|!\+b'"),
        ("1.0|!+a&&", "found ''"),
        ("", "found ''"),
        ("high|!+a", "confidence 'high' is not a number"),
        ("1.2|!+a", "confidence 1.2 is not between 0 and 1"),
        ("nan|!+a", "confidence nan is not between"),
        ("0.5|!+ ", r"empty answer after 0.5\|!\+"),
    ],
)
def test_a_cell_that_cannot_be_read_says_why(cell, message):
    with pytest.raises(ValueError, match=message):
        parse_answers(cell)


@pytest.mark.parity
def test_the_score_of_classes_is_reported_as_officially():
    (case,) = (case for case in REPORTED if case["name"] == "image_classify")
    [log] = case["logs"]
    assert {ClassScore.name: ClassScore().value(log["_score_sum"], log["_score_cnt"])} == case["metrics"]


@pytest.mark.parametrize(
    ("ranking", "first", "five"),
    [
        (["cat", "dog"], 1.0, 1.0),
        (["dog", "cat"], 0.0, 1.0),
        (["a", "b", "c", "d", "cat"], 0.0, 1.0),
        (["a", "b", "c", "d", "e", "cat"], 0.0, 0.0),
        (["ca", "cats", "Cat"], 0.0, 0.0),
        ([], 0.0, 0.0),  # --reject-below
    ],
)
def test_the_class_is_looked_for_among_the_likeliest_answers(ranking, first, five):
    assert ClassScore().score(ranking, {"cat": 1.0}) == first
    assert TopFive().score(ranking, {"cat": 1.0}) == five


def rows(right_yes: int, false_yes: int, right_no: int, false_no: int) -> list[tuple[str, dict[str, float]]]:
    """Answers and references with these counts."""
    kinds = (("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"))
    counts = (right_yes, false_yes, right_no, false_no)
    return [(said, {true: 1.0}) for (said, true), count in zip(kinds, counts, strict=True) for _ in range(count)]


def tallied(metrics: list, answers: list) -> dict[str, float]:
    tally = Tally(metrics)
    for answer, reference in answers:
        tally.add(answer, reference)
    return tally.values()


@pytest.mark.parity
@pytest.mark.parametrize("name", ["cola", "mrpc", "sst2"])
def test_closed_answers_score_as_officially(name):
    """Of the counts that the official ranks have logged, added up."""
    (case,) = (case for case in REPORTED if case["name"] == name)
    total, count, right, false_yes, right_no, false_no = (
        sum(log.get(key, 0) for log in case["logs"]) for key in ("_score_sum", "_score_cnt", "_TP", "_FP", "_TN", "_FN")
    )
    metrics = {
        "acc": Accuracy().value(total, count),
        "F1": F1().value(right, false_yes, right_no, false_no),
        "mcc": MatthewsCorrelation().value(right, false_yes, right_no, false_no),
    }
    assert {key: metrics[key] for key in case["metrics"]} == case["metrics"]


def test_answers_of_rows_make_the_counts():
    answers = rows(6, 3, 4, 2)
    assert tallied([Accuracy(), F1(), MatthewsCorrelation()], answers) == {"acc": 0.6667, "F1": 0.706, "mcc": 0.3273}
    worse = [*answers, ("no answer", {"yes": 1.0}), ("no answer", {"no": 1.0})]  # as --reject-below leaves them
    assert tallied([Accuracy(), F1()], worse) == {"acc": round(10 / 17, 4), "F1": round(12 / 19, 3)}


def test_a_correlation_that_is_not_defined_is_zero():
    """Officially the first of these ends the run with a ZeroDivisionError."""
    (case,) = (case for case in REPORTED if case["name"] == "cola_all_one_class")
    (log,) = case["logs"]
    assert case["metrics"]["error"].startswith("ZeroDivisionError")
    assert MatthewsCorrelation().value(log["_TP"], log["_FP"], log["_TN"], log["_FN"]) == 0
    assert MatthewsCorrelation().value(0, 0, 0, 0) == 0
    assert F1().value(0, 3, 2, 0) == 0 and F1().value(0, 0, 2, 0) == 0
    assert MatthewsCorrelation().value(2, 0, 3, 0) == 1 and MatthewsCorrelation().value(0, 3, 0, 2) == -1
