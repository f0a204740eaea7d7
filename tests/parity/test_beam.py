"""Beam search on model S against the official generator: beam.json, described in tests/fixtures/model/README.md."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fairseq import search

from ofa_plugin.models.generation import ConstrainedGenerator, Trie
from tests.helpers.small_model import FIXTURES, build_small, small_dictionary, small_model

pytestmark = pytest.mark.parity

GOLDEN = json.loads((FIXTURES / "beam.json").read_text())
LATER = ("constraint_range", "zero_shot", "gen_code", "ignore_eos")
CASES = [name for name, case in GOLDEN.items() if not any(option in case["generator"] for option in LATER)]


def sample_of(case: dict) -> dict:
    tokens = torch.tensor(case["src_tokens"])
    inputs = {"src_tokens": tokens, "src_lengths": tokens.ne(1).sum(dim=1)}
    if case["patch_images"]:
        with np.load(FIXTURES / "beam_images.npz", allow_pickle=False) as images:
            pixels = torch.from_numpy(images[case["patch_images"]])
        inputs["patch_images"] = (pixels.float() / 255 - 0.5) / 0.5
        inputs["patch_masks"] = torch.tensor(case["patch_masks"])
    return {"net_input": inputs}


@pytest.mark.parametrize("name", CASES)
def test_hypotheses_of_model_s(name):
    case, options = GOLDEN[name], dict(GOLDEN[name]["generator"])
    models = [small_model()]
    if case["models"] == 2:
        models.append(build_small(recipe="m2.")[0])
    if case["search"] == "Sampling":
        options["search_strategy"] = search.Sampling(small_dictionary(), sampling_topk=1)
    trie = Trie.from_answers(case["trie_sequences"]) if case["trie_sequences"] else None
    prefix = None if case["prefix_tokens"] is None else torch.tensor(case["prefix_tokens"])
    generator = ConstrainedGenerator(models, small_dictionary(), trie, **options)
    hypotheses = generator.generate(models, sample_of(case), prefix_tokens=prefix, bos_token=0)
    for ours, theirs in zip(hypotheses, case["hypotheses"], strict=True):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"] for h in theirs]
        assert [float(h["score"]) for h in ours] == pytest.approx([h["score"] for h in theirs], abs=1e-4)
        for mine, official in zip(ours, theirs, strict=True):
            assert mine["positional_scores"].tolist() == pytest.approx(official["positional_scores"], abs=2e-4)
