"""A small picture world of coloured shapes: pictures, captions and questions, all drawn from one seed.

It is what the quickstart learns: it needs no download, every fact about a picture is known, and a model that looks at
the picture can be told from one that only guesses well.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (45, 98, 214),
    "yellow": (240, 196, 25),
    "purple": (142, 68, 173),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
SUPERSAMPLE = 4  # drawn larger and shrunk, for smooth edges


@dataclass(frozen=True)
class Shape:
    """One shape: its words, and its centre and half width in fractions of the picture's side."""

    colour: str
    kind: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        """`red circle`."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Two shapes on a dark background; the first is left of, or above, the second."""

    first: Shape
    second: Shape
    background: tuple[int, int, int]

    @property
    def relation(self) -> str:
        """How the first shape stands to the second: `left of` or `above`."""
        wide = abs(self.first.x - self.second.x) >= abs(self.first.y - self.second.y)
        return "left of" if wide else "above"

    def captions(self) -> list[str]:
        """What a person could say of the picture; the first is the plainest."""
        inverse = {"left of": "right of", "above": "below"}[self.relation]
        return [
            f"a {self.first.name} {self.relation} a {self.second.name}",
            f"a {self.second.name} {inverse} a {self.first.name}",
        ]

    def question(self, draw: np.random.Generator) -> tuple[str, str]:
        """One question about the picture and its only right answer."""
        asked, other = (self.first, self.second) if draw.random() < 0.5 else (self.second, self.first)
        side = "left" if self.relation == "left of" else "top"
        opposite = {"left": "right", "top": "bottom"}[side]
        kind = draw.integers(4)
        if kind == 0:
            return f"what color is the {asked.kind}?", asked.colour
        if kind == 1:
            return f"what shape is the {asked.colour} one?", asked.kind
        if kind == 2:
            place = side if asked is self.first else opposite
            return f"which shape is on the {place}?", asked.kind
        if draw.random() < 0.5:
            return f"is there a {asked.name}?", "yes"
        wrong = draw.choice([shape for shape in SHAPES if shape not in (asked.kind, other.kind)])
        return f"is there a {asked.colour} {wrong}?", "no"

    def draw(self, side: int) -> Image.Image:
        """The picture, RGB, side x side pixels."""
        large = side * SUPERSAMPLE
        image = Image.new("RGB", (large, large), self.background)
        pen = ImageDraw.Draw(image)
        for shape in (self.first, self.second):
            _draw_shape(pen, shape, large)
        return image.resize((side, side), Image.Resampling.LANCZOS)


def random_scene(draw: np.random.Generator) -> Scene:
    """A scene whose two shapes differ in colour and in kind, clearly apart along one axis."""
    colours = draw.permutation(list(COLOURS))[:2]
    kinds = draw.permutation(SHAPES)[:2]
    places = [
        (draw.uniform(0.22, 0.30), draw.uniform(0.35, 0.65)),
        (draw.uniform(0.70, 0.78), draw.uniform(0.35, 0.65)),
    ]
    if draw.random() < 0.5:  # above each other instead of side by side
        places = [(y, x) for x, y in places]
    first, second = (
        Shape(str(colour), str(kind), float(x), float(y), float(draw.uniform(0.13, 0.19)))
        for colour, kind, (x, y) in zip(colours, kinds, places, strict=True)
    )
    grey = draw.integers(20, 70)
    return Scene(first, second, tuple(int(grey + tint) for tint in draw.integers(0, 25, 3)))


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, side: int) -> None:
    x, y, radius = shape.x * side, shape.y * side, shape.radius * side
    fill = COLOURS[shape.colour]
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape.kind == "circle":
        pen.ellipse(box, fill=fill)
    elif shape.kind == "square":
        pen.rectangle(box, fill=fill)
    elif shape.kind == "triangle":
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=fill)
    else:
        arm = radius / 3
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)


def encode_png(image: Image.Image) -> str:
    """A picture as OFA's files hold it: base64 of its PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_world(folder: Path, rows: dict[str, int], seed: int, side: int) -> None:
    """Writes `caption/<split>.tsv`, `vqa/<split>.tsv` in OFA's column order, and `vqa/answers.txt`.

    A training row has the plainest of a picture's captions; elsewhere all of them are joined by `&&`. Each split draws
    from a generator of its own.

    Args:
        folder: made if missing; files of the same name are replaced.
        rows: pictures per split, e.g. {"train": 3000, "valid": 200, "test": 300}.
        seed: the world's only source of randomness.
        side: pixels of a picture's side.
    """
    for name in ("caption", "vqa"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(rows.items()):
        captions, questions = [], []
        for index in range(count):
            draw = np.random.default_rng((seed, number, index))
            scene = random_scene(draw)
            image = encode_png(scene.draw(side))
            told = scene.captions()
            caption = told[0] if split == "train" else "&&".join(told)
            captions.append(f"{index}\t{index}\t{caption}\t\t{image}")
            question, answer = scene.question(draw)
            questions.append(f"{index}\t{index}\t{question}\t1.0|!+{answer}\t\t{image}")
        for name, lines in (("caption", captions), ("vqa", questions)):
            (folder / name / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    answers = ("yes", "no", *COLOURS, *SHAPES)
    (folder / "vqa" / "answers.txt").write_text("\n".join(answers) + "\n", encoding="utf-8")
