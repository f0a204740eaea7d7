"""Encouraging loss: cross-entropy with a bonus for what the model already knows (Zhao et al. 2022, in official OFA)."""

# no `from __future__ import annotations`: fairseq's parser needs the configuration's types as types, not as text
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import register_criterion
from torch import Tensor

from ..errors import UserError
from .distribution import Distribution
from .label_smoothed_cross_entropy import (
    AdjustLabelSmoothedCrossEntropy,
    AdjustLabelSmoothedCrossEntropyConfig,
    check_share,
    smallest,
)

LEAST = 1e-5  # the bonus of a certain token is its logarithm


@dataclass
class AdjustLabelSmoothedEncouragingLossConfig(AdjustLabelSmoothedCrossEntropyConfig):
    """Options of `adjust_label_smoothed_encouraging_loss`, under their official names."""

    log_end: float = field(default=0.75, metadata={"help": "probability from which the bonus grows linearly; 1: never"})
    drop_best_ratio: float = field(default=0.0, metadata={"help": "share of the tokens, smallest loss first, to drop"})
    drop_best_after: int = field(default=0, metadata={"help": "drop the best tokens only after this many updates"})


@register_criterion("adjust_label_smoothed_encouraging_loss", dataclass=AdjustLabelSmoothedEncouragingLossConfig)
class AdjustLabelSmoothedEncouragingLoss(AdjustLabelSmoothedCrossEntropy):
    """Cross-entropy plus `(1 - epsilon) * bonus(p of the target) + epsilon / V * sum over admissible of bonus(p)`.

    Of the tokens that `--drop-worst-ratio` leaves, `--drop-best-ratio` drops those of the smallest loss (officially the
    flag is read and never used). Probabilities are those that the confidence leaves, `p ** conf`, as official.

    Raises:
        UserError: an option whose value makes no sense; the flag is named.
    """

    def __init__(self, cfg: AdjustLabelSmoothedEncouragingLossConfig, task: Any):
        super().__init__(cfg, task)
        check_share("--drop-best-ratio", cfg.drop_best_ratio)
        if not 0 < cfg.log_end <= 1:
            raise UserError(f"--log-end {cfg.log_end}: a probability, more than 0 and at most 1")

    def extra(self, distribution: Distribution, weight: Tensor, vocabulary: int) -> Tensor:
        """The bonus of each token, float[N], not positive."""
        of_target = bonus((distribution.target * weight).exp(), self.cfg.log_end)
        of_all = distribution.sum(bonus(distribution.weighted(weight).exp(), self.cfg.log_end))
        return (1 - self.cfg.label_smoothing) * of_target + self.cfg.label_smoothing / vocabulary * of_all

    def kept(self, losses: Tensor, update_num: int) -> Tensor | None:
        """As for cross-entropy, then without the best."""
        left = super().kept(losses, update_num)
        worst_first = -(losses if left is None else losses[left])
        of_left = smallest(
            worst_first, self.cfg.drop_best_ratio, update_num, self.cfg.drop_best_after, self.cfg.use_rdrop
        )
        return of_left if left is None else left if of_left is None else left[of_left]


def bonus(p: Tensor, log_end: float) -> Tensor:
    """log(1 - p), and from `log_end` on the tangent there, so that the slope stays finite.

    Args:
        p: probabilities of any shape.
        log_end: 1 for no tangent.
    """
    logarithm = (1 - p).clamp(min=LEAST).log()
    if log_end == 1:
        return logarithm
    return torch.where(p > log_end, (p - log_end) / (log_end - 1) + math.log(1 - log_end), logarithm)
