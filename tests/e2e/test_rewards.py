"""The second stage of captioning by stock fairseq-train: after cross-entropy, on the reward of generated captions."""

from __future__ import annotations

import re

import pytest
import torch

from ofa_plugin import cli
from tests.helpers.stock import USER_DIR, error_of, ok, run, run_ranks

STAGE2 = ("--criterion", "scst_reward_criterion", "--scst", "--scst-args", '{"beam": 3, "max_len_b": 6}')
REST = ("--batch-size", 8, "--lr-scheduler", "fixed", "--num-workers", 0, "--dropout", 0)


@pytest.fixture(scope="module")
def rewarded(world, captioner):
    """The flags of a second stage that starts from two epochs of the first."""
    flags = list(world.flags("caption"))
    place = flags.index("--label-smoothing")  # of cross-entropy only
    del flags[place : place + 2]
    return (*flags, *STAGE2, *REST, "--finetune-from-model", captioner)


def logged(output: str, name: str) -> list[float]:
    """A number of each update."""
    return [float(value) for value in re.findall(rf'train_inner \| \{{.*?"{name}": "([-\d.]+)"', output)]


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]


def test_a_run_that_was_stopped_ends_like_one_that_was_not_and_its_checkpoint_is_any_other(world, rewarded, tmp_path):
    """One stops in the second epoch; captions are sampled, two batches an update, frequencies from a file."""
    assert cli.main(["cider-df", str(tmp_path / "df.json"), str(world.root / "caption" / "train.tsv")]) == 0
    sampled = ("--scst-args", '{"beam": 3, "max_len_b": 6, "sampling": true}', "--update-freq", 2)
    files = ("--scst-cider-cached-tokens", tmp_path / "df.json", "--eval-cider-cached-tokens", tmp_path / "df.json")
    best = ("--best-checkpoint-metric", "cider", "--maximize-best-checkpoint-metric")
    flags = ("train", *rewarded, *sampled, *files, *best, "--save-dir")
    whole = ok(run(*flags, tmp_path / "whole", "--max-update", 6, log=tmp_path / "log")).output
    scores = logged(whole, "score")
    assert len(scores) == 6 and all(score > 0 for score in scores)
    assert re.search(r'"valid_cider": "[\d.]+"', whole) and '"valid_score"' not in whole
    ok(run(*flags, tmp_path / "parts", "--max-update", 4, log=tmp_path / "log"))
    ok(run(*flags, tmp_path / "parts", "--max-update", 6, log=tmp_path / "log"))
    parts = weights(tmp_path / "parts")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, parts[name]), name

    (tmp_path / "df.json").unlink()  # no evaluation asks for it
    known = (world.root / "caption", "--user-dir", USER_DIR, "--task", "caption", "--cpu", "--num-workers", 0)
    known = (*known, "--batch-size", 7, "--path", tmp_path / "whole" / "checkpoint_last.pt")
    ok(run("validate", *known, "--valid-subset", "valid", log=tmp_path / "log"))
    output = ok(run("generate", *known, "--gen-subset", "test", log=tmp_path / "log")).output
    assert re.search(r"cider = [\d.]+ on 14 rows", output)


def test_two_ranks_in_16_bits_count_the_frequencies_and_are_rewarded(rewarded, tmp_path):
    flags = (*rewarded, "--autocast", "bf16", "--max-epoch", 2, "--save-dir", tmp_path / "save", "--eval-cider")
    finished = run_ranks("train", *flags, log=tmp_path / "log")
    for rank in finished:
        ok(rank)
    scores = logged(finished[0].output, "score")
    assert len(scores) == 6 and all(score > 0 for score in scores)
    assert all(norm > 0 for norm in logged(finished[0].output, "gnorm"))
    assert not logged(finished[1].output, "score")  # rank 0 speaks for both
    assert "document frequencies of the 48 rows of train" in finished[0].output


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--scst-args", '{"beam": 1}'), "--scst-args: beam 1 is one caption of each picture"),
        (("--scst-args", '{"beams": 5}'), "--scst-args: 'beams' is no setting of generation"),
        (("--criterion", "adjust_label_smoothed_cross_entropy"), "--scst goes with --criterion scst_reward_criterion"),
        (("--scst-cider-cached-tokens", "none.json"), "--scst-cider-cached-tokens none.json: no such file"),
        (("--eval-cider-cached-tokens", "none.json"), "--eval-cider-cached-tokens none.json: no such file"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_flag(rewarded, tmp_path, flags, said):
    assert said in error_of(run("train", *rewarded, *flags, "--save-dir", tmp_path / "save", log=tmp_path / "log"))
