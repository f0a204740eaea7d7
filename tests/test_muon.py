"""Muon for the matrices, AdamW for the rest, as one optimiser of fairseq's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ofa_plugin import muon
from ofa_plugin.errors import UserError
from ofa_plugin.muon import NS_STEPS, FairseqMuon, Muon, MuonConfig, mark_matrices, orthogonal
from tests.helpers.small_model import build_small
from tests.helpers.stock import error_of, ok, run
from tests.test_ranks import on_two_ranks

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


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_steps_are_those_of_torchs_own_two():
    model, other = small(), small()
    optimizer = build(model.parameters(), muon_lr_scale=4.0, weight_decay=0.1, adam_betas="(0.9, 0.98)")
    muon = torch.optim.Muon([other[1].weight], 4e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in other.parameters() if p is not other[1].weight]
    adam = torch.optim.AdamW(rest, 1e-3, (0.9, 0.98), weight_decay=0.1)
    optimizer.set_lr(1e-3)
    gradient = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    for one, steps in ((model, (optimizer,)), (other, (muon, adam))):
        nn.functional.cross_entropy(one(torch.arange(7)), torch.arange(7).roll(1)).backward()
        one[1].weight.grad = gradient.clone()  # the model's own is nearly singular, and torch rounds to 16 bits
        for step in steps:
            step.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=5e-5)  # a step is of 1e-3
    assert torch.equal(model[0].weight, other[0].weight)


def test_singular_values_become_one_nearly_and_their_vectors_stay():
    matrices = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(1))
    found = orthogonal(matrices, NS_STEPS)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert nn.functional.cosine_similarity(found.flatten(1), (u @ v).flatten(1)).min() > 0.97


def test_matrices_that_are_computed_together_move_as_they_do_alone():
    together = [nn.Parameter(torch.randn(shape)) for shape in ((8, 24), (24, 8), (8, 24), (8, 8))]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in together]
    gradients = [torch.randn(2, *parameter.shape) for parameter in together]

    def move(parameters: list[nn.Parameter], gradients: list[torch.Tensor]) -> None:
        for parameter in parameters:
            parameter.is_matrix = True
        optimizer = build(parameters, weight_decay=0.1)
        for step in range(2):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient[step].clone()
            optimizer.step()

    move(together, gradients)
    for parameter, gradient in zip(alone, gradients, strict=True):
        move([parameter], [gradient])
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_two_processes_share_the_work_and_move_as_one_does(tmp_path, monkeypatch):
    """Five matrices of one shape, of which the ranks get three and two, and one that is alone."""
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in [(8, 24)] * 5 + [(6, 6)]]
    gradients = [torch.randn_like(parameter) for parameter in start]

    def moved() -> list[torch.Tensor]:
        parameters = [nn.Parameter(parameter.clone()) for parameter in start]
        optimizer = Muon(parameters, 0.1, 0.95, 0.1)
        for _ in range(2):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    expected, computed = moved(), []
    plain = muon.orthogonal
    monkeypatch.setattr(
        muon, "orthogonal", lambda matrices, steps: computed.append(len(matrices)) or plain(matrices, steps)
    )

    def work(rank: int) -> None:
        for one, other in zip(moved(), expected, strict=True):
            torch.testing.assert_close(one, other)
        assert computed == [3 - rank, 1] * 2

    on_two_ranks(tmp_path, work)


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


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match="--optimizer muon does not go with --fp16"):
        build([nn.Parameter(torch.ones(9))])
    with pytest.raises(UserError, match=r"--adam-betas 0\.9: two numbers"):
        build(small().parameters(), adam_betas="0.9")


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
