"""Tuning through stock's commands: train, resume, generate; tuned weights alone, merged and averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ofa_plugin import cli, tuned
from tests.helpers.stock import error_of, ok, run, run_ranks, start

METHODS = {
    "adapter": ("--adapter", "--adapter-dim", 8),
    "bitfit": ("--bitfit",),
    "prompt": (
        *("--encoder-prompt", "--encoder-prompt-type", "prefix", "--encoder-prompt-length", 4),
        *("--decoder-prompt", "--decoder-prompt-length", 3),
    ),
    "lora": ("--lora", 4, "--optimizer", "muon", "--store-ema", "--ema-decay", 0.5),
}
CPU_DDP = "tests.helpers.ddp_on_cpu"
TRAIN = ("--batch-size", 16, "--num-workers", 0, "--lr-scheduler", "fixed", "--disable-validation")


def train(world, base: Path, save: Path, *flags: object):
    given = (*world.flags("caption"), *TRAIN, "--finetune-from-model", base, "--save-dir", save, *flags)
    return run("train", *given, log=save.with_suffix(".log"))


def state_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def answers(world, path: Path, tmp_path: Path) -> list[str]:
    flags = ("--user-dir", world.flags("caption")[2], "--task", "caption", "--cpu", "--batch-size", 16, "--beam", 2)
    generate = ("generate", world.root / "caption", *flags, "--gen-subset", "valid", "--num-workers", 0)
    return ok(run(*generate, "--path", path, log=tmp_path / "generate.log")).lines("H-")


@pytest.fixture(scope="module", params=METHODS)
def saved(request, world, captioner, tmp_path_factory) -> tuple[str, Path, str]:
    """A method, the folder of a run of four updates that saves tuned weights only, and what it printed."""
    folder = tmp_path_factory.mktemp(request.param)
    flags = (*METHODS[request.param], "--save-tuned-only", "--max-update", 4)
    return request.param, folder / "save", ok(train(world, captioner, folder / "save", *flags)).output


def test_a_resumed_run_is_one_that_never_stopped(world, captioner, saved, tmp_path):
    method, save, output = saved
    assert output.count("| trains ") == 1
    for limit in (2, 4):
        flags = (*METHODS[method], "--save-tuned-only", "--max-update", limit)
        ok(train(world, captioner, tmp_path / "save", *flags))
    one, two = (state_of(folder / "checkpoint_last.pt") for folder in (save, tmp_path / "save"))
    base = state_of(captioner)["model"]
    assert one["model"].keys() == two["model"].keys() and len(one["model"]) < len(base) / 2
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name]), name
        assert name not in base or not torch.equal(value, base[name]) or method == "bitfit", name
    assert one["extra_state"].get("ema", {}).keys() == two["extra_state"].get("ema", {}).keys()
    for name, value in one["extra_state"].get("ema", {}).items():
        assert torch.equal(value, two["extra_state"]["ema"][name]), name


def test_merged_weights_answer_as_the_tuned_ones_beside_their_base(world, captioner, saved, tmp_path):
    method, save, _ = saved
    tuned_only, merged = save / "checkpoint_last.pt", tmp_path / "merged.pt"
    assert cli.main(["merge", str(tuned_only), str(captioner), str(merged)]) == 0
    state = state_of(merged)
    assert not any(".lora_" in name for name in state["model"]) and tuned.RECORD not in state
    assert set(state_of(captioner)["model"]) <= set(state["model"])
    for one, two in zip(answers(world, tuned_only, tmp_path), answers(world, merged, tmp_path), strict=True):
        assert one.split("\t")[::2] == two.split("\t")[::2]
        assert float(one.split("\t")[1]) == pytest.approx(float(two.split("\t")[1]), abs=1e-5)


def test_a_wrong_or_missing_base_is_refused(world, captioner, tmp_path, capsys):
    flags = (*METHODS["bitfit"], "--save-tuned-only", "--max-update", 1)
    ok(train(world, captioner, tmp_path / "save", *flags))
    save, out, other = tmp_path / "save", tmp_path / "out.pt", tmp_path / "other.pt"
    state = state_of(captioner)
    state["model"]["encoder.layer_norm.weight"] += 1e-3
    torch.save(state, other)
    assert cli.main(["merge", str(save / "checkpoint_last.pt"), str(other), str(out)]) == 1
    assert "not the base of" in capsys.readouterr().err and not out.exists()
    assert cli.main(["merge", str(captioner), str(captioner), str(out)]) == 1
    assert "holds all weights" in capsys.readouterr().err
    other_method = (*METHODS["adapter"], "--save-tuned-only", "--max-update", 1)
    refused = error_of(train(world, save / "checkpoint_last.pt", tmp_path / "again", *other_method))
    assert "holds tuned weights that this run does not train" in refused
    refused = error_of(
        run("train", *world.flags("caption"), *TRAIN, *flags, "--save-dir", tmp_path / "none", log=tmp_path / "log")
    )
    assert "--save-tuned-only saves what differs from a base" in refused


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--freeze-resnet-weights", "the image backbone: drawn at random and frozen"),
        ("--freeze-encoder", "weights, encoder."),
    ],
)
def test_freezing_what_nothing_has_taught_is_told(world, captioner, tmp_path, flag, said):
    flags = (*world.flags("caption"), *TRAIN, flag, "--save-dir", tmp_path / "save")
    assert said in ok(run("train", *flags, "--max-update", 1, log=tmp_path / "log")).output
    started = [
        ok(run("train", *flags, "--max-update", 2, log=tmp_path / "log")),
        ok(train(world, captioner, tmp_path / "tuned", flag, "--max-update", 1)),
    ]
    assert not any("drawn at random" in one.output for one in started)


def test_whole_checkpoints_are_saved_without_the_flag_and_average(world, captioner, tmp_path, capsys):
    ok(train(world, captioner, tmp_path / "save", *METHODS["adapter"], "--max-update", 2, "--save-interval-updates", 1))
    paths = [str(path) for path in sorted((tmp_path / "save").glob("checkpoint_1_*.pt"))]
    assert len(paths) == 2
    flags = (*METHODS["adapter"], "--save-tuned-only", "--max-update", 3)
    assert "would be overwritten as the base" in error_of(train(world, captioner, tmp_path / "save", *flags))
    assert cli.main(["average", str(tmp_path / "mean.pt"), *paths]) == 0
    first, second, mean = (state_of(Path(path))["model"] for path in (*paths, tmp_path / "mean.pt"))
    for name, value in mean.items():
        expected = (first[name] + second[name]) / 2 if value.is_floating_point() else second[name]
        torch.testing.assert_close(value, expected, msg=name)
    assert len(answers(world, tmp_path / "mean.pt", tmp_path)) == 14
    assert cli.main(["average", str(tmp_path / "x.pt"), paths[0], str(captioner)]) == 1
    assert "is missing or of another size" in capsys.readouterr().err


def test_stock_saves_all_weights(world, captioner, tmp_path, monkeypatch):
    """What the cure `tuned_only` is for."""
    monkeypatch.setenv("WITHOUT", "tuned_only")
    flags = (*world.flags("caption"), *TRAIN, "--finetune-from-model", captioner, "--save-dir", tmp_path / "save")
    flags += (*METHODS["adapter"], "--save-tuned-only", "--max-update", 1)
    ok(start("train", *flags, log=tmp_path / "log", prepare="tests.helpers.without").wait())
    assert set(state_of(captioner)["model"]) < set(state_of(tmp_path / "save" / "checkpoint_last.pt")["model"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["legacy_ddp", "pytorch_ddp"])
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_tune_alike(world, captioner, tmp_path, backend, method):
    flags = (*world.flags("caption"), *TRAIN, "--finetune-from-model", captioner, "--save-dir", tmp_path / "save")
    flags += (*METHODS[method], "--save-tuned-only", "--max-update", 2)
    ranks = run_ranks("train", *flags, log=tmp_path / "log", backend=backend, prepare=CPU_DDP)
    assert sum(ok(rank).output.count("| trains ") for rank in ranks) == 1
    names = state_of(tmp_path / "save" / "checkpoint_last.pt")["model"]
    assert names and not any("embed_images" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_autocast_trains_each(world, captioner, tmp_path, method):
    flags = (*METHODS[method], "--autocast", "bf16", "--checkpoint-activations", "--max-update", 2)
    ok(train(world, captioner, tmp_path / "save", *flags))


@pytest.mark.slow
def test_a_base_with_an_average_of_its_own_starts_that_of_the_tuned_run(world, captioner, tmp_path):
    """Its average lacks the weights that tuning adds."""
    average = ("--store-ema", "--ema-decay", 0.5, "--ema-fp32")
    ok(train(world, captioner, tmp_path / "base", *average, "--max-update", 1))
    base = tmp_path / "base" / "checkpoint_last.pt"
    for only in ((), ("--save-tuned-only",)):
        save = tmp_path / f"tuned{len(only)}"
        for limit in (1, 2):
            ok(train(world, base, save, "--lora", 2, *average, *only, "--max-update", limit))
        state = state_of(save / "checkpoint_last.pt")
        for kind in ("ema", "ema_fp32_params"):
            assert state["extra_state"][kind].keys() == state["model"].keys()
