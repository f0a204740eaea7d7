"""Several metrics of one task: in validation, in `fairseq-generate`, and over two workers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cases import caption_row, entries, generate
from tests.helpers.stock import USER_DIR, error_of, ok, run, run_ranks

LONG = 6  # tokens that the model must say: BLEU-4 needs four


@pytest.fixture(scope="module")
def rows(captioner, world, tmp_path_factory) -> Path:
    """13 pictures: for six of them the model's own caption is a reference, and one has none."""
    folder = tmp_path_factory.mktemp("rows")
    ok(generate(world.root / "caption", captioner, folder / "out", "--min-len", LONG))
    source = (world.root / "caption" / "test.tsv").read_text().splitlines()[:13]
    lines = []
    for number, (line, entry) in enumerate(zip(source, entries(folder / "out"), strict=False)):
        _, _, caption, _, image = line.split("\t")
        caption = "" if number == 12 else f"{caption}&&{entry['caption']}" if number % 2 else caption
        lines.append(caption_row(number, caption, image))
    (folder / "rows.tsv").write_text("".join(lines))
    return folder / "rows.tsv"


@pytest.fixture
def validate(rows, captioner, world, tmp_path):
    """One update that changes nothing, and the validation on `rows` after it; `start` is `run` or `run_ranks`."""

    def trained(*flags: object, start: Callable = run) -> Any:
        _, *rest = world.flags("caption")
        return start(
            *("train", f"{world.root / 'caption' / 'train.tsv'},{rows}", *rest, "--finetune-from-model", captioner),
            *("--lr", "1e-12", "--lr-scheduler", "fixed", "--max-update", 1, "--batch-size", 8, "--num-workers", 0),
            "--freeze-resnet",  # two workers would see other statistics than one
            *("--batch-size-valid", 5, "--eval-args", json.dumps({"min_len": LONG})),
            *("--save-dir", tmp_path / "save", *flags),
            log=tmp_path / "log",
        )

    return trained


REST = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l")  # what there is beside CIDEr-D


def values(output: str, prefix: str = "valid_") -> dict[str, str]:
    """Name to value of the captions' metrics in the last validation of a run, as they are printed."""
    [*_, last] = [line for line in output.splitlines() if f'"{prefix}loss"' in line]
    return dict(re.findall(rf'"{prefix}(cider|bleu[1-4]|rouge_l)": "([\d.]+)"', last))


@pytest.mark.parametrize(
    ("flags", "logged"),
    [
        ((), []),
        (("--eval-cider",), ["cider"]),
        (("--eval-bleu",), ["cider", *REST]),
        (("--eval-cider", "--eval-bleu"), ["cider", *REST]),
        (("--best-checkpoint-metric", "cider"), ["cider"]),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_validation_logs_what_was_asked_for(validate, flags, logged):
    assert list(values(ok(validate(*flags, "--no-save")).output)) == logged


def test_any_metric_selects_the_best_and_generate_agrees(validate, rows, tmp_path):
    finished = ok(validate("--best-checkpoint-metric", "bleu4", "--maximize-best-checkpoint-metric"))
    logged = values(finished.output)
    assert 0 < float(logged["bleu4"]) < 1
    assert f"checkpoint_best.pt (epoch 1 @ 1 updates, score {logged['bleu4']})" in finished.output
    best = tmp_path / "save" / "checkpoint_best.pt"

    written = ok(generate(rows, best, tmp_path / "out", "--batch-size", 3)).output  # --eval-args are the checkpoint's
    scores = json.loads((tmp_path / "out" / "test_scores.json").read_text())
    assert scores == {"rows": 13, "scored": 12, **{name: float(value) for name, value in logged.items()}}
    rest = ", ".join(f"{name} = {scores[name]}" for name in REST)
    in_words = f"cider = {scores['cider']} on 12 rows of test ({rest})"
    assert in_words in written
    printed = (tmp_path / "out" / "generate-test.txt").read_text()
    assert printed.endswith(f"Generate test with beam=5: {in_words}\n")

    checked = run(
        *("validate", rows, "--user-dir", USER_DIR, "--task", "caption", "--cpu", "--path", best, "--batch-size", 4),
        *("--valid-subset", "test", "--num-workers", 0, "--log-format", "json"),
        log=tmp_path / "validate.log",
    )
    assert values(ok(checked).output, "test_") == logged


@pytest.mark.parametrize("name", ["ofa", "cider", "bleu1", "bleu4", "rouge_l"])
def test_each_metric_is_a_scoring(rows, captioner, tmp_path, name):
    ok(generate(rows, captioner, tmp_path / "out", "--min-len", LONG, "--scoring", name))
    scores = json.loads((tmp_path / "out" / "test_scores.json").read_text())
    shown = "cider" if name == "ofa" else name
    [*_, last] = (tmp_path / "out" / "generate-test.txt").read_text().splitlines()
    assert f": {shown} = {scores[shown]} on 12 rows of test" in last
    assert last.endswith("of test") == (name != "ofa")


def test_a_scoring_of_another_task_names_those_of_this_one(rows, captioner, tmp_path):
    finished = generate(rows, captioner, tmp_path / "out", "--scoring", "vqa_score")
    assert f"--scoring vqa_score: this task reports cider, {', '.join(REST)}; leave" in error_of(finished)


def test_two_workers_log_what_one_does(validate):
    """Three batches of 5, 5 and 3 rows: in its second step the other worker has none, and adds zeros."""
    alone = values(ok(validate("--eval-bleu", "--no-save")).output)
    first, second = validate("--eval-bleu", "--no-save", start=run_ranks)
    ok(second)
    assert values(ok(first).output) == alone and float(alone["bleu4"]) > 0
