"""The soft score of VQA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofa_plugin.tasks.metrics import VQAScore, best_answer, parse_answers
from ofa_plugin.tasks.metrics.accuracy import ClassScore, TopFive

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
