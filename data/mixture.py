"""Several files in one run: mixed in fixed proportion for training, one kind of example after the other elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .dataset import Item, OFADataset, RowDataset, split_to_multiple


@dataclass(frozen=True)
class Part:
    """One file of a mixture.

    Attributes:
        dataset: its rows.
        rows: how many of them go into a batch for every so many of the other parts.
        share: weight of its mean loss in the loss of a batch.
    """

    dataset: OFADataset
    rows: int
    share: float = 1.0


class Mixture(RowDataset):
    """Training batches that hold rows of every part, in proportion.

    The first part leads: an epoch is once through its rows, and `--batch-size` counts them. Each of the others is read
    on and on, in a new order each time through. Where it stands is no state: it follows from how many batches came
    before, so a resumed run finds every part where it left it, and two processes read what one would have read.

    An index that is not negative is a row of the first part. Negative ones are rows of the others in one of the times
    through them, see `_codes`.

    Args:
        parts: by name, the leading one first.
        rows_of: epoch to the number of the leading part's rows in it: its files may differ.
    """

    def __init__(self, parts: Mapping[str, Part], rows_of: Callable[[int], int]):
        super().__init__()
        self.parts = dict(parts)
        self.names = list(self.parts)
        self.main, *self.others = self.parts.values()
        self.rows_of = rows_of

    shuffle = True

    def __len__(self) -> int:
        return len(self.main.dataset)

    def __getitem__(self, index: int) -> tuple[str, Item]:
        index = int(index)
        if index >= 0:
            return self.names[0], self.main.dataset[index]
        passed, number = divmod(-1 - index, len(self.others))
        dataset = self.others[number].dataset
        cycle, row = divmod(passed, len(dataset))
        return self.names[1 + number], dataset.item(row, cycle + 1)

    def _codes(self, number: int, start: int, count: int) -> np.ndarray:
        """int64[count]: the indices of what other part `number` reads from position `start` of its endless reading on.

        The orders are drawn here, once an epoch: the batches of an epoch come shuffled, and a worker that met several
        times through would draw a whole file's order anew for nearly every row.
        """
        dataset = self.others[number].dataset
        size, rows = len(dataset), []
        cycles, places = np.divmod(np.arange(start, start + count), size)
        for cycle in np.unique(cycles).tolist():
            order = np.random.default_rng((dataset.seed, cycle + 1, number + 1)).permutation(size)
            rows.append(order[places[cycles == cycle]])
        return -1 - ((cycles * size + np.concatenate(rows)) * len(self.others) + number)

    def __getstate__(self) -> dict[str, Any]:
        """Without `rows_of`, which drags the task along: a spawned worker composes no batches."""
        return {**self.__dict__, "rows_of": None}

    def collater(self, samples: list[tuple[str, Item]]) -> dict[str, Any]:
        """{"parts": {name: batch}, "shares": {name: weight}}; the report alone where a bad row has no stand-in."""
        if not samples:
            return {}
        parts = {
            name: part.dataset.collater([item for of, item in samples if of == name])
            for name, part in self.parts.items()
        }
        if not all("target" in part for part in parts.values()):
            return {"parts": {}, "bad_rows": [bad for part in parts.values() for bad in part["bad_rows"]]}
        return {"parts": parts, "shares": {name: part.share for name, part in self.parts.items()}}

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the leading part."""
        self.main.dataset.set_epoch(epoch)

    def ordered_indices(self) -> np.ndarray:
        """int64[N]: the leading part's rows in the order of this epoch."""
        return self.main.dataset.ordered_indices()

    def num_tokens(self, index: int) -> int:
        """Estimated tokens of a row of the leading part."""
        return self.main.dataset.num_tokens(index)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """`num_tokens` of several rows."""
        return self.main.dataset.num_tokens_vec(indices)

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[np.ndarray]:
        """Batches of `max_sentences` rows of the leading part, each with its share of every other part.

        Raises:
            UserError: the size of a batch is not given, is given in tokens, or cannot hold every part.
        """
        if max_tokens or not max_sentences:
            raise UserError(
                f"--batch-size is needed, and no --max-tokens: it counts the rows of {self.names[0]}, and the other "
                "files follow in proportion"
            )
        step = self.main.rows // math.gcd(*(part.rows for part in self.parts.values()))
        if max_sentences % step:
            proportion = ":".join(str(part.rows) for part in self.parts.values())
            raise UserError(
                f"--batch-size {max_sentences} cannot hold {', '.join(self.names)} as {proportion}; the next value "
                f"that can is {math.ceil(max_sentences / step) * step}"
            )
        self.main.dataset.num_shards = self.num_shards
        mains = self.main.dataset.batch_by_size(indices, None, max_sentences)
        epoch = int(self.main.dataset.epoch)
        batches = [[batch] for batch in mains]
        for number, part in enumerate(self.others):
            position = sum(self._rows_in_epoch(part, self.rows_of(before), max_sentences) for before in range(1, epoch))
            counts = [self._rows_in_batch(part, len(main)) for main in mains]
            codes = np.split(self._codes(number, position, sum(counts)), np.cumsum(counts)[:-1])
            for batch, read in zip(batches, codes, strict=True):
                batch.append(read)
        return [np.concatenate(batch) for batch in batches]

    def _rows_in_batch(self, part: Part, leading: int) -> int:
        """How many rows of a part go with so many of the leading one: no batch is without the part."""
        return max(1, round(leading * part.rows / self.main.rows))

    def _rows_in_epoch(self, part: Part, leading: int, limit: int) -> int:
        sizes = [limit] * (leading // limit) + ([leading % limit] if leading % limit else [])
        batches = [range(size) for size in sizes]
        split_to_multiple(batches, self.num_shards)
        return sum(self._rows_in_batch(part, len(batch)) for batch in batches)


class ByKind(RowDataset):
    """Evaluated rows: each kind of example in batches of its own, in file order.

    Args:
        datasets: those rows of a file that give an example of a kind, by kind; none is shuffled.
    """

    def __init__(self, datasets: Mapping[str, OFADataset]):
        super().__init__()
        self.datasets = dict(datasets)
        self.starts = dict(zip(self.datasets, np.cumsum([0, *map(len, self.datasets.values())]).tolist(), strict=False))

    shuffle = False

    def __len__(self) -> int:
        return sum(map(len, self.datasets.values()))

    def _kind(self, index: int) -> str:
        return next(kind for kind, start in reversed(self.starts.items()) if index >= start)

    def __getitem__(self, index: int) -> tuple[str, Item]:
        index = int(index)
        kind = self._kind(index)
        item = self.datasets[kind][index - self.starts[kind]]
        for example in item.examples:
            example.row, example.kind = index, kind
        return kind, item

    def collater(self, samples: list[tuple[str, Item]]) -> dict[str, Any]:
        """The batch of one kind's rows, `kind` among its keys."""
        if not samples:
            return {}
        kind = samples[0][0]
        return {**self.datasets[kind].collater([item for _, item in samples]), "kind": kind}

    def ordered_indices(self) -> np.ndarray:
        """int64[N]: all rows, kind after kind."""
        return np.arange(len(self))

    def num_tokens(self, index: int) -> int:
        """Estimated tokens of a row."""
        kind = self._kind(index)
        return self.datasets[kind].num_tokens(int(index) - self.starts[kind])

    def batch_by_size(self, indices: np.ndarray, *limits: Any, **more: Any) -> list[np.ndarray]:
        """Every kind cut into batches as `OFADataset` cuts its rows."""
        batches = []
        for kind, dataset in self.datasets.items():
            own = indices[(indices >= self.starts[kind]) & (indices < self.starts[kind] + len(dataset))]
            if len(own):
                cut = dataset.batch_by_size(own - self.starts[kind], *limits, **more)
                batches += [batch + self.starts[kind] for batch in cut]
        return batches
