"""Fixtures that all tests share: where the shared data lies, a small picture world, a clean state for each test."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fairseq  # noqa: F401  before ofa_plugin, which then registers at once
import numpy as np
import pytest
import torch

import ofa_plugin  # noqa: F401
from tests.helpers.stock import NANO

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("OFA_CACHE", tempfile.mkdtemp(prefix="ofa-cache-"))  # indexes of read-only data go there
torch.set_num_threads(1)  # tests fork; OpenMP's threads would not survive that


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """A path below `$OFA_SHARED` (default `../shared` beside the checkout); skips where it is absent."""

    def find(subpath: str) -> Path:
        path = (ROOT / os.environ.get("OFA_SHARED", "../shared") / subpath).resolve()
        if not path.exists():
            pytest.skip(f"{path} is absent: set OFA_SHARED to the folder that holds {subpath}")
        return path

    return find


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state, with torch's defaults."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


@dataclass(frozen=True)
class World:
    """Where the small data lies, and the flags that name it."""

    root: Path

    def flags(self, task: str) -> tuple[str, ...]:
        """DATA and everything else that a training run of `caption` or `vqa` needs, but limits and --save-dir."""
        own = {"caption": ("--task", "caption"), "vqa": ("--task", "vqa_gen")}[task]
        vocabulary = ("--bpe", "sentencepiece", "--bpe-dir", str(self.root / "bpe"), "--num-bins", "10")
        answers = ("--ans2label-file", str(self.root / "vqa" / "answers.txt")) if task == "vqa" else ()
        return (str(self.root / task), *NANO, *own, *vocabulary, "--code-dict-size", "8", *answers)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """48 training, 14 validation and 14 test pictures of 64 pixels, each with a caption and a question."""
    from ofa_plugin.data.sentencepiece_training import train_bpe
    from ofa_plugin.data.world import files

    root = tmp_path_factory.mktemp("world")
    scenes = files.World(rows=3 * 48, held_out=14, seed=3, shapes=(1, 2), side=64, code_side=32)  # a third are captions
    files.write_world(root, scenes, workers=1, advance=lambda rows: None)
    (root / "vqa_gen").rename(root / "vqa")
    texts = [root / task / "train.tsv" for task in ("caption", "vqa")]
    train_bpe(root / "bpe", [(text, [2, 3]) for text in texts], vocab_size=350)
    return World(root)


@dataclass(frozen=True)
class Shapes:
    """Where a small world for all eight pretraining tasks lies, and the flags that name it."""

    root: Path

    def flags(self, data: Path | str | None = None) -> tuple[str, ...]:
        """DATA, this world's own unless another is given, and what a training run needs, but limits and --save-dir."""
        sizes = ("--num-bins", "100", "--code-dict-size", "256", "--max-image-size", "64", "--code-image-size", "32")
        vocabulary = ("--bpe", "sentencepiece", "--bpe-dir", str(self.root / "bpe"))
        return (str(data or self.root), *NANO, "--task", "unify_task", *vocabulary, *sizes)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """What `ofa make-shapes` makes: 48 rows to train on, 12 in each other split, pictures of 64 pixels, 16 codes."""
    from ofa_plugin.data.sentencepiece_training import train_bpe
    from ofa_plugin.data.world.files import World as Contents
    from ofa_plugin.data.world.files import claim, write_world

    root = tmp_path_factory.mktemp("shapes") / "world"
    claim(root)
    write_world(root, Contents(rows=48, held_out=12, seed=3, side=64, code_side=32), 1, lambda made: None)
    files = (("vision_language", [2, 3, 4]), ("text", [1]))
    train_bpe(root / "bpe", [(root / "train" / f"{name}_examples.tsv", columns) for name, columns in files], 480)
    return Shapes(root)
