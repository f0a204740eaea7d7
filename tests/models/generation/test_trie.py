"""The closed answer set as a prefix tree."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

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
    assert (len(trie), trie.shortest, trie.longest) == (5, 1, 3)
    words = [word[1:-1] for word in FIXTURE["words"]]
    more = Trie.from_answers([*words, words[0], [20, 21, 22, 23]], eos=FIXTURE["eos"])
    assert (len(more), more.longest, len(more.ends)) == (6, 4, len(words) + 2)
    assert more.ends[0] == more.ends[len(words)]


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


def plain(answers, prefix) -> list[int]:
    """What may follow a prefix, from the list itself."""
    paths = [[*answer, 2] for answer in answers]
    return sorted({path[len(prefix)] for path in paths if path[: len(prefix)] == prefix and len(path) > len(prefix)})


@pytest.mark.parametrize("seed", range(20))
def test_arrays_say_what_the_list_says(seed):
    draw = random.Random(seed)
    answers = [[draw.randint(4, 4 + seed) for _ in range(draw.randint(1, 5))] for _ in range(draw.randint(1, 60))]
    trie = Trie.from_answers(answers)
    assert len(trie) == len({tuple(answer) for answer in answers})
    nodes = torch.zeros(len(answers), dtype=torch.int64)
    for level in range(7):
        prefixes = [[*answer, 2][:level] for answer in answers]
        tokens, there = trie.followers(nodes, level)
        found = [row[kept].tolist() for row, kept in zip(tokens, there, strict=True)]
        over = [len(prefix) < level for prefix in prefixes]
        expected = [[2] if lost else plain(answers, prefix) for lost, prefix in zip(over, prefixes, strict=True)]
        assert found == expected
        assert tokens.shape[1] <= max(trie.widest[min(level, len(trie.widest) - 1)], 1)
        steps = torch.tensor([([*answer, 2] + [9] * 8)[level] for answer in answers])
        nodes = trie.step(nodes, steps)
        assert ((nodes == trie.ends) == torch.tensor([len(answer) == level for answer in answers])).all()


def test_a_path_that_no_answer_takes_stays_lost():
    trie = Trie.from_answers([[5, 6], [7]])
    nodes = trie.step(torch.tensor([0, 0, trie.lost, int(trie.ends[1])]), torch.tensor([6, 7, 5, 2]))
    assert (nodes == trie.lost).tolist() == [True, False, True, True]
    assert trie.followers(nodes[:1])[0].tolist() == [[2]]


def test_an_empty_answer_or_set_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        Trie.from_answers([[5], []])
    with pytest.raises(ValueError, match="empty"):
        Trie.from_answers([])
