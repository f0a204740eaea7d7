"""Checkpoints of tuned weights only (`--save-tuned-only`), and what becomes of checkpoints: merged, averaged."""

from __future__ import annotations

import hashlib
import logging
import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from fairseq import checkpoint_utils
from torch import Tensor, nn

from . import compat, ema
from .errors import UserError
from .models.ofa.config import resolve
from .models.ofa.model import OFAModel
from .models.ofa.tuning import BACKBONE, fold_lora, start_fresh, tuned_names
from .whole_file import replacing

logger = logging.getLogger(__name__)

RECORD = "tuned_base"
"""Key of a checkpoint that holds tuned weights only: {"path", "digest", "averaged"} of what the others are."""


BASE_FLAG = "--finetune-from-model"


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, whatever the order of the names."""
    found = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def read(path: str) -> dict[str, Any]:
    """A checkpoint on the CPU, as data only.

    Raises:
        UserError: there is none, or it is refused.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; check the path")
    return checkpoint_utils.load_checkpoint_to_cpu(path)


def base_weights(record: Mapping[str, Any], path: str, base: str | None, flag: str) -> dict[str, Tensor]:
    """The weights beside which those of a tuned checkpoint stand.

    Args:
        record: the checkpoint's.
        path: the checkpoint, for messages.
        base: where its base lies; None: where it lay in training.
        flag: how the user says where it lies.

    Raises:
        UserError: the base is gone, or another one.
    """
    file = base or record["path"]
    if not os.path.isfile(file):
        raise UserError(f"{path}: holds tuned weights only, and their base {file} is not there; name it by {flag}")
    with compat.reading_plainly():
        state = read(file)
    weights = dict(state["model"])
    if record["averaged"]:
        weights.update(ema.averaged(state, file, "the tuned run"))
    if digest(weights) != record["digest"]:
        raise UserError(f"{file}: not the base of {path}, or changed since; name its base {record['path']} by {flag}")
    return weights


def complete(state: dict[str, Any], path: str, base: str | None, flag: str) -> None:
    """Gives a checkpoint of tuned weights, in place, those of its base; any other is left as it is."""
    record = state.get(RECORD)
    if record is None:
        return
    weights = base_weights(record, path, base, flag)
    extra = state.get("extra_state") or {}
    state["model"] = {**weights, **state["model"]}
    if "ema" in extra:
        extra["ema"] = {**weights, **extra["ema"]}
        if "ema_fp32_params" in extra:
            extra["ema_fp32_params"] = {**_floats(weights), **extra["ema_fp32_params"]}
    logger.info("%s: tuned weights, beside those of %s", path, base or record["path"])


def _floats(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: w.float() if w.is_floating_point() else w for name, w in weights.items()}


def for_training(trainer: Any, path: str, state: dict[str, Any]) -> None:
    """Makes of a checkpoint what a run starts from, and notes the base where the run saves tuned weights only.

    Raises:
        UserError: what the run will save would not be all that differs from the base, or the base would be overwritten.
    """
    cfg, model = trainer.cfg, trainer._model
    only = getattr(cfg.model, "save_tuned_only", False)
    record = state.get(RECORD)
    given = cfg.checkpoint.finetune_from_model
    if only and record is not None and not set(state["model"]) <= set(tuned_names(model)):
        raise UserError(f"{path}: holds tuned weights that this run does not train; `ofa merge` them to a base first")
    if only and record is None and os.path.dirname(os.path.abspath(path)) == os.path.abspath(cfg.checkpoint.save_dir):
        raise UserError(
            f"--save-tuned-only: {path} holds all weights and would be overwritten as the base; take another "
            f"--save-dir and {BASE_FLAG} {path}"
        )
    complete(state, path, given if given and os.path.abspath(given) != os.path.abspath(path) else None, BASE_FLAG)
    ema.for_training(cfg, path, state)
    if only and record is None:
        averaged = bool(getattr(cfg.task, "use_ema_weights_to_init_param", False))
        record = {"path": os.path.abspath(path), "digest": digest(state["model"]), "averaged": averaged}
    if only:
        model.tuned_base = dict(record)
    extra = state.get("extra_state") or {}
    if cfg.ema.store_ema and "ema" in extra:
        own = model.state_dict()
        for kind in ("ema", "ema_fp32_params"):
            if kind in extra:
                extra[kind] = dict(extra[kind])
                start_fresh(own, extra[kind], quiet=True)


def for_evaluation(task_cfg: Any, path: str, state: dict[str, Any]) -> None:
    """Makes of a checkpoint what is evaluated."""
    complete(state, path, None, "`ofa merge TUNED BASE OUT`")
    ema.for_evaluation(task_cfg, path, state)


def check_fresh_start(trainer: Any) -> None:
    """Looks at a run that starts from no checkpoint: refused if it would save tuned weights, which need a base."""
    if getattr(trainer.cfg.model, "save_tuned_only", False):
        raise UserError(f"--save-tuned-only saves what differs from a base: name one by {BASE_FLAG}")
    _warn_of_random_weights(trainer)


