"""`ofa check`: every row of a task's files, held against what training would say of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError

HELP = "name every bad row of a task's files, and say what is in them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to check, for which task, with which vocabulary and answers."""
    parser.add_argument("path", metavar="PATH", type=Path, help="a TSV, or a folder of them")
    parser.add_argument("task", metavar="TASK", help="as --task of fairseq-train: caption, vqa_gen, ...")
    parser.add_argument("--selected-cols", metavar="N,...", help="as for training (default: the official ones)")
    parser.add_argument("--ans2label-file", metavar="F", help="the answer set (default: answers.txt beside the file)")
    parser.add_argument("--bpe", help="gpt2 (default), sentencepiece or bert")
    parser.add_argument("--bpe-dir", metavar="DIR", help="the vocabulary: texts are measured in tokens, not in words")
    use = "whether rows are trained on, and then need a reference (default: not those of valid, val, dev, test)"
    parser.add_argument("--as", dest="use", choices=("train", "other"), help=use)
    decode = "pictures of a file to decode in full, a number or all (default: 200 at random); others by their headers"
    parser.add_argument("--decode", metavar="N", default="200", help=decode)
    codes = "unify_task: side of the square that has image codes, as for training (default: 128)"
    parser.add_argument("--code-image-size", metavar="PIXELS", type=int, default=128, help=codes)
    parser.add_argument("--sheet", metavar="FILE.png", type=Path, help="a sample of the rows as a picture, boxes drawn")
    parser.add_argument("--seed", type=int, default=1, help="of the samples (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 1 if there is a bad row.

    Raises:
        UserError: a flag is wrong, or a whole file is none at all.
    """
    from .. import register

    register()
    from ..data.codec import Codec
    from ..tasks.checking import Asked, Check, as_json, files_of

    if args.decode != "all" and not args.decode.isdecimal():
        raise UserError(f"--decode {args.decode}: give a number of pictures, or all")
    if args.bpe and not args.bpe_dir:
        raise UserError(f"--bpe {args.bpe}: give its folder as --bpe-dir")
    asked = Asked(
        task=args.task,
        selected_cols=args.selected_cols,
        answers=args.ans2label_file,
        codec=Codec.build(args.bpe, args.bpe_dir) if args.bpe_dir else None,
        training=None if args.use is None else args.use == "train",
        decode=None if args.decode == "all" else int(args.decode),
        code_image_size=args.code_image_size,
        seed=args.seed,
    )
    checks = [Check(path, asked) for path in files_of(args.path, args.task)]
    if args.sheet and checks[0].pictures is None:
        raise UserError(f"--sheet: the rows of {args.task} have no pictures: leave it out")
    reports = []
    for check in checks:
        report = check.run()
        reports.append(report)
        if not args.json:
            print("\n".join([*map(str, report.bad), *report.lines()]))
    if args.json:
        print(as_json(args.task, reports))
    if args.sheet:
        _draw(args.sheet, checks)
        if not args.json:
            print(f"{args.sheet}: a sample of the rows")
    return int(any(report.bad for report in reports))


def _draw(file: Path, checks: list) -> None:
    from ..contact_sheet import draw, row_panel

    panels = [row_panel(*shown) for check in checks for shown in check.sheet()]
    if not panels:
        raise UserError(f"--sheet {file}: no row can be shown; the bad rows say why")
    try:
        draw(panels).save(file, "PNG")
    except OSError as error:
        raise UserError(f"--sheet {file}: cannot be written ({error.strerror or error}): check the path") from error
