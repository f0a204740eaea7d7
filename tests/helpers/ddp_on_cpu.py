"""Lets stock's `--ddp-backend pytorch_ddp` run on a CPU, where it asks for a GPU's number: importing this is enough."""

from __future__ import annotations

from typing import Any

from fairseq.models import distributed_fairseq_model
from torch.nn.parallel import DistributedDataParallel

from ofa_plugin import launch


def on_cpu(**options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(**{**options, "device_ids": None, "output_device": None})


distributed_fairseq_model.DistributedDataParallel = on_cpu
launch.refuse_idle_launch = lambda cfg: None  # which says that pytorch_ddp needs a GPU
