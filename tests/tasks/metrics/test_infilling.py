"""Accuracy of image codes and of filled gaps."""

from __future__ import annotations

import pytest

from ofa_plugin.tasks.metrics.base import Tally
from ofa_plugin.tasks.metrics.infilling import CodeAccuracy, Gapped, InfilledAccuracy


@pytest.mark.parametrize(
    ("answer", "right"), [([1, 2, 3, 4], 4), ([1, 9, 3, 9], 2), ([2, 3, 4, 1], 0), ([1, 2], 2), ([], 0), ([1] * 9, 1)]
)
def test_codes_count_in_their_places_and_missing_ones_are_wrong(answer, right):
    assert CodeAccuracy().sums(answer, [1, 2, 3, 4]) == (right, 4)


def test_accuracy_is_over_codes_and_tokens_not_rows():
    tally = Tally([CodeAccuracy()])
    tally.add([1, 1, 1, 1], [1, 1, 1, 1])
    tally.add([5, 5, 5, 5, 5, 5], [0, 0, 0, 0, 0, 0])
    assert tally.values() == {"code_acc": 0.4}
    tally = Tally([InfilledAccuracy()])
    tally.add([1], Gapped((1,), (True,)))
    tally.add([], Gapped((1, 2, 3), (True, True, True)))
    assert tally.values() == {"infilled_acc": 0.25}


# a b [c d e] f g: three tokens were taken out
TEXT = Gapped((1, 2, 3, 4, 5, 6, 7), (False, False, True, True, True, False, False))


@pytest.mark.parametrize(
    ("answer", "back"),
    [
        ([1, 2, 3, 4, 5, 6, 7], 3),
        ([1, 2, 3, 9, 5, 6, 7], 2),
        ([1, 2, 9, 9, 9, 6, 7], 0),
        ([1, 2, 9, 3, 4, 5, 6, 7], 3),  # a token too many before it: all the same where they belong
        ([1, 2, 3, 4, 5, 9, 9, 6, 7], 3),
        ([1, 2, 4, 5, 6, 7], 2),  # one too few
        ([1, 2, 6, 7], 0),
        ([1, 2, 3], 1),  # stopped early
        ([3, 4, 5], 3),  # the shown part is nobody's merit, nor its lack a fault
        ([], 0),
        ([6, 7, 1, 2], 0),
    ],
)
def test_removed_tokens_count_where_the_rest_says_they_belong(answer, back):
    assert InfilledAccuracy().sums(answer, TEXT) == (back, 3)


def test_repeating_what_was_shown_scores_nothing():
    assert InfilledAccuracy().sums([1, 2, 6, 7], TEXT) == (0, 3)
    assert InfilledAccuracy().sums([1, 2, 2, 1, 6, 7, 6], TEXT) == (0, 3)


def test_a_text_without_gaps_weighs_nothing():
    metric = InfilledAccuracy()
    assert metric.sums([1, 2], Gapped((1, 2), (False, False))) == (0, 0) and metric.value(0.0, 0.0) == 0.0


def test_a_long_text_of_frequent_tokens_is_aligned_too():
    """difflib would pass over tokens that make more than a percent of 200."""
    tokens = tuple([5, 6] * 150)
    removed = tuple(number % 10 == 0 for number in range(300))
    assert InfilledAccuracy().sums(tokens, Gapped(tokens, removed)) == (30, 30)
