"""Stock fairseq-train, fairseq-validate and fairseq-generate on the picture world."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.stock import USER_DIR, ok, run

METRIC = {"caption": "cider", "vqa": "vqa_score"}
TASK = {"caption": "caption", "vqa": "vqa_gen"}


def generate(world, task: str, checkpoint: Path, folder: Path, *flags: object, data: Path | None = None):
    """Runs fairseq-generate on the test split and returns (what it printed, the entries of its result file)."""
    finished = run(
        *("generate", data or world.root / task, "--user-dir", USER_DIR, "--task", TASK[task], "--cpu"),
        *("--path", checkpoint, "--gen-subset", "test", "--results-path", folder, "--num-workers", 0, *flags),
        log=folder.with_suffix(".log"),
    )
    ok(finished)
    entries = json.loads((folder / "test_predict.json").read_text())
    return (folder / "generate-test.txt").read_text(), entries


def validation_value(output: str, metric: str, subset: str = "valid") -> float:
    """The metric of the last validation in a run's log."""
    return float(re.findall(rf'"{subset}_{metric}": "([\d.]+)"', output)[-1])


def test_training_logs_the_metric_and_keeps_the_best(trained):
    task, save, finished = trained
    assert validation_value(finished.output, METRIC[task]) >= 0
    assert (save / "checkpoint_best.pt").exists() and (save / "checkpoint_last.pt").exists()


def test_generate_needs_no_data_flags_and_prints_lines_that_mean_something(trained, world, tmp_path):
    task, save, _ = trained
    printed, entries = generate(world, task, save / "checkpoint_last.pt", tmp_path / "out", "--batch-size", 5)
    rows = [line.split("\t") for line in (world.root / task / "test.tsv").read_text().splitlines()]
    assert len(entries) == len(rows)
    sources = dict(re.findall(r"^S-(\d+)\t(.*)$", printed, re.M))
    references = dict(re.findall(r"^T-(\d+)\t(.*)$", printed, re.M))
    answers = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", printed, re.M))
    key = {"caption": "caption", "vqa": "answer"}[task]
    for number, row in enumerate(rows):
        asked = "what does the image describe?" if task == "caption" else row[2]
        assert sources[str(number)].strip() == asked
        expected = row[2].replace(",", "") if task == "caption" else row[3].split("|!+")[1]  # no punctuation
        assert references[str(number)].strip() == expected
        assert answers[str(number)].strip() == entries[number][key]
        assert next(iter(entries[number].values())) == int(row[0])
    assert re.search(rf"Generate test with beam=\d+: {METRIC[task]} = [\d.]+ on 14 rows", printed)


def test_one_number_from_training_validate_and_generate(trained, world, tmp_path):
    task, save, finished = trained
    in_training = validation_value(finished.output, METRIC[task])
    validated = ok(
        run(
            *("validate", world.root / task, "--user-dir", USER_DIR, "--task", TASK[task], "--cpu", "--batch-size", 4),
            *("--path", save / "checkpoint_last.pt", "--valid-subset", "valid", "--num-workers", 0),
            *("--log-format", "json"),
            log=tmp_path / "validate.log",
        )
    )
    printed = ok(
        run(
            *("generate", world.root / task, "--user-dir", USER_DIR, "--task", TASK[task], "--cpu", "--batch-size", 3),
            *("--path", save / "checkpoint_last.pt", "--gen-subset", "valid", "--num-workers", 0),
            log=tmp_path / "generate.log",
        )
    ).output
    assert validation_value(validated.output, METRIC[task]) == in_training
    assert float(re.search(rf"{METRIC[task]} = ([\d.]+) on 14 rows", printed)[1]) == in_training


def test_answers_stay_inside_the_set(trained, world, tmp_path):
    task, save, _ = trained
    if task != "vqa":
        pytest.skip("captioning has no answer set")
    _, entries = generate(world, task, save / "checkpoint_last.pt", tmp_path / "out", "--batch-size", 14)
    assert {entry["answer"] for entry in entries} <= set((world.root / "vqa" / "answers.txt").read_text().splitlines())


@pytest.mark.parametrize("resumed_at", [2, 5], ids=["first epoch", "second epoch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_with_the_same_weights(world, tmp_path, resumed_at, workers):
    def train(save: Path, updates: int) -> dict:
        ok(
            run(
                *("train", *world.flags("caption"), "--batch-size", 16, "--max-update", updates),
                *("--num-workers", workers, "--save-dir", save, "--disable-validation", "--dropout", "0.1"),
                *("--lr-scheduler", "fixed"),
                log=tmp_path / "train.log",
            )
        )
        return torch.load(save / "checkpoint_last.pt", weights_only=True)

    whole = train(tmp_path / "whole", 6)
    train(tmp_path / "parts", resumed_at)
    parts = train(tmp_path / "parts", 6)
    for key, value in whole["model"].items():
        assert torch.equal(value, parts["model"][key]), key
    for key, state in whole["last_optimizer_state"]["state"].items():
        assert torch.equal(state["exp_avg"], parts["last_optimizer_state"]["state"][key]["exp_avg"])


def test_batch_size_does_not_change_answers(trained, world, tmp_path):
    task, save, _ = trained
    runs = [
        generate(world, task, save / "checkpoint_last.pt", tmp_path / f"out{size}", "--batch-size", size)
        for size in (1, 4)
    ]
    assert runs[0][1] == runs[1][1]
    scores = [dict(re.findall(r"^D-(\d+)\t(\S+)", printed, re.M)) for printed, _ in runs]
    assert all(abs(float(scores[0][row]) - float(scores[1][row])) < 2e-4 for row in scores[0])


def test_workers_live_from_epoch_to_epoch(world, tmp_path):
    """A new worker for each epoch costs more than a small epoch, and old ones that nobody stops pile up."""
    (tmp_path / "probe.py").write_text(
        "import atexit, os\n"
        "from fairseq.data import iterators\n"
        "made = []\n"
        "stock = iterators.torch.utils.data.DataLoader.__init__\n"
        "def counted(self, *args, **kwargs):\n"
        "    made.append(self)\n"
        "    stock(self, *args, **kwargs)\n"
        "iterators.torch.utils.data.DataLoader.__init__ = counted\n"
        "atexit.register(lambda: print('LOADERS', len(made)))\n"
    )
    command = [sys.executable, "-c", "import probe; from fairseq_cli.train import cli_main; cli_main()"]
    flags = [*world.flags("caption"), "--batch-size", "16", "--max-epoch", "5", "--num-workers", "1"]
    flags += ["--save-dir", str(tmp_path / "save"), "--disable-validation", "--lr-scheduler", "fixed", "--no-save"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "LOADERS 1\n" in finished.stdout
