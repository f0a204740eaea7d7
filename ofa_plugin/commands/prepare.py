"""`ofa prepare`: the user's own captions, questions, boxes and texts become the files that a task reads."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HELP = "make a task's data files from COCO or VQAv2 JSON, JSONL and plain text"

_FILES = {
    "captions": 'COCO captions, or JSONL {"image", "caption"}',
    "questions": 'VQAv2 questions, or JSONL {"image", "question", "answer" or "answers"}',
    "annotations": "VQAv2 annotations, the answers to --questions",
    "boxes": 'COCO instances, or JSONL {"image", "objects": [{"box", "name"}]} or {"image", "text", "box"}',
    "text": 'documents: a line each, or JSONL {"text"}',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task, the folder to write, the user's files, and how pictures and rows are made of them."""
    parser.add_argument("task", metavar="TASK", help="unify_task")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, the later DATA of fairseq-train")
    parser.add_argument("--images", metavar="DIR", type=Path, help="folder of the pictures")
    for flag, text in _FILES.items():
        parser.add_argument(f"--{flag}", metavar="F", type=Path, nargs="+", default=[], help=text)
    parser.add_argument("--subset", default="train", help="name of the subset to write (default: train)")
    embed = parser.add_mutually_exclusive_group()
    embed.add_argument("--embed-images", action="store_true", default=True, help="pictures in the rows (default)")
    embed.add_argument(
        "--image-paths", action="store_false", dest="embed_images", help="their paths, if they lie below OUT/SUBSET"
    )
    parser.add_argument("--max-side", metavar="PIXELS", type=int, help="shrink pictures whose longer side is longer")
    codes = "side of the square that has image codes (default: 128)"
    parser.add_argument("--code-image-size", metavar="PIXELS", type=int, default=128, help=codes)
    parser.add_argument("--no-codes", action="store_false", dest="codes", help="make no image_examples.tsv")
    parser.add_argument(
        "--no-grounding", action="store_false", dest="grounding", help="make no grounding rows of lists of objects"
    )
    parser.add_argument("--allow-bad", metavar="N", type=int, default=0, help="bad rows that are accepted (default: 0)")
    parser.add_argument("--workers", metavar="N", type=int, help="threads (default: one for each core, at most 8)")
    parser.add_argument("--force", action="store_true", help="replace files that an earlier run wrote")


def run(args: argparse.Namespace) -> int:
    """Writes the files and prints what went into them; 1 if there were more bad rows than --allow-bad.

    Raises:
        UserError: a flag or a whole file is wrong (see `data/prepare/__init__.py`).
    """
    from ..data.prepare import prepare
    from ..data.prepare.request import Request

    report = prepare(
        args.task,
        Request(
            out=args.out,
            images=args.images,
            **{flag: tuple(getattr(args, flag)) for flag in _FILES},
            subset=args.subset,
            embed_images=args.embed_images,
            max_side=args.max_side,
            code_image_size=args.code_image_size,
            codes=args.codes,
            grounding=args.grounding,
            workers=min(os.cpu_count() or 1, 8) if args.workers is None else args.workers,
            force=args.force,
        ),
    )
    print("\n".join(report.summary))
    return int(report.bad_rows > args.allow_bad)
