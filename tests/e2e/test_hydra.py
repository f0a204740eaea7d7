"""`fairseq-hydra-train` with our recipes trains what `fairseq-train` trains, and its checkpoints serve everywhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.stock import ROOT, USER_DIR, Finished, error_of, ok, run
from tests.test_run_scripts import script

RECIPES = ROOT / "run_scripts" / "hydra"
LOSS = re.compile(r'"loss": "([\d.]+)"')
TASK = {"caption": "caption", "vqa": "vqa_gen"}


def recipe(world, task: str, save: Path, *overrides: object, **where) -> Finished:
    """Runs the small recipe of a task on the world; `overrides` win."""
    return run(
        *("hydra_train", "--config-dir", RECIPES, "--config-name", f"{task}_nano", f"common.user_dir={USER_DIR}"),
        *(f"task.data={world.root / task}", f"task.bpe_dir={world.root / 'bpe'}", f"checkpoint.save_dir={save}"),
        *("dataset.batch_size=16", "dataset.num_workers=0", "common.log_interval=1", "common.log_format=json"),
        *("+lr_scheduler.total_num_update=4", *overrides),
        log=save.parent / f"{save.name}.log",
        **where,
    )


def shell(world, task: str, save: Path, *flags: object) -> Finished:
    """Runs the command that the small script of a task prints."""
    printed = script(f"{task}.sh", "train", "nano", str(world.root / task), BPE_DIR=str(world.root / "bpe"))
    return run(
        *("train", *shlex.split(printed.stdout)[3:], "--save-dir", save, "--batch-size", 16, "--num-workers", 0),
        *("--log-interval", 1, "--log-format", "json", "--total-num-update", 4, *flags),
        log=save.parent / f"{save.name}.log",
    )


def losses(finished: Finished) -> list[str]:
    """The loss of each update, as logged."""
    return [LOSS.search(line)[1] for line in ok(finished).output.splitlines() if "| train_inner |" in line]


def state(save: Path) -> dict:
    return torch.load(save / "checkpoint_last.pt", weights_only=True)


@pytest.mark.parametrize(
    ("task", "parts"),
    [("caption", (("yaml", 2), ("yaml", 4))), ("vqa", (("yaml", 1), ("shell", 2), ("yaml", 4)))],
    ids=["caption, resumed", "vqa, resumed by the script and back"],
)
def test_a_recipe_trains_and_resumes_as_its_script_trains_and_its_checkpoint_answers(world, tmp_path, task, parts):
    of_shell = losses(shell(world, task, tmp_path / "shell", "--max-update", 4))
    of_parts = []
    for by, updates in parts:
        if by == "yaml":
            finished = recipe(world, task, tmp_path / "yaml", f"optimization.max_update={updates}")
        else:
            finished = shell(world, task, tmp_path / "yaml", "--max-update", updates)
        of_parts += losses(finished)
    assert len(of_shell) == 4 and of_parts == of_shell
    one, other = state(tmp_path / "shell"), state(tmp_path / "yaml")
    assert dict(other["cfg"]["model"]) == dict(one["cfg"]["model"])
    assert other["cfg"]["model"]["encoder_embed_dim"] == 128 and other["cfg"]["model"]["disable_entangle"] is True
    for key, value in one["model"].items():
        assert torch.equal(value, other["model"][key]), key
    results = [generated(world, task, tmp_path / save) for save in ("shell", "yaml")]
    assert results[0] == results[1] and len(results[0]) == 14


def generated(world, task: str, save: Path) -> list:
    ok(
        run(
            *("generate", world.root / task, "--user-dir", USER_DIR, "--task", TASK[task], "--cpu"),
            *("--path", save / "checkpoint_last.pt", "--gen-subset", "test", "--results-path", save, "--batch-size", 4),
            log=save / "generate.log",
        )
    )
    return json.loads((save / "test_predict.json").read_text())


def test_paths_start_where_the_command_was_typed_and_nothing_else_is_written(world, tmp_path):
    (tmp_path / "plug").symlink_to(ROOT)
    for name in ("caption", "bpe"):
        (tmp_path / name).symlink_to(world.root / name)
    paths = ("common.user_dir=plug/ofa_plugin", "task.data=caption", "task.bpe_dir=bpe")
    short = ("optimization.max_update=1", "dataset.num_workers=0", "common.reset_logging=false")
    command = [sys.executable, "-m", "fairseq_cli.hydra_train", "--config-dir", "plug/run_scripts/hydra"]
    finished = subprocess.run(
        [*command, "--config-name", "caption_nano", *paths, *short],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert (tmp_path / "checkpoints" / "caption_nano" / "checkpoint_last.pt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bpe", "caption", "checkpoints", "plug"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("task.data=null",), ("no data", "task.data=")),
        (("task.data=nowhere",), ("nowhere: no such file or folder",)),
        (("task.bpe_dir=null",), ("--bpe-dir is missing",)),
        (("model._name=ofa",), ("--arch ofa names no size", "ofa_nano")),
        (("+task.pixels=64",), ("Key 'pixels' not in 'CaptionConfig'", "the YAML file")),
        (("task.patch_image_size=big",), ("patch_image_size: Value 'big'", "the YAML file")),
        (("task.eval_args='[5]'",), ("--eval-args [5] is no JSON object",)),
        (("checkpoint.best_checkpoint_metric=bleu",), ("--best-checkpoint-metric bleu",)),
    ],
)
def test_a_mistake_is_one_line(world, tmp_path, wrong, words):
    message = error_of(recipe(world, "caption", tmp_path / "save", "optimization.max_update=1", *wrong))
    for word in words:
        assert word in message
    assert "hydra had gone" not in message


def test_a_path_that_another_folder_hides_is_explained(world, tmp_path):
    moved = ("hydra.job.chdir=true", "hydra.run.dir=elsewhere", "task.data=caption")
    message = error_of(recipe(world, "caption", tmp_path / "save", *moved, cwd=tmp_path))
    assert "caption: no such file or folder" in message
    assert message.endswith("(hydra had gone to elsewhere, where paths begin: add hydra.job.chdir=false)")


def test_a_bad_row_names_its_line(world, tmp_path):
    (tmp_path / "train.tsv").write_text("1\t1\ta red circle\t\tnothing.png\n")
    data = (f"task.data={tmp_path / 'train.tsv'}", "dataset.disable_validation=true")
    message = error_of(recipe(world, "caption", tmp_path / "save", *data))
    assert f"{tmp_path / 'train.tsv'}:1: image: no picture 'nothing.png'" in message
