"""`ofa merge`: a plain checkpoint of a tuned one."""

from __future__ import annotations

import argparse

HELP = "merge tuned weights and their base to a plain checkpoint, LoRA folded into the matrices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tuned checkpoint, its base and the file to write."""
    parser.add_argument("tuned", metavar="TUNED", help="checkpoint of a run with --save-tuned-only, or a whole one")
    parser.add_argument("base", metavar="BASE", nargs="?", help="its base (default: where it lay in training)")
    parser.add_argument("out", metavar="OUT", help="checkpoint to write")


def run(args: argparse.Namespace) -> int:
    """Writes the file and prints what it holds."""
    import fairseq  # noqa: F401  before the plug-in's parts, which it registers

    from ..tuned import merge

    print(merge(args.tuned, args.base, args.out))
    return 0
