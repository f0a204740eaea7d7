"""Loader and index against the official pipeline, alternating in one process.

    python benchmarks/bench_loader.py [TSV] [--size 480] [--rounds 5] [--megabytes 512]

Rows per second from a caption TSV (default `$OFA_SHARED/data/coco/caption/train.tsv`) to pixels, on one thread, beside
what official OFA does: URL-safe base64, Pillow, RGB, bicubic, float tensor, normalise. Ours ends with uint8, a quarter
of the bytes; the float form is made per batch on the model's device, and its cost is a line of its own. Then the index
of a large file made of long rows, and of one made of short rows, beside the official text-mode scan.

Cost grows with the pixels of the source (decoding) and of the target (resizing), not with the number of rows: a row is
one pread. The index grows with the file's bytes where rows are long and with its rows where they are short.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from ofa_plugin.data import image, tsv  # noqa: E402


def official(cell: str, size: int) -> torch.Tensor:
    """float32[3, S, S] as official's FileDataset and torchvision transforms make it, spelled out."""
    picture = Image.open(io.BytesIO(base64.urlsafe_b64decode(cell))).convert("RGB")
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()  # ToTensor
    tensor = tensor.to(torch.float32).div(255)
    half = torch.full((3, 1, 1), 0.5)
    return tensor.clone().sub_(half).div_(half)  # Normalize


def official_index(path: str) -> list[int]:
    """Byte offset of every line as official's FileDataset finds it: decode and encode the whole file."""
    offset, offsets = 0, []
    with open(path, encoding="utf-8") as file:
        for line in file:
            offsets.append(offset)
            offset += len(line.encode("utf-8"))
    return offsets


def alternate(
    candidates: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Median seconds of each candidate, by default of CPU time, which a busy machine changes least.

    One round runs all candidates, so that whatever slows the machine slows them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(rounds + 1):
        for name, run in candidates.items():
            begin = clock()
            run()
            if round_:  # the first warms up
                seconds[name].append(clock() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def bench_pictures(path: str, column: int, size: int, rounds: int) -> None:
    """Prints rows per second, the ratio to official, and how far the pixels are from official's."""
    store = tsv.TSVStore(path, ("image",), [column])
    cells = list(dict.fromkeys(row.image for row in store))
    folder = Path(path).parent
    loaders = {"ours, pil": image.PictureLoader(folder, size)}
    if image.simplejpeg is not None:
        loaders["ours, fast"] = image.PictureLoader(folder, size, backend="fast")
    else:
        print("fast: not measured, simplejpeg is missing (pip install 'ofa-plugin[fast]')")
    candidates = {"official": lambda: [official(cell, size) for cell in cells]}
    candidates |= {name: lambda loader=loader: [loader(cell) for cell in cells] for name, loader in loaders.items()}
    seconds = alternate(candidates, rounds)
    pixels = sum(width * height for width, height in (image.ImageReader(folder)(cell).size for cell in cells))
    print(f"{path}: {len(cells)} pictures, mean {pixels / len(cells) / 1e6:.2f} megapixels, to {size} x {size}")
    for name, median in seconds.items():
        line = f"  {name:12} {len(cells) / median:8.1f} rows/s  {seconds['official'] / median:5.2f}x"
        if name in loaders:
            equal, largest, tail = 0, 0, 0.0
            for cell in cells:
                ours, theirs = loaders[name](cell), official(cell, size)
                distance = (ours.int() - theirs.mul(127.5).add(127.5).round().int()).abs()
                equal += int((distance == 0).sum())
                largest = max(largest, int(distance.max()))
                if largest == 0:
                    tail = max(tail, float((image.normalise(ours) - theirs).abs().max()))
            line += f"  pixels equal {100 * equal / (len(cells) * 3 * size * size):.2f} %, largest difference {largest}"
            line += f", floats within {tail:.0e}" if largest == 0 else ""
        print(line)
    for other in (size // 2, size * 2):
        scaled = {n: image.PictureLoader(folder, other, backend=loader.patch.backend) for n, loader in loaders.items()}
        times = alternate({n: lambda run=run: [run(cell) for cell in cells] for n, run in scaled.items()}, 1)
        print(f"  at {other} px:  " + ", ".join(f"{n} {len(cells) / t:.1f} rows/s" for n, t in times.items()))
    batch = torch.stack([loaders["ours, pil"](cell) for cell in cells[:8]])
    median = alternate({"normalise": lambda: image.normalise(batch)}, rounds)["normalise"]
    print(f"  normalise    {1e3 * median:8.1f} ms for a batch of {len(batch)}, wherever the model is")


def bench_index(row: bytes, megabytes: int, rounds: int) -> None:
    """Prints the time to index a file of equal rows, and to open it again."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "large.tsv")
        block = row * max(1, (1 << 22) // len(row))
        with open(path, "wb") as file:
            for _ in range(max(1, (megabytes << 20) // len(block))):
                file.write(block)
        size = os.path.getsize(path)
        offsets: dict[str, object] = {}

        def build() -> None:
            for entry in os.listdir(folder):
                if "index" in entry:
                    os.unlink(os.path.join(folder, entry))
            offsets["ours"] = tsv.TSVStore(path, ("id",))

        def again() -> None:
            tsv.TSVStore(path, ("id",))[0]

        candidates = {
            "official": lambda: offsets.update(official=official_index(path)),
            "ours": build,
            "ours, second start": again,
        }
        seconds = alternate(candidates, rounds, time.perf_counter)  # wall: reading counts
        assert len(offsets["ours"]) == len(offsets["official"])
        assert offsets["ours"]._offsets[:-1].tolist() == offsets["official"]
        print(f"index of {size / 1e9:.2f} GB, {len(offsets['official']):,} rows of {len(row):,} bytes (equal offsets)")
        for name, median in seconds.items():
            print(f"  {name:20} {1e3 * median:9.2f} ms  {seconds['official'] / median:8.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shared = ROOT / os.environ.get("OFA_SHARED", "../shared")
    parser.add_argument("tsv", nargs="?", default=str((shared / "data/coco/caption/train.tsv").resolve()))
    parser.add_argument("--column", type=int, default=4, help="column of the pictures, counted from 0")
    parser.add_argument("--size", type=int, default=480, help="pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=512, help="size of the files to index; 0 skips that part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("command: python", " ".join(sys.argv))
    if not os.path.exists(arguments.tsv):
        parser.error(f"{arguments.tsv} is absent: give a caption TSV, or set OFA_SHARED")
    bench_pictures(arguments.tsv, arguments.column, arguments.size, arguments.rounds)
    if arguments.megabytes:
        bench_index(b"1\t1\ta dog\t\t" + b"A" * 74_000 + b"\n", arguments.megabytes, arguments.rounds)
        bench_index(
            b"12345678\t12345678\tis the red square left of the blue circle?\t1.0|!+yes\n",
            arguments.megabytes // 4,
            arguments.rounds,
        )


if __name__ == "__main__":
    main()
