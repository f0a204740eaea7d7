"""Stock beam search kept inside a closed answer set."""

from __future__ import annotations

import json
import math
import pickle
import random
from pathlib import Path

import pytest
import torch
from fairseq import search
from fairseq.sequence_generator import SequenceGenerator

from ofa_plugin.errors import UserError
from ofa_plugin.models.generation import ConstrainedGenerator, NonFiniteLogits, Trie, build_ensemble
from tests.helpers.toy_decoder import ToyModel, toy_dictionary

TOY = json.loads((Path(__file__).parents[2] / "fixtures" / "text" / "generator_toy.json").read_text())
CASES = [
    pytest.param(case, generator, id=f"{case['name']}-{generator.__name__}")
    for case in TOY["generation"]
    for generator in (ConstrainedGenerator, SequenceGenerator)
    if "constraint_range" not in case["args"]
    and not (generator is SequenceGenerator and case["trie"] and case["prefix_tokens"])  # it hands no prompts on
]

# "red and white", "blue and green", "red", "and white" as tokens
RED, AND, WHITE, BLUE, GREEN = 4, 5, 6, 7, 8
COLOURS = [[RED, AND, WHITE], [BLUE, AND, GREEN], [RED], [AND, WHITE]]


def sample(src_tokens) -> dict:
    return {"net_input": {"src_tokens": torch.as_tensor(src_tokens)}}


def tables() -> list[torch.Tensor]:
    return [torch.tensor(TOY[name]) for name in "WBS"]


def check(hypotheses, expected, atol):
    assert [[h["tokens"].tolist() for h in beam] for beam in hypotheses] == [
        [h["tokens"] for h in beam] for beam in expected
    ]
    for ours, theirs in zip(sum(hypotheses, []), sum(expected, []), strict=True):
        assert float(ours["score"]) == pytest.approx(theirs["score"], abs=atol)
        assert ours["positional_scores"].tolist() == pytest.approx(theirs["positional_scores"], abs=atol)


@pytest.mark.parity
@pytest.mark.parametrize(("case", "generator_class"), CASES)
def test_toy_hypotheses_as_official(case, generator_class):
    prefix = None if case["prefix_tokens"] is None else torch.tensor(case["prefix_tokens"])
    trie = Trie.from_answers(TOY["trie_words_without_bos_eos"]) if case["trie"] else None
    ensemble = build_ensemble([ToyModel(*tables())], trie)
    generator = generator_class(ensemble, toy_dictionary(20), **case["args"])
    hypotheses = generator.generate([], sample(TOY["src_tokens"]), prefix_tokens=prefix, bos_token=0)
    check(hypotheses, case["hypos"], atol=2e-5)  # the fixture has five decimals


@pytest.mark.parametrize("normalise", [True, False])
def test_every_output_of_every_model_is_an_answer_of_the_set(normalise):
    trie, dictionary = Trie.from_answers(COLOURS), toy_dictionary(16)
    answers = {tuple(answer) for answer in COLOURS}
    for seed in range(200):
        models = [ToyModel.random(16, seed)]
        beam = 1 + seed % 8
        generator = ConstrainedGenerator(
            models, dictionary, trie, beam_size=beam, max_len_b=10, normalize_scores=normalise
        )
        for hypotheses in generator.generate(models, sample([[4, 2], [5, 2], [6, 2]]), bos_token=0):
            found = [tuple(h["tokens"].tolist()[:-1]) for h in hypotheses]
            assert found and set(found) <= answers, (seed, beam, found)
            assert len(found) == len(set(found)) == min(beam, len(answers))
            assert all(h["tokens"][-1] == 2 and math.isfinite(h["score"]) for h in hypotheses)


def test_diverse_groups_stay_in_the_set():
    answers, dictionary = [[4], [4, 5], [6], [7, 7]], toy_dictionary(16)  # no, no way, yes, ha ha
    for seed in range(50):
        models = [ToyModel.random(16, seed)]
        groups = search.DiverseBeamSearch(dictionary, num_groups=2, diversity_strength=0.5)
        trie = Trie.from_answers(answers)
        generator = ConstrainedGenerator(models, dictionary, trie, beam_size=4, search_strategy=groups)
        for hypotheses in generator.generate(models, sample([[4, 2], [5, 2]]), bos_token=0):
            assert len(hypotheses) == 4
            assert all(h["tokens"].tolist()[:-1] in answers for h in hypotheses)


