"""Averaged weights: how they move, what a run starts from, and what is evaluated."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq.models.ema import build_ema
from torch import nn

from ofa_plugin import compat, ema
from ofa_plugin.errors import UserError
from tests.helpers.small_model import build_small
from tests.helpers.stock import error_of, ok, run, run_ranks, start


def settings(**given) -> SimpleNamespace:
    plain = {"ema_decay": 0.9, "ema_start_update": 0, "ema_seed_model": None, "ema_update_freq": 1, "ema_fp32": False}
    return SimpleNamespace(**{**plain, **given})


def moved(model: nn.Module, by: float = 1.0) -> nn.Module:
    """A copy whose every floating-point tensor is `by` more, once, and whose counters are one more."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in {t.data_ptr(): t for t in other.state_dict().values()}.values():
            tensor.add_(by if tensor.is_floating_point() else 1)
    return other


@pytest.mark.parametrize("fp32", [False, True])
def test_every_tensor_moves_once_and_counters_are_copied(fp32):
    """Stock stops at BatchNorm's counter, and moves the matrix of three names three times."""
    model = build_small(recipe=None, resnet_type="resnet_nano")[0]
    average = build_ema(model, settings(ema_fp32=fp32), "cpu")
    after = moved(model)
    average.step(after, updates=5)
    before, new = model.state_dict(), after.state_dict()
    for name, value in average.get_model().state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, before[name] + 0.1, rtol=1e-5, atol=1e-6, msg=name)
        else:
            assert torch.equal(value, new[name]), name


def test_stock_stops_at_a_counter_and_moves_what_is_shared_three_times():
    """What the cure `averages` is for."""
    stock = next(value for _, name, value in compat.replaced["averages"] if name == "_step_internal")
    counting = nn.BatchNorm1d(2)
    with pytest.raises(RuntimeError, match="can't be cast"):
        stock(build_ema(counting, settings(), "cpu"), moved(counting))
    tied = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(3)])
    tied[1].weight = tied[2].weight = tied[0].weight
    average = build_ema(tied, settings(), "cpu")
    before = tied[0].weight.detach().clone()
    stock(average, moved(tied))
    torch.testing.assert_close(average.get_model()[0].weight, before + (1 - 0.9**3))


def test_before_its_start_the_average_is_the_model():
    model = build_small(recipe=None, resnet_type="resnet_nano")[0]
    average = build_ema(model, settings(ema_start_update=10), "cpu")
    after = moved(model)
    average.step(after, updates=9)
    for name, value in average.get_model().state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_of_16_bit_weights_moves_in_32_bits(dtype):
    """Field case 43: in 16 bits a step of 0.01 with decay 0.9999 rounds to nothing."""
    model = nn.Linear(2, 2, bias=False).to(dtype)
    nn.init.ones_(model.weight)
    average = build_ema(model, settings(ema_decay=0.9999, ema_fp32=True), "cpu")
    average.fp32_params["weight"].fill_(1.0)
    after = copy.deepcopy(model).float()
    nn.init.constant_(after.weight, 1.01)
    ema.step(average.fp32_params, after, 0.9999)
    assert average.fp32_params["weight"].unique().item() == 1.0000009536743164  # expected.json
    for _ in range(100):
        ema.step(average.fp32_params, after, 0.9999)
    assert 1.00009 < average.fp32_params["weight"].mean() < 1.00011


@pytest.mark.parametrize(
    ("flag", "dtype"), [("--memory-efficient-bf16", torch.bfloat16), ("--memory-efficient-fp16", torch.float16)]
)
def test_training_in_16_bits_keeps_the_average_in_32(world, tmp_path, flag, dtype):
    """Field case 43, as a run: --ema-fp32 is on by itself, and the 16-bit average is the 32-bit one, rounded."""
    flags = (*world.flags("caption"), *TRAIN, "--store-ema", "--ema-decay", 0.9999, flag, "--max-epoch", 1)
    output = ok(run("train", *flags, "--disable-validation", "--save-dir", tmp_path / "save", log=tmp_path / "log"))
    assert "--ema-fp32 is on" in output.output
    extra = state_of(tmp_path / "save")["extra_state"]
    average, exact = (extra[kind]["decoder.layers.0.fc1.weight"] for kind in ("ema", "ema_fp32_params"))
    rounded = exact.to(dtype).float()
    assert torch.equal(average.float(), rounded)  # fairseq saves 16-bit weights in 32 bits
    assert not torch.equal(exact, rounded)  # it has moved by less than 16 bits can show


