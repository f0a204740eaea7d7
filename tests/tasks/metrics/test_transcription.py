"""Exact and near readings, against the official terms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_plugin.tasks.metrics.transcription import NormalisedEditDistance, TranscriptionAccuracy, edit_distance
from tests.helpers.golden import golden

OFFICIAL = golden("metrics.json")
LETTERS = st.text("abc", max_size=7)


@pytest.mark.parity
@pytest.mark.parametrize("case", OFFICIAL["ocr_ned_terms"], ids=lambda case: case["hyp"])
def test_distances_are_official(case):
    found = NormalisedEditDistance().score(case["hyp"], case["ref"])
    assert found == pytest.approx(1 - case["dist"])


@pytest.mark.parity
def test_values_are_reported_as_officially():
    case = next(case for case in OFFICIAL["cases"] if case["name"] == "ocr")
    [log] = case["logs"]
    acc, ned = TranscriptionAccuracy(), NormalisedEditDistance()
    values = {acc.name: acc.value(log["_acc_sum"], log["_acc_cnt"])}
    values[ned.name] = ned.value(log["_dist_cnt"] - log["_dist_sum"], log["_dist_cnt"])
    assert values == case["metrics"]


@pytest.mark.parametrize(
    ("hypothesis", "reference", "acc", "ned"),
    [
        ("a b  c", "ab c", 1.0, 1.0),
        ("", "", 1.0, 1.0),  # officially a division by zero
        (" ", "ab", 0.0, 0.0),
        ("ab", "", 0.0, 0.0),
        ("kitten", "sitting", 0.0, 1 - 3 / 7),
        ("猫 很 大", "猫很大", 1.0, 1.0),
        ("Ab", "ab", 0.0, 0.5),
    ],
)
def test_white_space_does_not_count_and_case_does(hypothesis, reference, acc, ned):
    assert TranscriptionAccuracy().score(hypothesis, reference) == acc
    assert NormalisedEditDistance().score(hypothesis, reference) == pytest.approx(ned)


def spelt_out(first: str, second: str) -> int:
    """The definition, by recursion."""
    if not first or not second:
        return len(first) + len(second)
    exchanged = spelt_out(first[1:], second[1:]) + (first[0] != second[0])
    return min(spelt_out(first[1:], second) + 1, spelt_out(first, second[1:]) + 1, exchanged)


@given(LETTERS, LETTERS)
def test_the_distance_is_that_of_the_definition(first, second):
    distance = edit_distance(first, second)
    assert distance == edit_distance(second, first)
    if len(first) + len(second) <= 8:  # the recursion takes its time
        assert distance == spelt_out(first, second)
    assert abs(len(first) - len(second)) <= distance <= max(len(first), len(second))
