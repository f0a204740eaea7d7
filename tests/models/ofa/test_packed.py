"""Linear layers laid out for oneDNN compute the same."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from ofa_plugin.errors import UserError
from ofa_plugin.models.generation import ConstrainedGenerator
from ofa_plugin.models.ofa import packed
from ofa_plugin.models.ofa.packed import pack_linears
from tests.helpers.small_model import small_copy, small_dictionary
from tests.parity.test_beam import GOLDEN, sample_of

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@torch.no_grad()
def test_layers_with_and_without_offsets_give_torchs_numbers():
    model = nn.ModuleList([nn.Linear(24, 40), nn.Linear(24, 7, bias=False)])
    inputs = [torch.randn(*shape, 24) for shape in ((1,), (3,), (2, 5), (40,), (4, 3, 2))]
    inputs.append(torch.randn(24, 6).t())  # not contiguous
    expected = [[layer(x) for x in inputs] for layer in model]
    assert pack_linears([model], "on")
    for layer, wanted in zip(model, expected, strict=True):
        for x, y in zip(inputs, wanted, strict=True):
            torch.testing.assert_close(layer(x), y, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_packed_model_finds_the_same_hypotheses():
    sample, options = sample_of(GOLDEN["trie"]), {"beam_size": 4, "max_len_b": 8}
    plain = ConstrainedGenerator([small_copy()], small_dictionary(), **options).generate([], sample, bos_token=0)
    model = small_copy()
    assert pack_linears([model], "on")
    found = ConstrainedGenerator([model], small_dictionary(), **options).generate([], sample, bos_token=0)
    for ours, theirs in zip(found, plain, strict=True):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        assert [float(h["score"]) for h in ours] == pytest.approx([float(h["score"]) for h in theirs], abs=1e-4)


def test_the_trial_decides(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(packed, "WORTH", 1e9)
    model = nn.ModuleList([nn.Linear(8, 8)])
    assert not pack_linears([model], "auto") and "forward" not in vars(model[0])
    assert "times as fast" in caplog.text
    monkeypatch.setattr(packed, "WORTH", 0.0)
    assert pack_linears([model], "auto") and "1 linear layers packed" in caplog.text
    monkeypatch.setattr(packed, "CLOSE", -1.0)
    assert not pack_linears([nn.ModuleList([nn.Linear(8, 8)])], "auto") and "a result differs" in caplog.text


def test_what_cannot_be_packed_is_left_or_refused():
    model = nn.ModuleList([nn.Linear(8, 8).bfloat16()])
    assert not pack_linears([model], "off") and not pack_linears([model], "auto")
    with pytest.raises(UserError, match="--packed-linears on: only those of 32 bits on the CPU"):
        pack_linears([model], "on")


def test_gradients_still_flow():
    layer = nn.Linear(8, 8)
    pack_linears([nn.ModuleList([layer])], "on")
    layer(torch.randn(2, 8)).sum().backward()
    assert layer.weight.grad is not None
