"""A picture world, a vocabulary, and one trained checkpoint per task, made once for all end-to-end tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.stock import NANO, ok, run


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
    """48 training, 12 validation and 14 test pictures of 64 pixels."""
    from ofa_plugin.data.sentencepiece_training import train_bpe
    from ofa_plugin.data.shapes import write_world

    root = tmp_path_factory.mktemp("world")
    write_world(root, {"train": 48, "valid": 12, "test": 14}, seed=3, side=64)
    train_bpe(root / "bpe", [root / "caption" / "train.tsv", root / "vqa" / "train.tsv"], columns=[2, 3], vocab_size=350)
    return World(root)


@pytest.fixture(scope="session", params=["caption", "vqa"])
def trained(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory):
    """(task, save folder, what the run printed) of two epochs with validation."""
    folder = tmp_path_factory.mktemp(f"trained-{request.param}")
    metric = {"caption": "cider", "vqa": "vqa_score"}[request.param]
    finished = run(
        "train",
        *world.flags(request.param),
        *("--batch-size", 16, "--max-epoch", 2, "--num-workers", 0, "--save-dir", folder / "save"),
        *("--best-checkpoint-metric", metric, "--maximize-best-checkpoint-metric"),
        *("--lr-scheduler", "ofa_polynomial_decay", "--warmup-ratio", "0.1"),
        log=folder / "train.log",
    )
    return request.param, folder / "save", ok(finished)
