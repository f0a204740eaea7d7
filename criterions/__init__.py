"""Losses; importing this package registers them with fairseq."""

from __future__ import annotations

from .encouraging import AdjustLabelSmoothedEncouragingLoss, AdjustLabelSmoothedEncouragingLossConfig
from .label_smoothed_cross_entropy import AdjustLabelSmoothedCrossEntropy, AdjustLabelSmoothedCrossEntropyConfig
from .scst import ScstRewardCriterion, ScstRewardCriterionConfig

__all__ = [
    "AdjustLabelSmoothedCrossEntropy",
    "AdjustLabelSmoothedCrossEntropyConfig",
    "AdjustLabelSmoothedEncouragingLoss",
    "AdjustLabelSmoothedEncouragingLossConfig",
    "ScstRewardCriterion",
    "ScstRewardCriterionConfig",
]
