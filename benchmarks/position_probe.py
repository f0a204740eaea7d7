"""What positions in the encoder's inputs are worth: who stands where, learned without having to see.

`ofa_nano` gets the features of shapes on a grid of 8 x 8 patches instead of a picture, and is asked for the colour of a
shape, its place, and whether one shape stands left of (right of, above, below) another. Every run has the same rows in
the same order. A table of right answers in per cent, over the updates since the row before:

    python benchmarks/position_probe.py [--updates 1500] [--seed 1]

Three runs one after the other, some twenty minutes on a core that multiplies in bf16.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor, nn
from torch.nn import functional as F

import ofa_plugin  # noqa: F401  makes the packages below importable
from ofa_plugin.models.ofa.config import resolve
from ofa_plugin.models.ofa.model import OFAModel
from ofa_plugin.muon import FairseqMuon, MuonConfig
from ofa_plugin.precision import autocast_type

RUNS = {
    "in attention's biases only": {"entangle_position_embedding": False, "image_position_init": "bert"},
    "in the inputs as well": {"entangle_position_embedding": True, "image_position_init": "bert"},
    "the same, begun as sines": {"entangle_position_embedding": True, "image_position_init": "sines"},
}
COLOURS, KINDS, SIDE, ROWS = 8, 6, 8, 64
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
WORDS = (
    *("is", "the", "what", "color", "where", "yes", "no", *INVERSE),
    *(f"c{number}" for number in range(COLOURS)),
    *(f"k{number}" for number in range(KINDS)),
    *(f"<bin_{number}>" for number in range(SIDE)),
)
ASKED = ("relation", "relation", "place", "color")  # as often as they stand here

Row = tuple[list[tuple[int, int, int, int]], list[str], list[str]]  # shapes (colour, kind, row, column), source, target


def scene(draw: random.Random) -> list[tuple[int, int, int, int]]:
    """Two to four shapes, no two alike, not beside each other."""
    pairs = draw.sample([(colour, kind) for colour in range(COLOURS) for kind in range(KINDS)], draw.randint(2, 4))
    cells: list[tuple[int, int]] = []
    while len(cells) < len(pairs):
        cell = draw.randrange(SIDE), draw.randrange(SIDE)
        if all(abs(cell[0] - row) + abs(cell[1] - column) >= 3 for row, column in cells):
            cells.append(cell)
    return [(*pair, *cell) for pair, cell in zip(pairs, cells, strict=True)]


def ask(asked: str, draw: random.Random) -> Row:
    """A scene and a question that has one answer there."""
    while True:
        shapes = scene(draw)
        name = {shape: (f"c{shape[0]}", f"k{shape[1]}") for shape in shapes}
        if asked == "place":
            shape = draw.choice(shapes)
            return shapes, ["where", "the", *name[shape]], [f"<bin_{shape[3]}>", f"<bin_{shape[2]}>"]
        if asked == "color":
            kinds = [shape[1] for shape in shapes]
            alone = [shape for shape in shapes if kinds.count(shape[1]) == 1]
            if alone:
                shape = draw.choice(alone)
                return shapes, ["what", "color", "is", "the", f"k{shape[1]}"], [f"c{shape[0]}"]
            continue
        pairs = [(one, other, relation(one, other)) for one in shapes for other in shapes if relation(one, other)]
        if pairs:
            one, other, word = draw.choice(pairs)
            yes = draw.random() < 0.5
            source = ["is", "the", *name[one], word if yes else INVERSE[word], "the", *name[other]]
            return shapes, source, ["yes" if yes else "no"]


def relation(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> str | None:
    """How one shape stands to another, where they are two cells apart, and more so along one axis."""
    down, across = one[2] - other[2], one[3] - other[3]
    if max(abs(down), abs(across)) < 2 or abs(down) == abs(across):
        return None
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def batch(rows: list[Row], symbols: Dictionary, looks: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The model's arguments, and the targets int64[B, 3]."""
    features = torch.zeros(len(rows), looks.shape[1], SIDE, SIDE)
    source = torch.full((len(rows), max(len(words) for _, words, _ in rows) + 2), symbols.pad())
    target = torch.full((len(rows), 3), symbols.pad())
    for number, (shapes, words, answer) in enumerate(rows):
        for colour, kind, row, column in shapes:
            features[number, :, row, column] = looks[colour] + looks[COLOURS + kind]
        source[number, : len(words) + 2] = torch.tensor(
            [symbols.bos(), *(symbols.index(word) for word in words), symbols.eos()]
        )
        target[number, : len(answer)] = torch.tensor([symbols.index(word) for word in answer])
    previous = torch.cat([torch.full((len(rows), 1), symbols.bos()), target[:, :-1]], 1)
    masks = torch.ones(len(rows), dtype=torch.bool)
    return {
        "src_tokens": source,
        "prev_output_tokens": previous,
        "patch_images": features,
        "patch_masks": masks,
    }, target


def train(switches: dict[str, Any], updates: int, seed: int, every: int) -> list[dict[str, float]]:
    """Share of right answers of each question, in every stretch of so many updates."""
    symbols = Dictionary()
    for word in WORDS:
        symbols.add_symbol(word)
    torch.manual_seed(seed)
    model = OFAModel(
        resolve({"_name": "ofa_nano", "image_bucket_size": SIDE, "code_image_size": 64, **switches}), symbols
    )
    channels = model.encoder.image_proj.in_features
    model.encoder.embed_images = nn.Identity()  # what it is given are features already
    looks = torch.randn(COLOURS + KINDS, channels, generator=torch.Generator().manual_seed(seed)) / 2
    rate = 1e-3
    optimiser = FairseqMuon(
        MuonConfig(muon_lr_scale=3.0, adam_betas="(0.9,0.98)", weight_decay=0.01, lr=[rate]), model.parameters()
    )
    draw, found, table = random.Random(seed), defaultdict(list), []
    dtype = autocast_type("auto", "cpu")
    for update in range(1, updates + 1):
        optimiser.set_lr(rate * min(1, update / 50))
        kinds = [draw.choice(ASKED) for _ in range(ROWS)]
        inputs, target = batch([ask(kind, draw) for kind in kinds], symbols, looks)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits = model(**inputs)[0]
        counts = target.ne(symbols.pad())
        losses = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none", ignore_index=symbols.pad())
        (losses.sum(1) / counts.sum(1)).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        for kind, right in zip(kinds, ((logits.argmax(-1) == target) | ~counts).all(1).tolist(), strict=True):
            found[kind].append(right)
        if update % every == 0:
            table.append({kind: 100 * sum(rights) / len(rights) for kind, rights in found.items()})
            found.clear()
    return table


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--every", type=int, default=100, help="updates between two rows of the table")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    kinds = sorted(set(ASKED))
    print("| positions | updates | " + " | ".join(kinds) + " |")
    print("|---|---|" + "---|" * len(kinds), flush=True)
    for name, switches in RUNS.items():
        for number, row in enumerate(train(switches, options.updates, options.seed, options.every), 1):
            print(f"| {name} | {number * options.every} | " + " | ".join(f"{row[kind]:.1f}" for kind in kinds) + " |")


if __name__ == "__main__":
    main()
