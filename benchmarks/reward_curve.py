"""Draws how a second stage of captioning went, from what `fairseq-train --log-format json` printed.

    python benchmarks/reward_curve.py scst.log curve.png --valid-subset overfit

The mean CIDEr-D of the captions that were rewarded, of each epoch, and the validations' of the likeliest ones.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE, LEFT, TOP, RIGHT, BOTTOM = (760, 420), 60, 48, 24, 52  # of the picture and its margins, pixels
BLACK, GREY, LINE, TRAINED, VALID = (20, 20, 20), (110, 110, 110), (225, 225, 225), (0, 95, 175), (190, 0, 120)

Points = Sequence[tuple[float, float]]


def logged(log: str, kind: str, key: str) -> list[tuple[float, float]]:
    """(updates, value) of each line of a kind, `train` or a subset."""
    lines = re.findall(rf"\| {kind} \| (\{{.*\}})$", log, re.MULTILINE)
    stats = [json.loads(line) for line in lines]
    return [(float(one[f"{kind}_num_updates"]), float(one[f"{kind}_{key}"])) for one in stats if f"{kind}_{key}" in one]


def draw(curves: dict[str, tuple[Points, tuple[int, int, int]]]) -> Image.Image:
    """The curves over updates, each with its name, from zero up."""
    sheet = Image.new("RGB", SIZE, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
    last = max(x for points, _ in curves.values() for x, _ in points)
    most = max(y for points, _ in curves.values() for _, y in points)
    step = next(one for one in (0.1, 0.2, 0.5, 1, 2, 5) if most / one <= 6)
    most = (int(most / step) + 1) * step

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + width * x / last, TOP + height * (1 - y / most)

    for number in range(round(most / step) + 1):
        y = place(0, number * step)[1]
        pen.line((LEFT, y, LEFT + width, y), fill=LINE)
        pen.text((LEFT - 8, y), f"{number * step:.1f}", fill=GREY, font=font, anchor="rm")
    apart = next(10**power * digit for power in range(9) for digit in (1, 2, 5) if last / (10**power * digit) <= 8)
    for x in range(0, int(last) + 1, apart):
        pen.text((place(x, 0)[0], TOP + height + 8), f"{x}", fill=GREY, font=font, anchor="ma")
    pen.text((LEFT + width / 2, SIZE[1] - 8), "updates", fill=BLACK, font=font, anchor="mb")
    x = LEFT
    for name, (points, colour) in curves.items():
        pen.line([place(*point) for point in points], fill=colour, width=3)
        for point in points:
            x0, y0 = place(*point)
            pen.ellipse((x0 - 3, y0 - 3, x0 + 3, y0 + 3), fill=colour)
        pen.rectangle((x, 18, x + 14, 26), fill=colour)
        pen.text((x + 20, 22), name, fill=BLACK, font=font, anchor="lm")
        x += 44 + round(font.getlength(name))
    return sheet


def main() -> None:
    """Writes the picture and prints the numbers in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--valid-subset", default="valid")
    parser.add_argument("--start", type=float, help="CIDEr-D of the checkpoint that the run started from")
    args = parser.parse_args()
    log = args.log.read_text(encoding="utf-8")
    validated = logged(log, args.valid_subset, "cider")
    if args.start is not None:
        validated.insert(0, (0.0, args.start))
    curves = {
        "mean of the rewarded captions": (logged(log, "train", "score"), TRAINED),
        "the likeliest caption of each picture (validation)": (validated, VALID),
    }
    for name, (points, _) in curves.items():
        print(f"{name}: {', '.join(f'{x:.0f}: {y:.3f}' for x, y in points)}")
    draw(curves).save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
