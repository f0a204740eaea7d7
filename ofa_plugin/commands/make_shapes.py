"""`ofa make-shapes`: a world of coloured shapes with everything that the pretraining tasks need, drawn from a seed."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import __version__
from ..errors import UserError
from ..machine import cores
from ..progress import progress_bar
from .shared import within

HELP = "draw a world of coloured shapes with captions, questions, boxes and texts for all tasks"

LIMITS = {"majority answer": 0.35, "constant box": 0.10, "frequent caption": 1.0}
"""What a model that never looks may score on `test`; a world above one of them is too easy to learn anything from."""
GATED_FROM = 1000  # rows; fewer say too little
SHAPES, SIDE, CODE_SIDE = (2, 6), 128, 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder to make, how much, from which seed, and how the pictures look."""
    add = parser.add_argument
    add("out", metavar="OUT", type=Path, help="folder to make, the later DATA of --task unify_task")
    add("--rows", metavar="N", type=int, required=True, help="captions, questions and expressions to train on")
    add("--seed", metavar="N", type=int, required=True, help="of everything: the same one gives the same files")
    add("--shapes", metavar="A-B", default="2-6", help="the fewest and the most shapes of a picture (default: 2-6)")
    add("--proportion", metavar="C:Q:E", default="1:1:1", help="captions, questions, expressions (default: 1:1:1)")
    add("--side", metavar="PIXELS", type=int, default=SIDE, help="of a picture (default: 128)")
    add("--code-image-size", metavar="PIXELS", type=int, default=CODE_SIDE, help="as in training (default: 128)")
    add("--held-out", metavar="N", type=int, help="rows of each other split (default: a tenth, from 60 to 1000)")
    add("--workers", metavar="N", type=int, default=cores(), help="processes that draw (default: one for each core)")


def run(args: argparse.Namespace) -> int:
    """Writes the world and prints what can be scored without looking at it.

    Raises:
        UserError: a flag's value cannot be used, OUT is not ours to write to, or the world is too easy.
    """
    from ..data.world import files
    from ..tasks import baselines  # noqa: F401  what is missing for the verdict should be told before the work

    world = files.World(
        rows=within("--rows", args.rows, 3, 100_000_000),
        held_out=within("--held-out", _held_out(args), 3, 1_000_000),
        seed=within("--seed", args.seed, 0, 2**32 - 1),
        shapes=_counts(args.shapes),
        side=within("--side", args.side, 48, 1024),
        code_side=within("--code-image-size", args.code_image_size, 32, 512),
        proportion=_proportion(args.proportion),
    )
    if world.code_side % 8:
        raise UserError(f"--code-image-size {world.code_side}: give a multiple of 8, one code for 8 x 8 pixels")
    workers = within("--workers", args.workers, 1, 1024)
    files.claim(args.out)
    rows = _write(args.out, world, workers)

    scores = {split: score(args.out, split) for split in files.SPLITS[2:]}
    easy = []
    if world.rows >= GATED_FROM and world.shapes == SHAPES:
        easy = [name for name, limit in LIMITS.items() if scores["test"][name] > limit]
    facts = {"version": __version__, "arguments": vars(world), "rows": rows, "without_looking": scores}
    files.write_mark(args.out, {"finished": True, **facts, "too_easy": easy})
    print(_table(scores))
    if easy:
        said = ", ".join(f"{name} {_show(name, scores['test'][name])} > {_show(name, LIMITS[name])}" for name in easy)
        raise UserError(f"{args.out}: this world is too easy ({said}); nothing learned from it would mean much")
    print(f"{world.rows} rows to train on in {args.out}: --task unify_task {args.out}")
    return 0


def score(out: Path, split: str) -> dict[str, float]:
    """What a split's rows give to a model that knows the training files and never looks at a picture, by name."""
    import numpy as np

    from ..data.text import SEPARATOR
    from ..tasks import baselines

    questions, asked = (_questions(out / "vqa_gen" / f"{of}.tsv", 2, 3) for of in ("train", split))
    regions = _questions(out / "region_vqa" / f"{split}.tsv", 2, 4)
    told, shown = (_cells(out / "caption" / f"{of}.tsv", 2) for of in ("train", split))
    known, sought = (
        np.array([cell.split(",") for (cell,) in _cells(out / "refcoco" / f"{of}.tsv", 3)], float)
        for of in ("train", split)
    )
    return {
        "majority answer": baselines.majority_answer([a for _, a in questions], [a for _, a in asked]),
        "majority answer to the same question": baselines.majority_by_question(questions, asked),
        "the same about a region": baselines.majority_by_question(regions, regions),
        "constant box": baselines.constant_box(known, sought),
        "frequent caption": baselines.frequent_caption(
            [caption for (caption,) in told], [captions.split(SEPARATOR) for (captions,) in shown]
        ),
    }


def _cells(path: Path, *columns: int) -> list[tuple[str, ...]]:
    """These columns of a file that `write_world` wrote, so nothing about it is in doubt."""
    with open(path, encoding="utf-8") as file:
        rows = (line.rstrip("\n").split("\t") for line in file)
        return [tuple(row[column] for column in columns) for row in rows]


def _questions(path: Path, question: int, answers: int) -> list[tuple[str, str]]:
    return [(asked, said.partition("|!+")[2]) for asked, said in _cells(path, question, answers)]


def _write(out: Path, world: object, workers: int) -> dict[str, int]:
    from ..data.world import files

    with progress_bar(files.total(world), "row", str(out)) as bar:
        return files.write_world(out, world, workers, bar.update)


def _table(scores: dict[str, dict[str, float]]) -> str:
    """The scores, a row for each, a column for each split."""
    names = list(next(iter(scores.values())))
    width = max(map(len, names))
    lines = ["without looking at the picture".ljust(width) + "".join(f"  {split:>18}" for split in scores) + "  limit"]
    for name in names:
        cells = "".join(f"  {_show(name, scores[split][name]):>18}" for split in scores)
        limit = _show(name, LIMITS[name]) if name in LIMITS else ""
        lines.append(f"{name:{width}}{cells}  {limit}".rstrip())
    return "\n".join(lines)


def _show(name: str, value: float) -> str:
    return f"CIDEr {value:.2f}" if name == "frequent caption" else f"{100 * value:.1f} %"


def _held_out(args: argparse.Namespace) -> int:
    return min(1000, max(60, args.rows // 10)) if args.held_out is None else args.held_out


def _proportion(text: str) -> tuple[int, ...]:
    """`1:3:2` to (1, 3, 2)."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 100 for part in parts):
        raise UserError(f"--proportion {text}: give three numbers from 1 to 100, such as 1:3:2")
    return tuple(map(int, parts))


def _counts(text: str) -> tuple[int, int]:
    """`2-6` to (2, 6), `3` to (3, 3)."""
    from ..data.world.scene import MOST_SHAPES

    least, _, most = text.partition("-")
    try:
        counts = int(least), int(most or least)
    except ValueError:
        counts = (0, 0)
    if not 1 <= counts[0] <= counts[1] <= MOST_SHAPES:
        raise UserError(f"--shapes {text}: give the fewest and the most, from 1 to {MOST_SHAPES}, such as 2-6")
    return counts
