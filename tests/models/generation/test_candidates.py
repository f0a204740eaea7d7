"""Every answer of a closed set scored by one pass over their tree."""

from __future__ import annotations

import json
import random
from functools import lru_cache

import pytest
import torch

from ofa_plugin.errors import UserError
from ofa_plugin.models.generation import (
    AllCandidateGenerator,
    AllCandidateScorer,
    ConstrainedGenerator,
    NonFiniteLogits,
    Trie,
)
from tests.helpers.small_model import FIXTURES, build_small, small_dictionary, small_model
from tests.parity.test_beam import GOLDEN, sample_of

OFFICIAL = json.loads((FIXTURES / "vqa_allcand.json").read_text())
SAMPLE = sample_of(GOLDEN["trie"])
ROWS = len(SAMPLE["net_input"]["src_tokens"])
BOS = torch.zeros(ROWS, 1, dtype=torch.int64)


@lru_cache(maxsize=1)
def encoded(model):
    with torch.no_grad():
        return model.encoder.forward_torchscript(SAMPLE["net_input"])


def one_by_one(model, answers, prompt, row, temperature=1.0) -> list[float]:
    """Each answer alone through the decoder, every position's softmax over what the set allows there."""
    trie, scores = Trie.from_answers(answers), []
    out = model.encoder.reorder_encoder_out(encoded(model), torch.tensor([row]))
    for answer in answers:
        tokens = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = model.decoder(tokens, encoder_out=out)[0][0, len(prompt) - 1 :] / temperature
        total = 0.0
        for step, (token, allowed) in enumerate(zip([*answer, 2], trie.allowed([*answer, 2]), strict=True)):
            total += float(logits[step, allowed].log_softmax(0)[allowed.index(token)])
        scores.append(total)
    return scores


def random_answers(seed, count=40) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randint(20, 20 + seed) for _ in range(draw.randint(1, 5))] for _ in range(count)]


@pytest.mark.parity
def test_scores_and_choices_as_official():
    generator = AllCandidateGenerator([small_model()], small_dictionary(), Trie.from_answers(OFFICIAL["answers"]), 8)
    prompts = [prompt[1:] for prompt in OFFICIAL["decoder_prompts"]]
    padded = torch.tensor([prompt + [1] * (3 - len(prompt)) for prompt in prompts])
    hypotheses = generator.complete([], SAMPLE, padded, 0)
    for beam, official, best in zip(hypotheses, OFFICIAL["scores"], OFFICIAL["argmax"], strict=True):
        assert beam[0]["tokens"].tolist() == [*OFFICIAL["answers"][best], 2]
        found = {tuple(h["tokens"].tolist()): float(h["score"]) for h in beam}
        for answer, score in zip(OFFICIAL["answers"], official, strict=True):
            assert found[(*answer, 2)] == pytest.approx(score, abs=2e-5)


@pytest.mark.parametrize(("seed", "rows"), [(1, 1024), (3, 1024), (9, 1024), (3, 4), (9, 7), (30, 1)])
def test_one_pass_gives_the_numbers_of_one_answer_at_a_time(seed, rows):
    """Whatever the tree is cut into."""
    model, answers = small_model(), random_answers(seed)
    scorer = AllCandidateScorer(Trie.from_answers(answers), rows)
    prompt = [0, 21, 22]
    scores = scorer.scores(scorer.edges([model], [encoded(model)], torch.tensor([prompt] * ROWS), temperature=0.7))
    for row in range(ROWS):
        assert scores[row].tolist() == pytest.approx(one_by_one(model, answers, prompt, row, 0.7), abs=2e-5)
    unique = scorer.trie.ends.unique(return_inverse=True)[1]
    probabilities = torch.zeros(ROWS, len(scorer.trie)).index_copy_(1, unique, scores.exp())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(ROWS))
    assert all(len(chunk.depth) <= max(rows, 6) for chunk in scorer.chunks)


def test_what_is_forced_is_not_decoded():
    answers = [[20, 30, 31, 32], [21, 30, 31, 32], [21, 40]]
    scorer = AllCandidateScorer(Trie.from_answers(answers))
    assert sum(len(chunk.depth) for chunk in scorer.chunks) == 2  # the root and what stands behind 21
    alone = AllCandidateScorer(Trie.from_answers([[20, 21, 22]]))
    assert not alone.chunks
    assert alone.scores(alone.edges([small_model()], [encoded(small_model())], BOS)).tolist() == [[0.0]] * ROWS


