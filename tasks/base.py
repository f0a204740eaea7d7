"""What all tasks share: vocabulary, data, generation, evaluation, and what a checkpoint remembers of them."""

# ruff: noqa: UP045  fairseq reads the field types at run time: no postponed annotations, Optional spelt out

import argparse
import contextlib
import copy
import functools
import json
import logging
import math
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, List, Optional  # noqa: UP035  fairseq's parser reads these forms only

import torch
from fairseq import checkpoint_utils, metrics, utils
from fairseq.data import Dictionary, FairseqDataset, iterators
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import GenerationConfig
from fairseq.distributed.utils import get_global_rank
from fairseq.tasks import FairseqTask
from omegaconf import II, DictConfig, OmegaConf, open_dict
from torch import nn

from .. import compat, optim
from ..criterions.distribution import NUM_SPECIALS, parse_range
from ..data.builder import Builder
from ..data.codec import Codec
from ..data.dataset import OFADataset, raise_bad_rows
from ..data.example import pad_right
from ..data.files import DataFiles
from ..data.image import PictureLoader
from ..data.tsv import TSVStore, parse_selected_cols
from ..errors import BadRow, UserError
from ..models.generation.constraints import (
    ConstrainedEnsemble,
    ConstrainedGenerator,
    NonFiniteLogits,
    build_ensemble,
)
from ..models.generation.grammar import Grammar, Range
from ..models.generation.trie import Trie
from ..models.ofa import tuning
from ..models.ofa.checkpoint import load_backbone
from ..models.ofa.model import OFAModel
from ..models.ofa.packed import CHOICES as PACKED_LINEARS
from ..models.ofa.packed import pack_linears
from ..precision import AUTOCAST, autocast_type
from .evaluation import Evaluation, offer_scoring, typed_id
from .interactive import Interactive
from .ledger import Ledger
from .metrics.base import Metric, Tally

logger = logging.getLogger(__name__)

PATCH_PIXELS = 16  # the stride of every image backbone


@dataclass
class OFATaskConfig(FairseqDataclass):
    """Options of every task. None means: as in the checkpoint that is evaluated, else the official default."""

    data: Optional[str] = field(
        default=None,
        # argparse_const only makes it a word that may be left out, as fairseq-interactive needs
        metadata={"help": "folder with <subset>.tsv, or one TSV, or train.tsv,...,valid.tsv", "argparse_const": ""},
    )
    selected_cols: Optional[str] = field(
        default=None, metadata={"help": "column numbers in the task's order, e.g. 0,4,2 (default: the official ones)"}
    )
    bpe: Optional[str] = field(default=None, metadata={"help": "gpt2 (default), sentencepiece or bert (Chinese)"})
    bpe_dir: Optional[str] = field(default=None, metadata={"help": "folder with the vocabulary files of --bpe"})
    max_src_length: Optional[int] = field(default=None, metadata={"help": "most words of the instruction's text (128)"})
    max_tgt_length: Optional[int] = field(default=None, metadata={"help": "most words or tokens of the target (30)"})
    num_bins: Optional[int] = field(default=None, metadata={"help": "location tokens <bin_i> (1000)"})
    code_dict_size: Optional[int] = field(default=None, metadata={"help": "image tokens <code_i> (8192)"})
    patch_image_size: Optional[int] = field(default=None, metadata={"help": "pixels of a picture's side (480)"})
    image_backend: Optional[str] = field(
        default=None, metadata={"help": "pil (default, as official) or fast (needs the extra [fast])"}
    )
    imagenet_default_mean_and_std: bool = field(
        default=False, metadata={"help": "normalise pixels with ImageNet's mean and deviation instead of 0.5 and 0.5"}
    )
    exif_transpose: bool = field(
        default=False, metadata={"help": "turn pictures as their EXIF says (boxes are in stored pixels!)"}
    )
    lenient_images: bool = field(default=False, metadata={"help": "accept truncated pictures, as official OFA does"})
    eval_args: Optional[str] = field(
        default=None, metadata={"help": 'generation settings as JSON, e.g. {"beam": 5, "max_len_b": 16}'}
    )
    autocast: Optional[str] = field(
        default=None,
        metadata={"help": "bf16, fp16 or auto (bf16 where it is fast): compute in 16 bits over 32-bit weights (none)"},
    )
    uses_ema: bool = field(
        default=False, metadata={"help": "validate, and later evaluate, the averaged weights (with --store-ema)"}
    )
    ema_eval: bool = field(default=False, metadata={"help": "evaluate a checkpoint's averaged weights"})
    use_ema_weights_to_init_param: bool = field(
        default=False, metadata={"help": "start from the averaged weights of --restore-file or --finetune-from-model"}
    )
    use_latest_weights_to_init_ema: bool = field(
        default=False, metadata={"help": "start the average from that checkpoint's weights, not from its average"}
    )
    max_bad_fraction: float = field(
        default=0.001, metadata={"help": "training goes on, without them, while bad rows are at most this share"}
    )
    bad_rows: Optional[str] = field(
        default=None,
        metadata={"help": "at a bad row validation and generation stop (default), or report it in its place"},
    )
    constraint_range: Optional[str] = field(
        default=None, metadata={"help": "start,end: token ids that may be generated (and trained on), as officially"}
    )
    open_ended: bool = field(
        default=False, metadata={"help": "generate freely, whatever answers, boxes or codes the task asks for"}
    )
    mask_after_softmax: bool = field(
        default=False,
        metadata={"help": "search: scores among all tokens, as stock's own constrained search has them"},
    )
    write_log_probs: bool = field(
        default=False, metadata={"help": "result file: also every token of an answer with its log-probability"}
    )
    write_ranking: int = field(
        default=0, metadata={"help": "result file: also the so many likeliest answers with their scores"}
    )
    reject_below: Optional[float] = field(
        default=None, metadata={"help": "no answer where the best one's probability, exp(score), is below this"}
    )
    packed_linears: Optional[str] = field(
        default=None,
        metadata={
            "help": "fairseq-generate on a CPU: linear layers by oneDNN: off (default), on, or auto, where a trial of "
            "50 ms says that they are faster; takes a second copy of the weights"
        },
    )
    eval_print_samples: bool = field(default=False, metadata={"help": "log one answer per validation batch"})
    # Read by stock's get_batch_iterator: batches composed anew each epoch inside one iterator, whose workers live on.
    # Rotating over several files makes an iterator for each, and then they must not outlive it.
    rebuild_batches: bool = field(default=True, metadata={"help": argparse.SUPPRESS})
    persistent_workers: bool = field(default=True, metadata={"help": argparse.SUPPRESS})
    vocabulary: Optional[str] = field(default=None, metadata={"help": argparse.SUPPRESS})  # Codec.state()
    fingerprint: Optional[str] = field(default=None, metadata={"help": argparse.SUPPRESS})  # size:sha256
    seed: int = II("common.seed")
    path: Optional[str] = II("common_eval.path")
    results_path: Optional[str] = II("common_eval.results_path")
    save_dir: str = II("checkpoint.save_dir")
    input: str = II("interactive.input")
    gen_subset: str = II("dataset.gen_subset")
    train_subset: str = II("dataset.train_subset")
    valid_subset: str = II("dataset.valid_subset")
    disable_validation: bool = II("dataset.disable_validation")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")
    update_freq: List[int] = II("optimization.update_freq")  # noqa: UP006
    store_ema: bool = II("ema.store_ema")


