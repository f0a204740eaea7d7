"""The learning-rate schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim import FairseqOptimizer

from ofa_plugin.errors import UserError
from ofa_plugin.optim import OFAPolynomialDecay, OFAPolynomialDecayConfig, note_epoch_length, updates_in_epochs

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "text" / "lr_schedule.json").read_text())


class Optimizer(FairseqOptimizer):
    """Holds a learning rate."""

    def __init__(self):
        self.lr = None

    def set_lr(self, lr):
        self.lr = lr

    def get_lr(self):
        return self.lr


@pytest.fixture(autouse=True)
def unknown_epoch():
    note_epoch_length(None)
    yield
    note_epoch_length(None)


def build(**options) -> OFAPolynomialDecay:
    cfg = OFAPolynomialDecayConfig()
    for name, value in {"lr": [1e-4], "max_update": 0, "max_epoch": 0, "update_freq": [1], **options}.items():
        setattr(cfg, name, value)
    return OFAPolynomialDecay(cfg, Optimizer())


@pytest.mark.parity
@pytest.mark.parametrize("how", ["max_update", "max_epoch"])
@pytest.mark.parametrize("case", FIXTURE["cases"], ids=lambda case: case["name"])
def test_rates_as_official(case, how):
    total = case["reinit_total"] or 1000
    if how == "max_update":
        schedule = build(max_update=total, **case["cfg"])
    else:
        schedule = build(max_epoch=1, **case["cfg"])
        note_epoch_length(total)
    schedule.step_begin_epoch(1)
    for update, rate in case["update_lr"]:
        assert schedule.step_update(update) == pytest.approx(rate, rel=1e-9, abs=1e-15), update


@pytest.mark.parity
@pytest.mark.parametrize("case", FIXTURE["total_updates_rule"], ids=str)
def test_total_updates_as_official(case):
    assert updates_in_epochs(case["batches_per_epoch"], case["update_freq"], case["max_epoch"]) == case["total"]


@pytest.mark.parity
def test_a_resumed_run_has_the_rate_of_an_uninterrupted_one():
    note_epoch_length(50)
    schedule = build(max_epoch=2, warmup_ratio=0.06)
    assert schedule.step_update(FIXTURE["resume"]["resume_at"]) == pytest.approx(FIXTURE["resume"]["lr"], rel=1e-12)


def test_an_epoch_length_learnt_late_counts_from_then_on():
    schedule = build(max_epoch=4, warmup_ratio=0.1, update_freq=[2])
    assert schedule.optimizer.get_lr() == 1e-4  # provisional, until the iterator exists
    note_epoch_length(49)
    schedule.step_begin_epoch(1)
    assert schedule.total_updates() == 100
    assert schedule.step_update(0) == pytest.approx(1e-5)


def test_both_limits_take_the_smaller_total():
    note_epoch_length(10)
    assert build(max_epoch=2, max_update=100).total_updates() == 20
    assert build(max_epoch=2, max_update=15).total_updates() == 15
    assert build(max_epoch=2, max_update=15, total_num_update=7).total_updates() == 7


def test_short_runs_do_not_divide_by_zero():
    schedule = build(max_update=10, warmup_ratio=0.06)  # no warm-up: int(0.6) updates
    assert [schedule.step_update(n) for n in (0, 5, 10)] == pytest.approx([1e-4, 5e-5, 0])
    schedule = build(max_update=5, warmup_updates=5, end_learning_rate=1e-6)
    assert [schedule.step_update(n) for n in (5, 6)] == pytest.approx([1e-4, 1e-6])
    note_epoch_length(0)
    assert build(max_epoch=3, warmup_ratio=0.5).step_update(0) == 0


def test_a_held_rate_falls_in_what_is_left():
    schedule = build(max_update=100, warmup_ratio=0.02, hold_ratio=0.78, end_learning_rate=2e-6)
    rates = [schedule.step_update(n) for n in (1, 2, 3, 80, 90, 100)]
    assert rates == pytest.approx([5e-5, 1e-4, 1e-4, 1e-4, 5.1e-5, 2e-6])
    for updates in (1, 2, 4):  # too few for every phase
        schedule = build(max_update=updates, warmup_ratio=0.02, hold_ratio=1.0)
        assert [schedule.step_update(n) for n in range(updates + 1)] == pytest.approx([1e-4] * updates + [0])


def test_power_and_annealing():
    schedule = build(max_update=10, power=2.0, force_anneal=2)
    schedule.step_begin_epoch(1)
    assert schedule.step_update(5) == pytest.approx(2.5e-5)
    schedule.step_begin_epoch(2)
    assert schedule.lr == pytest.approx(2.5e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--max-update, --max-epoch or --total-num-update"),
        ({"max_update": 5, "warmup_ratio": 1.5}, "--warmup-ratio 1.5"),
        ({"max_update": 5, "warmup_updates": -1}, "--warmup-updates -1"),
        ({"max_update": 5, "hold_ratio": 1.1}, "--hold-ratio 1.1"),
    ],
)
def test_a_schedule_without_an_end_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


def test_a_task_that_does_not_tell_an_epochs_length_is_named():
    schedule = build(max_epoch=3, warmup_ratio=0.1)
    schedule.step_update(7)  # resuming asks before the iterator exists
    with pytest.raises(UserError, match="length of an epoch"):
        schedule.step_begin_epoch(1)


def test_the_command_line_knows_the_official_names():
    parser = options.get_training_parser()
    command = (
        "data --arch transformer_tiny --optimizer adam --lr-scheduler ofa_polynomial_decay --lr 5e-5 --max-epoch 3 "
        "--update-freq 4 --warmup-ratio 0.06"
    )
    args = options.parse_args_and_arch(parser, command.split())
    cfg = convert_namespace_to_omegaconf(args).lr_scheduler
    assert (cfg.warmup_ratio, cfg.warmup_updates, cfg.total_num_update) == (0.06, 0, None)
    assert (cfg.lr, cfg.max_epoch, cfg.max_update, cfg.update_freq) == ([5e-5], 3, 0, [4])
    assert OFAPolynomialDecay(cfg, Optimizer()).optimizer.get_lr() == 5e-5
