"""`ofa prepare`: the user's own captions, questions, boxes and texts become the files that a task reads."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from ..errors import UserError

HELP = "make a task's data files from your own: COCO and VQAv2 JSON, RefCOCO, Pascal VOC, CSV, JSONL, folders"

_FILES = {
    "captions": 'COCO captions, or {"image", "caption"}',
    "questions": 'VQAv2 questions, or {"image", "question", "answer" or "answers"}',
    "annotations": "VQAv2 annotations, the answers to --questions",
    "boxes": 'COCO instances, Pascal VOC, or {"image", "objects": [{"box", "name"}]} or {"image", "text", "box"}',
    "text": 'documents: a line each, or JSONL {"text"}',
    "refs": 'RefCOCO refs with COCO instances as --boxes, or {"image", "text", "box"}',
    "rows": "rows with the columns of TASK as fields",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task, the folder to write, the user's files, and how pictures and rows are made of them."""
    parser.add_argument("task", metavar="TASK", help="as --task of fairseq-train: caption, vqa_gen, ..., unify_task")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, the later DATA of fairseq-train")
    parser.add_argument("--images", metavar="DIR", type=Path, help="folder of the pictures")
    for flag, text in _FILES.items():
        parser.add_argument(f"--{flag}", metavar="F", type=Path, nargs="+", default=[], help=text)
    split = parser.add_mutually_exclusive_group()
    split.add_argument("--subset", default="train", help="name of the subset to write (default: train)")
    split.add_argument("--split", metavar="S=P,...", default="", help="several, drawn by picture: train=0.9,valid=0.1")
    parser.add_argument("--seed", type=int, default=1, help="of the draw of --split (default: 1)")
    taken = "only records with this value, e.g. split=val (may be repeated)"
    parser.add_argument("--take", metavar="FIELD=VALUE", action="append", default=[], help=taken)
    parser.add_argument("--answers", metavar="N", type=int, default=3129, help="vqa_gen: size of answers.txt (3129)")
    parser.add_argument("--min-count", metavar="N", type=int, default=1, help="vqa_gen: least times of an answer (1)")
    joined = "caption: all captions of a picture in one row in training, too, as self-critical training reads them"
    parser.add_argument("--join-captions", action="store_true", help=joined)
    order = "what 0, 1, ... mean where labels are numbers: entailment,neutral,contradiction"
    parser.add_argument("--label-order", metavar="L,...", default="", help=order)
    named = 'image_classify: {"label", "name"}, what a folder or label is called'
    parser.add_argument("--class-names", metavar="F", type=Path, help=named)
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
            split=_split(args.split),
            seed=args.seed,
            take=tuple(_pair("--take", text) for text in args.take),
            answers=args.answers,
            min_count=args.min_count,
            join_captions=args.join_captions,
            label_order=tuple(label.strip() for label in args.label_order.split(",") if label.strip()),
            class_names=args.class_names,
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


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise UserError(f"{flag} {text}: write NAME=VALUE")
    return name.strip(), value.strip()


def _split(text: str) -> tuple[tuple[str, float], ...]:
    """`train=0.9,valid=0.1` as names and shares."""
    parts = [_pair("--split", part) for part in text.split(",") if part.strip()]
    shares = []
    for name, share in parts:
        try:
            shares.append((name, float(share)))
        except ValueError:
            shares.append((name, math.nan))
    if not all(0 < share < math.inf for _, share in shares) or len(dict(shares)) < len(shares):
        raise UserError(f"--split {text}: write a name and a share for each subset, such as train=0.9,valid=0.1")
    if shares and abs(sum(share for _, share in shares) - 1) > 1e-6:
        raise UserError(f"--split {text}: the shares add up to {sum(share for _, share in shares):g}, not to 1")
    return tuple(shares)
