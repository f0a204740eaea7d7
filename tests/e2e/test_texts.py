"""Tasks without pictures through the stock entry points: summaries, and one and two sentences of GLUE."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers.stock import USER_DIR, error_of, ok, run

ROWS = {"train": 48, "valid": 14, "test": 14}


@dataclass(frozen=True)
class Case:
    """A task, its options, the metrics that it logs, and what its sources say."""

    options: tuple[str, ...]
    metrics: tuple[str, ...]
    asked: str
    answer: str  # its name in the result file
    updates: int = 9


CASES = {
    "gigaword": Case(
        ("--noise-ratio", "0.2", "--max-src-length", "40", "--eval-rouge"),
        ("rougeL_f1", "rouge1_f1", "rouge2_f1", "rougeL_recall", "rouge1_recall", "rouge2_recall"),
        "what is the summary of article",
        "hyp",
    ),
    "cola": Case(
        ("--prompt-type", "src", "--lr", "2e-3", "--dropout", "0"),
        ("mcc", "acc"),
        "grammatically correct?",
        "answer",
        updates=36,
    ),
    "mrpc": Case(("--prompt-type", "prev_output"), ("acc", "F1"), "have the same semantics?", "answer"),
}


def lines(task: str, captions: list[str]) -> list[str]:
    """Rows in the task's official columns; what is right can be read off the text."""
    pairs = list(zip(captions, captions[1:] + captions[:1], strict=True))
    if task == "gigaword":
        return [f"{caption} and {other}\t{caption}" for caption, other in pairs]
    if task == "cola":
        return [f"x\t{caption if number % 2 else 'a a a'}\t{number % 2}" for number, caption in enumerate(captions)]
    return [
        f"{mine}\t{mine if n % 3 else other}\t{int(n % 3 > 0 or mine == other)}"
        for n, (mine, other) in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def texts(world, tmp_path_factory):
    """Gives the folder of a task's files, made of the small world's captions, and the flags of a run."""

    def made(task: str) -> tuple[Path, list]:
        folder = tmp_path_factory.mktemp(task)
        for split, count in ROWS.items():
            rows = (world.root / "caption" / f"{split}.tsv").read_text().splitlines()[:count]
            captions = [row.split("\t")[2].split("&&")[0] for row in rows]
            (folder / f"{split}.tsv").write_text("".join(f"{line}\n" for line in lines(task, captions)))
        flags = [*world.flags("caption")[1:], "--batch-size", 16, "--num-workers", 0, "--lr-scheduler", "fixed"]
        flags[flags.index("--task") + 1] = task
        flags += ["--dropout", "0.1", *CASES[task].options]
        return folder, flags

    return made


def logged(output: str, metric: str) -> float:
    """A metric of the last validation in a run's log."""
    return float(re.findall(rf'"valid_{metric}": "(-?[\d.]+)"', output)[-1])


@pytest.mark.parametrize("task", CASES)
def test_a_text_task_trains_resumes_validates_and_answers(texts, tmp_path, task):
    data, flags = texts(task)
    case = CASES[task]
    best = ("--best-checkpoint-metric", case.metrics[0], "--maximize-best-checkpoint-metric")

    def train(save: str, updates: int, *more: str) -> tuple[str, dict]:
        limits = ("--max-update", updates, "--save-dir", tmp_path / save)
        output = ok(run("train", data, *flags, *more, *limits, log=tmp_path / "log")).output
        return output, torch.load(tmp_path / save / "checkpoint_last.pt", weights_only=True)["model"]

    output, whole = train("whole", case.updates, "--disable-validation")
    losses = [float(loss) for loss in re.findall(r'"train_loss": "([\d.]+)"', output)]
    assert losses[-1] < losses[0]
    train("parts", 5, "--disable-validation")
    output, parts = train("parts", case.updates, *best)
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    in_training = {metric: logged(output, metric) for metric in case.metrics}
    assert all(in_training.values())  # of what was learned: numbers of nothing would always agree

    common = ("--user-dir", USER_DIR, "--task", task, "--cpu", "--num-workers", 0)
    common += ("--path", tmp_path / "parts" / "checkpoint_last.pt")
    output = ok(run("validate", data, *common, "--batch-size", 5, "--log-format", "json", log=tmp_path / "log")).output
    assert {metric: logged(output, metric) for metric in case.metrics} == in_training
    out = ("--gen-subset", "valid", "--results-path", tmp_path / "out")
    ok(run("generate", data, *common, *out, "--batch-size", 4, log=tmp_path / "log"))
    scores = json.loads((tmp_path / "out" / "valid_scores.json").read_text())
    assert scores == {"rows": 14, "scored": 14, **in_training}

    printed = (tmp_path / "out" / "generate-valid.txt").read_text()
    entries = json.loads((tmp_path / "out" / "valid_predict.json").read_text())
    answers = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", printed, re.M))
    assert [entry["uniq_id"] for entry in entries] == list(range(1, 15))  # the files have no ids
    assert [answers[str(row)].strip().lower() for row in range(14)] == [entry[case.answer] for entry in entries]
    assert all(case.asked in line for line in printed.splitlines() if line.startswith("S-"))
    if task != "gigaword":
        assert {entry["answer"] for entry in entries} <= {"yes", "no"}
        labels = [line.rpartition("\t")[2] == "1" for line in (data / "valid.tsv").read_text().splitlines()]
        right = [(entry["answer"] == "yes") == label for entry, label in zip(entries, labels, strict=True)]
        assert scores["acc"] == pytest.approx(sum(right) / len(right), abs=1e-4)
        check_typed(data, common, [entry["answer"] for entry in entries], tmp_path)


def check_typed(data: Path, common: tuple, answers: list[str], tmp_path: Path) -> None:
    """fairseq-interactive gives the same answers to the texts alone."""
    rows = [line.split("\t") for line in (data / "valid.tsv").read_text().splitlines()]
    columns = slice(1, 2) if len(rows[0]) == 3 and rows[0][0] == "x" else slice(0, 2)
    typed = "".join("\t".join(row[columns]) + "\n" for row in rows)
    printed = ok(run("interactive", *common, stdin=typed, log=tmp_path / "log")).output
    assert [text.strip() for text in re.findall(r"^D-\d+\t\S+\t(.*)$", printed, re.M)] == answers


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("cola", "x\ta dog\tperhaps", "label: label 'perhaps' is unknown: write one of 0, 1, or leave the row out"),
        ("mrpc", "a dog\t\t1", "sentence2: it is empty: write a sentence, or leave the row out"),
        ("gigaword", "a dog\t", "target: it is empty: write the summary, or leave the row out"),
    ],
)
def test_a_bad_row_is_named_with_its_line(texts, tmp_path, task, row, message):
    data, flags = texts(task)
    rows = (data / "train.tsv").read_text().splitlines()
    (data / "train.tsv").write_text("\n".join([*rows[:2], row, *rows[3:]]) + "\n")
    flags += ["--disable-validation", "--max-epoch", 1, "--save-dir", tmp_path / "save"]
    assert f"{data}/train.tsv:3: {message}" in error_of(run("train", data, *flags, log=tmp_path / "log"))


def test_flags_that_cannot_be_are_refused(texts, tmp_path):
    data, flags = texts("gigaword")
    flags += ["--max-epoch", 1, "--save-dir", tmp_path / "save"]
    for more, message in (
        (("--noise-ratio", "1.5"), "--noise-ratio 1.5: give a share from 0 to 1"),
        (("--max-src-length", "3"), "--max-src-length 3: the instruction alone has "),
    ):
        assert message in error_of(run("train", data, *flags, *more, log=tmp_path / "log"))
