"""Short runs on a few rows, for tests of what the user is told."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.conftest import World
from tests.helpers.stock import ROOT, USER_DIR, Finished, run

CASES = ROOT / "tests" / "fixtures" / "field-cases"
EXPECTED: dict[str, Any] = json.loads((CASES / "expected.json").read_text(encoding="utf-8"))
TASK = {"caption": "caption", "vqa": "vqa_gen"}


def picture(colour: tuple[int, int, int] = (200, 30, 30)) -> str:
    """Base64 of a small picture of one colour, as a cell of a TSV."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def caption_row(number: int, caption: str = "a red circle", image: str | None = None) -> str:
    """A line of a caption TSV."""
    return "\t".join((str(number), str(number), caption, "", picture() if image is None else image)) + "\n"


def vqa_row(number: int, answers: str = "1.0|!+yes", question: str = "is it red") -> str:
    """A line of a VQA TSV."""
    return "\t".join((str(number), str(number), question, answers, "", picture())) + "\n"


def train(world: World, data: Path | str, save: Path, *flags: object, task: str = "caption", **where: Any) -> Finished:
    """`fairseq-train DATA` with the world's vocabulary: `ofa_nano`, batches of 2, at most 2 updates; `flags` win."""
    vocabulary = world.flags("caption")[1:] if task == "caption" else world.flags("vqa")[1:]
    return run(
        *("train", data, *vocabulary, "--batch-size", 2, "--max-update", 2, "--num-workers", 0),
        *("--disable-validation", "--save-dir", save, *flags),
        log=save.parent / f"{save.name}.train.log",
        **where,
    )


def generate(
    data: Path | str, checkpoint: Path | str, results: Path, *flags: object, task: str = "caption", **where: Any
) -> Finished:
    """`fairseq-generate DATA --path CHECKPOINT` with everything else from the checkpoint; `flags` win."""
    return run(
        *("generate", data, "--user-dir", USER_DIR, "--task", TASK[task], "--cpu", "--path", checkpoint),
        *("--gen-subset", "test", "--batch-size", 2, "--num-workers", 0, "--results-path", results, *flags),
        log=results.parent / f"{results.name}.generate.log",
        **where,
    )


def entries(results: Path) -> list[dict[str, Any]]:
    """What a run of `generate` wrote."""
    return json.loads((results / "test_predict.json").read_text(encoding="utf-8"))


def edited(checkpoint: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint after `change(state)`."""
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    torch.save(state, target)
    return target


def left_in(folder: Path) -> list[str]:
    """The names of the files below a folder, which need not exist."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
