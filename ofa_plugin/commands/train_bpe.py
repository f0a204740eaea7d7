"""`ofa train-bpe`: a sentencepiece vocabulary from the user's own text."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError

HELP = "train a sentencepiece vocabulary for --bpe sentencepiece from columns of TSV files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder to write, the files to read, which columns hold text, and how many pieces to make."""
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for spm.model and dict.txt, the later --bpe-dir")
    parser.add_argument("files", metavar="FILES", type=Path, nargs="+", help="TSV files")
    parser.add_argument("--columns", metavar="N,...", required=True, help="columns with text, counted from 0")
    parser.add_argument("--vocab-size", metavar="N", type=int, default=8000, help="pieces to make (default: 8000)")


def run(args: argparse.Namespace) -> int:
    """Writes the folder and prints what went into it.

    Raises:
        UserError: --columns is no list of numbers, a file is missing, or the text is too small for --vocab-size.
    """
    try:
        columns = [int(column) for column in args.columns.split(",")]
    except ValueError:
        raise UserError(f"--columns {args.columns}: give numbers counted from 0, such as --columns 2,3") from None
    if min(columns) < 0:
        raise UserError(f"--columns {args.columns}: columns are counted from 0")
    if args.vocab_size < 1:
        raise UserError(f"--vocab-size {args.vocab_size}: give a number of pieces, such as 8000")
    for file in args.files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; FILES are the TSV files to learn the vocabulary from")
    from ..data.sentencepiece_training import train_bpe

    summary = train_bpe(args.out, args.files, columns, args.vocab_size)
    if summary["reduced"]:
        print(summary["reduced"])
    print(f"{summary['pieces']} pieces from {summary['texts']} texts: --bpe sentencepiece --bpe-dir {args.out}")
    return 0
