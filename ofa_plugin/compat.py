"""Patches of stock fairseq on today's torch, and nothing else: each is a `Cure` with the defect it removes.

Written against fairseq-fixed 0.12.3.1 and torch 2.6 to 2.13. What a base class of ours can cure without a patch is
cured there. This is the one module that may set process-wide state: warning filters, torch's list of safe pickle
globals, and the excepthook that shows a `UserError` without its traceback.
"""

from __future__ import annotations

import argparse
import atexit
import collections
import contextlib
import errno
import functools
import logging
import os
import pickle
import queue
import re
import shutil
import sys
import threading
import time
import typing
import warnings
import weakref
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import fairseq.models
import fairseq.options
import fairseq.registry
import fairseq.tasks
import fairseq_cli.generate
import hydra.core.utils
import numpy as np
import omegaconf
import torch
from fairseq import checkpoint_utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import data_utils
from fairseq.data.iterators import BackgroundConsumer
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.models.ema.ema import EMA
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.scoring import SCORER_REGISTRY
from fairseq.trainer import Trainer
from torch.distributed import distributed_c10d

from . import ema, launch, ranks, shards
from .errors import UserError
from .whole_file import replacing

logger = logging.getLogger(__name__)

TESTED = {"fairseq-fixed": ("0.12.3.1",)}
"""The distributions of fairseq that the tests run on."""


@dataclass(frozen=True)
class Cure:
    """One defect of stock and what removes it.

    Args:
        name: short, in snake case; tests ask for it.
        defect: what goes wrong without it.
        versions: where the defect was seen.
        replaces: the attributes of stock that are replaced, "" where only process state is set.
        apply: does it; called once.
    """

    name: str
    defect: str
    versions: str
    replaces: str
    apply: Callable[[], None]


checkpoint_checks: dict[str, Callable[[str, dict], None]] = {}
"""Called with (file name, state) after every checkpoint read; a check raises `UserError` to refuse the file."""

replaced: dict[str, list[tuple[Any, str, Any]]] = {}
"""By cure, the (owner, attribute, stock value) of what it replaced: what a test puts back to see the defect."""


def _replace(owner: Any, attribute: str, value: Any) -> Any:
    """Puts `value` in the place of stock's and returns stock's."""
    stock = vars(owner)[attribute] if isinstance(owner, type) else getattr(owner, attribute)
    next(reversed(replaced.values())).append((owner, attribute, stock))  # of the cure that is being applied
    setattr(owner, attribute, value)
    return getattr(stock, "__func__", stock)


# ---- reading checkpoints ---------------------------------------------------------------------------------------------

