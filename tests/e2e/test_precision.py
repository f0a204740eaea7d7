"""16-bit arithmetic on a CPU: --autocast in every step, and what stock's own flags do there."""

from __future__ import annotations

import json
import re

import pytest
import torch

from tests.helpers.stock import error_of, ok, run

TRAIN = ("--batch-size", 16, "--num-workers", 0, "--lr-scheduler", "fixed", "--max-epoch", 1)


def logged(output: str, name: str) -> list[float]:
    """A number of each update."""
    return [float(value) for value in re.findall(rf'train_inner \| \{{.*?"{name}": "([\d.]+)"', output)]


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory) -> str:
    """What the same run prints in 32 bits."""
    folder = tmp_path_factory.mktemp("fp32")
    flags = (*world.flags("vqa"), *TRAIN, "--disable-validation")
    return ok(run("train", *flags, "--save-dir", folder / "save", log=folder / "log")).output


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_autocast_trains_32_bit_weights_and_evaluates_the_same_way(world, plain, tmp_path, kind):
    flags = (*world.flags("vqa"), *TRAIN, "--autocast", kind, "--best-checkpoint-metric", "vqa_score")
    output = ok(run("train", *flags, "--save-dir", tmp_path / "save", log=tmp_path / "log")).output
    assert logged(output, "loss") == pytest.approx(logged(plain, "loss"), rel=0.03)
    assert logged(output, "gnorm") != logged(plain, "gnorm")
    checkpoint = tmp_path / "save" / "checkpoint_last.pt"
    state = torch.load(checkpoint, weights_only=True)
    assert state["model"]["decoder.layers.0.fc1.weight"].dtype == torch.float32
    in_training = re.findall(r'"valid_(?:loss|vqa_score)": "([\d.]+)"', output)

    def validated(*more):
        evaluate = ("validate", world.root / "vqa", *world.flags("vqa")[1:3], "--task", "vqa_gen", "--cpu")
        evaluate += ("--batch-size", 16, "--num-workers", 0, "--log-format", "json", "--path", checkpoint, *more)
        return re.findall(r'"valid_(?:loss|vqa_score)": "([\d.]+)"', ok(run(*evaluate, log=tmp_path / "log")).output)

    assert validated() == in_training  # the checkpoint knows
    validated("--autocast", "none")
    generate = ("generate", world.root / "vqa", *world.flags("vqa")[1:3], "--task", "vqa_gen", "--cpu")
    generate += ("--path", checkpoint, "--gen-subset", "test", "--results-path", tmp_path / "out")
    ok(run(*generate, log=tmp_path / "log"))
    assert len(json.loads((tmp_path / "out" / "test_predict.json").read_text())) == 14


def test_autocast_of_another_kind_is_refused(world, tmp_path):
    flags = (*world.flags("vqa"), *TRAIN, "--autocast", "int8", "--save-dir", tmp_path / "save")
    assert "--autocast int8: one of none, auto, bf16, fp16" in error_of(run("train", *flags, log=tmp_path / "log"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--bf16", "--fp16-no-flatten-grads"),
        ("--memory-efficient-bf16",),
        ("--fp16", "--fp16-no-flatten-grads"),
        ("--memory-efficient-fp16",),
    ],
)
def test_stocks_half_precision_trains_on_a_cpu(world, plain, tmp_path, flags):
    """What `docs/precision.md` says of each; the flattened form of --fp16 and --bf16 needs a GPU."""
    run_flags = (*world.flags("vqa"), *TRAIN, "--disable-validation", *flags, "--save-dir", tmp_path / "save")
    found = logged(ok(run("train", *run_flags, log=tmp_path / "log")).output, "loss")
    assert found and found == pytest.approx(logged(plain, "loss")[-len(found) :], rel=0.05)
