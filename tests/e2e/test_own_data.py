"""From a user's own data to answers: `ofa prepare`, `ofa check`, `fairseq-train` and `fairseq-generate`, every task."""

from __future__ import annotations

import json

import pytest
from fairseq.tasks import TASK_REGISTRY

from ofa_plugin import cli
from tests.helpers.own_data import SOURCES, prepared
from tests.helpers.stock import NANO, USER_DIR, ok, run

QUICK = ("caption", "vqa_gen", "refcoco", "cola")
OF_TASK = {
    "vqa_gen": ("--ans2label-file", "{data}/answers.txt"),
    "image_classify": ("--ans2label-file", "{data}/answers.txt"),
    "refcoco": ("--max-image-size", "64"),
    "detection": ("--max-image-size", "64"),
}


@pytest.mark.parametrize(
    "task", [task if task in QUICK else pytest.param(task, marks=pytest.mark.slow) for task in SOURCES]
)
def test_prepare_check_train_generate(task, world, tmp_path):
    if task not in TASK_REGISTRY:
        pytest.skip(f"--task {task} is not registered")
    data = prepared(task, tmp_path)
    vocabulary = ("--bpe", "sentencepiece", "--bpe-dir", world.root / "bpe")
    assert cli.main(["check", str(data), task, *map(str, vocabulary)]) == 0
    own = [flag.format(data=data) for flag in OF_TASK.get(task, ())]
    sizes = ("--num-bins", 10, "--code-dict-size", 8, "--max-src-length", 40, "--num-workers", 0, "--batch-size", 3)
    ok(
        run(
            *("train", data, *NANO, "--task", task, *vocabulary, *own, *sizes),
            *("--max-update", 2, "--save-dir", tmp_path / "save"),
            log=tmp_path / "train.log",
        )
    )
    ok(
        run(
            *("generate", data, "--user-dir", USER_DIR, "--task", task, "--cpu", "--batch-size", 3),
            *("--path", tmp_path / "save" / "checkpoint_last.pt", "--gen-subset", "valid", "--num-workers", 0),
            *("--results-path", tmp_path / "results"),
            log=tmp_path / "generate.log",
        )
    )
    answers = json.loads((tmp_path / "results" / "valid_predict.json").read_text(encoding="utf-8"))
    assert len(answers) == len((data / "valid.tsv").read_text(encoding="utf-8").split("\n")) - 1