TRAIN = ("--batch-size", 16, "--num-workers", 0, "--lr-scheduler", "fixed")
EMA = ("--store-ema", "--ema-decay", "0.5")


def state_of(save: Path) -> dict:
    return torch.load(save / "checkpoint_last.pt", weights_only=True)


@pytest.fixture(scope="module")
def averaged(world, tmp_path_factory) -> tuple[Path, str]:
    """A run that validates its averaged weights: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("ema")
    flags = (*world.flags("caption"), *TRAIN, *EMA, "--ema-fp32", "--uses-ema", "--max-epoch", 2, "--eval-cider")
    finished = run("train", *flags, "--save-dir", folder / "save", log=folder / "log")
    return folder / "save", ok(finished).output


def numbers(output: str) -> tuple[str, ...]:
    return tuple(re.findall(rf'"valid_{name}": "([\d.]+)"', output)[-1] for name in ("loss", "cider"))


def test_training_validates_the_average_and_so_does_whoever_evaluates_the_checkpoint(world, averaged, tmp_path):
    save, in_training = averaged
    flags = ("--user-dir", *world.flags("caption")[2:3], "--task", "caption", "--cpu", "--batch-size", 16)
    validate = ("validate", world.root / "caption", *flags, "--log-format", "json", "--num-workers", 0)
    validated = ok(run(*validate, "--path", save / "checkpoint_last.pt", log=tmp_path / "log")).output
    assert "evaluating its averaged weights" in validated
    assert numbers(validated) == numbers(in_training)
    generated = ok(
        run(
            *("generate", world.root / "caption", *flags, "--gen-subset", "valid", "--num-workers", 0),
            *("--path", save / "checkpoint_last.pt"),
            log=tmp_path / "log",
        )
    ).output
    assert f"cider = {float(numbers(in_training)[1])} on 14 rows" in generated


def test_stock_evaluates_the_last_weights(world, averaged, tmp_path, monkeypatch):
    """What the cure `evaluate_averages` is for."""
    save, in_training = averaged
    monkeypatch.setenv("WITHOUT", "evaluate_averages")
    finished = start(
        *("validate", world.root / "caption", "--user-dir", *world.flags("caption")[2:3], "--task", "caption", "--cpu"),
        *("--batch-size", 16, "--log-format", "json", "--num-workers", 0, "--path", save / "checkpoint_last.pt"),
        log=tmp_path / "log",
        prepare="tests.helpers.without",
    ).wait()
    assert numbers(ok(finished).output) != numbers(in_training)


def test_ema_eval_takes_the_average_of_a_run_that_did_not_validate_it(world, averaged, tmp_path):
    save, in_training = averaged
    state = state_of(save)
    state["cfg"]["task"]["uses_ema"] = False
    torch.save(state, tmp_path / "plain.pt")
    del state["extra_state"]["ema"], state["extra_state"]["ema_fp32_params"]
    torch.save(state, tmp_path / "none.pt")
    flags = ("--user-dir", *world.flags("caption")[2:3], "--task", "caption", "--cpu", "--batch-size", 16)
    validate = ("validate", world.root / "caption", *flags, "--log-format", "json", "--num-workers", 0, "--path")
    found = {
        ema_eval: numbers(ok(run(*validate, tmp_path / "plain.pt", *ema_eval, log=tmp_path / "log")).output)
        for ema_eval in ((), ("--ema-eval",))
    }
    assert found[("--ema-eval",)] == numbers(in_training) != found[()]
    generate = ("generate", world.root / "caption", *flags, "--gen-subset", "test", "--num-workers", 0, "--ema-eval")
    refused = error_of(run(*generate, "--path", tmp_path / "none.pt", log=tmp_path / "log"))
    assert "none.pt: --ema-eval asks for averaged weights, and it holds none; train with --store-ema" in refused


def test_a_resumed_run_has_the_average_of_one_that_never_stopped(world, averaged, tmp_path):
    save, _ = averaged
    flags = (*world.flags("caption"), *TRAIN, *EMA, "--ema-fp32", "--uses-ema", "--eval-cider")
    for limit in (4, 6):  # of three updates an epoch
        ok(run("train", *flags, "--max-update", limit, "--save-dir", tmp_path / "save", log=tmp_path / "log"))
    one, two = (state_of(folder)["extra_state"] for folder in (save, tmp_path / "save"))
    for kind in ("ema", "ema_fp32_params"):
        assert all(torch.equal(one[kind][name], two[kind][name]) for name in one[kind]), kind


@pytest.mark.parametrize(
    ("flags", "starts"),
    [
        ((), "average from the average"),
        (("--use-latest-weights-to-init-ema",), "average from the weights"),
        (("--use-ema-weights-to-init-param",), "weights from the average"),
    ],
)
def test_what_a_fine_tuned_run_starts_from(world, averaged, tmp_path, flags, starts):
    save, _ = averaged
    source = state_of(save)
    run_flags = (*world.flags("caption"), *TRAIN, *EMA, "--max-update", 1, "--lr", 0, "--disable-validation", *flags)
    run_flags += ("--finetune-from-model", save / "checkpoint_last.pt", "--save-dir", tmp_path / "save")
    ok(run("train", *run_flags, log=tmp_path / "log"))
    name = "decoder.layers.0.fc1.weight"
    weights, average = source["model"][name], source["extra_state"]["ema_fp32_params"][name]
    begun = average if starts.startswith("weights") else weights
    found = state_of(tmp_path / "save")
    torch.testing.assert_close(found["model"][name], begun)
    before = weights if starts.endswith("from the weights") else average
    torch.testing.assert_close(found["extra_state"]["ema"][name], 0.5 * before + 0.5 * begun)


def test_an_average_starts_from_a_checkpoint_that_has_none(world, captioner, tmp_path, monkeypatch):
    """Stock throws the weights away before it looks for them."""
    flags = (*world.flags("caption"), *TRAIN, *EMA, "--max-update", 1, "--lr", 0, "--disable-validation")
    flags += ("--finetune-from-model", captioner, "--save-dir", tmp_path / "save")
    monkeypatch.setenv("WITHOUT", "averages")
    stock = start("train", *flags, log=tmp_path / "log", prepare="tests.helpers.without").wait()
    assert stock.code and "KeyError: 'model'" in stock.output
    ok(run("train", *flags, log=tmp_path / "log"))
    found, source = state_of(tmp_path / "save"), torch.load(captioner, weights_only=True)
    name = "decoder.layers.0.fc1.weight"
    assert torch.equal(found["extra_state"]["ema"][name], source["model"][name])


def test_ranks_agree_on_the_averaged_statistics(world, tmp_path):
    flags = (*world.flags("caption"), *TRAIN, *EMA, "--uses-ema", "--max-epoch", 1, "--eval-cider")
    finished = run_ranks("train", *flags, "--save-dir", tmp_path / "save", log=tmp_path / "log")
    for rank in finished:
        ok(rank)
    validate = ("validate", world.root / "caption", "--user-dir", *world.flags("caption")[2:3], "--task", "caption")
    validate += ("--cpu", "--batch-size", 16, "--log-format", "json", "--num-workers", 0)
    alone = ok(run(*validate, "--path", tmp_path / "save" / "checkpoint_last.pt", log=tmp_path / "log")).output
    assert numbers(alone) == numbers(finished[0].output)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--uses-ema",), "--uses-ema validates averaged weights: add --store-ema"),
        (("--use-ema-weights-to-init-param",), "--use-ema-weights-to-init-param asks for averaged weights"),
    ],
)
def test_contradictions_are_named(world, captioner, tmp_path, flags, message):
    run_flags = (*world.flags("caption"), *TRAIN, "--max-update", 1, *flags)
    run_flags += ("--finetune-from-model", captioner, "--save-dir", tmp_path / "save")
    assert message in error_of(run("train", *run_flags, log=tmp_path / "log"))


def test_an_official_checkpoint_names_its_average_the_same_way():
    state = {
        "extra_state": {"ema": {"a": torch.zeros(1), "b": torch.zeros(1)}, "ema_fp32_params": {"a": torch.ones(1)}}
    }
    assert {name: float(value) for name, value in ema.averaged(state, "x.pt", "--ema-eval").items()} == {"a": 1, "b": 0}
    with pytest.raises(UserError, match="x.pt: --ema-eval"):
        ema.averaged({"extra_state": {}}, "x.pt", "--ema-eval")
