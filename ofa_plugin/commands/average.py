"""`ofa average`: the mean of checkpoints."""

from __future__ import annotations

import argparse

HELP = "average the weights of checkpoints of one run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file to write, and those to read."""
    parser.add_argument("out", metavar="OUT", help="checkpoint to write")
    parser.add_argument("checkpoints", metavar="CKPT", nargs="+", help="checkpoints with the same weights by name")


def run(args: argparse.Namespace) -> int:
    """Writes the file and prints what it holds."""
    import fairseq  # noqa: F401  before the plug-in's parts, which it registers

    from ..tuned import average

    print(average(args.out, args.checkpoints))
    return 0
