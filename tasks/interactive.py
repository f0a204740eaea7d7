"""`fairseq-interactive` for tasks with pictures: a line that is typed becomes a row, and takes the path of every row.

Stock hands a task's `inference_step` only `src_tokens` and `src_lengths` of a batch. The rest of it, pictures above
all, waits in the dataset, and the rows' numbers travel in the place of the lengths, to check that it is that batch's.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fairseq import utils

from ..data.dataset import OFADataset, raise_bad_rows
from ..errors import BadRow, UserError


class TypedLines:
    """The lines of one buffer as a builder reads rows; the columns that nobody types are None.

    Args:
        path: what messages call the input.
        lines: without line ends.
        first: number of the first of them, from 1.
        columns: the builder's columns; `id` is the number of the line.
        typed: those that a line gives, separated by tabs.
    """

    def __init__(self, path: str, lines: Sequence[str], first: int, columns: Sequence[str], typed: Sequence[str]):
        self.path, self.lines, self.first, self.typed = path, lines, first, typed
        self._row = namedtuple("Row", columns, defaults=[None] * len(columns))

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Any:
        cells = [cell.strip() for cell in self.lines[index].split("\t")]
        if len(cells) != len(self.typed) or not all(cells):
            found = f"{len(cells)} part{'s' if len(cells) > 1 else ''}, not {len(self.typed)}"
            form = "<TAB>".join("picture-path" if name == "image" else name for name in self.typed)
            reason = found if any(cells) else "blank line"
            raise BadRow(self.path, self.line(index), "line", reason, f"write {form}")
        typed = dict(zip(self.typed, cells, strict=True))
        return self._row(**({"id": str(self.line(index))} if "id" in self._row._fields else {}), **typed)

    @property
    def row_bytes(self) -> np.ndarray:
        """int64[N]: the length of each line in bytes."""
        return np.array([len(line.encode("utf-8", "replace")) for line in self.lines], np.int64)

    def line(self, index: int) -> int:
        """The number of line `index` of this buffer in the whole input, from 1."""
        return self.first + int(index)


class TypedDataset(OFADataset):
    """The examples of one buffer of lines. Stock collates a batch just before it generates, in the same process."""

    def collater(self, samples: list[Any]) -> dict[str, Any]:
        """What stock passes on of a batch; the whole of it is kept for `whole`."""
        batch = super().collater(samples)
        raise_bad_rows(batch)
        self._batch = batch
        net_input = {"src_tokens": batch["net_input"]["src_tokens"], "src_lengths": batch["id"]}
        return {"id": batch["id"], "net_input": net_input}

    def whole(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The batch of which `sample` is what stock passed on, on the device where stock has put that."""
        rows = sample["net_input"]["src_lengths"]
        assert rows.tolist() == self._batch["id"].tolist(), "stock no longer generates batch by batch"
        return utils.apply_to_sample(lambda tensor: tensor.to(rows.device), self._batch)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """No: stock would keep the iterator of every buffer for good."""
        return False


class Interactive:
    """The part of a task that `fairseq-interactive` calls."""

    _lines_read = 0
    _typed: TypedDataset | None = None

    def check_input(self) -> None:
        """Raises UserError where `--input` names no text file."""
        name = self.cfg.input
        if name == "-":
            return
        if not Path(name).exists():
            raise UserError(f"--input {name}: no such file; check the path, or leave it out to type the lines")
        try:
            if Path(name).is_file():  # what a pipe holds can be read only once
                Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--input {name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None

    def get_interactive_tokens_and_lengths(self, lines: list[str], encode_fn: Any) -> tuple[list[str], list[int]]:
        """The lines as they are, and their numbers: only a builder can make tokens of them.

        Raises:
            UserError: the task's builder takes no typed lines.
        """
        if not self.builder.typed(self.cfg):
            raise UserError(f"--task {self.cfg._name} takes no typed lines: write a TSV, and use fairseq-generate")
        first = self._lines_read + 1
        self._lines_read += len(lines)
        return lines, list(range(first, first + len(lines)))

    def build_dataset_for_inference(
        self, src_tokens: list[str], src_lengths: list[int], constraints: Any = None
    ) -> TypedDataset:
        """The dataset of what `get_interactive_tokens_and_lengths` gave; `inference_step` asks it for its batches."""
        name = "stdin" if self.cfg.input == "-" else self.cfg.input
        lines = TypedLines(name, src_tokens, src_lengths[0], self.builder.columns, self.builder.typed(self.cfg))
        self._typed = self.make_dataset(lines, "interactive", False, None, TypedDataset)
        # S- lines are printed as they come from here, while fairseq-generate would decode them
        self.source_dictionary.string = lambda tokens, *_, **__: self.codec.decode(tokens).strip()
        return self._typed