def test_all_answers_scored_by_the_search_sum_to_one():
    trie, models = Trie.from_answers(COLOURS), [ToyModel.random(16, seed=3)]
    generator = ConstrainedGenerator(models, toy_dictionary(16), trie, beam_size=50, normalize_scores=False)
    hypotheses = generator.generate(models, sample([[4, 2]]), bos_token=0)[0]
    assert sum(math.exp(h["score"]) for h in hypotheses) == pytest.approx(1, abs=1e-5)


def test_forced_tokens_score_exactly_zero():
    trie, models = Trie.from_answers([[4, 5, 6]]), [ToyModel.random(16, seed=0)]
    generator = ConstrainedGenerator(models, toy_dictionary(16), trie, beam_size=5)
    (only,) = generator.generate(models, sample([[4, 2]]), bos_token=0)[0]
    assert only["tokens"].tolist() == [4, 5, 6, 2]
    assert only["positional_scores"].tolist() == [0, 0, 0, 0]


def test_an_ensemble_averages_probabilities_renormalised_model_by_model():
    trie, models = Trie.from_answers([[4], [5], [6]]), [ToyModel.random(16, seed) for seed in (0, 1)]
    generator = ConstrainedGenerator(models, toy_dictionary(16), trie, beam_size=3, normalize_scores=False)
    hypotheses = generator.generate(models, sample([[4, 2]]), bos_token=0)[0]
    first = [m.decoder(torch.tensor([[0]]), {"first": [torch.tensor([4])]})[0][0, 0, 4:7].softmax(0) for m in models]
    mean = (first[0] + first[1]) / 2
    for hypothesis in hypotheses:
        assert float(hypothesis["score"]) == pytest.approx(float(mean[hypothesis["tokens"][0] - 4].log()), abs=1e-5)


def test_batch_rows_do_not_influence_each_other():
    trie, models = Trie.from_answers(COLOURS), [ToyModel.random(16, seed=5)]
    generator = ConstrainedGenerator(models, toy_dictionary(16), trie, beam_size=3)
    rows, prompts = [[4, 2], [5, 2], [6, 2]], torch.tensor([[9, 10, 11], [12, 1, 1], [1, 1, 1]])
    together = generator.generate(models, sample(rows), prefix_tokens=prompts, bos_token=0)
    for row, prompt, expected in zip(rows, prompts, together, strict=True):
        prefix = prompt[prompt != 1].unsqueeze(0)
        alone = generator.generate(models, sample([row]), prefix_tokens=prefix, bos_token=0)[0]
        assert [h["tokens"].tolist() for h in alone] == [h["tokens"].tolist() for h in expected]
        assert [float(h["score"]) for h in alone] == pytest.approx([float(h["score"]) for h in expected], abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_logits_name_the_sentences_and_the_step(bad):
    trie, model = Trie.from_answers(COLOURS), ToyModel.random(16, seed=0)
    model.decoder.s[1, RED] = bad  # sources beginning with token 5
    generator = ConstrainedGenerator([model], toy_dictionary(16), trie, beam_size=2)
    with pytest.raises(NonFiniteLogits, match="step 0 for batch rows 1, 3.*--freeze-resnet") as caught:
        generator.generate([model], sample([[4, 2], [5, 2], [6, 2], [5, 2]]), bos_token=0)
    assert (caught.value.step, caught.value.rows) == (0, [1, 3])
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.step, again.rows, str(again)) == (0, [1, 3], str(caught.value))
    assert "for ids 7 (t.tsv:2)" in str(NonFiniteLogits(0, [1], "ids 7 (t.tsv:2)"))


def test_non_finite_logits_later_on_and_without_a_trie():
    model = ToyModel.random(16, seed=0)
    model.decoder.b[2, 9] = math.nan
    generator = ConstrainedGenerator([model], toy_dictionary(16), beam_size=2, max_len_b=6, min_len=4)
    with pytest.raises(NonFiniteLogits) as caught:
        generator.generate([model], sample([[4, 2], [5, 2]]), bos_token=0)
    assert (caught.value.step, caught.value.rows) == (2, [0, 1])


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (
            {"search_strategy": search.DiverseBeamSearch(toy_dictionary(16), 2, 0.5), "beam_size": 6},
            "--beam 6 is wider than the closed set of 4 answers.*--diverse-beam-groups",
        ),
        ({"search_strategy": search.Sampling(toy_dictionary(16))}, "--sampling"),
        ({"no_repeat_ngram_size": 1}, "--no-repeat-ngram-size"),
        ({"min_len": 2}, "--min-len 2: .* answer of 1 tokens"),
        ({"max_len_b": 2}, "has 3 tokens .* stops after 2.*--max-len-b"),
    ],
)
def test_what_would_cut_answers_is_refused_by_name(options, flag):
    models = [ToyModel.random(16, seed=0)]
    with pytest.raises(UserError, match=flag):
        generator = ConstrainedGenerator(models, toy_dictionary(16), Trie.from_answers(COLOURS), **options)
        generator.generate(models, sample([[4, 2]]), bos_token=0)