_MULTIARRAY = getattr(np, "_core", None) or np.core
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,  # cfg.model of legacy models, official OFA among them
    collections.defaultdict,
    dict,
    list,
    int,
    typing.Any,
    omegaconf.DictConfig,  # old checkpoints pickled their configuration as it stood
    omegaconf.ListConfig,
    omegaconf.base.ContainerMetadata,
    omegaconf.base.Metadata,
    omegaconf.nodes.AnyNode,
    omegaconf.nodes.StringNode,
    omegaconf.nodes.IntegerNode,
    omegaconf.nodes.FloatNode,
    omegaconf.nodes.BooleanNode,
    np.dtype,
    np.ndarray,
    *(
        (getattr(_MULTIARRAY.multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")  # before and since numpy 2
    ),
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
]
"""What a checkpoint may hold beside tensors and plain containers: data, nothing that runs."""

STOCK_CRITERIONS = ("cross_entropy", "label_smoothed_cross_entropy")
"""Losses of stock that a checkpoint may name; `ctc`, for one, evaluates a string of its configuration."""

_reader: Callable[[str, dict], None] | None = None  # while a trainer or an evaluation reads: chooses among weights
_arch_of: dict[str, str] = {}  # file name -> the architecture its configuration names, for messages


class _TorchForCheckpoints:
    """The torch module as `checkpoint_utils` sees it: `load` reads data only, everything else is torch's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(file: BinaryIO, map_location: Any = None) -> dict:
        """`torch.load` that runs nothing from the file, whatever TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD says.

        Raises:
            UserError: the file is damaged, holds more than data, or names a model of stock's.
        """
        name = getattr(file, "name", "checkpoint")
        _check_archive(file, name)
        try:
            state = torch.load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            if found is None:
                raise _damaged(name, str(error).strip().splitlines()[-1] or "no pickle") from error
            raise UserError(
                f"{name}: refused, since it holds {found[1]}, which is code and not data; nothing of it was run. "
                "Ask its author for a safetensors file, or for a checkpoint of plain tensors and settings"
            ) from error
        except (RuntimeError, EOFError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise _damaged(name, f"{type(error).__name__}: {error}".splitlines()[0]) from error
        if not isinstance(state, dict):
            raise UserError(f"{name}: holds a {type(state).__name__}, fairseq saves a dictionary; take another file")
        _check_tensors(state.get("model"), name)
        _check_settings(state, name)
        return state


def _damaged(name: str, reason: str) -> UserError:
    others = sorted(
        (file for file in Path(name).absolute().parent.glob("checkpoint*.pt") if file.name != Path(name).name),
        key=lambda file: file.stat().st_mtime,
    )
    other = f", for example {others[-1].name} beside it (--restore-file {others[-1]})" if others else ""
    return UserError(f"{name}: damaged or no checkpoint ({reason}); take another copy{other}")


def _check_archive(file: BinaryIO, name: str) -> None:
    """Checksums of a zip checkpoint, which torch does not look at, and no compression, which could hide a bomb."""
    if os.fstat(file.fileno()).st_size == 0:
        raise _damaged(name, "the file is empty")
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise UserError(f"{name}: refused, since its contents are compressed, which torch.save never does")
            try:
                broken = archive.testzip()
            except (zipfile.BadZipFile, EOFError, OSError) as error:
                raise _damaged(name, str(error)) from error
            if broken is not None:
                raise _damaged(name, f"checksum of {broken} is wrong")
    file.seek(0)


def _check_tensors(weights: Any, name: str) -> None:
    """Weights that a small file blows up (an expanded scalar) or that index out of bounds (sparse) are refused."""
    for key, tensor in weights.items() if isinstance(weights, dict) else ():
        if not torch.is_tensor(tensor):
            continue
        if tensor.layout is not torch.strided:
            raise UserError(f"{name}: refused, since {key} is a {tensor.layout} tensor; OFA has none")
        if tensor.numel() * tensor.element_size() > max(1 << 30, tensor.untyped_storage().nbytes()):
            raise UserError(f"{name}: refused, since {key} claims {tensor.numel()} values but stores fewer")


def _strings(node: Any) -> Iterator[str]:
    node = _plain(node)
    if isinstance(node, str):
        yield node
    elif isinstance(node, (dict, argparse.Namespace)):
        for value in (node if isinstance(node, dict) else vars(node)).values():
            yield from _strings(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _strings(value)


def _plain(node: Any) -> Any:
    """OmegaConf's containers as plain ones, nothing resolved."""
    return omegaconf.OmegaConf.to_container(node, resolve=False) if omegaconf.OmegaConf.is_config(node) else node


def _named(cfg: dict, part: str, legacy: str) -> str | None:
    """What `cfg` calls its model, task or criterion: `_name`, or the flag of old models (`arch`, `task`)."""
    node = _plain(cfg.get(part))
    settings = vars(node) if isinstance(node, argparse.Namespace) else node
    if not isinstance(settings, dict):
        return None
    name = settings.get("_name") or settings.get(legacy)
    return name if isinstance(name, str) else None


def _check_settings(state: dict, name: str) -> None:
    """A checkpoint's settings choose classes to build; those of stock (fconv) evaluate strings of their settings.

    Only classes registered by the plug-in, or by the user's own code, may be named. Interpolations such as
    `${oc.env:SECRET}` would be resolved on access; fairseq saves none.
    """
    cfg, args = _plain(state.get("cfg")), state.get("args")
    if isinstance(args, argparse.Namespace):
        cfg = {"model": args, "task": args, "criterion": args}
    if not isinstance(cfg, dict):
        return
    for text in _strings(cfg):
        if "${" in text:
            raise UserError(f"{name}: refused, since its settings hold {text[:80]!r}; fairseq saves no interpolation")
    registries = (
        ("model", "arch", {**fairseq.models.MODEL_REGISTRY, **fairseq.models.ARCH_MODEL_REGISTRY}),
        ("task", "task", fairseq.tasks.TASK_REGISTRY),
        ("criterion", "criterion", CRITERION_REGISTRY),
    )
    for part, legacy, registry in registries:
        named = _named(cfg, part, legacy)
        owner = getattr(registry.get(named), "__module__", "")
        if owner.partition(".")[0] == "fairseq" and named not in STOCK_CRITERIONS:
            raise UserError(
                f"{name}: refused, since its settings name the {part} {named!r} of stock fairseq; with this --user-dir "
                "only OFA's own are built from a checkpoint. Load it without --user-dir if you trust its author"
            )
    _arch_of[name] = _named(cfg, "model", "arch") or "an architecture it does not name"


def _read_data_only() -> None:
    torch.serialization.add_safe_globals(SAFE_GLOBALS)
    _replace(checkpoint_utils, "torch", _TorchForCheckpoints())

    def load_checkpoint_to_cpu(path: str, arg_overrides: dict | None = None, load_on_all_ranks: bool = False) -> dict:
        try:
            state = stock(path, arg_overrides, load_on_all_ranks)
        except KeyError as error:  # readable, but a part is missing that fairseq saves
            raise UserError(f"{path}: not what fairseq saves (it has no {error}); take another file") from error
        for check in tuple(checkpoint_checks.values()):
            check(str(path), state)
        if _reader is not None:
            _reader(str(path), state)
        return state

    stock = _replace(checkpoint_utils, "load_checkpoint_to_cpu", load_checkpoint_to_cpu)


@contextlib.contextmanager
def _reading_for(reader: Callable[[str, dict], None]) -> Iterator[None]:
    global _reader
    _reader = reader
    try:
        yield
    finally:
        _reader = None


@contextlib.contextmanager
def reading_plainly() -> Iterator[None]:
    """Checkpoints that are read meanwhile are as their file has them, also while another one is being read."""
    global _reader
    reader, _reader = _reader, None
    try:
        yield
    finally:
        _reader = reader


def check_files(filenames: list[str]) -> None:
    """Raises UserError for the first checkpoint of `--path` that is not there, whole or in shards."""
    for filename in filenames:
        if not any(Path(filename).parent.glob(f"{_glob_free(Path(filename).stem)}*")) and "://" not in filename:
            hint = " (a colon in --path separates several checkpoints)" if len(filenames) > 1 else ""
            raise UserError(f"--path {filename}: no such file{hint}; check the path")


def _name_missing_files() -> None:
    def load_model_ensemble_and_task(filenames: list[str], *args: Any, **kwargs: Any) -> Any:
        check_files(filenames)
        return stock(filenames, *args, **kwargs)

    stock = _replace(checkpoint_utils, "load_model_ensemble_and_task", load_model_ensemble_and_task)


def _evaluate_averages() -> None:
    def load_model_ensemble_and_task(
        filenames: list[str], arg_overrides: dict | None = None, task: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        with _reading_for(functools.partial(_tuned().for_evaluation, getattr(task, "cfg", None))):
            return stock(filenames, arg_overrides, task, *args, **kwargs)

    stock = _replace(checkpoint_utils, "load_model_ensemble_and_task", load_model_ensemble_and_task)


def _tuned() -> Any:
    """`tuned`, which needs the model's configuration, and so this module first."""
    from . import tuned

    return tuned


def _save_tuned_only() -> None:
    def state_dict(self: Trainer) -> dict:
        state = stock(self)
        only = getattr(self.cfg.model, "save_tuned_only", False)
        return _tuned().only_tuned(state, self._model) if only else state

    stock = _replace(Trainer, "state_dict", state_dict)


def _keep_averages_right() -> None:
    def _step_internal(self: EMA, new_model: Any, updates: Any = None) -> None:
        averages = self.fp32_params if self.config.ema_fp32 else self.model.state_dict()
        ema.step(averages, new_model, self.decay)
        if self.config.ema_fp32:
            ema.copy(averages, self.model)

    def load_checkpoint(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        with _reading_for(functools.partial(_tuned().for_training, self)):
            return stock_load(self, *args, **kwargs)

    def __init__(self: Trainer, cfg: Any, *args: Any, **kwargs: Any) -> None:
        common = cfg.common
        halved = common.fp16 or common.bf16 or common.memory_efficient_fp16 or common.memory_efficient_bf16
        if cfg.ema.store_ema and halved and not cfg.ema.ema_fp32:
            logger.info("16 bits are too few for an average that moves slowly: --ema-fp32 is on")
            cfg.ema.ema_fp32 = True
        stock_init(self, cfg, *args, **kwargs)

    _replace(EMA, "_step_internal", _step_internal)
    stock_load = _replace(Trainer, "load_checkpoint", load_checkpoint)
    stock_init = _replace(Trainer, "__init__", functools.wraps(Trainer.__init__)(__init__))


def _glob_free(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def _load_on_all_ranks() -> None:
    def load_checkpoint(self: Trainer, filename: str, *args: Any, **kwargs: Any) -> Any:
        if self.data_parallel_world_size > 1:
            _agree_on_file(self, filename)
            self.cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
        try:
            return stock(self, filename, *args, **kwargs)
        except Exception as error:
            if not str(error).startswith("Cannot load model parameters"):
                raise
            reason = error.__cause__ or error.__context__
            if isinstance(reason, UserError):
                raise (reason if filename in str(reason) else UserError(f"{filename}: {reason}")) from None
            raise _wrong_weights(self, filename, reason) from error

    stock = _replace(Trainer, "load_checkpoint", load_checkpoint)


def _agree_on_file(trainer: Trainer, filename: str) -> None:
    """Every rank reads for itself, so every rank must see the file, or none."""
    seen = torch.tensor([float(PathManager.isfile(filename))], device=trainer.device)
    distributed_utils.all_reduce(seen, group=trainer.data_parallel_process_group)
    if 0 < seen.item() < trainer.data_parallel_world_size:
        raise UserError(
            f"{filename}: seen by {seen.item():.0f} of {trainer.data_parallel_world_size} ranks; put --save-dir on a "
            "disk that all hosts share, or copy the file to each of them"
        )


def _wrong_weights(trainer: Trainer, filename: str, reason: BaseException | None) -> UserError:
    problems = [line.strip() for line in str(reason).splitlines()[1:] if line.strip()] or [str(reason)]
    wanted = getattr(trainer.cfg.model, "_name", None) or getattr(trainer.cfg.model, "arch", "the model")
    found = _arch_of.get(str(filename), "an unknown architecture")
    return UserError(
        f"{filename}: its weights ({found}) do not fit --arch {wanted}: "
        f"{problems[0]}{f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''}; "
        "give the --arch, --bpe and vocabulary flags it was trained with"
    )


# ---- writing checkpoints ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _full_disk_named(path: str) -> Iterator[None]:
    """torch hides "no space left" behind an error of its own; this says it, and what is left."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        chain: BaseException | None = error
        while chain is not None and getattr(chain, "errno", None) != errno.ENOSPC:
            chain = chain.__cause__ or chain.__context__
        if chain is None:
            raise
        raise UserError(
            f"{path}: no space left on the disk; the file that was there is whole. Make room and start again; "
            "--no-epoch-checkpoints and --keep-last-epochs save room"
        ) from error


def _write_atomically() -> None:
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
        if PathManager.path_requires_pathmanager(src_path) or PathManager.path_requires_pathmanager(dst_path):
            return stock_copy(src_path, dst_path, overwrite)
        with _full_disk_named(dst_path), open(src_path, "rb") as source, replacing(dst_path, shared=False) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        return dst_path

    def torch_persistent_save(obj: Any, filename: str, async_write: bool = False) -> None:
        if async_write or not isinstance(filename, str) or not PathManager.supports_rename(filename):
            return stock_save(obj, filename, async_write)
        with _full_disk_named(filename), replacing(filename, shared=False) as file:
            torch.save(obj, file)

    stock_copy = _replace(PathManager, "copy", staticmethod(copy))
    stock_save = _replace(checkpoint_utils, "torch_persistent_save", torch_persistent_save)


# ---- generation and data ---------------------------------------------------------------------------------------------


def _block_ngrams() -> None:
    def _no_repeat_ngram(self: NGramRepeatBlock, tokens: Any, lprobs: Any, bsz: int, beam_size: int, step: int) -> Any:
        return stock(self, tokens[:, : step + 1], lprobs, bsz, beam_size, step)  # stock looks at the padding behind it

    stock = _replace(NGramRepeatBlock, "_no_repeat_ngram", _no_repeat_ngram)


def _leave_no_half_output() -> None:
    def _main(cfg: Any, output_file: Any) -> Any:
        try:
            return stock(cfg, output_file)
        except UserError:
            if output_file is not sys.stdout:
                os.remove(output_file.name)
            raise

    stock = _replace(_generate_module(), "_main", _main)


def _generate_module() -> Any:
    """The module of `fairseq-generate`: under `python -m` it is the running one, and has functions of its own."""
    running = sys.modules["__main__"]
    as_script = getattr(getattr(running, "__spec__", None), "name", "") == "fairseq_cli.generate"
    return running if as_script else fairseq_cli.generate


def _generate_in_processes() -> None:
    def main(cfg: Any) -> Any:
        cfg = convert_namespace_to_omegaconf(cfg) if isinstance(cfg, argparse.Namespace) else cfg
        return shards.generate(cfg, stock)

    stock = _replace(_generate_module(), "main", main)


def _list_folders_only() -> None:
    def _find_extra_valid_paths(dataset_path: str) -> set:
        # ':' is a separator to stock's listing, but part of a folder's name here
        return stock_find(dataset_path) if os.path.isdir(dataset_path or "") and ":" not in dataset_path else set()

    def raise_if_valid_subsets_unintentionally_ignored(train_cfg: Any) -> None:
        try:
            stock_raise(train_cfg)
        except ValueError as error:
            raise UserError(
                f"{train_cfg.task.data}: {str(error).partition(' will be ignored')[0].lower()} would be ignored: "
                "name them in --valid-subset, or add --ignore-unused-valid-subsets"
            ) from error

    stock_find = _replace(data_utils, "_find_extra_valid_paths", _find_extra_valid_paths)
    stock_raise = _replace(
        data_utils, "raise_if_valid_subsets_unintentionally_ignored", raise_if_valid_subsets_unintentionally_ignored
    )


# ---- starts that would lose something --------------------------------------------------------------------------------


def _refuse_at_start() -> None:
    def call_main(cfg: Any, main: Callable, **kwargs: Any) -> None:
        if "override_args" not in kwargs:  # which fairseq-validate passes; it may halve a model on CPU
            launch.refuse_unsafe_start(cfg)
        launch.one_process_on_cpu(cfg)
        launch.refuse_idle_launch(cfg)
        try:
            stock_call(cfg, main, **kwargs)
        finally:
            launch.release_save_folders()

    def __init__(self: Trainer, cfg: Any, *args: Any, **kwargs: Any) -> None:
        launch.refuse_unsafe_start(cfg)  # fairseq-hydra-train imports the plug-in only after call_main
        stock_init(self, cfg, *args, **kwargs)

    def verify_checkpoint_directory(save_dir: str) -> None:  # asked by rank 0 of training alone
        stock_verify(save_dir)
        launch.hold_save_folder(save_dir)

    stock_call = _replace(distributed_utils, "call_main", call_main)
    stock_init = _replace(Trainer, "__init__", functools.wraps(Trainer.__init__)(__init__))
    stock_verify = _replace(checkpoint_utils, "verify_checkpoint_directory", verify_checkpoint_directory)


# ---- a rank that is gone ---------------------------------------------------------------------------------------------


def _wait_as_long_as_asked() -> None:
    def distributed_init(cfg: Any) -> int:
        seconds = cfg.distributed_training.heartbeat_timeout
        if seconds > 0:  # read when a group is made, fairseq's second group too, which has no argument for it
            distributed_c10d.default_pg_timeout = timedelta(seconds=seconds)
            distributed_c10d.default_pg_nccl_timeout = timedelta(seconds=seconds)
        return stock(cfg)

    stock = _replace(distributed_utils, "distributed_init", distributed_init)


def _leave_in_order() -> None:
    def distributed_init(cfg: Any) -> int:
        rank = stock(cfg)
        atexit.register(_close_groups)
        return rank

    stock = _replace(distributed_utils, "distributed_init", distributed_init)


def _close_groups() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


_readers: weakref.WeakSet[BackgroundConsumer] = weakref.WeakSet()
_leaving = threading.Event()
_PATIENCE = 10.0  # seconds that leaving waits for a batch that is just being made


def _stop_reading_ahead() -> None:
    def run(self: BackgroundConsumer) -> None:
        _readers.add(self)
        self._source = _until_leaving(self._source)
        stock(self)

    stock = _replace(BackgroundConsumer, "run", run)
    atexit.register(_end_readers)


def _until_leaving(source: Any) -> Iterator[Any]:
    for item in source:
        if _leaving.is_set():
            return
        yield item


def _end_readers() -> None:
    """Waits for the threads that read ahead; they may stand before a full queue, which is emptied."""
    _leaving.set()
    end = time.monotonic() + _PATIENCE
    for reader in list(_readers):
        while reader.is_alive() and time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                reader._queue.get_nowait()
            reader.join(0.01)


def _take_bf16_for_bf16() -> None:
    def parse_args_and_arch(*args: Any, **kwargs: Any) -> Any:
        parsed = stock(*args, **kwargs)
        options = parsed[0] if isinstance(parsed, tuple) else parsed
        if getattr(options, "bf16", False) and distributed_utils.xm is None:  # no torch_xla, so no TPU
            options.tpu = False
        return parsed

    stock = _replace(fairseq.options, "parse_args_and_arch", parse_args_and_arch)


def _say_where_it_starts() -> None:
    def load_checkpoint(cfg: Any, trainer: Trainer, **kwargs: Any) -> Any:
        if not _choose_start(cfg, trainer):
            _tuned().check_fresh_start(trainer)
        try:
            extra_state, epoch_itr = stock(cfg, trainer, **kwargs)
        except ValueError as error:
            if not str(error).startswith("--finetune-from-model"):
                raise
            raise UserError(str(error).partition(": {")[0]) from error
        if extra_state is not None:
            _stop_at_limit(trainer, epoch_itr)
        return extra_state, epoch_itr

    stock = _replace(checkpoint_utils, "load_checkpoint", load_checkpoint)


def _choose_start(cfg: Any, trainer: Trainer) -> bool:
    """Which of two checkpoints wins, in one line; a file that was asked for and is missing ends the run.

    Returns:
        Whether there is one to start from.
    """
    last = os.path.join(cfg.save_dir, f"checkpoint_last{trainer.checkpoint_suffix}.pt")
    asked = cfg.restore_file if cfg.restore_file != "checkpoint_last.pt" else None
    if asked and not trainer.checkpoint_suffix and not PathManager.isfile(asked):
        raise UserError(f"--restore-file {asked}: no such file; leave the flag out to train from scratch")
    if PathManager.isfile(last):
        if asked and os.path.abspath(asked) != os.path.abspath(last):
            logger.warning(f"starting from --restore-file {asked}; {last} is there too and is ignored")
        elif cfg.finetune_from_model and not asked:
            logger.warning(
                f"going on from {last}; --finetune-from-model {cfg.finetune_from_model} is ignored. "
                "Give an empty --save-dir to start from it"
            )
    elif cfg.finetune_from_model and not PathManager.isfile(cfg.finetune_from_model):
        raise UserError(f"--finetune-from-model {cfg.finetune_from_model}: no such file; check the path")
    return bool(asked or cfg.finetune_from_model or PathManager.isfile(last))


def _stop_at_limit(trainer: Trainer, epoch_itr: Any) -> None:
    """A run that was finished before trains nothing more, and says which limit to raise."""
    limits, updates = trainer.cfg.optimization, trainer.get_num_updates()
    if limits.max_epoch and epoch_itr.next_epoch_idx > limits.max_epoch:
        reached = f"epoch {epoch_itr.next_epoch_idx - 1} of --max-epoch {limits.max_epoch}"
        flag = "--max-epoch"
    elif limits.max_update and updates >= limits.max_update:
        reached, flag = f"update {updates} of --max-update {limits.max_update}", "--max-update"
        limits.max_epoch = -1  # stock would make one more update before it looks
    else:
        return
    logger.warning(f"nothing to train: the checkpoint has reached {reached}; raise {flag} to go on")


def _name_broken_gradients() -> None:
    def train_step(self: Trainer, samples: list[dict], *args: Any, **kwargs: Any) -> Any:
        try:
            return stock(self, samples, *args, **kwargs)
        except (FloatingPointError, StopIteration) as error:  # the second from stock's search for the first's place
            broken = error if isinstance(error, FloatingPointError) else error.__context__
            if not isinstance(broken, FloatingPointError):
                raise
            places = [place for sample in samples for place in (sample or {}).get("places", ())]
            shown = ", ".join(places[:3]) + (f" and {len(places) - 3} more rows" if len(places) > 3 else "")
            raise UserError(
                f"update {self.get_num_updates() + 1}: {broken} (rows: {shown or 'unknown'}); the checkpoints written "
                "before are whole. Lower --lr, warm up longer (--warmup-ratio), clip harder (--clip-norm), or with "
                "small batches fix BatchNorm (--freeze-resnet)"
            ) from error

    stock = _replace(Trainer, "train_step", train_step)


# ---- several processes -----------------------------------------------------------------------------------------------


def _agree_on_statistics() -> None:
    def agree(trainer: Trainer) -> None:
        if trainer.data_parallel_world_size > 1:
            models = [trainer.get_model()] + ([trainer.ema.get_model()] if trainer.cfg.ema.store_ema else [])
            ranks.average_statistics(models, trainer.data_parallel_process_group)

    def begin_valid_epoch(self: Trainer, epoch: int) -> None:
        agree(self)
        stock_begin(self, epoch)

    def save_checkpoint(cfg: Any, trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        if not cfg.no_save:
            agree(trainer)
        return stock_save(cfg, trainer, *args, **kwargs)

    stock_begin = _replace(Trainer, "begin_valid_epoch", begin_valid_epoch)
    stock_save = _replace(checkpoint_utils, "save_checkpoint", save_checkpoint)


def _put_dummies_first() -> None:
    def train_step(self: Trainer, samples: list[Any], *args: Any, **kwargs: Any) -> Any:
        # stock takes the whole update for a dummy where its last micro-batch is one
        return stock(self, sorted(samples, key=bool), *args, **kwargs)

    stock = _replace(Trainer, "train_step", train_step)


def _gather_on_cpu() -> None:
    def all_gather_list(data: Any, group: Any = None, max_size: int = 16384) -> list[Any]:
        group = distributed_utils.get_global_group() if group is None else group
        if torch.distributed.get_backend(group) != "gloo":
            return stock(data, group, max_size)
        gathered = [None] * distributed_utils.get_world_size(group)
        torch.distributed.all_gather_object(gathered, data, group=group)
        return gathered

    stock = _replace(distributed_utils, "all_gather_list", all_gather_list)


# ---- what the user sees ----------------------------------------------------------------------------------------------

NOISE = (
    (r"hydra\.experimental\.", UserWarning),
    (r"\s*The version_base parameter is not specified", UserWarning),
    (r"In '.*': (Usage of deprecated keyword in package header|Defaults list is missing)", UserWarning),
    (r"\s*'.*' is validated against ConfigStore schema", UserWarning),
    (r"\s*The strict flag in the compose API is deprecated", UserWarning),
    (r"`torch\.cuda\.amp\.(autocast|GradScaler)", FutureWarning),
    (r"'pin_memory' argument is set as true but no accelerator", UserWarning),
    (r"Support for mismatched key_padding_mask and attn_mask is deprecated", UserWarning),
    (r"resource_tracker: There appear to be \d+ leaked", UserWarning),
)
"""Warnings about stock's own use of its libraries, harmless, which no user can act upon."""


def _quieten() -> None:
    for message, category in NOISE:
        warnings.filterwarnings("ignore", message=message, category=category)


def user_message(error: BaseException) -> str | None:
    """The sentence that the user should read, or None where `error` is a bug and needs its traceback.

    Finds a `UserError` also where a DataLoader worker or a spawned rank has turned it into text, and where stock has
    wrapped it in a plain Exception. A rank that waited for another one in vain says so.
    """
    text = str(error)
    if isinstance(error, UserError) or "Original Traceback" in text or "-- Process " in text:
        told = list(re.finditer(r"^ofa_plugin\.[\w.]+: ", text, flags=re.MULTILINE))
        if told:
            return text[told[-1].end() :].strip()
        return text if isinstance(error, UserError) else None
    gone = launch.missing_rank(error)
    if gone is not None:
        return gone
    reason = error.__cause__ or error.__context__
    return user_message(reason) if type(error) in (Exception, RuntimeError) and reason is not None else None


def _show_user_errors() -> None:
    def excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        message = user_message(error)
        if message is None:
            return stock(kind, error, trace)
        sys.stdout.flush()
        print(f"error: {message}", file=sys.stderr, flush=True)

    def save_checkpoint(self: Trainer, filename: str, extra_state: dict) -> str | None:
        crashed = os.path.basename(filename) == "crash.pt" and isinstance(sys.exc_info()[1], UserError)
        if crashed:  # a bad row is no crash to look into, and its crash.pt would be a second copy of the weights
            return None
        return stock_save(self, filename, extra_state)

    stock = _replace(sys, "excepthook", excepthook)
    stock_save = _replace(Trainer, "save_checkpoint", save_checkpoint)


def _show_user_errors_of_hydra() -> None:
    def return_value(self: hydra.core.utils.JobReturn) -> Any:
        if self.status is not hydra.core.utils.JobStatus.FAILED:
            return stock.fget(self)
        error = self._return_value
        message = user_message(error) or _wrong_setting(error)
        if message is None:
            return stock.fget(self)
        if "no such" in message and os.path.realpath(self.working_dir or os.curdir) != os.path.realpath(os.curdir):
            message += f" (hydra had gone to {self.working_dir}, where paths begin: add hydra.job.chdir=false)"
        sys.excepthook(UserError, UserError(message), None)
        raise SystemExit(1)  # which hydra lets pass: it would print its own traceback of anything else

    stock = vars(hydra.core.utils.JobReturn)["return_value"]
    _replace(hydra.core.utils.JobReturn, "return_value", stock.getter(return_value))


def _wrong_setting(error: BaseException) -> str | None:
    """The sentence for a setting, of a YAML file or the command line, that no dataclass of fairseq's or ours takes."""
    wrong = (omegaconf.errors.ConfigKeyError, omegaconf.errors.ValidationError)
    owner = getattr(error, "object_type", None)
    if not isinstance(error, wrong) or not isinstance(owner, type) or not issubclass(owner, FairseqDataclass):
        return None
    return f"{error.full_key}: {str(error).splitlines()[0]}; check the YAML file and the command line"


def _log_no_details() -> None:
    running = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")  # under `python -m`
    if "fairseq_cli.interactive" in (running, *sys.modules):
        logging.getLogger().setLevel(os.environ.get("LOGLEVEL", "INFO").upper())


def _check_version() -> None:
    for name, versions in TESTED.items():
        with contextlib.suppress(PackageNotFoundError):
            if version(name) in versions:
                return
    with contextlib.suppress(PackageNotFoundError):
        found = f"fairseq {version('fairseq')}"
        logger.warning(_untested(found))
        return
    logger.warning(_untested(f"fairseq {getattr(fairseq, '__version__', 'of unknown version')}"))


def _untested(found: str) -> str:
    tested = ", ".join(f"{v} ({name})" for name, versions in TESTED.items() for v in versions)
    return f"{found} has not been tested with this plug-in; tested: {tested}. Run `ofa doctor` to see whether it works"


def prefer_our_scorer() -> None:
    """Makes `--scoring ofa` the default of `fairseq-generate`: stock's needs the C extension libbleu.

    Called when the tasks are registered; does nothing where no scorer of that name is.
    """
    if "ofa" in SCORER_REGISTRY:
        fairseq.registry.REGISTRIES["scoring"]["default"] = "ofa"


SEEN = "fairseq-fixed 0.12.3.1"
CURES = (
    Cure(
        "known_version",
        "an untested fairseq fails in odd places",
        "any but the tested",
        "",
        _check_version,
    ),
    Cure(
        "user_errors",
        "a mistake of the user's ends in a traceback and a crash.pt",
        "all",
        "sys.excepthook, Trainer.save_checkpoint",
        _show_user_errors,
    ),
    Cure(
        "user_errors_of_hydra",
        "hydra catches a mistake of the user's and prints half a traceback",
        f"{SEEN} on hydra 1.3",
        "hydra.core.utils.JobReturn.return_value",
        _show_user_errors_of_hydra,
    ),
    Cure(
        "interactive_log",
        "importing fairseq first sets the root logger to DEBUG: fairseq-interactive shows the insides of every picture",
        SEEN,
        "",
        _log_no_details,
    ),
    Cure(
        "noise",
        "harmless warnings about stock's own code hide those that matter",
        f"{SEEN} on torch >= 2.4, hydra 1.3",
        "",
        _quieten,
    ),
    Cure(
        "data_only_checkpoints",
        "torch >= 2.6 refuses argparse.Namespace and numpy scalars, so stock cannot load its own files; the popular "
        "remedy TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD runs code from them; so do settings that stock models evaluate; "
        "a flipped bit loads",
        f"{SEEN} on torch >= 2.6",
        "checkpoint_utils.torch, checkpoint_utils.load_checkpoint_to_cpu",
        _read_data_only,
    ),
    Cure(
        "missing_files",
        "a missing --path ends in a traceback",
        SEEN,
        "checkpoint_utils.load_model_ensemble_and_task",
        _name_missing_files,
    ),
    Cure(
        "load_on_all_ranks",
        "rank 0 broadcasts a pickled DictConfig that the others refuse; wrong weights hide their reason",
        f"{SEEN} on torch >= 2.6",
        "Trainer.load_checkpoint",
        _load_on_all_ranks,
    ),
    Cure(
        "averages",
        "--store-ema stops at BatchNorm's counters, moves a matrix with three names three times, keeps the average in "
        "16 bits, and cannot start from a checkpoint that has none",
        SEEN,
        "EMA._step_internal, Trainer.load_checkpoint, Trainer.__init__",
        _keep_averages_right,
    ),
    Cure(
        "tuned_only",
        "a checkpoint holds all weights, however few of them were trained",
        SEEN,
        "Trainer.state_dict",
        _save_tuned_only,
    ),
    Cure(
        "evaluate_averages",
        "nothing evaluates the averaged weights of a checkpoint",
        SEEN,
        "checkpoint_utils.load_model_ensemble_and_task",
        _evaluate_averages,
    ),
    Cure(
        "atomic_checkpoints",
        "checkpoint_last.pt and _best.pt are copied in place and nothing is synced: a kill or a full disk loses them",
        SEEN,
        "PathManager.copy, checkpoint_utils.torch_persistent_save",
        _write_atomically,
    ),
    Cure(
        "no_repeat_ngram",
        "--no-repeat-ngram-size does nothing without the CUDA extension: it looks at the padding",
        SEEN,
        "NGramRepeatBlock._no_repeat_ngram",
        _block_ngrams,
    ),
    Cure(
        "broken_gradients",
        "NaN in the gradients ends in a StopIteration of the search for where it began",
        SEEN,
        "Trainer.train_step",
        _name_broken_gradients,
    ),
    Cure(
        "dummy_batches",
        "with --update-freq a rank whose last micro-batch is a dummy loses the size of the real ones before it",
        SEEN,
        "Trainer.train_step",
        _put_dummies_first,
    ),
    Cure(
        "rank_statistics",
        "each rank has BatchNorm statistics of its own, validates with them, and rank 0's alone are saved",
        SEEN,
        "Trainer.begin_valid_epoch, checkpoint_utils.save_checkpoint",
        _agree_on_statistics,
    ),
    Cure(
        "gather_on_cpu",
        "fairseq-validate on several ranks gathers through a CUDA tensor, whatever the backend",
        SEEN,
        "distributed.utils.all_gather_list",
        _gather_on_cpu,
    ),
    Cure(
        "half_written_output",
        "a bad row leaves a generate-<subset>.txt that ends in the middle",
        SEEN,
        "fairseq_cli.generate._main",
        _leave_no_half_output,
    ),
    Cure(
        "generate_in_processes",
        "fairseq-generate with --distributed-world-size answers one share of the batches, and all write one file",
        SEEN,
        "fairseq_cli.generate.main",
        _generate_in_processes,
    ),
    Cure(
        "data_is_no_folder",
        "task.data is listed as a folder: FileNotFoundError for a file, a comma list, a colon in the name",
        SEEN,
        "data_utils._find_extra_valid_paths, .raise_if_valid_subsets_unintentionally_ignored",
        _list_folders_only,
    ),
    Cure(
        "bf16",
        "--bf16 is taken for the wish for a TPU, and ends in 'NoneType' has no attribute 'xla_device'",
        SEEN,
        "options.parse_args_and_arch",
        _take_bf16_for_bf16,
    ),
    Cure(
        "unsafe_starts",
        "--amp unscales twice; asynchronous writing and some CPU launches train nothing and exit 0; ranks that do not "
        "know of each other, and a run that is started twice, train the same into one folder",
        SEEN,
        "distributed.utils.call_main, Trainer.__init__, checkpoint_utils.verify_checkpoint_directory",
        _refuse_at_start,
    ),
    Cure(
        "endless_waiting",
        '--heartbeat-timeout says "Killing job" and kills nothing that waits for a rank which hangs or never came: '
        "gloo waits for half an hour",
        SEEN,
        "distributed.utils.distributed_init",
        _wait_as_long_as_asked,
    ),
    Cure(
        "open_groups",
        "nothing closes the groups of ranks: gloo's threads are torn down with the process, and now and then a rank "
        'that has trained to the end aborts ("terminate called without an active exception", exit code 134)',
        f"{SEEN} on torch 2.13",
        "distributed.utils.distributed_init",
        _leave_in_order,
    ),
    Cure(
        "reading_at_the_end",
        "a run that ends within an epoch leaves a thread that makes batches; one that is inside torch when the process "
        'ends aborts it ("terminate called without an active exception", exit code 134), though all was saved',
        f"{SEEN} on torch 2.13, Python 3.11",
        "data.iterators.BackgroundConsumer.run",
        _stop_reading_ahead,
    ),
    Cure(
        "silent_starts",
        '"done training in 0.0 seconds", one update too many, a missing --restore-file that trains from scratch',
        SEEN,
        "checkpoint_utils.load_checkpoint",
        _say_where_it_starts,
    ),
)
"""Every patch, in the order in which it is applied."""


def apply() -> None:
    """Applies every cure once, however often it is called."""
    for cure in CURES:
        if cure.name not in replaced:
            replaced[cure.name] = []
            cure.apply()
