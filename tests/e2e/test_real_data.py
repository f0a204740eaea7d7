"""Real photographs and questions in OFA's files, through the stock entry points."""

from __future__ import annotations

import json
import shutil

from tests.helpers.stock import NANO, USER_DIR, ok, run


def train_and_generate(tmp_path, world, train, test, task, *flags):
    vocabulary = ("--bpe", "sentencepiece", "--bpe-dir", world.root / "bpe", "--num-bins", 10, "--code-dict-size", 8)
    limits = ("--batch-size", 8, "--max-update", 2, "--disable-validation", "--lr-scheduler", "fixed")
    where = ("--num-workers", 0, "--save-dir", tmp_path / "save", "--task", task)
    ok(run("train", train, *NANO, *vocabulary, *limits, *where, *flags, log=tmp_path / "train.log"))
    ok(
        run(
            *("generate", test, "--user-dir", USER_DIR, "--task", task, "--cpu", "--batch-size", 32),
            *("--path", tmp_path / "save" / "checkpoint_last.pt", "--results-path", tmp_path / "out"),
            *("--num-workers", 0),
            log=tmp_path / "generate.log",
        )
    )
    return json.loads((tmp_path / "out" / "test_predict.json").read_text())


def test_photographs_are_captioned(shared, world, tmp_path):
    coco = shared("data/coco/caption")
    entries = train_and_generate(tmp_path, world, coco / "train.tsv", coco / "valid.tsv", "caption")
    rows = (coco / "valid.tsv").read_text(encoding="utf-8").splitlines()
    assert [entry["image_id"] for entry in entries] == [int(row.split("\t")[1]) for row in rows]


def test_questions_about_pictures_beside_the_file_are_answered(shared, world, tmp_path):
    easy = shared("data/easyvqa")
    lines = (easy / "test.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:40]
    for line in lines:
        (picture := tmp_path / line.split("\t")[5].strip()).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(easy / picture.relative_to(tmp_path), picture)
    answers = ("--ans2label-file", easy / "answers.txt")
    (easy_test := tmp_path / "test.tsv").write_text("".join(lines), encoding="utf-8")
    entries = train_and_generate(tmp_path, world, easy / "train.tsv", easy_test, "vqa_gen", *answers)
    assert [entry["question_id"] for entry in entries] == [line.split("\t")[0] for line in lines]
    assert {entry["answer"] for entry in entries} <= set((easy / "answers.txt").read_text().split())


def test_lines_of_old_prints_are_read(shared, world, tmp_path):
    ocr = shared("data/ocr")
    lines = (ocr / "test.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:30]
    (few := tmp_path / "test.tsv").write_text("".join(lines), encoding="utf-8")
    settings = ("--eval-args", '{"beam": 2, "max_len_b": 12}')
    entries = train_and_generate(tmp_path, world, ocr / "train.tsv", few, "ocr", *settings)
    assert [entry["image_id"] for entry in entries] == [line.split("\t")[0] for line in lines]
    scores = json.loads((tmp_path / "out" / "test_scores.json").read_text())
    assert scores["scored"] == 30 and 0 <= scores["acc"] <= scores["ned"] < 0.6
