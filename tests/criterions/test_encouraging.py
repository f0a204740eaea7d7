"""The encouraging loss: official values, and ours where the official ones are defects."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch

from ofa_plugin.criterions.encouraging import bonus
from ofa_plugin.errors import UserError
from tests.criterions.test_label_smoothed_cross_entropy import V, batch
from tests.criterions.test_label_smoothed_cross_entropy import build as of_kind

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "text" / "criterion.json").read_text())["encouraging"]
RIGHT = [case for case in GOLDEN["cases"] if case["name"] != "el_drop_best"]  # officially without effect


build = functools.partial(of_kind, "AdjustLabelSmoothedEncouragingLoss")


@pytest.mark.parity
@pytest.mark.parametrize("case", RIGHT, ids=lambda case: "-".join(map(str, (case["name"], *case["args"].values()))))
def test_as_official(case):
    losses, log = build(**case["args"]).token_losses(
        torch.tensor(GOLDEN["logits"]), batch(GOLDEN["target"]), case["update_num"]
    )
    assert float(losses.sum()) == pytest.approx(case["loss"], abs=5e-5)
    assert float(log["nll_loss"]) == pytest.approx(case["nll"], abs=5e-5)
    assert log["sample_size"] == case["sample_size"]


def test_drop_best_leaves_the_tokens_of_larger_loss():
    """Officially `--drop-best-ratio` is parsed and never used."""
    logits, sample = torch.tensor(GOLDEN["logits"]), batch(GOLDEN["target"])
    every = build().token_losses(logits, sample, 0)[0]
    plain = build().kept(every, 5)
    assert plain is None
    dropped, log = build(drop_best_ratio=0.34, drop_best_after=2).token_losses(logits, sample, 3)
    assert log["sample_size"] == 3  # int(6 * 0.66)
    assert set(dropped.tolist()) == set(every.sort(descending=True).values[:3].tolist())
    waiting = build(drop_best_ratio=0.34, drop_best_after=2).token_losses(logits, sample, 2)[0]
    assert torch.equal(waiting, every)


def test_drop_worst_and_drop_best_leave_the_middle():
    losses = torch.tensor([5.0, 1.0, 3.0, 0.0, 4.0, 2.0])
    kept = build(drop_worst_ratio=0.34, drop_best_ratio=0.34).kept(losses, 1)  # 3 smallest, of these the largest
    assert losses[kept].tolist() == [2.0]


def test_under_r_drop_a_token_and_its_twin_share_their_fate():
    """Officially the tokens are sorted before they are paired."""
    losses = torch.tensor([5.0, 1.0, 3.0, 0.0, 9.0, 0.5, 7.0, 0.2])
    kept = build(drop_worst_ratio=0.25, drop_best_ratio=0.34, use_rdrop=True).kept(losses, 1)
    assert sorted(kept.tolist()) == [2, 6]
    logits = torch.randn(4, 4, V)
    sample = batch([[4, 5, 6, 2], [7, 2, 1, 1]] * 2)
    losses, log = build(drop_worst_ratio=0.25, use_rdrop=True).token_losses(logits, sample, 1)
    assert losses.isfinite().all() and log["sample_size"] == 8


def test_bonus_has_a_finite_slope_everywhere():
    p = torch.tensor([0.0, 0.5, 0.75, 0.9, 1.0], requires_grad=True)
    value = bonus(p, 0.75)
    value.sum().backward()
    assert value[:3].tolist() == pytest.approx([0.0, math.log(0.5), math.log(0.25)])
    assert value[4].item() == pytest.approx(math.log(0.25) - 1)
    assert p.grad.tolist() == pytest.approx([-1.0, -2.0, -4.0, -4.0, -4.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"log_end": 0.0}, "--log-end 0.0"), ({"drop_best_ratio": 1.0}, "--drop-best-ratio 1.0")],
)
def test_options_that_cannot_be_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)
