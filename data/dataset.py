"""A TSV and its builder as fairseq sees a dataset: random access, own batching, randomness by (seed, epoch, row)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from fairseq.data import FairseqDataset

from ..errors import BadRow, UserError
from .builder import Builder
from .example import Example, collate

REPLACEMENTS = 100  # rows that are tried in the place of a bad one
SORT_WINDOW = 64  # training batches within which rows are sorted by length: little padding, still shuffled


class Item(NamedTuple):
    """What became of a row: the examples to use, and the rows that are bad."""

    examples: list[Example]
    bad: list[BadRow]


class RowDataset(FairseqDataset):
    """What all datasets of rows answer fairseq alike. Subclasses set `shuffle`, and have `num_tokens`."""

    shuffle: bool
    num_shards = 1  # ranks that share the batches; the task says how many

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """One iterator serves all epochs, and so do its workers; the task has it compose each epoch's batches anew."""
        return True

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """`num_tokens` of several rows."""
        return np.array([self.num_tokens(index) for index in indices], np.int64)

    def size(self, index: int) -> int:
        """Same as `num_tokens`."""
        return self.num_tokens(index)

    def filter_indices_by_size(self, indices: np.ndarray, max_sizes: Any) -> tuple[np.ndarray, list[int]]:
        """Keeps every row: builders cut texts as their task says, and the model names what is too long for it."""
        return indices, []


