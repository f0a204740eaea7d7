"""`ofa user-dir`: what to write after fairseq's --user-dir, wherever the plug-in is installed."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "print the path for fairseq's --user-dir"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes none."""


def run(args: argparse.Namespace) -> int:
    """Prints the absolute path of the package, alone on a line, for `--user-dir "$(ofa user-dir)"`."""
    print(Path(__file__).resolve().parent.parent)
    return 0
