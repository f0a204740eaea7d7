"""Which file holds which subset: a folder, one TSV, or the official comma list."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError


class DataFiles:
    """The meaning of the positional DATA argument.

    * a folder: subset `x` is `<folder>/x.tsv`;
    * one TSV: it serves every subset;
    * `train_1.tsv,...,train_n.tsv,valid.tsv` (as official): epoch e trains on file (e - 1) mod n, every other subset
      is the last file.

    A name that exists as it stands is taken as it stands, commas and all.

    Raises:
        UserError: nothing was given, or a part of it does not exist.
    """

    def __init__(self, data: str | None):
        if not data:
            raise UserError(
                "no data: give a folder with <subset>.tsv, a TSV, or train.tsv,valid.tsv as first argument "
                "(task.data= for fairseq-hydra-train)"
            )
        self.data = data
        self.folder = Path(data) if Path(data).is_dir() else None
        self.files = [data] if self.folder or Path(data).exists() else data.split(",")
        for name in self.files:
            if not Path(name).exists():
                hint = " (a comma separates files: rename a file whose name holds one)" if "," in data else ""
                raise UserError(f"{name}: no such file or folder{hint}; check the first argument, DATA")

    @property
    def train_files(self) -> int:
        """Number of files that training rotates over."""
        return 1 if self.folder or len(self.files) == 1 else len(self.files) - 1

    def path(self, subset: str, training: bool, epoch: int = 1) -> str:
        """The file of a subset.

        Args:
            subset: name, as in `--train-subset`, `--valid-subset`, `--gen-subset`.
            training: whether this is the split that is trained on.
            epoch: 1-based; chooses among several training files.

        Raises:
            UserError: the folder has no such subset; the message lists those that it has.
        """
        if self.folder is None:
            return self.files[(epoch - 1) % self.train_files if training else -1]
        path = self.folder / f"{subset}.tsv"
        if not path.is_file():
            found = ", ".join(sorted(file.stem for file in self.folder.glob("*.tsv"))) or "none"
            raise UserError(
                f"{path}: no such file; subsets found in {self.folder}: {found}; "
                "check --train-subset, --valid-subset, --gen-subset (or give --disable-validation)"
            )
        return str(path)