OWN_TO_A_RUN = {
    *("_name", "data", "seed", "path", "results_path", "input", "gen_subset", "train_subset"),
    *("valid_subset", "disable_validation", "best_checkpoint_metric"),
    *("max_update", "max_epoch", "update_freq"),
    *("rebuild_batches", "persistent_workers", "save_dir", "bad_rows", "max_bad_fraction"),
    *("open_ended", "mask_after_softmax", "write_log_probs", "write_ranking", "reject_below", "packed_linears"),
    *("store_ema", "ema_eval", "use_ema_weights_to_init_param", "use_latest_weights_to_init_ema"),
}
DEFAULTS = {
    "bpe": "gpt2",
    "max_src_length": 128,
    "max_tgt_length": 30,
    "num_bins": 1000,
    "code_dict_size": 8192,
    "patch_image_size": 480,
    "image_backend": "pil",
    "autocast": "none",
    "packed_linears": "off",
}
BAD_ROWS = ("stop", "report")
NO_ANSWER = "no answer"  # what the result file says where --reject-below
MOST_NOTES = 20  # of what was put right in the data, in words


@dataclass(frozen=True)
class Source:
    """A file of a subset, and what is made of its rows.

    Attributes:
        name: tells it from the task's other files; "" where there is one.
        path: of the TSV.
        builder: makes its examples.
        selected_cols: as the user gave them, or None for the builder's own.
        flag: the option that they came from.
    """

    name: str
    path: str
    builder: type[Builder]
    selected_cols: Optional[str]
    flag: str


