"""The world's files: which split holds what, the lines of one number, and all of them written by several processes."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TextIO

import numpy as np

from ...errors import UserError
from ...whole_file import replacing
from .. import palette
from ..text import SEPARATOR
from .drawing import draw_scene, encode_png
from .language import ANSWERS, OBJECTS, ask, ask_region, captions, describe, expression, full_name, named_objects
from .scene import COLOURS, KINDS, UNSEEN_BACKGROUNDS, UNSEEN_PAIRS, Contents, Scene, Shape, pick, random_scene

FORMAT = 1  # of the files; another number means that the same seed gives another world
MARK = "world.json"
SPLITS = ("train", "valid", "test", "unseen_pairs", "unseen_backgrounds")
SOURCES = ("vision_language", "text", "image", "detection")
ROW_TYPES = ("caption", "qa", "visual_grounding")
DATASET = "shapes"  # column 6 of vision_language_examples.tsv
LEAST = 8  # rows of a text, image or detection file, so that a batch can hold some of each
CHUNK = 60  # rows that a process makes at a time

Lines = dict[str, str]  # file, relative to the world's folder: the line that goes there


@dataclass(frozen=True)
class World:
    """Everything that decides the files' bytes.

    Args:
        rows: of `train/vision_language_examples.tsv`, each with a picture of its own.
        held_out: the same of every other split.
        seed: the only source of randomness.
        shapes: the fewest and the most of a picture.
        side: pixels of a picture's side.
        code_side: pixels of the side of what image codes stand for; such pictures are twice as wide.
        proportion: of captions, questions and expressions among the rows.
    """

    rows: int
    held_out: int
    seed: int
    shapes: tuple[int, int] = (2, 6)
    side: int = 128
    code_side: int = 128
    proportion: tuple[int, int, int] = (1, 1, 1)

    @functools.cached_property
    def turns(self) -> tuple[str, ...]:
        """The types of rows one after another, over and over: each as often as it should be, and evenly spread."""
        total, turns = sum(self.proportion), []
        for place in range(1, total + 1):
            behind = [
                place * share / total - turns.count(kind)
                for kind, share in zip(ROW_TYPES, self.proportion, strict=True)
            ]
            turns.append(ROW_TYPES[behind.index(max(behind))])
        return tuple(turns)

    def contents(self, split: str) -> Contents:
        """What the scenes of a split may hold."""
        if split == "unseen_backgrounds":
            return Contents(self.shapes, UNSEEN_BACKGROUNDS)
        return Contents(self.shapes, unseen=split == "unseen_pairs")

    def amounts(self, split: str) -> dict[str, int]:
        """Rows of each source of a split."""
        rows = self.rows if split == "train" else self.held_out
        return dict(zip(SOURCES, (rows, *(max(LEAST, rows // part) for part in (4, 8, 8))), strict=True))

    def scene(self, split: str, source: str, index: int) -> tuple[Scene, np.random.Generator]:
        """What row `index` shows, and the generator for what is said about it."""
        draw = np.random.default_rng((self.seed, SPLITS.index(split), SOURCES.index(source), index))
        side = 2 * self.code_side if source == "image" else self.side
        return random_scene(draw, self.contents(split), side), draw

    def lines(self, split: str, source: str, index: int) -> tuple[bytes | None, Lines]:
        """The lines of row `index`, and the digest of the scene where a picture of it is drawn."""
        scene, draw = self.scene(split, source, index)
        name = f"{split}/{source}_examples.tsv"
        if source == "text":
            return None, {name: f"{index}\t{describe(scene, draw)}"}
        image = draw_scene(scene)
        cell = encode_png(image)
        if source == "vision_language":
            kind = self.turns[index % len(self.turns)]
            return scene.digest, _vision_language(split, index, kind, scene, draw, cell)
        if source == "image":
            return scene.digest, {name: f"{index}\t{cell}\t{' '.join(map(str, palette.encode(image, self.code_side)))}"}
        lines = {name: f"{index}\t{cell}\t{_objects(scene, lambda shape: ' '.join(shape.pair))}"}
        if split == "train":
            lines["described/train.tsv"] = f"{index}\t{cell}\t{_objects(scene, full_name)}"
        return scene.digest, lines


def write_world(folder: Path, world: World, workers: int, advance: Callable[[int], object]) -> dict[str, int]:
    """Writes every file but the mark's contents; no file is there in part. Returns the rows of each.

    Args:
        folder: as `claim` left it.
        world: what to write.
        workers: processes that draw; the files do not depend on it.
        advance: called with the number of rows that have just been made, `total(world)` in all.

    Raises:
        UserError: by a rare chance two splits would share a picture.
    """
    tasks = [
        (world, split, source, start, min(start + CHUNK, amount))
        for split in SPLITS
        for source, amount in world.amounts(split).items()
        for start in range(0, amount, CHUNK)
    ]
    rows: Counter[str] = Counter()
    pictured: dict[bytes, str] = {}
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(_mapped(tasks, workers))
        files: dict[str, TextIO] = {}
        for (_, split, *_), chunk in zip(tasks, made, strict=True):
            for digest, lines in chunk:
                if digest is not None and pictured.setdefault(digest, split) != split:
                    others = f"{split} and {pictured[digest]}"
                    raise UserError(f"--seed {world.seed}: {others} share a picture; take another seed")
                for name, line in lines.items():
                    if name not in files:
                        files[name] = stack.enter_context(_whole(folder / name))
                    files[name].write(line + "\n")
                    rows[name] += 1
            advance(len(chunk))
        answers = {**ANSWERS, "how many": ANSWERS["how many"][: world.shapes[1] + 1]}
        fixed = {
            "negative_sample/object.txt": "\n".join(OBJECTS),
            "negative_sample/type2ans.json": json.dumps(answers, indent=1),
            "vqa_gen/answers.txt": "\n".join(answer for typed in answers.values() for answer in typed),
            "codebook.json": json.dumps(palette.codebook().tolist()),
        }
        for name, text in fixed.items():
            stack.enter_context(_whole(folder / name)).write(text + "\n")
    return dict(rows)


def total(world: World) -> int:
    """The rows that `write_world` makes."""
    return sum(sum(world.amounts(split).values()) for split in SPLITS)


def claim(folder: Path) -> None:
    """Makes the folder and marks it as ours, not finished.

    Raises:
        UserError: it holds something and no mark of ours, or is no folder.
    """
    mark = folder / MARK
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; OUT is a folder to make")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            ours = json.loads(mark.read_text(encoding="utf-8"))["made_by"] == "ofa make-shapes"
        except (OSError, ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise UserError(f"{folder}: not empty and not made by `ofa make-shapes`; give OUT as a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_mark(folder, {"finished": False})


def write_mark(folder: Path, facts: dict[str, object]) -> None:
    """Writes `world.json`: who made the folder, and `facts`."""
    with _whole(folder / MARK) as file:
        json.dump({"made_by": "ofa make-shapes", "format": FORMAT, **facts}, file, indent=1)
        file.write("\n")


def _vision_language(split: str, index: int, kind: str, scene: Scene, draw: np.random.Generator, cell: str) -> Lines:
    """One row of the mixture and the plain files; elsewhere than in training a picture serves each plain file."""
    about = next((shape for shape in scene.shapes if shape.pair in UNSEEN_PAIRS), None)
    wanted = (kind,) if split == "train" else ROW_TYPES
    mixed, lines = ("", "", "", ""), {}
    if "caption" in wanted:
        told = captions(scene)
        shown = told[0] if split == "train" else SEPARATOR.join(told)
        lines[f"caption/{split}.tsv"] = f"{index}\t{index}\t{shown}\t\t{cell}"
        if kind == "caption":
            mixed = (told[0], "", "", SEPARATOR.join(named_objects(scene)))
            if split == "train":
                lines["negative_sample/all_captions.txt"] = told[0]
    if "qa" in wanted:
        question = ask(scene, draw, about)
        answer = f"1.0|!+{question.answer}"
        lines[f"vqa_gen/{split}.tsv"] = f"{index}\t{index}\t{question.text}\t{answer}\t\t{cell}"
        if kind == "qa":
            mixed = ("", question.text, answer, "")
    if "visual_grounding" in wanted:
        shape, words = _refer(scene, draw, about)
        lines[f"refcoco/{split}.tsv"] = f"{index}\t{index}\t{words}\t{_numbers(shape)}\t{cell}"
        if kind == "visual_grounding":
            mixed = (words, "", _numbers(shape), "")
    if split != "train":
        shape = about or pick(draw, scene.shapes)
        asked = ask_region(shape, draw)
        lines[f"region_vqa/{split}.tsv"] = f"{index}\t{cell}\t{asked.text}\t{_numbers(shape)}\t1.0|!+{asked.answer}"
    lines[f"{split}/vision_language_examples.tsv"] = "\t".join((str(index), cell, *mixed, DATASET, kind))
    return lines


def _refer(scene: Scene, draw: np.random.Generator, about: Shape | None) -> tuple[Shape, str]:
    """A shape, any of those that words can single out, and the words."""
    found = [(shape, expression(scene, shape)) for shape in ([about] if about else scene.shapes)]
    return pick(draw, [(shape, words) for shape, words in found if words])  # the largest can always be named


def _numbers(shape: Shape) -> str:
    return ",".join(map(str, shape.box))


def _objects(scene: Scene, name: Callable[[Shape], str]) -> str:
    return SEPARATOR.join(f"{_numbers(shape)},{_class(shape)},{name(shape)}" for shape in scene.shapes)


def _class(shape: Shape) -> int:
    """A number for colour and kind."""
    return tuple(COLOURS).index(shape.colour) * len(KINDS) + KINDS.index(shape.kind)


def _make(task: tuple[World, str, str, int, int]) -> list[tuple[bytes | None, Lines]]:
    world, split, source, start, stop = task
    return [world.lines(split, source, index) for index in range(start, stop)]


@contextlib.contextmanager
def _mapped(tasks: list[tuple[World, str, str, int, int]], workers: int) -> Iterator[Iterator[list]]:
    """The tasks' results in order; what has not begun when the block is left will not be."""
    if workers == 1:
        yield map(_make, tasks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool.map(_make, tasks)
    finally:
        pool.shutdown(cancel_futures=True)


def _whole(path: Path) -> contextlib.AbstractContextManager[TextIO]:
    """A file that appears under its name when it is complete, and not at all after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return replacing(path, text=True, shared=False)