class OFADataset(RowDataset):
    """The rows of one split.

    An item is what was built from a row (`Item`). Workers hand bad rows back as values, so that the main process deals
    with them: it stops (`raise_bad_rows`), or notes that another row has taken the place of a bad one.

    Args:
        builder: builds the examples, and holds the file.
        split: name of the subset; batches carry it.
        seed: with epoch and row number the only source of randomness.
        shuffle: whether `ordered_indices` is a permutation (training) or file order.
        image_tokens: patches of a picture, for `--max-tokens`.
        text_tokens: most tokens that instruction and target can have, for `--max-tokens`.
        imagenet_mean: see `collate`.
        kinds: the kinds of example that a batch may hold, the same in all batches of a run; empty: one without a name.
        on_bad: what a bad row becomes: "stop", nothing; "replace", the next good row; "report", an empty example.
        rows: int64[N], the rows of the file to use; all of them by default.
        weights: by what the confidence of an example is multiplied, by its kind; 1 unless given.
        stream: tells the draws of this file from those of others in the same run.
    """

    def __init__(
        self,
        builder: Builder,
        split: str,
        seed: int,
        shuffle: bool,
        image_tokens: int,
        text_tokens: int,
        imagenet_mean: bool = False,
        kinds: tuple[str, ...] = (),
        on_bad: str = "stop",
        rows: np.ndarray | None = None,
        weights: Mapping[str, float] | None = None,
        stream: int | None = None,
    ):
        super().__init__()
        self.builder, self.split, self.seed = builder, split, seed
        self.shuffle, self.imagenet_mean = shuffle, imagenet_mean
        self.kinds, self.on_bad, self.rows, self.weights = kinds, on_bad, rows, weights or {}
        self._stream = () if stream is None else (stream,)
        self.epoch = torch.ones(1, dtype=torch.int64).share_memory_()  # persistent workers must see it change
        # Rows are not read to be measured: 3 bytes of a row make at most about one token.
        row_bytes = builder.store.row_bytes if rows is None else builder.store.row_bytes[rows]
        self._lengths = image_tokens + np.minimum(text_tokens, row_bytes // 3 + 2)

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Item:
        return self.item(int(index), int(self.epoch))

    def item(self, index: int, epoch: int) -> Item:
        """What row `index` gives in an epoch."""
        try:
            return Item(self._examples(index, epoch), [])
        except BadRow as bad:
            return self._instead(index, epoch, bad)

    def _examples(self, index: int, epoch: int) -> list[Example]:
        row = index if self.rows is None else int(self.rows[index])
        draw = np.random.default_rng((self.seed, epoch, row, *self._stream))
        examples = list(self.builder.examples(row, self.builder.store[row], draw))
        for example in examples:
            example.seed = int(draw.integers(1 << 62))
            example.confidence *= self.weights.get(example.kind, 1.0)
        return examples

    def _instead(self, index: int, epoch: int, bad: BadRow) -> Item:
        if self.on_bad == "report":
            row = index if self.rows is None else int(self.rows[index])
            return Item([self.builder.placeholder(row, bad)], [bad])
        if self.on_bad == "replace":
            for step in range(1, min(REPLACEMENTS, len(self))):
                try:
                    return Item(self._examples((index + step) % len(self), epoch), [bad])
                except BadRow:
                    continue  # it is reported when it is its turn
        return Item([], [bad])

    def collater(self, samples: list[Item]) -> dict[str, Any]:
        """Batches what `__getitem__` gave; where a bad row has no stand-in the batch is only the report of it."""
        if not samples:
            return {}
        bad_rows = [bad for sample in samples for bad in sample.bad]
        if not all(sample.examples for sample in samples):
            # net_input: without it fairseq-generate would pass over the batch in silence
            return {"bad_rows": bad_rows, "net_input": {}}
        codec = self.builder.codec
        examples = [example for sample in samples for example in sample.examples]
        batch = {
            "split": self.split,
            "bad_rows": bad_rows,
            **collate(examples, codec.bos, codec.pad, self.imagenet_mean),
        }
        if self.kinds:
            batch["kinds"] = torch.tensor([self.kinds.index(example.kind) for example in examples])
            batch["kind_names"] = self.kinds
        return batch

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that randomness depends on; splits that do not shuffle stay at epoch 1."""
        if self.shuffle:
            self.epoch.fill_(epoch)

    def ordered_indices(self) -> np.ndarray:
        """int64[N]: a permutation drawn from (seed, epoch) for training, else file order."""
        if not self.shuffle:
            return np.arange(len(self))
        return np.random.default_rng((self.seed, int(self.epoch))).permutation(len(self))

    def num_tokens(self, index: int) -> int:
        """Estimated tokens of a row: the picture's patches and what its bytes can hold of text."""
        return int(self._lengths[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """`num_tokens` of several rows."""
        return self._lengths[indices]

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Cuts rows into batches of at most `max_sentences` rows and `max_tokens` padded tokens; no row is left out.

        Stock fairseq drops a last batch that is no multiple of `--required-batch-size-multiple` (8 by default), and
        needs compiled code for this; ours does neither. In training the rows are sorted by length inside windows of
        `SORT_WINDOW` batches, and the number of batches is made a multiple of the number of ranks, so that no rank
        ends an epoch on a dummy batch, which would spoil its gradient's weight.
        """
        if max_sentences is not None and max_sentences < 1:
            raise UserError(f"--batch-size {max_sentences}: must be at least 1")
        limit = max_sentences or len(indices)
        if self.shuffle:
            window = SORT_WINDOW * limit
            windows = [indices[start : start + window] for start in range(0, len(indices), window)]
            indices = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in windows])
        batches, start, longest = [], 0, 0
        for position, index in enumerate(indices):
            longest = max(longest, int(self._lengths[index]))
            size = position - start + 1
            if size > limit or (max_tokens and size > 1 and longest * size > max_tokens):
                batches.append(indices[start:position])
                start, longest = position, int(self._lengths[index])
        batches.append(indices[start:])
        if self.shuffle:
            split_to_multiple(batches, self.num_shards)
        return batches


def split_to_multiple(batches: list[np.ndarray], multiple: int) -> None:
    """Halves the largest batches until their number is a multiple, as far as batches of two rows allow."""
    while len(batches) % multiple:
        largest = max(range(len(batches)), key=lambda number: len(batches[number]))
        batch = batches[largest]
        if len(batch) < 2:
            return
        batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]


def raise_bad_rows(batch: dict[str, Any]) -> None:
    """Raises the first bad row of a batch that has nothing in its place, saying how many more there are."""
    bad_rows = batch.get("bad_rows") if batch else None
    if bad_rows and not (batch["net_input"] if "net_input" in batch else batch["parts"]):
        first = bad_rows[0]
        if len(bad_rows) > 1:
            more = f"{first.remedy} ({len(bad_rows) - 1} more bad rows in this batch)"
            first = BadRow(first.path, first.line, first.column, first.reason, more)
        raise first
