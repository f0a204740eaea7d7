"""`ofa cider-df`: the document frequencies that CIDEr-D weighs n-grams by."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UserError
from ..progress import progress_bar

HELP = "count the document frequencies of CIDEr-D on captions, or take them from the official cache"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file to write, and what it is made from."""
    add = parser.add_argument
    add("out", metavar="OUT.json", type=Path, help="file to write, the later --scst-cider-cached-tokens")
    add("files", metavar="TSV", nargs="*", help="files with captions; rows with the same image id are one image")
    add(
        "--columns",
        metavar="ID,CAPTIONS",
        default="1,2",
        help="columns of the image id and of its captions, joined by && (default: 1,2, as officially)",
    )
    add("--from-official", metavar="FILE", help="convert this pickle (coco-train-words.p) instead; no code of it runs")


def run(args: argparse.Namespace) -> int:
    """Writes the file and prints what went into it.

    Raises:
        UserError: no source or two, a source that cannot be read, or one without captions.
    """
    if bool(args.files) == bool(args.from_official):
        raise UserError("give TSV files to count on, or --from-official FILE, one of them")
    if args.out.suffix != ".json":
        raise UserError(f"{args.out}: give the file to write a name that ends in .json")
    import fairseq  # noqa: F401  before the tasks, which know what a caption is

    from ..tasks.metrics import read_official, write_frequencies

    origin: dict[str, Any] = {"made_by": f"ofa cider-df {__version__}"}
    if args.from_official:
        frequencies = read_official(args.from_official)
        origin["converted_from"] = Path(args.from_official).name
        made = f"converted from {args.from_official}"
    else:
        frequencies, captions, empty = _counted(args.files, args.columns)
        origin |= {"files": [Path(file).name for file in args.files], "captions": captions, "rows_left_out": empty}
        made = f"counted on {captions} captions" + (f", {empty} rows without one left out" if empty else "")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_frequencies(args.out, frequencies, origin)
    ngrams = len(frequencies.counts)
    print(f"{ngrams} n-grams of {frequencies.images:g} images, {made}: --scst-cider-cached-tokens {args.out}")
    return 0


def _counted(files: list[str], columns: str) -> tuple[Any, int, int]:
    """The frequencies of files, how many captions there are, and how many rows without one."""
    from ..data.tsv import TSVStore, parse_selected_cols
    from ..tasks.caption import references_of
    from ..tasks.metrics import count_frequencies

    selected = parse_selected_cols(columns, "--columns")
    stores = [TSVStore(file, ("id", "captions"), selected, None, "--columns") for file in files]
    images: dict[str, list[str]] = {}
    empty = 0
    with progress_bar(sum(map(len, stores)), "row", "captions") as bar:
        for store in stores:
            for number in range(len(store)):
                image, cell = store[number]
                captions = references_of(cell)
                if captions and not image:
                    raise UserError(f"{store.path}:{store.line(number)}: no image id: check --columns {columns}")
                if captions:
                    images.setdefault(image, []).extend(captions)
                empty += not captions
                bar.update()
    if not images:
        raise UserError(f"{', '.join(files)}: no caption in column {columns.rpartition(',')[2]}: check --columns")
    return count_frequencies(images.values()), sum(map(len, images.values())), empty
