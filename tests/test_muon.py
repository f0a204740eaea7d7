"""Muon for the matrices, AdamW for the rest, as one optimiser of fairseq's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ofa_plugin.errors import UserError
from ofa_plugin.muon import FairseqMuon, MuonConfig, mark_matrices
from tests.helpers.small_model import build_small
from tests.helpers.stock import error_of, ok, run

MUON = ("--optimizer", "muon", "--muon-lr-scale", 3, "--weight-decay", 0.01, "--adam-betas", "(0.9,0.98)")


def build(params, **options) -> FairseqMuon:
    cfg = MuonConfig(**options)
    cfg.lr = [1e-3]
    return FairseqMuon(cfg, params)


def small() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 7, bias=False))
    mark_matrices(model)
    return model


def learn(model: nn.Module, optimizer: FairseqMuon, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.set_lr(1e-3 * (1 + step))
        optimizer.zero_grad()
        tokens = torch.arange(7).roll(step)
        nn.functional.cross_entropy(model(tokens), tokens.roll(1)).backward()
        optimizer.step()


def test_steps_are_those_of_torchs_own_two():
    model, other = small(), small()
    optimizer = build(model.parameters(), muon_lr_scale=4.0, weight_decay=0.1, adam_betas="(0.9, 0.98)")
    muon = torch.optim.Muon([other[1].weight], 4e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in other.parameters() if p is not other[1].weight]
    adam = torch.optim.AdamW(rest, 1e-3, (0.9, 0.98), weight_decay=0.1)
    learn(model, optimizer, 1)
    nn.functional.cross_entropy(other(torch.arange(7)), torch.arange(7).roll(1)).backward()
    muon.step()
    adam.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_rate_of_the_matrices_is_a_multiple():
    optimizer = build(small().parameters(), muon_lr_scale=2.5)
    optimizer.set_lr(0.01)
    assert optimizer.get_lr() == pytest.approx(0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.01])


def test_a_resumed_optimiser_goes_on_exactly():
    model = small()
    optimizer = build(model.parameters())
    learn(model, optimizer, 3)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    learn(model, optimizer, 2, start=3)
    again = small()
    again.load_state_dict(weights)
    resumed = build(again.parameters())
    resumed.load_state_dict(state)
    learn(again, resumed, 2, start=3)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_matrices_are_the_linear_layers_of_the_model_and_no_table():
    model = build_small()[0]
    matrices = {name for name, p in model.named_parameters() if getattr(p, "is_matrix", False)}
    assert {name.rpartition(".")[2] for name in matrices} == {"weight"}
    assert not any("embed_" in name or "rel_pos_table" in name or "norm" in name for name in matrices)
    assert "decoder.output_projection.weight" not in matrices
    for part in ("encoder.layers.0.fc1", "decoder.layers.1.encoder_attn.q_proj", "encoder.image_proj"):
        assert f"{part}.weight" in matrices


def test_what_cannot_be_is_said(monkeypatch):
    with pytest.raises(UserError, match="--optimizer muon does not go with --fp16"):
        build([nn.Parameter(torch.ones(9))])
    with pytest.raises(UserError, match=r"--adam-betas 0\.9: two numbers"):
        build(small().parameters(), adam_betas="0.9")
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match="needs torch 2.9"):
        build(small().parameters())


def test_training_with_it_resumes_exactly(world, tmp_path):
    flags = (*world.flags("caption"), "--disable-validation", "--num-workers", 0, "--batch-size", 16, *MUON)
    flags += ("--lr-scheduler", "fixed", "--no-epoch-checkpoints")
    ok(run("train", *flags, "--max-update", 5, "--save-dir", tmp_path / "whole", log=tmp_path / "log"))
    for updates in (2, 5):
        ok(run("train", *flags, "--max-update", updates, "--save-dir", tmp_path / "parts", log=tmp_path / "log"))
    whole, parts = (torch.load(tmp_path / run / "checkpoint_last.pt", weights_only=True) for run in ("whole", "parts"))
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])
    message = error_of(run("train", *flags, "--bf16", "--save-dir", tmp_path / "bf16", log=tmp_path / "log"))
    assert "--bf16" in message