def _warn_of_random_weights(trainer: Any) -> None:
    """What is frozen in a run that starts from nothing has never learned anything."""
    model = trainer._model
    if not isinstance(model, OFAModel) or not trainer.is_data_parallel_master:
        return
    taught = getattr(trainer.task, "backbone_file", None)  # a task that is not ours has none
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    random = [name for name in frozen if not (taught and name.startswith(BACKBONE))]
    if not random:
        return
    if all(name.startswith(BACKBONE) for name in random):
        what, way = "the image backbone", f"--resnet-model-path, or {BASE_FLAG}"
    else:
        what, way = f"{len(random)} weights, {random[0]} among them", BASE_FLAG
    logger.warning(f"{what}: drawn at random and frozen, since this run starts from nothing; give {way}")


def only_tuned(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """What `--save-tuned-only` saves of a training state."""
    names = set(tuned_names(model))
    found = {**state, RECORD: model.tuned_base, "model": {n: v for n, v in state["model"].items() if n in names}}
    extra = dict(state["extra_state"])
    for kind in ("ema", "ema_fp32_params"):
        if kind in extra:
            extra[kind] = {n: v for n, v in extra[kind].items() if n in names}
    found["extra_state"] = extra
    return found


# ---- ofa merge, ofa average ------------------------------------------------------------------------------------------


def _settings(cfg: Any) -> Any:
    """The model's settings of a checkpoint's configuration, to be changed in place."""
    return vars(cfg["model"]) if isinstance(cfg["model"], Namespace) else cfg["model"]


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what only its own run can go on with."""
    keep = {name: value for name, value in state.items() if name not in ("last_optimizer_state", RECORD)}
    extra = state.get("extra_state") or {}
    keep["extra_state"] = {n: extra[n] for n in ("ema", "ema_fp32_params") if n in extra}
    return keep


def merge(tuned: str, base: str | None, out: str) -> str:
    """Writes a plain checkpoint of a tuned one: all weights, LoRA folded into the matrices.

    Args:
        tuned: a checkpoint, of tuned weights only or whole.
        base: that of the tuned weights; None: where it lay in training.
        out: the file to write.

    Returns:
        What was done, in one line.

    Raises:
        UserError: a file is missing or refused, or the base is another one.
    """
    state = read(tuned)
    if RECORD not in state and base is not None:
        raise UserError(f"{tuned}: holds all weights; leave {base} out")
    complete(state, tuned, base, "`ofa merge TUNED BASE OUT`")
    state = _plain(state)
    model = resolve(state["cfg"]["model"])
    if model.lora:
        factor = model.lora_alpha / model.lora
        state["model"] = fold_lora(state["model"], factor)
        for name in state["extra_state"]:
            state["extra_state"][name] = fold_lora(state["extra_state"][name], factor)
    _settings(state["cfg"]).update(lora=0, bitfit=False, save_tuned_only=False)
    with replacing(out, shared=False) as file:
        torch.save(state, file)
    return f"{out}: {len(state['model'])} weights" + (f", LoRA rank {model.lora} folded in" if model.lora else "")


def average(out: str, paths: list[str]) -> str:
    """Writes the mean of the weights that evaluations of checkpoints read, summed in 32 bits; the rest is the last's.

    Whole numbers, such as counters, are the last checkpoint's.

    Raises:
        UserError: a file is missing or refused, or its weights are not those of the first by name and size.
    """
    sums: dict[str, Tensor] = {}
    first: dict[str, Any] = {}
    for path in paths:
        state = read(path)
        if RECORD in state:
            complete(state, path, None, "`ofa merge`")
        ema.for_evaluation(None, path, state)
        weights = state["model"]
        if not sums:
            first = weights
            sums = {n: torch.zeros(w.shape, dtype=_wide(w)) for n, w in weights.items() if w.is_floating_point()}
        other = sorted(first.keys() ^ weights.keys()) or sorted(n for n in first if first[n].shape != weights[n].shape)
        if other:
            raise UserError(f"{path}: its {other[0]} is missing or of another size in {paths[0]}; average one run's")
        for name, total in sums.items():
            total += weights[name].to(total.dtype)
    mean = {n: (sums[n] / len(paths)).to(w.dtype) if n in sums else w for n, w in state["model"].items()}
    state = {**_plain(state), "model": mean, "extra_state": {}}
    _settings(state["cfg"]).update(save_tuned_only=False)
    if state["cfg"].get("task") is not None and getattr(state["cfg"]["task"], "get", None):
        if state["cfg"]["task"].get("uses_ema"):
            state["cfg"]["task"]["uses_ema"] = False
    with replacing(out, shared=False) as file:
        torch.save(state, file)
    return f"{out}: the mean of {len(paths)} checkpoints"


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
