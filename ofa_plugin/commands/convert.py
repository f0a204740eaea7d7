"""`ofa convert`: somebody else's checkpoint as safetensors and JSON, read in a child process with narrow limits."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "turn a checkpoint into safetensors and JSON, in a child process that runs nothing of it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint and the folder."""
    parser.add_argument("source", metavar="IN.pt", type=Path, help="the checkpoint")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder that takes model.safetensors and config.json")
    parser.add_argument("--force", action="store_true", help="replace these files")


def run(args: argparse.Namespace) -> int:
    """Prints what was written.

    Raises:
        UserError: nothing was written; the message says why.
    """
    from ..convert import CONFIG, WEIGHTS, convert

    said = convert(args.source, args.out, args.force)
    tied = f", {said['tied']} more names for the same" if said["tied"] else ""
    print(f"{args.out / WEIGHTS}: {said['tensors']} tensors{tied}, {said['parameters']:,} numbers")
    print(f"{args.out / CONFIG}: its settings")
    if said["left_out"]:
        print(f"left out, since they are no weights: {', '.join(said['left_out'])}")
    return 0
