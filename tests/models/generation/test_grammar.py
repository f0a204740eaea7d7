"""Boxes by construction, with and without names, and ranges of ids."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from ofa_plugin.errors import UserError
from ofa_plugin.models.generation import ConstrainedGenerator, Trie, build_ensemble
from ofa_plugin.models.generation.box_grammar import Boxes
from ofa_plugin.models.generation.grammar import Range
from tests.helpers.toy_decoder import ToyModel, toy_dictionary

TOY = json.loads((Path(__file__).parents[2] / "fixtures" / "text" / "generator_toy.json").read_text())
EOS, BIN0, BINS, SIZE = 2, 10, 4, 16
WORDS = torch.tensor([4 <= token < 8 for token in range(SIZE)])
NAMES = Trie.from_answers([[4], [4, 5], [6, 7, 5]])


def sample() -> dict:
    return {"net_input": {"src_tokens": torch.tensor([[4, 2], [5, 2], [6, 2]])}}


def searched(rules, seed: int, **options) -> list[list[list[int]]]:
    """The tokens of every hypothesis of every row, without their end."""
    ensemble = build_ensemble([ToyModel.random(SIZE, seed)], rules)
    generator = ConstrainedGenerator(ensemble, toy_dictionary(SIZE), **{"max_len_a": 0, "max_len_b": 12, **options})
    found = generator.generate([], sample(), bos_token=0)
    for hypothesis in itertools.chain.from_iterable(found):
        assert hypothesis["tokens"][-1] == EOS and math.isfinite(hypothesis["score"])
    return [[hypothesis["tokens"].tolist()[:-1] for hypothesis in row] for row in found]


def parsed(tokens: list[int], named: bool) -> list[tuple[list[int], list[int]]]:
    """Boxes and their names, or an AssertionError."""
    items, at = [], 0
    while at < len(tokens):
        corners = [token - BIN0 for token in tokens[at : at + 4]]
        assert len(corners) == 4 and all(0 <= corner < BINS for corner in corners)
        assert corners[0] < corners[2] and corners[1] < corners[3]
        end = at = at + 4
        while end < len(tokens) and tokens[end] < BIN0:
            end += 1
        assert (end > at) == named
        items.append((corners, tokens[at:end]))
        at = end
    return items


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize(("least", "most"), [(1, 1), (0, 2), (2, 3), (1, math.inf)])
@pytest.mark.parametrize("names", [None, WORDS, NAMES], ids=["no names", "free names", "closed names"])
def test_every_answer_is_boxes_as_they_were_asked_for(names, least, most, beam):
    rules = Boxes(BIN0, BINS, EOS, least, most, names, SIZE)
    lengths = set()
    for seed in range(25):
        for room in (12, 13, 21):
            for tokens in itertools.chain.from_iterable(searched(rules, seed, beam_size=beam, max_len_b=room)):
                items = parsed(tokens, names is not None)
                fit = room // (4 if names is None else 7 if names is NAMES else 5)
                assert min(least, fit) <= len(items) <= most and len(tokens) <= room
                assert all(name in ([4], [4, 5], [6, 7, 5]) for _, name in items) or names is not NAMES
                lengths.add(len(items))
    assert len(lengths) > 1 or least == most == 1


@pytest.mark.parametrize(
    ("names", "count", "room"), [(None, 10, 8), ("free", 9 * 4, 5), (NAMES, 9 * 3, 8)], ids=["none", "free", "closed"]
)
def test_the_probabilities_of_all_answers_sum_to_one(names, count, room):
    size = 64  # stock keeps fewer beams than that at its first step
    words = torch.tensor([4 <= token < 8 for token in range(size)])
    rules = Boxes(BIN0, 3, EOS, 0 if names is None else 1, 1, words if names == "free" else names, size)
    generator = ConstrainedGenerator(
        build_ensemble([ToyModel.random(size, 3)], rules),
        toy_dictionary(size),
        **{"beam_size": count, "max_len_a": 0, "max_len_b": room, "min_len": 0, "normalize_scores": False},
    )
    for row in generator.generate([], sample(), bos_token=0):
        assert len({tuple(one["tokens"].tolist()) for one in row}) == count
        assert sum(math.exp(one["score"]) for one in row) == pytest.approx(1, abs=1e-4)


def test_a_box_needs_room():
    with pytest.raises(UserError, match="has 4 tokens with its prompt, but the search stops after 3; raise"):
        searched(Boxes(BIN0, BINS, EOS), 0, max_len_b=3)
    with pytest.raises(UserError, match="--num-bins 1: a box needs at least two"):
        Boxes(BIN0, 1, EOS)


# ---- the official range and what stands beside it --------------------------------------------------------------------


RANGES = [case for case in TOY["generation"] if "constraint_range" in case["args"]]


@pytest.mark.parity
@pytest.mark.parametrize("case", RANGES, ids=lambda case: case["name"])
def test_the_toy_cases_of_the_official_range(case):
    options = dict(case["args"])
    start, end = map(int, options.pop("constraint_range").split(","))
    codes = options.pop("gen_code", False)
    model = ToyModel(*[torch.tensor(TOY[name]) for name in "WBS"])
    rules = Range(start, end, range(4))
    ensemble = build_ensemble([model], rules, renormalise=not case["zero_shot"])
    generator = ConstrainedGenerator(ensemble, toy_dictionary(20), **options)
    if codes:  # officially no special token is taken before the end
        generator.token_indices_to_suppress = torch.tensor([0, 1, 3])
    source = {"net_input": {"src_tokens": torch.tensor(TOY["src_tokens"])}}
    for ours, theirs in zip(generator.generate([], source, bos_token=0), case["hypos"], strict=True):
        assert [one["tokens"].tolist() for one in ours] == [one["tokens"] for one in theirs]
        for mine, official in zip(ours, theirs, strict=True):
            assert float(mine["score"]) == pytest.approx(official["score"], abs=2e-5)
            assert mine["positional_scores"].tolist() == pytest.approx(official["positional_scores"], abs=2e-5)


@pytest.mark.parametrize(
    "rules",
    [Range(8, 12), Boxes(BIN0, BINS, EOS), Trie.from_answers([[9, 9, 8, 8], [9, 8, 8, 9], [7, 7, 7, 7]])],
    ids=["range", "boxes", "trie"],
)
def test_without_renormalising_a_score_is_that_of_the_free_model(rules):
    model = ToyModel.random(SIZE, 5)
    options = {"beam_size": 3, "max_len_a": 0, "max_len_b": 4, "min_len": 4}
    ensemble = build_ensemble([model], rules, renormalise=False)
    found = ConstrainedGenerator(ensemble, toy_dictionary(SIZE), **options).generate([], sample(), bos_token=0)
    for first, row in zip((4, 5, 6), found, strict=True):
        for one in row:
            tokens = one["tokens"].tolist()
            previous = torch.tensor([[0, *tokens[:-1]]])
            free = model.decoder(previous, {"first": [torch.tensor([first])]})[0][0].log_softmax(-1)
            expected = [free[step, token].item() for step, token in enumerate(tokens)]
            assert one["positional_scores"].tolist() == pytest.approx(expected, abs=1e-5)
    shared = ConstrainedGenerator(build_ensemble([model], rules), toy_dictionary(SIZE), **options)
    renormalised = shared.generate([], sample(), bos_token=0)
    assert all(float(a[0]["score"]) < float(b[0]["score"]) for a, b in zip(found, renormalised, strict=True))