def test_many_followers_of_a_node_are_scored_like_few():
    model, answers = small_model(), [[token] for token in range(20, 120)] + [[30, 31], [30, 32]]
    scorer = AllCandidateScorer(Trie.from_answers(answers))
    scores = scorer.scores(scorer.edges([model], [encoded(model)], BOS))
    assert scores[1].tolist() == pytest.approx(one_by_one(model, answers, [0], 1), abs=2e-5)


@pytest.mark.parametrize("seed", range(2, 8))
def test_a_beam_as_wide_as_the_set_ranks_it_alike(seed):
    """Two models, prompts of different lengths, answers given twice and answers that begin others."""
    models, trie = [small_model(), build_small(recipe="m2.")[0]], Trie.from_answers(random_answers(seed, 12))
    prompts = torch.tensor([[21, 22, 1], [23, 1, 1], [1, 1, 1]])[:ROWS]
    every = AllCandidateGenerator(models, small_dictionary(), trie, len(trie))
    beam = ConstrainedGenerator(models, small_dictionary(), trie, beam_size=len(trie), normalize_scores=False)
    for ours, theirs in zip(
        every.complete([], SAMPLE, prompts, 0), beam.complete(models, SAMPLE, prompts, 0), strict=True
    ):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert float(mine["score"]) == pytest.approx(float(other["score"]), abs=1e-4)
            assert mine["positional_scores"].tolist() == pytest.approx(other["positional_scores"].tolist(), abs=1e-4)


def test_the_best_of_a_few_is_asked_for_as_a_beam_is():
    trie = Trie.from_answers(random_answers(5))
    three = AllCandidateGenerator([small_model()], small_dictionary(), trie, 3).generate([], SAMPLE)
    every = AllCandidateGenerator([small_model()], small_dictionary(), trie, 10**6).generate([], SAMPLE)
    assert [len(beam) for beam in three] == [3] * ROWS and [len(beam) for beam in every] == [len(trie)] * ROWS
    assert [[h["tokens"].tolist() for h in beam] for beam in three] == [
        [h["tokens"].tolist() for h in beam[:3]] for beam in every
    ]


@pytest.mark.parametrize("prompted", [False, True])
def test_each_sentence_among_its_own_answers(prompted):
    """As if it had been alone with them, whether or not another one has the same."""
    sets = [((20, 21), (20, 22), (23,)), ((24,), (20, 21), (20, 22), (25, 26)), ((20, 21), (20, 22), (23,))]
    sample = {**SAMPLE, "choices": [sets[row % 3] for row in range(ROWS)]}
    prompts = torch.tensor([[21, 22], [23, 1], [1, 1]])[:ROWS] if prompted else torch.empty(ROWS, 0, dtype=torch.int64)
    found = AllCandidateGenerator([small_model()], small_dictionary(), None, 4).complete([], sample, prompts, 0)
    for row, choices in enumerate(sample["choices"]):
        alone = AllCandidateGenerator([small_model()], small_dictionary(), Trie.from_answers(choices), 4)
        expected = alone.complete([], SAMPLE, prompts, 0)[row]
        assert [h["tokens"].tolist() for h in found[row]] == [h["tokens"].tolist() for h in expected]
        assert len(found[row]) == len(choices)
        assert [float(h["score"]) for h in found[row]] == pytest.approx([float(h["score"]) for h in expected], abs=1e-5)


def test_numbers_gone_bad_name_their_rows():
    model = build_small()[0]
    with torch.no_grad():
        model.decoder.layer_norm.weight.fill_(float("nan"))
    generator = AllCandidateGenerator([model], small_dictionary(), Trie.from_answers([[20], [21]]))
    with pytest.raises(NonFiniteLogits, match="batch rows 0, 1"):
        generator.generate([], SAMPLE)
    with pytest.raises(UserError, match="--prefix-size"):
        generator.generate([], SAMPLE, prefix_tokens=BOS)
