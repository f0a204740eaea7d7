"""The closed answer set as a prefix tree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofa_plugin.models.generation import Trie

FIXTURE = json.loads((Path(__file__).parents[2] / "fixtures" / "text" / "trie.json").read_text())


@pytest.fixture()
def trie() -> Trie:
    return Trie.from_answers([word[1:-1] for word in FIXTURE["words"]], eos=FIXTURE["eos"])


@pytest.mark.parity
@pytest.mark.parametrize("case", FIXTURE["cases"], ids=lambda case: str(case["prefix"]))
def test_next_tokens_as_official(trie, case):
    assert trie.next_tokens(case["prefix"]) == case["next"]


def test_trie_offers_only_inserted_continuations():
    trie = Trie.from_answers([[5, 6], [7, 8]])
    assert trie.next_tokens([0]) == [5, 7]
    assert trie.next_tokens([0, 5]) == [6]  # never 8, which follows 7 alone


def test_lengths_count_eos_and_answers_count_once(trie):
    assert (len(trie), trie.min_length, trie.max_length) == (5, 2, 4)
    trie.insert([10])
    assert len(trie) == 5
    trie.insert([20, 21, 22, 23])
    assert (len(trie), trie.max_length) == (6, 5)


def test_allowed_lists_what_each_target_position_is_normalised_over(trie):
    assert trie.allowed([10, 11, 2]) == [[10, 20], [2, 11], [2, 12]]
    assert trie.allowed([20, 2]) == [[10, 20], [2, 21]]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([10, 99, 2], "token 99 at position 1"),
        ([10, 11], "ends in the middle"),
        ([], "ends in the middle"),
        ([10, 2, 2], "token 2 at position 2"),
    ],
)
def test_a_target_outside_the_set_is_refused(trie, target, message):
    with pytest.raises(ValueError, match=message):
        trie.allowed(target)


def test_an_empty_answer_or_set_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        Trie.from_answers([[5], []])
    with pytest.raises(ValueError, match="empty"):
        Trie.from_answers([])
