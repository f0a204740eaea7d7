"""Two ranks of stock fairseq-train, on CPU: the parameters of one process, the same numbers, no row lost or doubled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.helpers.stock import ok, run, run_ranks

ADAM = ("--batch-size", 8, "--max-epoch", 2, "--clip-norm", 1.0, "--lr-scheduler", "fixed")
QUIET = ("--disable-validation", "--num-workers", 0, "--dropout", 0)
NOISE = ("k_proj.bias", "k_linear.bias")  # gradients that are zero in theory: under Adam they wander


def weights(save: Path) -> dict[str, torch.Tensor]:
    state = torch.load(save / "checkpoint_last.pt", weights_only=True)["model"]
    return {name: value for name, value in state.items() if not name.endswith(("running_mean", "running_var"))}


def differences(one: Path, two: Path, leave: tuple[str, ...] = ()) -> torch.Tensor:
    """Those between the parameters of two checkpoints, float[N]."""
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    names = [name for name in first if first[name].is_floating_point() and not name.endswith(leave)]
    return torch.cat([(first[name] - second[name]).abs().flatten() for name in names])


def difference(one: Path, two: Path, leave: tuple[str, ...] = ()) -> float:
    """The largest between the parameters of two checkpoints."""
    return float(differences(one, two, leave).max())


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> Path:
    """One process with --update-freq 2."""
    folder = tmp_path_factory.mktemp("alone")
    flags = (*world.flags("caption"), *ADAM, *QUIET, "--update-freq", 2)
    ok(run("train", *flags, "--save-dir", folder, log=folder / "log"))
    return folder


@pytest.mark.parametrize(
    ("backend", "flags"),
    [
        ("legacy_ddp", ()),
        ("no_c10d", ()),
        ("legacy_ddp", ("--checkpoint-activations",)),
        ("pytorch_ddp", ()),
        ("pytorch_ddp", ("--checkpoint-activations",)),
    ],
)
def test_two_ranks_end_with_the_parameters_of_one_process(world, alone, tmp_path, backend, flags):
    """Same micro-batches, so no difference at all; no --find-unused-parameters, since every one takes part."""
    prepare = "tests.helpers.ddp_on_cpu" if backend == "pytorch_ddp" else None
    finished = run_ranks(
        *("train", *world.flags("caption"), *ADAM, *QUIET, *flags, "--save-dir", tmp_path / "two"),
        log=tmp_path / "log",
        backend=backend,
        prepare=prepare,
    )
    for rank in finished:
        ok(rank)
    assert difference(alone, tmp_path / "two") == 0


@pytest.mark.parametrize(("optimizer", "leave"), [(("sgd", "--lr", "1e-1"), ()), (("adam",), NOISE)])
def test_with_a_frozen_resnet_two_ranks_are_the_doubled_batch(world, tmp_path, optimizer, leave):
    """BatchNorm is what makes a batch of 48 another thing than two of 24; the sums differ by rounding only."""
    flags = (*world.flags("caption"), *QUIET, "--freeze-resnet", "--lr-scheduler", "fixed", "--max-epoch", 3)
    flags += ("--optimizer", *optimizer)
    ok(run("train", *flags, "--batch-size", 48, "--save-dir", tmp_path / "one", log=tmp_path / "log"))
    for rank in run_ranks("train", *flags, "--batch-size", 24, "--save-dir", tmp_path / "two", log=tmp_path / "log"):
        ok(rank)
    apart = differences(tmp_path / "one", tmp_path / "two", leave)
    assert 0 < float(apart.max()) <= (1e-5 if "sgd" in optimizer else 3e-3)
    # Adam makes full steps along gradients that are rounding and nothing else: a weight in ten thousand has such ones
    assert float((apart > 1e-5).float().mean()) < 1e-3


def test_synchronised_normalisation_is_refused_on_cpu(world, tmp_path):
    flags = ("train", *world.flags("caption"), *ADAM, *QUIET, "--sync-bn", "--save-dir", tmp_path / "save")
    for rank in run_ranks(*flags, log=tmp_path / "log"):
        assert "--sync-bn works on GPUs only; leave it out" in rank.output and rank.code == 1


def rows_of(world, folder: Path, count: int) -> Path:
    """A data folder with the first `count` training rows."""
    folder.mkdir()
    lines = (world.root / "caption" / "train.tsv").read_text().splitlines(keepends=True)
    (folder / "train.tsv").write_text("".join(lines[:count]))
    return folder


@pytest.mark.parametrize(
    ("rows", "batch", "times", "without", "right"),
    [(7, 1, 2, "", True), (7, 1, 2, "dummy_batches", False), (5, 1, 1, "", True), (7, 4, 1, "", True)],
)
def test_rows_are_neither_lost_nor_doubled_when_the_shares_differ(
    world, tmp_path, monkeypatch, rows, batch, times, without, right
):
    """7 rows one by one on 2 ranks, 2 at a time: the last update has three rows, and one rank ends on a dummy."""
    monkeypatch.setenv("WITHOUT", without)
    data = rows_of(world, tmp_path / "data", rows)
    flags = (data, *world.flags("caption")[1:], *QUIET, "--freeze-resnet", "--lr-scheduler", "fixed", "--max-epoch", 1)
    flags += ("--optimizer", "sgd", "--lr", "1e-1", "--log-format", "json")
    alone = run(
        *("train", *flags, "--batch-size", batch if batch == 1 else rows),
        *("--update-freq", 2 * times, "--save-dir", tmp_path / "one"),
        log=tmp_path / "log",
    )
    ranks = run_ranks(
        *("train", *flags, "--batch-size", batch, "--update-freq", times, "--save-dir", tmp_path / "two"),
        log=tmp_path / "log",
        prepare="tests.helpers.without",
    )
    for rank in (alone, *ranks):
        ok(rank)
    assert (difference(tmp_path / "one", tmp_path / "two") <= 1e-6) == right


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> tuple[Path, str]:
    """Two ranks that validate after each of two epochs: their folder, and what rank 0 printed."""
    folder = tmp_path_factory.mktemp("two-ranks")
    finished = run_ranks(
        *("train", *world.flags("caption"), *ADAM, "--num-workers", 1, "--batch-size-valid", 5, "--eval-cider"),
        *("--best-checkpoint-metric", "cider", "--maximize-best-checkpoint-metric", "--save-dir", folder / "save"),
        log=folder / "log",
    )
    for rank in finished:
        ok(rank)
    return folder / "save", finished[0].output


def validated(output: str) -> tuple[float, float]:
    """Loss and CIDEr of the last validation that a run logged."""
    return tuple(float(re.findall(rf'"valid_{name}": "([\d.]+)"', output)[-1]) for name in ("loss", "cider"))


def test_a_checkpoint_validates_to_the_same_numbers_on_one_rank_and_on_two(world, trained, tmp_path):
    """14 rows in batches of 5: the ranks have two and one of them. Both have the statistics that were saved."""
    save, in_training = trained
    flags = ("validate", world.root / "caption", *world.flags("caption")[1:3], "--task", "caption", "--cpu")
    flags += ("--path", save / "checkpoint_last.pt", "--batch-size", 5, "--num-workers", 0, "--log-format", "json")
    one = ok(run(*flags, log=tmp_path / "log"))
    two = run_ranks(*flags, log=tmp_path / "log")
    for rank in two:
        ok(rank)
    assert validated(one.output) == validated(two[0].output) == validated(in_training)


def test_two_ranks_resume_to_the_same_parameters(world, trained, tmp_path):
    save, _ = trained
    flags = (*world.flags("caption"), *ADAM, "--num-workers", 1, "--batch-size-valid", 5, "--eval-cider")
    flags += ("--best-checkpoint-metric", "cider", "--maximize-best-checkpoint-metric", "--save-dir", tmp_path / "save")
    for limit in (4, 6):  # of three updates an epoch: stopped in the second
        for rank in run_ranks("train", *flags, "--max-update", limit, log=tmp_path / "log"):
            ok(rank)
    assert difference(save, tmp_path / "save") == 0


def test_stock_saves_the_statistics_of_one_rank(world, trained, tmp_path, monkeypatch):
    """What the cure `rank_statistics` is for; it changes no parameter."""
    monkeypatch.setenv("WITHOUT", "rank_statistics")
    finished = run_ranks(
        *("train", *world.flags("caption"), *ADAM, "--num-workers", 1, "--disable-validation"),
        *("--save-dir", tmp_path / "save"),
        log=tmp_path / "log",
        prepare="tests.helpers.without",
    )
    for rank in finished:
        ok(rank)
    assert difference(trained[0], tmp_path / "save") == 0
    stock, cured = (
        torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]
        for folder in (tmp_path / "save", trained[0])
    )
    statistics = [name for name in stock if name.endswith(("running_mean", "running_var"))]
    assert statistics and not any(torch.equal(stock[name], cured[name]) for name in statistics)


def test_stock_cannot_validate_on_two_ranks_without_a_gpu(world, trained, tmp_path, monkeypatch):
    """What the cure `gather_on_cpu` is for."""
    monkeypatch.setenv("WITHOUT", "gather_on_cpu")
    flags = ("validate", world.root / "caption", *world.flags("caption")[1:3], "--task", "caption", "--cpu")
    flags += ("--path", trained[0] / "checkpoint_last.pt", "--batch-size", 5, "--num-workers", 0)
    finished = run_ranks(*flags, log=tmp_path / "log", prepare="tests.helpers.without")
    assert any(rank.code and "ByteTensor" in rank.output for rank in finished)
