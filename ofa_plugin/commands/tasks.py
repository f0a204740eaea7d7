"""`ofa tasks`: what each task reads, writes and is judged by, and the recipes of the run scripts, as Markdown."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import register

HELP = "list the tasks: instructions, columns, metrics, settings, recipes"

SCRIPTS = Path(__file__).resolve().parents[2] / "run_scripts"  # of a checkout; an installed package has none
SHOWN = {  # of a recipe: its flag, and what stands above the column
    "--lr": "lr",
    "--max-epoch": "epochs",
    "--max-update": "updates",
    "--warmup-ratio": "warm-up",
    "--warmup-updates": "warm-up updates",
    "--label-smoothing": "smoothing",
    "--patch-image-size": "pixels",
    "--max-src-length": "source",
    "--max-tgt-length": "target",
    "--encoder-drop-path-rate": "drop path",
    "--prompt-type": "prompt",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How large the model of the recipes is."""
    sizes = ("nano", "tiny", "medium", "base", "large", "huge")
    parser.add_argument("--size", choices=sizes, default="base", help="of the recipes' model (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Prints the tables."""
    register()
    print("\n".join(task_table()))
    if SCRIPTS.is_dir():
        print(f"\nRecipes of `run_scripts/NAME.sh train {args.size}` (or the verb that is named):\n")
        print("\n".join(recipe_table(args.size)))
    return 0


def task_table() -> Iterator[str]:
    """The lines of the table of tasks, by name; `|` in an instruction would end a cell, and none has it."""
    from fairseq.tasks import TASK_REGISTRY

    from ..tasks.base import OFATask

    yield "| `--task` | asks | columns (`--selected-cols`) | metrics | generation |"
    yield "|---|---|---|---|---|"
    for name, task in sorted(TASK_REGISTRY.items()):
        if issubclass(task, OFATask) and task.__module__.startswith("ofa_plugin."):
            metrics = ", ".join(f"`{metric.name}`" for metric in task.all_metrics())
            settings = ", ".join(f"{key} {value}" for key, value in task.evaluation_defaults.items())
            cells = (_asked(task.builder), _columns(task.builder), metrics, settings.replace("_", "-"))
            yield f"| `{name}` | {' | '.join(cells)} |"


def _asked(builder: Any) -> str:
    texts = [" ".join(text.replace("{}", "...").split()) for text in builder.instructions]
    return "<br>".join(f"`{text}`" for text in texts) or "the row's own question"


def _columns(builder: Any) -> str:
    required = len(builder.columns) if builder.required is None else builder.required
    names = [name if number < required else f"({name})" for number, name in enumerate(builder.columns)]
    selected = dict.fromkeys(builder.selected.values())  # of training and of all else, once where they are the same
    return f"{', '.join(names)}; {' in training, else '.join(f'`{columns}`' for columns in selected)}"


def recipe_table(size: str) -> Iterator[str]:
    """The lines of the table of recipes, each named by its script, and what that is given behind verb and size."""
    from ..tasks.glue import FORMS

    recipes = ("caption", "caption train-scst", "vqa", "snli_ve", "refcoco")
    recipes += ("detection", "image_classify", "ocr", "gigaword")
    yield f"| recipe | rows | {' | '.join(SHOWN.values())} |"
    yield "|---|---|" + "---|" * len(SHOWN)
    for name in (*recipes, *(f"glue {task}" for task in FORMS), "pretrain"):
        script, *more = name.split()
        verb = more.pop(0) if name.startswith(f"{script} train-") else "train"
        environment = {"PATH": os.environ["PATH"], "DRY": "1", "GPUS": "0", "BPE_DIR": "bpe", "INIT": "init.pt"}
        words = ["bash", str(SCRIPTS / f"{script}.sh"), verb, size, *more, "data"]
        shown = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
        parts = shlex.split(shown)
        flags = dict(zip(parts, parts[1:], strict=False))  # each word and the next; of a flag given twice the last
        rows = int(flags["--batch-size"]) * int(flags["--update-freq"])
        yield f"| {name} | {rows} | {' | '.join(flags.get(flag, '') for flag in SHOWN)} |"
