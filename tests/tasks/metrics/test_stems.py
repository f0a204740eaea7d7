"""Stems against NLTK's."""

from __future__ import annotations

import pytest

from ofa_plugin.tasks.metrics.stems import measure, shape, stem
from tests.helpers.golden import golden


@pytest.mark.parity
def test_stems_are_those_of_nltk():
    words = golden("stems.json")["words"]
    assert {word: stem(word) for word in words} == words


@pytest.mark.parametrize(
    ("word", "kinds", "times"),
    [("tree", "ccvv", 0), ("by", "cv", 0), ("trouble", "ccvvccv", 1), ("private", "ccvcvcv", 2), ("toy", "cvc", 1)],
)
def test_measures_of_the_paper(word, kinds, times):
    assert shape(word) == kinds and measure(word) == times


def test_words_of_two_letters_and_figures_stay():
    assert [stem(word) for word in ("as", "is", "2010")] == ["as", "is", "2010"]
