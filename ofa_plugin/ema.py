"""Averaged weights (EMA): which of a checkpoint's weights are read, and how the average moves.

Stock keeps the average beside the weights (`--store-ema`), in `extra_state`: `ema` in the model's type and, with
`--ema-fp32`, `ema_fp32_params`. Nothing of stock reads it but a resumed run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError

logger = logging.getLogger(__name__)


def averaged(state: Mapping[str, Any], path: str, flag: str) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, in 32 bits where it has them so.

    Args:
        state: what `torch.load` gave.
        path, flag: for the message.

    Raises:
        UserError: the checkpoint has none.
    """
    extra = state.get("extra_state") or {}
    if "ema" not in extra:
        raise UserError(f"{path}: {flag} asks for averaged weights, and it holds none; train with --store-ema")
    return {**extra["ema"], **extra.get("ema_fp32_params", {})}


def for_evaluation(task_cfg: Any, path: str, state: dict[str, Any]) -> None:
    """Puts the average in the place of the weights where `--ema-eval` or the training run's `--uses-ema` says so.

    Args:
        task_cfg: of the task that evaluates; None: that of the checkpoint (`fairseq-validate`).
        path, state: the checkpoint, changed in place.
    """
    cfg = state["cfg"]["task"] if task_cfg is None else task_cfg
    flag = next((flag for flag in ("ema_eval", "uses_ema") if getattr(cfg, flag, False)), None)
    if flag is not None:
        state["model"] = {**state["model"], **averaged(state, path, f"--{flag.replace('_', '-')}")}
        logger.info("%s: evaluating its averaged weights (EMA)", path)


def for_training(cfg: Any, path: str, state: dict[str, Any]) -> None:
    """Chooses what a training run starts from; a run that goes on from its own last checkpoint just goes on.

    Args:
        cfg: of the whole run.
        path, state: the checkpoint, changed in place.
    """
    last = os.path.join(cfg.checkpoint.save_dir, "checkpoint_last.pt")
    goes_on = os.path.abspath(path) == os.path.abspath(last)
    if not goes_on and getattr(cfg.task, "use_ema_weights_to_init_param", False):
        state["model"] = {**state["model"], **averaged(state, path, "--use-ema-weights-to-init-param")}
        logger.info("%s: starting from its averaged weights (EMA)", path)
    if not cfg.ema.store_ema:
        return
    extra = state["extra_state"]
    anew = not goes_on and (
        getattr(cfg.task, "use_latest_weights_to_init_ema", False)
        or getattr(cfg.model, "save_tuned_only", False)  # whose frozen weights must be the base's in the average, too
    )
    if anew or "ema" not in extra:
        extra["ema"] = dict(state["model"])  # stock would look for the weights after it has thrown them away
        extra.pop("ema_fp32_params", None)
        logger.info("%s: the average (EMA) starts from its weights", path)


@torch.no_grad()
def step(averages: Mapping[str, Tensor], model: nn.Module, decay: float) -> None:
    """Moves `averages` in place: `decay` of the old and the rest of the new, once for each tensor.

    What three names share (the token matrix) moves once, and whole numbers (counters, index tables) are copied; stock
    moves the first three times and stops at the second with an error.
    """
    moved = set()
    for name, value in model.state_dict().items():
        average = averages[name]
        if average.data_ptr() in moved:
            continue
        moved.add(average.data_ptr())
        if decay == 0 or not average.is_floating_point():
            average.copy_(value)
        else:
            average.lerp_(value.to(average.dtype), 1 - decay)


@torch.no_grad()
def copy(averages: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copies 32-bit averages to the averaged model, after every update: what shares its memory is there already."""
    for name, value in model.state_dict().items():
        if value.data_ptr() != averages[name].data_ptr():
            value.copy_(averages[name])
