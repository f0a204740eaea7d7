"""Search kept inside a span of ids, and the image codes that the decoder gives positions on a grid."""

from __future__ import annotations

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator

from ofa_plugin.errors import UserError
from ofa_plugin.models.generation import build_ensemble
from ofa_plugin.models.generation.grammar import Range
from tests.helpers.small_model import build_small, load_case, net_input, small_copy, small_dictionary
from tests.helpers.toy_decoder import ToyModel, toy_dictionary

EOS = 2
DICTIONARY = small_dictionary()
CODES = (DICTIONARY.index("<code_0>"), DICTIONARY.index("<code_63>") + 1)
BINS = (DICTIONARY.index("<bin_0>"), DICTIONARY.index("<bin_99>") + 1)


def asked(rows=None):
    """What the encoder of the small model is given, pictures and all."""
    names = ("src_tokens", "src_lengths", "patch_images", "patch_masks")
    return {name: value[:rows] for name, value in net_input(load_case("c3_code")).items() if name in names}


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize(("least", "most"), [(4, 4), (1, 6), (3, 5)])
def test_every_token_lies_in_the_span_and_their_number_in_its_limits(beam, least, most):
    dictionary, span = toy_dictionary(40), (12, 22)
    for seed in range(40):
        ensemble = build_ensemble([ToyModel.random(40, seed)], rules=Range(*span))
        generator = SequenceGenerator(ensemble, dictionary, beam_size=beam, min_len=least, max_len_a=0, max_len_b=most)
        sample = {"net_input": {"src_tokens": torch.tensor([[4, 2], [5, 2], [6, 2]])}}
        for hypotheses in generator.generate([], sample, bos_token=0):
            assert len(hypotheses) == beam
            for hypothesis in hypotheses:
                *tokens, end = hypothesis["tokens"].tolist()
                assert end == EOS and least <= len(tokens) <= most
                assert all(span[0] <= token < span[1] for token in tokens)


def test_a_span_renormalises_what_it_leaves():
    """All sequences of up to two of two tokens: their probabilities sum to one."""
    ensemble = build_ensemble([ToyModel.random(16, 3)], rules=Range(7, 9))
    generator = SequenceGenerator(
        ensemble, toy_dictionary(16), beam_size=7, min_len=1, max_len_a=0, max_len_b=1, normalize_scores=False
    )
    [hypotheses] = generator.generate([], {"net_input": {"src_tokens": torch.tensor([[4, 2]])}}, bos_token=0)
    first = {hypothesis["tokens"][0].item(): hypothesis["positional_scores"][0].item() for hypothesis in hypotheses}
    model = ToyModel.random(16, 3)
    logits = model.decoder(torch.tensor([[0]]), {"first": [torch.tensor([4])]})[0][0, 0]
    expected = logits[[EOS, 7, 8]].log_softmax(0).tolist()[1:]
    assert [first[7], first[8]] == pytest.approx(expected, abs=1e-5)


def test_without_a_span_the_search_is_free():
    generator = SequenceGenerator(build_ensemble([ToyModel.random(40, 0)]), toy_dictionary(40), beam_size=5)
    [hypotheses] = generator.generate([], {"net_input": {"src_tokens": torch.tensor([[4, 2]])}}, bos_token=0)
    assert any(not 12 <= token < 22 for one in hypotheses for token in one["tokens"].tolist()[:-1])


def teacher_forced(model, inputs, tokens, span, codes):
    """float[T]: the log-probabilities of a row's tokens among span and eos, in one pass."""
    previous = torch.tensor([[0, *tokens[:-1]]])
    masks = {"code_masks": torch.tensor([True])} if codes else {}
    with torch.no_grad():
        logits, _ = model(**inputs, prev_output_tokens=previous, **masks)
    allowed = [EOS, *range(*span)]
    scores = logits[0][:, allowed].log_softmax(-1)
    return [scores[step, allowed.index(token)].item() for step, token in enumerate(tokens)]


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize(("span", "codes", "count"), [(CODES, True, 16), (BINS, False, 4)], ids=["codes", "bins"])
def test_generated_tokens_score_as_in_a_pass_over_all_of_them(beam, span, codes, count):
    model = small_copy()
    ensemble = build_ensemble([model], rules=Range(*span), codes=codes)
    assert ensemble.has_incremental_states()
    generator = SequenceGenerator(ensemble, DICTIONARY, beam_size=beam, min_len=count, max_len_a=0, max_len_b=count)
    inputs, lengths = asked(), []
    model.decoder.embed_tokens.register_forward_hook(lambda _, given, __: lengths.append(given[0].shape[1]))
    found = generator.generate([], {"net_input": inputs}, bos_token=0)
    assert lengths[1:] == [1] * (count + 1)  # behind the encoder, a position a step, however many came before
    differs = False
    for row, hypotheses in enumerate(found):
        single = {name: value[row : row + 1] for name, value in inputs.items()}
        for hypothesis in hypotheses:
            tokens, scores = hypothesis["tokens"].tolist(), hypothesis["positional_scores"].tolist()
            assert len(tokens) == count + 1 and all(span[0] <= token < span[1] for token in tokens[:-1])
            assert scores == pytest.approx(teacher_forced(model, single, tokens, span, codes), abs=2e-4)
            other = teacher_forced(model, single, tokens, span, not codes)
            differs = differs or max(abs(a - b) for a, b in zip(scores, other, strict=True)) > 0.01
    assert differs  # positions on a grid are not those of text


def test_greedy_codes_are_the_likeliest_at_each_step():
    model, inputs = small_copy(), asked(1)
    ensemble = build_ensemble([model], rules=Range(*CODES), codes=True)
    generator = SequenceGenerator(ensemble, DICTIONARY, beam_size=1, min_len=8, max_len_a=0, max_len_b=8)
    [[hypothesis]] = generator.generate([], {"net_input": inputs}, bos_token=0)
    tokens = hypothesis["tokens"].tolist()
    with torch.no_grad():
        logits, _ = model(
            **inputs, prev_output_tokens=torch.tensor([[0, *tokens[:-1]]]), code_masks=torch.tensor([True])
        )
    assert (logits[0, :-1, CODES[0] : CODES[1]].argmax(-1) + CODES[0]).tolist() == tokens[:-1]


def test_as_many_codes_as_the_grid_has_whatever_the_text_positions():
    """`ofa_nano` has 256 text positions, and the official middle of a picture 256 codes and their end."""
    model, _ = build_small(recipe=None, max_target_positions=20, code_image_size=64)
    count = 64
    inputs = asked(1)
    ensemble = build_ensemble([model], rules=Range(*CODES), codes=True)
    assert ensemble.max_decoder_positions() == count + 770
    generator = SequenceGenerator(ensemble, DICTIONARY, beam_size=1, min_len=count, max_len_a=0, max_len_b=count)
    [[hypothesis]] = generator.generate([], {"net_input": inputs}, bos_token=0)
    assert len(hypothesis["tokens"]) == count + 1
    text = build_ensemble([model], rules=Range(*CODES))
    assert text.max_decoder_positions() == 20
    with pytest.raises((UserError, AssertionError)):
        SequenceGenerator(text, DICTIONARY, beam_size=1, min_len=count, max_len_a=0, max_len_b=count).generate(
            [], {"net_input": inputs}, bos_token=0
        )
