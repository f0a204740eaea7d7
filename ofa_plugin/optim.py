"""The learning-rate schedule of every recipe: linear warm-up by updates or by ratio, a hold, then polynomial decay.

The total is often known in epochs only, and an epoch's length only once the training data are open; so the task says it
here (`note_epoch_length`), and the schedule asks for it when the first epoch begins.
"""

# no `from __future__ import annotations`: fairseq's parser needs the configuration's types as types, not as text
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, List, Optional  # noqa: UP035  fairseq's parser reads these forms only

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from .errors import UserError

_epoch_length: int | None = None


def note_epoch_length(num_batches: int | None) -> None:
    """Tells the schedule how many batches this process sees in one epoch; the task calls it for its train iterator."""
    global _epoch_length
    _epoch_length = num_batches


@dataclass
class OFAPolynomialDecayConfig(FairseqDataclass):
    """Options of `ofa_polynomial_decay`, under their official names.

    The interpolated fields have no help text on purpose: with one, fairseq gives them a flag whose default is None.
    """

    warmup_updates: int = field(default=0, metadata={"help": "rise linearly to --lr over this many updates"})
    warmup_ratio: float = field(
        default=-1.0, metadata={"help": "rise over this share of all updates instead; not positive: off"}
    )
    hold_ratio: float = field(
        default=0.0, metadata={"help": "after the warm-up keep --lr for this share of all updates, then decay"}
    )
    force_anneal: Optional[int] = field(  # noqa: UP045
        default=None, metadata={"help": "from this epoch on decay from the rate reached, not from --lr"}
    )
    end_learning_rate: float = field(default=0.0, metadata={"help": "rate after the last update"})
    power: float = field(default=1.0, metadata={"help": "exponent of the decay, 1 is linear"})
    total_num_update: Optional[float] = field(  # noqa: UP045
        default=None, metadata={"help": "updates until the end; default: what --max-update and --max-epoch allow"}
    )
    lr: List[float] = II("optimization.lr")  # noqa: UP006
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")
    update_freq: List[int] = II("optimization.update_freq")  # noqa: UP006


@register_lr_scheduler("ofa_polynomial_decay", dataclass=OFAPolynomialDecayConfig)
class OFAPolynomialDecay(FairseqLRScheduler):
    """`lr * n / warm-up` up to update `warm-up`, `lr` while it is held, then down to the end rate at the last update.

    The rate depends on the number of updates alone, so a resumed run goes on exactly. Update 0 has the rate of update
    1: otherwise the first step of every run would be taken with a rate of 0.

    Raises:
        UserError: neither --max-update nor --max-epoch nor --total-num-update is given, or a value makes no sense.
    """

    def __init__(self, cfg: OFAPolynomialDecayConfig, optimizer: Any):
        super().__init__(cfg, optimizer)
        if not (cfg.total_num_update or cfg.max_update or cfg.max_epoch):
            raise UserError(
                "--lr-scheduler ofa_polynomial_decay must know when training ends; "
                "give --max-update, --max-epoch or --total-num-update"
            )
        if cfg.warmup_ratio > 1:
            raise UserError(f"--warmup-ratio {cfg.warmup_ratio}: a share of all updates, at most 1")
        if not 0 <= cfg.hold_ratio <= 1:
            raise UserError(f"--hold-ratio {cfg.hold_ratio}: a share of all updates, from 0 to 1")
        if cfg.warmup_updates < 0:
            raise UserError(f"--warmup-updates {cfg.warmup_updates}: must not be negative")
        self.lr = cfg.lr[0]
        self.step_update(0)

    def step_begin_epoch(self, epoch: int) -> float:
        """Chooses the epoch's base rate; `epoch` counts from 1.

        Raises:
            UserError: the schedule is in epochs, but nobody said how long an epoch is.
        """
        if self.total_updates() is None:
            raise UserError(
                "--lr-scheduler ofa_polynomial_decay with --max-epoch alone needs the length of an epoch, which this "
                "task does not tell; give --max-update or --total-num-update"
            )
        if self.cfg.force_anneal is None or epoch < self.cfg.force_anneal:
            self.lr = self.cfg.lr[min(epoch, len(self.cfg.lr) - 1)]
        else:
            self.lr = self.optimizer.get_lr()
        return self.optimizer.get_lr()

    def step_update(self, num_updates: int) -> float:
        """Sets and returns the rate after `num_updates` updates."""
        self.optimizer.set_lr(self.rate(num_updates))
        return self.optimizer.get_lr()

    def rate(self, num_updates: int) -> float:
        """The rate after `num_updates` updates; while the total is still unknown, no decay and no warm-up by ratio."""
        total = self.total_updates()
        warmup = self.cfg.warmup_updates
        if self.cfg.warmup_ratio > 0:
            warmup = int((total or 0) * self.cfg.warmup_ratio)
        if warmup > 0 and num_updates <= warmup:
            return self.lr * max(num_updates, 1) / warmup
        if total is None:
            return self.lr
        if num_updates >= total:
            return self.cfg.end_learning_rate
        held_until = warmup + int(total * self.cfg.hold_ratio)
        if num_updates <= held_until:
            return self.lr
        left = (total - num_updates) / (total - held_until)
        return (self.lr - self.cfg.end_learning_rate) * left**self.cfg.power + self.cfg.end_learning_rate

    def total_updates(self) -> float | None:
        """Updates of the whole run; None while it depends on an epoch's length that is not known yet."""
        return self.cfg.total_num_update or updates_of_run(
            self.cfg.max_update, self.cfg.max_epoch, self.cfg.update_freq
        )


def updates_of_run(max_update: int, max_epoch: int, update_freq: Sequence[int]) -> int | None:
    """Updates until training ends; None while that depends on an epoch's length that is not known, or never happens."""
    by_epochs = None
    if max_epoch and _epoch_length is not None:
        by_epochs = updates_in_epochs(_epoch_length, update_freq, max_epoch)
    if max_update:
        return max_update if by_epochs is None else min(max_update, by_epochs)
    return by_epochs


def updates_in_epochs(num_batches: int, update_freq: Sequence[int], max_epoch: int) -> int:
    """Updates of `max_epoch` epochs of `num_batches`; the last incomplete group of an epoch is an update, too."""
    frequencies = [update_freq[min(epoch, len(update_freq) - 1)] for epoch in range(max_epoch)]
    return sum(math.ceil(num_batches / frequency) for frequency in frequencies)
