"""One trained checkpoint per task, made once for all end-to-end tests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Shapes, World
from tests.helpers.stock import Finished, ok, run


@pytest.fixture(scope="session")
def train_once(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, Path, Finished]]:
    """Gives (task, save folder, what the run printed) of two epochs with validation; trained when first asked for."""

    @functools.cache
    def train(task: str) -> tuple[str, Path, Finished]:
        folder = tmp_path_factory.mktemp(f"trained-{task}")
        metric = {"caption": "cider", "vqa": "vqa_score"}[task]
        finished = run(
            "train",
            *world.flags(task),
            *("--batch-size", 16, "--max-epoch", 2, "--num-workers", 0, "--save-dir", folder / "save"),
            *("--best-checkpoint-metric", metric, "--maximize-best-checkpoint-metric"),
            *("--lr-scheduler", "ofa_polynomial_decay", "--warmup-ratio", "0.1"),
            log=folder / "train.log",
        )
        return task, folder / "save", ok(finished)

    return train


@pytest.fixture(scope="session", params=["caption", "vqa"])
def trained(request: pytest.FixtureRequest, train_once) -> tuple[str, Path, Finished]:
    """`train_once` of each task."""
    return train_once(request.param)


@pytest.fixture(scope="session")
def captioner(train_once) -> Path:
    """A checkpoint of `--task caption`."""
    return train_once("caption")[1] / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def answerer(train_once) -> Path:
    """A checkpoint of `--task vqa_gen`."""
    return train_once("vqa")[1] / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def pretrained(shapes: Shapes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """Two epochs of all eight pretraining tasks with validation: the save folder, and what was printed."""
    folder = tmp_path_factory.mktemp("pretrained")
    finished = run(
        *("train", *shapes.flags(), "--batch-size", 8, "--max-epoch", 2, "--num-workers", 0, "--save-dir"),
        *(folder / "save", "--lr-scheduler", "fixed", "--report-accuracy", "--tensorboard-logdir", folder / "curves"),
        *("--best-checkpoint-metric", "vqa_score", "--maximize-best-checkpoint-metric"),
        log=folder / "log",
    )
    return folder / "save", ok(finished)
