"""Beam search on model S against the official generator: beam.json, described in tests/fixtures/model/README.md."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fairseq import search

from ofa_plugin.models.generation import ConstrainedGenerator, Trie, build_ensemble
from ofa_plugin.models.generation.grammar import Range
from tests.helpers.small_model import FIXTURES, build_small, small_dictionary, small_model

pytestmark = pytest.mark.parity

GOLDEN = json.loads((FIXTURES / "beam.json").read_text())


def sample_of(case: dict) -> dict:
    tokens = torch.tensor(case["src_tokens"])
    inputs = {"src_tokens": tokens, "src_lengths": tokens.ne(1).sum(dim=1)}
    if case["patch_images"]:
        with np.load(FIXTURES / "beam_images.npz", allow_pickle=False) as images:
            pixels = torch.from_numpy(images[case["patch_images"]])
        inputs["patch_images"] = (pixels.float() / 255 - 0.5) / 0.5
        inputs["patch_masks"] = torch.tensor(case["patch_masks"])
    return {"net_input": inputs}


@pytest.mark.parametrize("name", GOLDEN)
def test_hypotheses_of_model_s(name):
    case, options = GOLDEN[name], dict(GOLDEN[name]["generator"])
    zero_shot, codes = options.pop("zero_shot", False), options.pop("gen_code", False)
    no_end = options.pop("ignore_eos", False)  # the end is not chosen before its time, and then scores 1, a quirk
    if no_end:
        options["min_len"] = options["max_len_b"]
    models = [build_small(code_image_size=32)[0] if codes else small_model()]
    if case["models"] == 2:
        models.append(build_small(recipe="m2.")[0])
    if case["search"] == "Sampling":
        options["search_strategy"] = search.Sampling(small_dictionary(), sampling_topk=1)
    rules = Trie.from_answers(case["trie_sequences"]) if case["trie_sequences"] else None
    if "constraint_range" in options:
        rules = Range(*map(int, options.pop("constraint_range").split(",")), range(4))
    prefix = None if case["prefix_tokens"] is None else torch.tensor(case["prefix_tokens"])
    ensemble = build_ensemble(models, rules, codes=codes, renormalise=not zero_shot)
    generator = ConstrainedGenerator(ensemble, small_dictionary(), **options)
    if codes:  # officially no special token is taken before the end
        generator.token_indices_to_suppress = torch.tensor([0, 1, 3])
    hypotheses = generator.generate(models, sample_of(case), prefix_tokens=prefix, bos_token=0)
    for ours, theirs in zip(hypotheses, case["hypotheses"], strict=True):
        if no_end:  # so its score also decides the order
            ours, theirs = (sorted(beam, key=lambda h: list(h["tokens"])) for beam in (ours, theirs))
            for beam in (ours, theirs):
                for h in beam:
                    h["positional_scores"], h["score"] = h["positional_scores"][:-1], sum(h["positional_scores"][:-1])
            ours, theirs = [dict(h, positional_scores=torch.tensor(list(h["positional_scores"]))) for h in ours], theirs
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"] for h in theirs]
        assert [float(h["score"]) for h in ours] == pytest.approx([h["score"] for h in theirs], abs=1e-4)
        for mine, official in zip(ours, theirs, strict=True):
            assert mine["positional_scores"].tolist() == pytest.approx(official["positional_scores"], abs=2e-4)