@pytest.mark.parametrize("normalize", [True, False])
def test_prompts_with_an_end_symbol_inside_and_of_different_length_leave_the_ranking_exact(normalize):
    """`--prompt-type src`: every prompt ends in eos, on which stock ends the sentence."""
    model, trie = ToyModel.random(12, seed=5), Trie.from_answers(COLOURS)
    prompts = torch.tensor([[9, 2, 1, 1], [10, 9, 11, 2], [1, 1, 1, 1]])  # eos 2, right-padded with 1
    source = [[4, 2], [5, 2], [6, 2]]
    generator = ConstrainedGenerator(
        [model], toy_dictionary(12), trie, beam_size=4, normalize_scores=normalize, max_len_b=4
    )
    beams = generator.complete([model], sample(source), prompts, bos_token=0)
    for row, (beam, prompt) in enumerate(zip(beams, prompts, strict=True)):
        start = [0, *prompt[prompt != 1].tolist()]
        expected = {}
        for answer in COLOURS:
            path = [*answer, 2]
            tokens = torch.tensor([start + path])
            encoded = {"first": [torch.tensor([source[row][0]])]}
            logits = model.decoder(tokens[:, :-1], encoded)[0][0, len(start) - 1 :]
            steps = [
                torch.log_softmax(step[allowed], 0)[allowed.index(token)].item()
                for step, allowed, token in zip(logits, trie.allowed(path), path, strict=True)
            ]
            expected[tuple(path)] = sum(steps) / (len(path) if normalize else 1)
        found = {tuple(hypothesis["tokens"].tolist()): float(hypothesis["score"]) for hypothesis in beam}
        assert found == pytest.approx(expected, abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    assert (generator.max_len_b, generator.min_len) == (4, 1)


def check_random_set(seed: int) -> None:
    """Every hypothesis is an answer, none comes twice, and a beam as wide as the set ranks it as scored one by one."""
    draw = random.Random(seed)
    words = draw.randint(1, 12)
    answers = [
        [draw.randint(4, 3 + words) for _ in range(draw.randint(1, draw.choice((1, 2, 6))))]
        for _ in range(draw.choice((1, 2, 5, 40)))
    ]
    answers += [
        answer[: draw.randint(1, len(answer))] for answer in draw.sample(answers, draw.randint(0, len(answers)))
    ]
    answers += draw.sample(answers, draw.randint(0, 2) % (len(answers) + 1))  # twice
    different = {tuple(answer) for answer in answers}
    beam, wide = draw.randint(1, 8), draw.random() < 0.5
    generator = ConstrainedGenerator(
        [ToyModel.random(120, seed)],
        toy_dictionary(120),  # stock narrows beams to the vocabulary
        Trie.from_answers(answers),
        beam_size=len(different) if wide else beam,
        normalize_scores=draw.random() < 0.5 and not wide,
        max_len_b=10,
        temperature=draw.choice((1.0, 0.5, 3.0)),
    )
    rows = draw.randint(1, 3)
    hypotheses = generator.generate([], sample(TOY["src_tokens"][:rows]), bos_token=0)
    for beams in hypotheses:
        found = [tuple(h["tokens"].tolist()) for h in beams]
        assert {answer[:-1] for answer in found} <= different and all(answer[-1] == 2 for answer in found)
        assert len(set(found)) == len(found) == min(generator.beam_size, len(different))
        scores = [float(h["score"]) for h in beams]
        assert scores == sorted(scores, reverse=True)
        if wide:
            assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-4)
            for hypothesis in beams:
                assert float(hypothesis["positional_scores"].sum()) == pytest.approx(
                    float(hypothesis["score"]), abs=1e-4
                )


@pytest.mark.parametrize("start", range(0, 500, 50))
def test_random_sets_hold_every_hypothesis(start):
    for seed in range(start, start + 50):
        check_random_set(seed)


@pytest.mark.slow
def test_ten_thousand_random_sets_hold_every_hypothesis():
    for seed in range(500, 10_500):
        check_random_set(seed)
