"""Searching over the real model: shared sources, few ways on, folded convolutions change the pace and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from fairseq.search import DiverseBeamSearch, DiverseSiblingsSearch, Sampling
from omegaconf import OmegaConf

from ofa_plugin.models.generation import ConstrainedGenerator, Trie, build_ensemble, constraints
from ofa_plugin.models.ofa.resnet import ResNet
from tests.helpers.small_model import build_small, load_case, net_input, small_dictionary, small_model

ANSWERS = [[10, 11, 12], [10, 11], [13], [14, 10, 15, 16], [14, 10, 15], [17, 18], [19], [20, 21, 22, 23]]


def batch() -> dict:
    """Three rows of unequal length, the second without a picture."""
    inputs = net_input(load_case("c5_padding_patchmask"))
    inputs.pop("prev_output_tokens")
    return {"net_input": inputs}


def searched(models: list, trie: Trie | None = None, shares: bool = True, **options) -> list:
    ensemble = build_ensemble(models, trie)
    ensemble.shares = ensemble.shares and shares
    generator = ConstrainedGenerator(ensemble, small_dictionary(), **{"max_len_b": 12, **options})
    return generator.generate(models, batch(), bos_token=0)


def assert_same(ours: list, theirs: list) -> None:
    assert [[h["tokens"].tolist() for h in beam] for beam in ours] == [
        [h["tokens"].tolist() for h in beam] for beam in theirs
    ]
    for mine, other in zip(sum(ours, []), sum(theirs, []), strict=True):
        torch.testing.assert_close(mine["positional_scores"], other["positional_scores"], rtol=0, atol=2e-5)
        torch.testing.assert_close(mine["attention"], other["attention"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 1},
        {"beam_size": 5},
        {"beam_size": 3, "len_penalty": 0.2, "min_len": 3, "max_len_b": 20},
        {"beam_size": 4, "no_repeat_ngram_size": 2, "temperature": 0.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("ensemble", [1, 2])
def test_beams_that_share_a_source_find_what_rows_of_their_own_find(options, ensemble):
    models = [small_model(), build_small(recipe="m2.")[0]][:ensemble]
    for model in models:
        model.decoder.need_attn = True
    try:
        assert_same(searched(models, **options), searched(models, shares=False, **options))
    finally:
        for model in models:
            model.decoder.need_attn = False


STRATEGIES = {
    "diverse groups": lambda: DiverseBeamSearch(small_dictionary(), num_groups=2, diversity_strength=0.5),
    "diverse siblings": lambda: DiverseSiblingsSearch(small_dictionary(), diversity_rate=0.5),
    "the likeliest three": lambda: Sampling(small_dictionary(), sampling_topk=3),
    "nine tenths": lambda: Sampling(small_dictionary(), sampling_topp=0.9),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_of_stocks_finds_what_it_finds_with_rows_of_their_own(name):
    found = []
    for shares in (True, False):
        torch.manual_seed(3)  # of what is sampled
        found.append(searched([small_model()], shares=shares, beam_size=4, search_strategy=STRATEGIES[name]()))
    assert [[h["tokens"].tolist() for h in beam] for beam in found[0]] == [
        [h["tokens"].tolist() for h in beam] for beam in found[1]
    ]


def test_a_sentence_is_encoded_for_the_decoder_once_and_stays_where_it_is(monkeypatch):
    moves = []
    encoder = type(small_model().encoder)
    stock = encoder.reorder_encoder_out

    def counted(self, encoder_out, order):
        moves.append(len(order))
        return stock(self, encoder_out, order)

    monkeypatch.setattr(encoder, "reorder_encoder_out", counted)
    searched([small_model()], beam_size=4)
    assert moves == sorted(moves, reverse=True) and len(moves) <= 2  # each time a sentence has left, and no other
    moves.clear()
    searched([small_model()], beam_size=4, shares=False)
    assert max(moves) == 12 and len(moves) > 10


@pytest.mark.parametrize("beam", [1, 3, 8])
def test_where_few_ways_lead_on_the_rest_of_the_vocabulary_is_not_computed(monkeypatch, beam):
    trie, model = Trie.from_answers(ANSWERS), copy.deepcopy(small_model())
    monkeypatch.setattr(constraints, "NARROW", 10**9)  # never
    expected = searched([model], trie, beam_size=beam)
    monkeypatch.setattr(constraints, "NARROW", 1)

    def never(features):
        raise AssertionError("the whole vocabulary was computed")

    monkeypatch.setattr(model.decoder, "output_layer", never)
    assert_same(searched([model], trie, beam_size=beam), expected)


def test_narrow_logits_of_a_model_gone_bad_are_still_refused():
    model = copy.deepcopy(small_model())
    model.decoder.layer_norm.weight.data[3] = torch.nan
    with pytest.raises(constraints.NonFiniteLogits, match="non-finite logits at step 0"):
        searched([model], Trie.from_answers(ANSWERS), beam_size=2)


# ---- folded convolutions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{}, {"freeze_resnet": True}, {"resnet_drop_path_rate": 0.1}], ids=str)
@torch.no_grad()
def test_folded_convolutions_give_the_same_features_and_the_weights_stay(flags):
    model = build_small(**flags)[0]
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    resnet, names = model.encoder.embed_images, list(model.state_dict())
    plain = resnet(images)
    resnet.make_generation_fast_()
    folded = resnet(images)
    assert not torch.equal(folded, plain)
    torch.testing.assert_close(folded, plain, rtol=1e-5, atol=2e-5 * float(plain.abs().max()))
    assert list(model.state_dict()) == names
    inside = [type(part).__name__ for part in resnet._folded[0].modules()]
    assert "BatchNorm2d" not in inside and "FrozenBatchNorm" not in inside and "Identity" in inside
    resnet.train().eval()
    assert torch.equal(resnet(images), plain)


@torch.no_grad()
def test_stock_generation_folds():
    model = build_small()[0]
    model.prepare_for_inference_(OmegaConf.create({"generation": {}}))
    assert isinstance(model.encoder.embed_images._folded[0], ResNet)
