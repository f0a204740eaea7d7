"""Mixed batches across processes and restarts: bit for bit what one process does in one go."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.stock import ok, run, run_ranks, start

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(shapes) -> Train:
    """Trains `save` up to an update of 12 in two epochs, with dropout; goes on where the folder stands."""

    def to(save: Path, updates: int, *flags: object, data: Path | None = None) -> Path:
        ok(run("train", *command(shapes, save, data), "--max-update", updates, *flags, log=save.with_suffix(".log")))
        return save

    return to


def command(shapes, save: Path, data: Path | None = None) -> tuple[object, ...]:
    return (
        *(*shapes.flags(data), "--batch-size", 8, "--num-workers", 0, "--save-dir", save, "--disable-validation"),
        *("--dropout", "0.1", "--lr-scheduler", "ofa_polynomial_decay", "--warmup-ratio", "0.2", "--max-epoch", 2),
    )


def assert_same(one: Path, other: Path) -> None:
    """Same parameters, statistics, and moments of the optimizer, to the bit."""
    first, second = (torch.load(save / "checkpoint_last.pt", weights_only=True) for save in (one, other))
    assert updates(first) == updates(second) == 12
    compare(first["model"], second["model"], "model")
    compare(first["last_optimizer_state"]["state"], second["last_optimizer_state"]["state"], "optimizer")


def updates(state: dict[str, Any]) -> int:
    return state["optimizer_history"][-1]["num_updates"]


def compare(one: Any, other: Any, name: str) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            compare(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    else:
        assert one == other, name


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory) -> Path:
    """Two epochs of 6 updates in one go."""
    return train(tmp_path_factory.mktemp("whole") / "save", 12)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_in_the_second_epoch_ends_as_if_it_had_not_been(train, whole, tmp_path, workers):
    train(tmp_path / "save", 8, "--num-workers", workers, "--total-num-update", 12)
    train(tmp_path / "save", 12, "--num-workers", workers, "--total-num-update", 12)
    assert_same(whole, tmp_path / "save")


def test_a_killed_run_ends_as_if_it_had_not_been(shapes, train, whole, tmp_path):
    """SIGKILL, some updates past the latest checkpoint, which is one of the second epoch."""
    save = tmp_path / "save"
    flags = (*command(shapes, save), "--save-interval-updates", 2)
    running = start("train", *flags, log=tmp_path / "log")
    deadline = time.monotonic() + 120
    while not told(running.log, '"num_updates": "9"') and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(running.child, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    left = torch.load(save / "checkpoint_last.pt", weights_only=True)
    assert 8 <= updates(left) < 12 and left["extra_state"]["train_iterator"]["epoch"] == 2
    assert left["extra_state"]["train_iterator"]["iterations_in_epoch"] == updates(left) - 6
    train(save, 12)
    assert_same(whole, save)


def told(log: Path, words: str) -> bool:
    return log.exists() and words in log.read_text(errors="replace")


@pytest.mark.parametrize("absent", ["text", "vision_language"])
def test_it_is_the_same_without_one_of_the_files(shapes, train, tmp_path, absent):
    """Without vision-language rows the 12 texts lead, in batches of 2: 6 updates an epoch, too."""
    data = tmp_path / "data"
    shutil.copytree(shapes.root / "train", data / "train")
    (data / "negative_sample").symlink_to(shapes.root / "negative_sample")
    (data / "train" / f"{absent}_examples.tsv").unlink()
    limit = ("--batch-size", 2) if absent == "vision_language" else ()
    train(tmp_path / "whole", 12, *limit, data=data)
    train(tmp_path / "save", 9, *limit, "--total-num-update", 12, data=data)
    train(tmp_path / "save", 12, *limit, "--total-num-update", 12, data=data)
    assert_same(tmp_path / "whole", tmp_path / "save")


def test_several_files_in_turn_go_on_where_they_were(shapes, train, tmp_path):
    """`a.tsv,b.tsv`, of 32 and 16 rows, 4 and 2 updates: stopped in the second file, and in the third epoch."""
    rows = (shapes.root / "train" / "vision_language_examples.tsv").read_text().splitlines(keepends=True)
    for name, part in {"a": rows[:32], "b": rows[32:]}.items():
        (tmp_path / f"{name}.tsv").write_text("".join(part))
    files = [f"--{name}-data={shapes.root}/train/{name}_examples.tsv" for name in ("text", "image", "detection")]
    flags = (*files, "--neg-sample-dir", shapes.root / "negative_sample", "--max-epoch", 4, "--total-num-update", 12)
    data = f"{tmp_path}/a.tsv,{tmp_path}/b.tsv"
    train(tmp_path / "whole", 12, *flags, data=data)
    for update in (5, 8, 12):
        train(tmp_path / "save", update, *flags, data=data)
    assert_same(tmp_path / "whole", tmp_path / "save")


def test_two_ranks_end_with_the_parameters_of_one_process(shapes, tmp_path):
    """Over two epochs of three updates; only the statistics of BatchNorm, which are averaged over ranks, differ."""
    flags = (*command(shapes, tmp_path / "one"), "--dropout", 0, "--max-epoch", 2)
    ok(run("train", *flags, "--update-freq", 2, log=tmp_path / "log"))
    for rank in run_ranks("train", *flags, "--save-dir", tmp_path / "two", log=tmp_path / "ranks"):
        ok(rank)
    one, two = (torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True) for name in ("one", "two"))
    assert updates(one) == updates(two) == 6
    for name, parameter in one["model"].items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(parameter, two["model"][name]), name
