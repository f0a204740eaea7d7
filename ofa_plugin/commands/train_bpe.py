"""`ofa train-bpe`: a sentencepiece vocabulary from the user's own text."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError

HELP = "train a sentencepiece vocabulary for --bpe sentencepiece from columns of TSV files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder to write, the files to read, which columns hold text, and how many pieces to make."""
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for spm.model and dict.txt, the later --bpe-dir")
    parser.add_argument(
        "files", metavar="FILE[:N,...]", nargs="+", help="TSV files, each with columns of its own where they differ"
    )
    parser.add_argument("--columns", metavar="N,...", help="columns with text, counted from 0")
    parser.add_argument("--vocab-size", metavar="N", type=int, default=8000, help="pieces to make (default: 8000)")
    parser.add_argument("--text-tasks", action="store_true", help="learn the instructions of gigaword and GLUE instead")


def run(args: argparse.Namespace) -> int:
    """Writes the folder and prints what went into it.

    The instructions of the tasks, with --text-tasks of those without pictures, are learned beside the files' texts, so
    that each is a few tokens long.

    Raises:
        UserError: columns are no list of numbers, a file is missing, or the text is too small for --vocab-size.
    """
    if args.vocab_size < 1:
        raise UserError(f"--vocab-size {args.vocab_size}: give a number of pieces, such as 8000")
    files = [_file(text, args.columns) for text in args.files]
    import fairseq  # noqa: F401  before the tasks, which know the instructions

    from ..data.sentencepiece_training import train_bpe
    from ..tasks import instructions

    summary = train_bpe(args.out, files, args.vocab_size, instructions(args.text_tasks))
    if summary["reduced"]:
        print(summary["reduced"])
    print(f"{summary['pieces']} pieces from {summary['texts']} texts: --bpe sentencepiece --bpe-dir {args.out}")
    return 0


def _file(text: str, columns: str | None) -> tuple[Path, list[int]]:
    path, _, own = text.rpartition(":")
    if not path or Path(text).is_file() or not own.replace(",", "").isdigit():
        path, own = text, ""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; FILE is a TSV file to learn the vocabulary from")
    given = own or columns
    if given is None:
        raise UserError(f"{path}: which of its columns hold text? Give --columns 2,3, or {path}:2,3")
    try:
        numbers = [int(column) for column in given.split(",")]
    except ValueError:
        raise UserError(f"--columns {given}: give numbers counted from 0, such as --columns 2,3") from None
    if min(numbers) < 0:
        raise UserError(f"--columns {given}: columns are counted from 0")
    return Path(path), numbers