class OFATask(Interactive, FairseqTask):
    """A task is a builder, a metric and the settings of its generation; this class is the rest.

    Subclasses set `builder`, `metric` (what it is judged by), `more_metrics` (what is reported beside it) and
    `evaluation_defaults`, may override `setup` to read files of their own
    (an answer set: then `self.trie`), `answer` to clean what was generated, and `entry`, a line of the result file.
    """

    builder: ClassVar[type[Builder]]
    metric: ClassVar[type[Metric]]
    more_metrics: ClassVar[tuple[type[Metric], ...]] = ()
    evaluation_defaults: ClassVar[dict[str, Any]] = {}  # official generation settings of this task
    defaults: ClassVar[dict[str, Any]] = {}  # of its own options, as `DEFAULTS`
    own_to_a_run: ClassVar[tuple[str, ...]] = ()  # those of its options that a checkpoint does not pass on
    counted: ClassVar[tuple[str, ...]] = ()  # the names under which its examples count what was put right in them

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for metric in cls.all_metrics():
            offer_scoring(metric.name)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        for name in ("max_src_length", "max_tgt_length", "patch_image_size"):
            if cfg[name] < 1:
                raise UserError(f"--{name.replace('_', '-')} {cfg[name]}: must be at least 1")
        if cfg.autocast not in AUTOCAST:
            raise UserError(f"--autocast {cfg.autocast}: one of {', '.join(AUTOCAST)}")
        cfg.bad_rows = cfg.bad_rows or "stop"
        if cfg.bad_rows not in BAD_ROWS:
            raise UserError(f"--bad-rows {cfg.bad_rows}: one of {', '.join(BAD_ROWS)}")
        if cfg.packed_linears not in PACKED_LINEARS:
            raise UserError(f"--packed-linears {cfg.packed_linears}: one of {', '.join(PACKED_LINEARS)}")
        if cfg.autocast != "none" and cfg.packed_linears == "on":
            raise UserError(
                f"--packed-linears on is for 32 bits, and --autocast is {cfg.autocast}, here or in the checkpoint: "
                "add --autocast none, or leave it out"
            )
        if cfg.reject_below is not None and not 0 < cfg.reject_below <= 1:
            raise UserError(f"--reject-below {cfg.reject_below}: a probability, more than 0 and at most 1")
        if not 0 <= cfg.max_bad_fraction < 1:
            raise UserError(f"--max-bad-fraction {cfg.max_bad_fraction}: a share of the rows, from 0 to less than 1")
        if cfg.uses_ema and not cfg.store_ema and not cfg.path:
            raise UserError("--uses-ema validates averaged weights: add --store-ema, which keeps them")
        self.uses_ema = cfg.uses_ema  # fairseq's trainer asks
        self.backbone_file: str | None = None  # where the image backbone of a new model comes from
        if cfg.vocabulary:
            self.codec = Codec.restore(cfg.vocabulary, cfg.bpe_dir, cfg.num_bins, cfg.code_dict_size)
        else:
            self.codec = Codec.build(cfg.bpe, cfg.bpe_dir, cfg.num_bins, cfg.code_dict_size)
        cfg.vocabulary, cfg.bpe_dir = self.codec.state(), None  # a checkpoint needs no folder beside it
        cfg.fingerprint = f"{len(self.codec.dictionary)}:{self.codec.fingerprint}"
        compat.checkpoint_checks["vocabulary"] = self._check_vocabulary
        # S- lines become words in fairseq-interactive, H- lines do not: two objects that hold the same lists
        self._source_dictionary = copy.copy(self.codec.dictionary)
        self.trie: Trie | None = None
        self.files: DataFiles | None = None
        # by subset, since CIDEr depends on its references, then by kind
        self.metrics: dict[str, dict[str, tuple[Metric, ...]]] = {}
        self._ledger: Ledger | None = None
        self._noted: set[str] = set()
        self._pace: tuple[int, float, int, float] | None = None  # update and time of the latest step, and of the first
        self.evaluation: Evaluation | None = None
        self._rows_ahead = 0
        self._told_open = False
        self._validation: tuple[nn.Module, Any] | None = None  # model, and the generator that drives it
        self.check_input()
        self._eval_args()  # a mistake in them should not wait for the first validation
        self.setup()
        if cfg.constraint_range:
            other = "a closed answer set" if self.trie is not None else "--open-ended" if cfg.open_ended else None
            if other:
                raise UserError(f"--constraint-range does not go with {other}: leave one of them out")

    @classmethod
    def setup_task(cls, cfg: DictConfig, **kwargs: Any) -> "OFATask":
        """Fills what the command line left open from the checkpoint of `--path`, then from the official defaults.

        What was decided is written back into the run's configuration, so that its checkpoints remember it.
        """
        compat.checkpoint_checks.pop("vocabulary", None)  # of another task in this process
        saved = saved_task_config(cfg.path) if cfg.path else {}
        defaults = {**DEFAULTS, **cls.defaults}
        for name in cfg:
            if name in OWN_TO_A_RUN or name in cls.own_to_a_run:
                if cfg[name] is None:
                    cfg[name] = defaults.get(name)
            elif cfg[name] is None or cfg[name] is False:  # a switch is only switched on
                value = saved.get(name)
                cfg[name] = defaults.get(name, cfg[name]) if value is None else value
        task = cls(cfg)
        whole = cfg._get_parent()
        if whole is not None and "task" in whole:
            with open_dict(whole):
                whole["task"] = cfg
        return task

    def setup(self) -> None:
        """For files and checks of a task's own; `self.cfg` is resolved and `self.codec` is there."""

    # --------------------------------------------------------------------------------------------- vocabulary

    @property
    def source_dictionary(self) -> Dictionary:
        """The one vocabulary."""
        return self._source_dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The one vocabulary."""
        return self.codec.dictionary

    def build_bpe(self, args: Any) -> Namespace:
        """What `fairseq-generate` turns symbols into words with; stock's GPT-2 decoder fails on `<bin_3>`."""
        return Namespace(decode=self.codec.decode_symbols)

    def _check_vocabulary(self, filename: str, state: dict[str, Any]) -> None:
        """Refuses a checkpoint whose words have other numbers; a vocabulary that has only grown is fine."""
        saved = task_config_of(state).get("fingerprint")
        if saved is None:
            return
        text, _, digest = saved.partition(":")
        size, here = int(text), len(self.codec.dictionary)
        if self.codec.fingerprint_of(size) != digest:
            difference = "of the same size, in another order" if size == here else f"{size} symbols; here {here}"
            raise UserError(
                f"{filename} was trained with another vocabulary ({difference}): "
                "give the --bpe, --bpe-dir, --num-bins and --code-dict-size that it was trained with"
            )

    # --------------------------------------------------------------------------------------------------- data

    def has_sharded_data(self, split: str) -> bool:
        """Whether each epoch trains on another file."""
        return self._data_files().train_files > 1

    def _data_files(self) -> DataFiles:
        if self.files is None:
            self.files = DataFiles(self.cfg.data)
        return self.files

    def load_dataset(self, split: str, combine: bool = False, task_cfg: Any = None, epoch: int = 1, **_: Any) -> None:
        """Opens the file of a split.

        Args:
            split: subset name.
            combine: stock's argument for split files; unused.
            task_cfg: the checkpoint's task configuration; `setup_task` has used it already.
            epoch: chooses among several training files.
        """
        training = not self.cfg.path and split in self.cfg.train_subset.split(",")
        if training and split in self.cfg.valid_subset.split(",") and not self.cfg.disable_validation:
            raise UserError(
                f"--valid-subset {split} is trained on as well, and rows as training draws them are not scored: copy "
                "the file under another name for --valid-subset, or give --disable-validation"
            )
        opened = {}
        for source in self.sources(split, training, epoch):
            columns = source.selected_cols or source.builder.selected["train" if training else "other"]
            selected = parse_selected_cols(columns, source.flag)
            store = TSVStore(source.path, source.builder.columns, selected, source.builder.required, source.flag)
            opened[source.name] = store
            logger.info("%s: %d rows of %s", split, len(store), source.path)
        self.datasets[split] = self.dataset_of(opened, split, training, epoch)
        if training:
            rows = sum(map(len, opened.values()))
            files = {store.path for store in opened.values()}
            self._ledger = Ledger(self.cfg.save_dir, files, int(self.cfg.max_bad_fraction * rows), rows)

    def sources(self, split: str, training: bool, epoch: int = 1) -> list[Source]:
        """The files of a subset.

        Args:
            split: subset name.
            training: whether it is trained on.
            epoch: 1-based; chooses among several training files.
        """
        path = self._data_files().path(split, training, epoch)
        return [Source("", path, self.builder, self.cfg.selected_cols, "--selected-cols")]

    def dataset_of(self, opened: dict[str, TSVStore], split: str, training: bool, epoch: int) -> FairseqDataset:
        """The dataset of a subset's open files, which are those of `sources`."""
        (store,) = opened.values()
        dataset = self.make_dataset(store, split, training, Path(store.path).parent)
        if not training and self._scores():
            metrics_of = {"": tuple(self.make_metric(metric) for metric in self._scores())}
            self._prepare_metrics(split, metrics_of, {"": self.references(dataset)})
        return dataset

    def make_metric(self, metric: type[Metric]) -> Metric:
        """A metric for the rows of one subset."""
        return metric()

    def references(self, dataset: OFADataset, training: bool = False) -> list[Any]:
        """What the metrics compare answers with, of each row; of an unreadable one nothing, where others go on without.

        Raises:
            BadRow: a row cannot be read, and `--bad-rows` is stop (in training: `--max-bad-fraction` is 0).
        """
        rows = range(len(dataset)) if dataset.rows is None else dataset.rows.tolist()
        references = []
        for row in rows:
            with contextlib.suppress(*(() if self.on_bad(training) == "stop" else (BadRow,))):
                references.append(dataset.builder.reference(dataset.builder.store[row]))
        return references

    def make_dataset(
        self, store: Any, split: str, training: bool, root: Path | None, kind: type[OFADataset] = OFADataset
    ) -> OFADataset:
        """The dataset of a store's rows, whose pictures lie below `root` (None: wherever their paths say)."""
        cfg, pictures = self.cfg, None
        if "image" in self.builder.columns:
            pictures = PictureLoader(
                root,
                cfg.patch_image_size,
                exif_transpose=cfg.exif_transpose,
                lenient=cfg.lenient_images,
                backend=cfg.image_backend,
            )
        return kind(
            self.make_builder(store, training, pictures),
            split,
            seed=cfg.seed,
            shuffle=training,
            image_tokens=math.ceil(cfg.patch_image_size / PATCH_PIXELS) ** 2 if pictures else 0,
            text_tokens=cfg.max_src_length + cfg.max_tgt_length,
            imagenet_mean=cfg.imagenet_default_mean_and_std,
            on_bad=self.on_bad(training),
        )

    def on_bad(self, training: bool) -> str:
        """What becomes of a bad row, see `OFADataset`."""
        if training:
            return "replace" if self.cfg.max_bad_fraction else "stop"
        return self.cfg.bad_rows

    def make_builder(self, store: TSVStore, training: bool, pictures: PictureLoader | None) -> Builder:
        """The builder of a split."""
        return self.builder(store, self.codec, self.cfg, training, pictures)

    def _prepare_metrics(
        self, split: str, metrics: dict[str, tuple[Metric, ...]], references: dict[str, list[Any]]
    ) -> None:
        """Takes a subset's metrics, by kind, and shows them the references of its rows, None where there is none."""
        for kind, group in metrics.items():
            known = [reference for reference in references[kind] if reference is not None]
            if len(known) < len(references[kind]):
                count = len(references[kind])
                logger.info("%s: %d of %d rows have no reference and are not scored", split, count - len(known), count)
            for metric in group:
                metric.prepare(known)
        self.metrics[split] = metrics

    def get_batch_iterator(
        self, dataset: FairseqDataset, *args: Any, num_shards: int = 1, shard_id: int = 0, **kwargs: Any
    ) -> iterators.EpochBatchIterator:
        """Stock's iterator over our batches; notes how many batches an epoch has, and how many rows lie ahead."""
        dataset.num_shards = num_shards
        self.cfg.persistent_workers = not (dataset.shuffle and self.has_sharded_data("train"))
        iterator = super().get_batch_iterator(dataset, *args, num_shards=num_shards, shard_id=shard_id, **kwargs)
        if dataset.shuffle:
            optim.note_epoch_length(len(iterator))
        else:
            self._rows_ahead = sum(len(batch) for batch in iterator.frozen_batches[shard_id::num_shards])
        return iterator

    # ----------------------------------------------------------------------------------------- train and valid

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> nn.Module:
        """Stock's model. A new one starts from the backbone of `--resnet-model-path`, which no checkpoint remembers."""
        path = getattr(cfg, "resnet_model_path", None)
        if path:
            cfg.resnet_model_path = None
        model = super().build_model(cfg, from_checkpoint)
        if path and not from_checkpoint:
            load_backbone(model.encoder.embed_images, path)
            self.backbone_file = path
        if not from_checkpoint and isinstance(model, OFAModel) and get_global_rank() == 0:
            summary = tuning.describe(model, model.cfg)
            if summary:
                logger.info("%s", summary)
        return model

    def train_step(
        self,
        sample: dict[str, Any],
        model: nn.Module,
        criterion: nn.Module,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        ema_model: nn.Module | None = None,
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Stock's step; the criterion is told the update number, as officially. A dummy batch counts for nothing."""
        raise_bad_rows(sample)
        counts = self._counts(sample, self._ledger)
        self._pace = (update_num, time.monotonic(), *(self._pace or (update_num, time.monotonic()))[-2:])

        def loss_of(model: nn.Module, sample: dict[str, Any]) -> tuple[torch.Tensor, int, dict[str, Any]]:
            with self.autocast(model):  # not around the backward pass, which follows the forward's types by itself
                return criterion(model, sample, update_num=update_num)

        loss, sample_size, logging_output = super().train_step(
            sample, model, loss_of, optimizer, update_num, ignore_grad
        )
        logging_output.update(counts)
        if ignore_grad:
            sample_size, logging_output = 0 * sample_size, {key: 0 * value for key, value in logging_output.items()}
        return loss, sample_size, logging_output

    def valid_step(
        self, sample: dict[str, Any], model: nn.Module, criterion: nn.Module, ema_model: nn.Module | None = None
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Stock's step and, where the metric is wanted, an answer to every row.

        With `--uses-ema` both are of the averaged weights; officially the loss is of the others.
        """
        if not sample:  # fairseq-validate on a rank that has a batch less than another
            return torch.zeros(()), 0, {}
        raise_bad_rows(sample)
        model = model if ema_model is None else ema_model
        with self.autocast(model):
            loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        logging_output.update(self._counts(sample))
        if self._scores():
            logging_output.update(self._score_batch(sample, model).log())
        return loss, sample_size, logging_output

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """fairseq's hook before an epoch: rows that other ranks have found bad are no news."""
        if self._ledger is not None:
            self._ledger.read()

    def _counts(self, sample: dict[str, Any], ledger: Ledger | None = None) -> dict[str, float]:
        """What the log counts of a batch beside its loss: the same keys for every batch. Notes its bad rows, those of
        training in the ledger.

        Raises:
            BadRow: with these rows there are more bad ones than `--max-bad-fraction` allows.
        """
        parts = sample["parts"].values() if "parts" in sample else (sample,)
        bad = [row for part in parts for row in part.get("bad_rows", ())]
        notes = [note for part in parts for note in part.get("notes", ())]
        if ledger is None:
            notes += [f"{row} (not scored)" for row in bad]
        else:
            bad = ledger.note(bad)
        for note in notes:
            if len(self._noted) < MOST_NOTES and note not in self._noted:
                self._noted.add(note)
                last = len(self._noted) == MOST_NOTES
                logger.warning("%s%s", note, "; further ones are only counted" if last else "")
        counts = {name: sum(part.get("counts", {}).get(name, 0) for part in parts) for name in self.counted}
        return {f"n_{name}": float(number) for name, number in {"bad_rows": len(bad), **counts}.items()}

    def autocast(self, model: nn.Module) -> contextlib.AbstractContextManager:
        """The context of every forward pass: `--autocast`, or nothing."""
        device = next(model.parameters()).device.type
        dtype = autocast_type(self.cfg.autocast, device)
        return contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype)

    @classmethod
    def all_metrics(cls) -> tuple[type[Metric], ...]:
        """What `fairseq-generate` reports, the metric that the task is judged by first."""
        own = (cls.metric,) if hasattr(cls, "metric") else ()  # a class between this one and the tasks may have none
        return own + cls.more_metrics

    def _scores(self) -> tuple[type[Metric], ...]:
        """What validation computes, for which it generates; nothing: it does not. The same throughout a run."""
        return self.all_metrics()

    def _score_batch(self, sample: dict[str, Any], model: nn.Module) -> Tally:
        model = unwrapped(model)
        if self._validation is None or self._validation[0] is not model:
            self._validation = model, self._make_validator(model)
        hypotheses = self._generate(self._validation[1], [model], sample)
        return self._tallied(sample, hypotheses)

    def _make_validator(self, model: nn.Module) -> Any:
        return self._make_generator([model])

    def _tallied(self, sample: dict[str, Any], hypotheses: list[list[dict[str, Any]]]) -> Tally:
        tally = Tally(self.metrics[sample["split"]])
        answers = [self.judged(sample, row, best) for row, best in enumerate(hypotheses)]
        for row, answer in enumerate(answers):
            tally.add(answer, sample["references"][row], self.kind_of(sample))
        if self.cfg.eval_print_samples:
            logger.info("example hypothesis: %s", answers[0])
            logger.info("example reference: %s", sample["references"][0])
        return tally

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: nn.Module) -> None:
        """Adds up the ranks' sums, and derives each metric from its own."""
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            self._log_eta()
            for key in next(iter(logging_outputs), {}):
                if key.startswith("nsentences_"):
                    examples = sum(float(log[key]) for log in logging_outputs)
                    metrics.log_speed(f"per_second_{key.removeprefix('nsentences_')}", examples, round=1)
        for name in ("bad_rows", *self.counted):
            count = sum(float(log.get(f"n_{name}", 0)) for log in logging_outputs)
            if name == "bad_rows" and criterion.training and self._ledger is not None:
                self._ledger.count(int(count))
            if count:  # the same on every rank: these are sums over all of them
                metrics.log_scalar_sum(name, count, round=0)
        for metric in self.all_metrics():
            keys = metric.log_keys()
            if not any(keys[0] in log for log in logging_outputs):
                continue
            for key in keys:
                metrics.log_scalar(key, sum(float(log.get(key, 0)) for log in logging_outputs))
            metrics.log_derived(metric.name, functools.partial(_value, metric(), keys))
        if not criterion.training and hasattr(checkpoint_utils.save_checkpoint, "best"):
            self._check_best_metric(metrics.get_active_aggregators()[-1])  # of a resumed run stock asks before us

    def _log_eta(self) -> None:
        """Logs the minutes until the last update, at the pace since this process's first."""
        update, now, first, start = self._pace
        total = optim.updates_of_run(self.cfg.max_update, self.cfg.max_epoch, self.cfg.update_freq)
        if total is not None and update > first:
            left = (total - update) * (now - start) / (update - first)
            metrics.log_scalar("eta_min", max(left, 0) / 60, weight=0, round=1)

    def post_validate(self, model: nn.Module, stats: dict[str, Any], agg: Any) -> None:
        """fairseq's hook between a validation and the choice of the best checkpoint."""
        self._check_best_metric(stats)

    def _check_best_metric(self, logged: Iterable[str]) -> None:
        wanted = self.cfg.best_checkpoint_metric
        if wanted not in logged:
            names = {*logged, *(metric.name for metric in self.all_metrics())}
            known = sorted(name for name in names if not name.startswith("_"))
            raise UserError(f"--best-checkpoint-metric {wanted}: validation logs {', '.join(known)}")

    # ---------------------------------------------------------------------------------------------- generation

    def generation_settings(
        self, given: Any = None, kind: str = "", chosen: dict[str, Any] | None = None
    ) -> GenerationConfig:
        """Stock's defaults, overridden by the task's, by `--eval-args`, and by what `given` says otherwise.

        Args:
            given: stock's `cfg.generation`; a field that differs from stock's own default was asked for.
            kind: of the examples to generate for.
            chosen: instead of `--eval-args`.
        """
        settings = GenerationConfig()
        chosen = self._eval_args() if chosen is None else chosen
        for name, value in {**self.defaults_of(kind), **chosen}.items():
            setattr(settings, name, value)
        for item in fields(GenerationConfig):
            value = getattr(given, item.name, None)
            if given is not None and value is not None and value != item.default and item.name != "_name":
                setattr(settings, item.name, value)
        return settings

    def defaults_of(self, kind: str) -> dict[str, Any]:
        """The task's own generation settings for a kind of example."""
        return self.evaluation_defaults

    def _eval_args(self) -> dict[str, Any]:
        return parse_settings("--eval-args", self.cfg.eval_args)

    def build_generator(
        self,
        models: list[nn.Module],
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        """The generator of `fairseq-generate`; from here on `inference_step` collects the answers."""
        settings = self.generation_settings(args)
        if isinstance(args, DictConfig):  # what is printed about the run should be what was used
            with open_dict(args):
                args.update({item.name: getattr(settings, item.name) for item in fields(GenerationConfig)})
        self._open_evaluation()
        if self.cfg.path and self.cfg.autocast == "none":  # without --path the weights change yet
            pack_linears(models, self.cfg.packed_linears)
        return self._make_generator(models, args, seq_gen_cls, extra_gen_cls_kwargs, prefix_allowed_tokens_fn)

    def _open_evaluation(self) -> None:
        if self.cfg.path and self._rows_ahead:
            subset = self.cfg.gen_subset
            files = (subset, self._rows_ahead, self.cfg.results_path)
            self.evaluation = Evaluation(self.metrics[subset], *files, self.conclude)

    def _make_generator(
        self,
        models: list[nn.Module],
        given: Any = None,
        seq_gen_cls: Any = None,
        *stock: Any,
        kind: str = "",
        chosen: dict[str, Any] | None = None,
    ) -> Any:
        """The generator for one kind of example, or for all where they do not differ; `chosen` as above."""
        settings = self.generation_settings(given, kind, chosen)
        ensemble = self.ensemble_of(models, kind)
        positions = ensemble.max_decoder_positions()
        if settings.max_len_b >= positions and settings.max_len_b != GenerationConfig().max_len_b:
            raise UserError(
                f"--max-len-b {settings.max_len_b} goes past the decoder's {positions} positions "
                "(one is the end symbol): lower it, or train with a larger --max-target-positions"
            )
        if self.cfg.write_ranking > settings.beam:
            raise UserError(f"--write-ranking {self.cfg.write_ranking} needs --beam {self.cfg.write_ranking}, or more")
        if settings.constraints:
            raise UserError("--constraints is not available: take it out; --ans2label-file gives a closed answer set")
        if ensemble.rules is not None or self.prompted():
            seq_gen_cls = seq_gen_cls or ConstrainedGenerator
        return super().build_generator(ensemble, settings, seq_gen_cls, *stock)

    def ensemble_of(self, models: list[nn.Module], kind: str) -> ConstrainedEnsemble:
        """The models, under what a kind of example allows as an answer, unless the user says otherwise."""
        cfg, rules = self.cfg, self.rules_of(kind)
        if cfg.constraint_range:
            rules = Range(*parse_range(cfg.constraint_range, len(self.codec.dictionary)), range(NUM_SPECIALS))
        if cfg.open_ended and rules is not None:
            if isinstance(rules, Trie) and not self._told_open:
                self._told_open = True
                logger.warning(
                    "--open-ended: THIS MODEL HAS LEARNED TO CHOOSE AMONG %d ANSWERS AND NOW WRITES FREELY; "
                    "expect texts that are none of them",
                    len(rules),
                )
            rules = None
        options = {"codes": self.writes_codes(kind), "renormalise": not cfg.mask_after_softmax}
        return build_ensemble(models, rules, self.codec.pad, **options)

    def rules_of(self, kind: str) -> Grammar | None:
        """What an answer may be; None: anything."""
        return self.trie

    def writes_codes(self, kind: str) -> bool:
        """Whether answers are image codes."""
        return False

    def prompted(self) -> bool:
        """Whether the decoder is given more than bos before it answers."""
        return False

    def inference_step(
        self,
        generator: Any,
        models: list[nn.Module],
        sample: dict[str, Any],
        prefix_tokens: torch.Tensor | None = None,
        constraints: torch.Tensor | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Generates for a batch, hands the best answers to the evaluation, and shows the references as target."""
        if self._typed is not None:
            sample = self._typed.whole(sample)
        raise_bad_rows(sample)
        hypotheses = self._generate(generator, models, sample, prefix_tokens, constraints)
        if self.evaluation is not None:
            for row, number in enumerate(sample["id"].tolist()):
                error = sample["errors"][row]
                answer, entry = self._answered(sample, row, hypotheses[row])
                if error is not None:  # --bad-rows report
                    logger.warning("%s", error)
                    entry = {**dict([next(iter(entry.items()))]), "error": error}
                reference = sample["references"][row]
                self.evaluation.add(number, entry, answer, reference, self.kind_of(sample), self.record(reference))
        sample["target"] = pad_right(sample["reference_tokens"], self.codec.pad)  # [B, R], for the T- line
        return hypotheses

    def _answered(
        self, sample: dict[str, Any], row: int, hypotheses: list[dict[str, Any]]
    ) -> tuple[Any, dict[str, Any]]:
        """What is scored of a row's hypotheses, and the row's entry in the result file."""
        cfg, best = self.cfg, hypotheses[0]
        answer, judged = self.answer_to(sample, row, best), self.judged(sample, row, hypotheses)
        entry = self.entry_to(sample, row, answer)
        said = [name for name in list(entry)[1:] if name != "kind"]  # the first is the id
        entry["score"] = round(float(best["score"]), 5)
        if cfg.reject_below is not None and math.exp(entry["score"]) < cfg.reject_below:
            entry["rejected"] = {name: entry[name] for name in said}
            judged = NO_ANSWER if isinstance(judged, str) else [] if isinstance(judged, list) else None
            entry.update(dict.fromkeys(said, NO_ANSWER if isinstance(answer, str) else None))
        if cfg.write_log_probs:
            pairs = zip(best["tokens"].tolist(), best["positional_scores"].tolist(), strict=True)
            entry["log_probs"] = [[self.codec.dictionary[token], round(value, 5)] for token, value in pairs]
        if cfg.write_ranking:
            ranked = [(self.entry_to(sample, row, self.answer_to(sample, row, one)), one) for one in hypotheses]
            entry["ranking"] = [
                {**{name: other[name] for name in said}, "score": round(float(one["score"]), 5)}
                for other, one in ranked[: cfg.write_ranking]
            ]
        return judged, entry

    def _generate(
        self,
        generator: Any,
        models: list[nn.Module],
        sample: dict[str, Any],
        prefix_tokens: torch.Tensor | None = None,
        constraints: torch.Tensor | None = None,
    ) -> list[list[dict[str, Any]]]:
        if self.prompted() and prefix_tokens is not None:
            raise UserError("--prefix-size does not go with --prompt-type: the prompt is the prefix; leave one out")
        try:
            with torch.no_grad(), self.autocast(models[0]):
                if self.prompted():
                    return generator.complete(models, sample, sample["prefix_tokens"], self.codec.bos)
                return generator.generate(
                    models, sample, prefix_tokens=prefix_tokens, constraints=constraints, bos_token=self.codec.bos
                )
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise UserError(self._out_of_memory(len(sample["id"]), generator.beam_size)) from None
        except NonFiniteLogits as error:
            ids = ", ".join(sample["uniq_ids"][row] for row in error.rows)
            places = ", ".join(sample["places"][row] for row in error.rows)
            raise NonFiniteLogits(error.step, error.rows, f"ids {ids} ({places})") from None

    def _out_of_memory(self, rows: int, beam: int) -> str:
        """What to lower, and to what, where a batch of so many rows was too large."""
        if rows > 1:
            remedy = f"lower --batch-size to {rows // 2}"
        elif beam > 1:
            remedy = f"lower --beam to {beam // 2}"
        else:
            remedy = (
                f"lower --patch-image-size from {self.cfg.patch_image_size}, or --max-len-b; or add --autocast bf16"
            )
        return f"out of memory while answering {rows} row{'s' * (rows > 1)} with beam {beam} at once: {remedy}"

    def kind_of(self, sample: dict[str, Any]) -> str:
        """The kind of a batch's examples; a task with several kinds evaluates each in batches of its own."""
        return ""

    def answer_to(self, sample: dict[str, Any], row: int, hypothesis: dict[str, Any]) -> Any:
        """What a hypothesis for a row of a batch says, as it is scored and written."""
        return self.answer(hypothesis["tokens"])

    def judged(self, sample: dict[str, Any], row: int, hypotheses: Sequence[dict[str, Any]]) -> Any:
        """What the metrics see of a row's hypotheses, the likeliest of which comes first: the answer."""
        return self.answer_to(sample, row, hypotheses[0])

    def answer(self, tokens: torch.Tensor) -> str:
        """The text of a hypothesis' tokens int64[T]."""
        return self.codec.decode(tokens).strip()

    def record(self, reference: Any) -> Any:
        """What `conclude` is to know of a row's reference, as JSON can hold it; None: nothing."""
        return None

    @classmethod
    def conclude(
        cls, entries: Mapping[int, dict[str, Any]], records: Mapping[int, Any], subset: str, folder: Path | None
    ) -> dict[str, float]:
        """Metrics of a whole subset that are no sums over its rows, and files of its own; `fairseq-generate` asks once.

        Args:
            entries: of the result file, by row.
            records: what `record` gave for each row, without the None.
            subset: its name.
            folder: where files go; None: nowhere.
        """
        return {}

    def entry_to(self, sample: dict[str, Any], row: int, answer: Any) -> dict[str, Any]:
        """A row's entry of the result file, the id first."""
        return self.entry(typed_id(sample["uniq_ids"][row]), answer)

    def entry(self, uniq_id: str | int, answer: Any) -> dict[str, Any]:
        """One entry of the official result file, the id first."""
        return {"uniq_id": uniq_id, "answer": answer}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model out of fairseq's wrapper, and of the data-parallel one inside it."""
    while hasattr(model, "module"):
        model = model.module
    return model


def parse_settings(flag: str, text: str | None) -> dict[str, Any]:
    """Generation settings as a flag has them: JSON of fields of stock's `GenerationConfig`.

    Raises:
        UserError: it is no JSON object, or a setting that there is not, or of another type.
    """
    try:
        chosen = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UserError(f"{flag} is no JSON ({error}): write it like '{{\"beam\": 5}}'") from None
    if not isinstance(chosen, dict):
        raise UserError(f"{flag} {text} is no JSON object: write it like '{{\"beam\": 5}}'")
    known = {item.name: item for item in fields(GenerationConfig) if item.name != "_name"}
    for name, value in chosen.items():
        if name not in known:
            raise UserError(f"{flag}: {name!r} is no setting of generation; known: {', '.join(sorted(known))}")
        kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(known[name].type)
        if kind and type(value) is not known[name].type and not (kind == "a number" and type(value) is int):
            raise UserError(f"{flag}: {name} is {kind} (by default {known[name].default}), not {value!r}")
    return chosen


def _value(metric: Metric, keys: tuple[str, ...], meters: Any) -> float:
    return metric.value(*(float(meters[key].sum) for key in keys))


def task_config_of(state: dict[str, Any]) -> dict[str, Any]:
    """The task configuration inside a checkpoint's state, as a plain dict ({} where there is none)."""
    cfg = state.get("cfg") or {}
    task = cfg.get("task") or {}
    if isinstance(task, Namespace):
        return vars(task)
    return OmegaConf.to_container(task, resolve=False) if OmegaConf.is_config(task) else dict(task)


def saved_task_config(path: str) -> dict[str, Any]:
    """The task configuration of the first checkpoint that `--path` names."""
    filenames = utils.split_paths(path)
    compat.check_files(filenames)
    return task_config_of(checkpoint_utils.load_checkpoint_to_cpu(filenames[0]))
