"""The eight tasks are learned together: half an hour on two cores, then held-out pictures."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.helpers.stock import ROOT

pytestmark = pytest.mark.slow

GATE = {"question": 70, "grounded caption": 50, "caption, CIDEr-D": 2.0, "grounding": 10, "matching": 55}


def run(*command, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OFA_ROOT": str(ROOT), **variables}
    finished = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout


def test_a_mixture_of_eight_tasks_is_learned_from_shapes(tmp_path):
    world = tmp_path / "shapes"
    ofa = (sys.executable, "-m", "ofa_plugin.cli")
    run(*ofa, "make-shapes", world, "--rows", 60000, "--seed", 7, "--code-image-size", 64, "--proportion", "1:3:2")
    texts = (f"{world}/train/vision_language_examples.tsv:2,3,4", f"{world}/train/text_examples.tsv:1")
    run(*ofa, "train-bpe", world / "bpe", *texts, "--vocab-size", 480)
    backbone = tmp_path / "resnet.pt"
    run(*ofa, "train-backbone", world / "described" / "train.tsv", backbone, "--batches", 1500)
    script = ("bash", ROOT / "run_scripts" / "pretrain.sh", "train", "nano", world, "--disable-validation")
    script += ("--resnet-model-path", backbone, "--freeze-resnet-weights")
    where = {"PROCS": "2", "BPE_DIR": str(world / "bpe"), "SAVE": str(tmp_path / "save"), "PYTHON": sys.executable}
    run(*script, **where)
    table = run(
        *(sys.executable, ROOT / "benchmarks" / "pretraining_table.py", world),
        *(tmp_path / "save" / "checkpoint_last.pt", "--splits", "test"),
    )
    learned = dict(re.findall(r"^\| ([^|]+) \| ([\d.]+) \|", table, re.M))
    for start, least in GATE.items():
        [title] = [title for title in learned if title.startswith(start)]
        assert float(learned[title]) >= least, table
