"""What the ranks of a data-parallel run must agree on, and stock leaves to each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@torch.no_grad()
def average_statistics(models: Iterable[nn.Module], group: Any) -> None:
    """Makes BatchNorm's running means and variances those of all ranks together, their mean.

    Every rank normalises by its own batches in training, so each has statistics of its own; rank 0's alone would be
    saved, and each rank would validate another model. Counters are the same on all ranks and stay.

    Args:
        models: the same ones in the same order on every rank.
        group: of the data-parallel ranks.
    """
    norms = [module for model in models for module in model.modules() if isinstance(module, _NormBase)]
    statistics = [norm.get_buffer(name) for norm in norms for name in ("running_mean", "running_var")]
    if not statistics:
        return
    together = torch.cat([statistic.double().flatten() for statistic in statistics])
    distributed_utils.all_reduce(together, group=group)
    together /= distributed_utils.get_world_size(group)
    for statistic, mean in zip(statistics, together.split([s.numel() for s in statistics]), strict=True):
        statistic.copy_(mean.view_as(statistic))
