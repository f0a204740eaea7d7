"""`ofa train-backbone`: a ResNet that knows the objects of a detection file, for `--resnet-model-path`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError
from ..progress import progress_bar
from .shared import within

HELP = "train a ResNet on a detection file, for training from scratch with --resnet-model-path"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file to learn from, the file to write, and how long and how to learn."""
    add = parser.add_argument
    add("data", metavar="DETECTION_TSV", type=Path, help="id, picture, objects, as pretraining reads them")
    add("out", metavar="OUT", type=Path, help="file to write, for --resnet-model-path")
    add("--resnet-type", metavar="NAME", default="resnet_nano", help="as in training (default: resnet_nano)")
    add(
        "--image-size", metavar="PIXELS", type=int, default=128, help="side that pictures are resized to (default: 128)"
    )
    add("--batches", metavar="N", type=int, default=600, help="steps (default: 600)")
    add("--batch-size", metavar="N", type=int, default=32, help="pictures of a step (default: 32)")
    add("--lr", metavar="RATE", type=float, default=4e-3, help="highest learning rate (default: 4e-3)")
    add("--seed", metavar="N", type=int, default=1, help="of everything (default: 1)")
    kinds = ("none", "auto", "bf16", "fp16")
    add("--autocast", choices=kinds, default="auto", help="compute in 16 bits (default: auto, bf16 where it is fast)")
    add("--workers", metavar="N", type=int, default=1, help="processes that read pictures (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Writes the weights and prints how many held-out objects they name.

    Raises:
        UserError: a flag's value cannot be used, or a file cannot be read or written.
    """
    for name, least in {"image_size": 16, "batches": 1, "batch_size": 2, "seed": 0, "workers": 0}.items():
        within(f"--{name.replace('_', '-')}", getattr(args, name), least)
    if not 0 < args.lr < 1:
        raise UserError(f"--lr {args.lr}: give a rate between 0 and 1, such as 4e-3")
    if not args.out.parent.is_dir():
        raise UserError(f"{args.out}: no folder {args.out.parent}: make it, or name another file")
    import fairseq  # noqa: F401  before the tasks
    import torch

    from ..backbone import Plan, train_backbone

    plan = Plan(
        kind=args.resnet_type,
        side=args.image_size,
        batches=args.batches,
        batch_size=args.batch_size,
        lr=args.lr,
        seed=args.seed,
        autocast=args.autocast,
        workers=args.workers,
    )
    with progress_bar(plan.batches, "batch", str(args.out)) as bar:

        def progress(words: str) -> None:
            bar.set_postfix_str(words, refresh=False)
            bar.update()

        backbone, right = train_backbone(args.data, plan, progress)
    torch.save(backbone.state_dict(), args.out)
    use = f"--resnet-type {plan.kind} --resnet-model-path {args.out}"
    print(f"{100 * right:.1f} % of held-out objects are named rightly: {use}")
    return 0
