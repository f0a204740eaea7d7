"""The verbs of the `ofa` command, one module each.

A verb's module has `HELP` (one line), `add_arguments(parser)` and `run(args) -> int` (the exit code), and imports
neither torch nor fairseq before `run`. Adding one here and in `VERBS` is all that a new verb takes.
"""

from __future__ import annotations

VERBS = {
    "doctor": "doctor",
    "user-dir": "user_dir",
    "train-bpe": "train_bpe",
    "train-backbone": "train_backbone",
    "make-shapes": "make_shapes",
    "prepare": "prepare",
    "check": "check",
    "convert": "convert",
    "cider-df": "cider_df",
    "tasks": "tasks",
    "merge": "merge",
    "average": "average",
}
"""What the user types, and the module in this folder that does it, in the order of `ofa --help`."""
