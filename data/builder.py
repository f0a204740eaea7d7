"""The base of every task's example builder: named columns in, examples out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import BadRow
from .codec import Codec
from .example import Example
from .image import ImageProblem, PictureLoader
from .tsv import TSVStore

Row = Any  # a namedtuple whose fields are the builder's columns
LATEST = 16  # pictures that a builder remembers in evaluation


class Builder:
    """Turns one row of a TSV into the examples that are learned from it.

    A subclass names its `columns`, the official order in which they stand in the file (`selected`, by split: "train"
    and "other"), its instruction, and yields examples. What a row cannot give is reported with `self.bad(...)`.

    Args:
        store: the file; rows come to `examples` with the fields `columns`.
        codec: text to ids.
        cfg: the task's resolved configuration.
        training: whether the rows are trained on; then each must be learnable. Elsewhere a row may lack its reference.
        pictures: cell of an image column to uint8[3, S, S]; None for a task without images.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    instructions: ClassVar[tuple[str, ...]] = ()  # fixed texts of its sources, {} where a row's own text stands
    required: ClassVar[int | None] = None  # columns beyond this many may be left out of --selected-cols
    selected: ClassVar[Mapping[str, str]] = {}  # official default of --selected-cols, by split

    def __init__(self, store: TSVStore, codec: Codec, cfg: Any, training: bool, pictures: PictureLoader | None = None):
        self.store, self.codec, self.cfg, self.training, self.pictures = store, codec, cfg, training, pictures
        self._latest: dict[str, Tensor] = {}  # by cell, the oldest first

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the examples of row `index`; every random choice comes from `draw`."""
        raise NotImplementedError

    @classmethod
    def typed(cls, cfg: Any) -> tuple[str, ...]:
        """The columns that a line of `fairseq-interactive` gives, the others being None; empty: it makes no row."""
        return ()

    def reference(self, row: Row) -> Any:
        """What the metric compares a hypothesis for this row with; None where the row has no reference."""
        return None

    # ------------------------------------------------------------------------------------------ for subclasses

    def bad(self, index: int, column: str, reason: str, remedy: str) -> BadRow:
        """The error to raise for row `index`."""
        return BadRow(self.store.path, self.store.line(index), column, reason, remedy)

    def uniq_id(self, index: int, row: Row) -> str:
        """The row's id; the number of its line where the task's files have none."""
        uniq_id = getattr(row, "id", None)
        return str(self.store.line(index)) if uniq_id is None else uniq_id

    def example(self, index: int, uniq_id: str, **parts: Any) -> Example:
        """An `Example` of row `index`; `parts` are the rest of its fields."""
        return Example(row=index, uniq_id=uniq_id, place=f"{self.store.path}:{self.store.line(index)}", **parts)

    def picture(self, index: int, cell: str, column: str = "image") -> Image.Image:
        """The picture of a cell as it is stored, RGB; one that cannot be read is a `BadRow`."""
        try:
            return self.pictures.reader(cell)
        except ImageProblem as problem:
            raise self.bad(index, column, problem.reason, problem.remedy) from None

    def image(self, index: int, cell: str, column: str = "image") -> Tensor:
        """The picture of a cell as uint8[3, S, S]; a picture that cannot be read is a `BadRow`.

        In evaluation, where rows come in the order of the file, one of the latest pictures is the same tensor again:
        questions about one picture then share its decoding, and in a batch its features (`collate`).
        """
        try:
            if self.training:
                return self.pictures(cell)
            if cell not in self._latest:
                self._latest[cell] = self.pictures(cell)
                if len(self._latest) > LATEST:
                    del self._latest[next(iter(self._latest))]
            return self._latest[cell]
        except ImageProblem as problem:
            raise self.bad(index, column, problem.reason, problem.remedy) from None

    def placeholder(self, index: int, bad: BadRow) -> Example:
        """What stands in a batch for a bad row that is to be reported: nothing to learn from, nothing to score."""
        codec = self.codec
        try:
            row = self.store[index]
        except BadRow:
            row = None
        nothing = {"source": self.source(), "target": torch.tensor([codec.pad]), "image": self.blank()}
        return self.example(index, self.uniq_id(index, row), error=str(bad), **nothing)

    def blank(self) -> Tensor | None:
        """A picture of the size that the batch has; None for a task without images."""
        if self.pictures is None:
            return None
        return torch.zeros(3, self.pictures.patch.size, self.pictures.patch.size, dtype=torch.uint8)

    def source(self, *pieces: str | Tensor) -> Tensor:
        """int64[S]: bos, the ids of the pieces (texts, and ids as they are: box or image tokens), eos."""
        return torch.cat([torch.tensor([self.codec.bos]), *map(self._ids, pieces), torch.tensor([self.codec.eos])])

    def target(self, *pieces: str | Tensor, max_tokens: int | None = None) -> Tensor:
        """int64[T]: the ids of the pieces, at most `max_tokens`, then eos."""
        ids = torch.cat([torch.tensor([], dtype=torch.int64), *map(self._ids, pieces)])[:max_tokens]
        return torch.cat([ids, torch.tensor([self.codec.eos])])

    def _ids(self, piece: str | Tensor) -> Tensor:
        return self.codec.encode(piece) if isinstance(piece, str) else piece
