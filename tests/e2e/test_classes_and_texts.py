"""Image classification, reading and regions through the stock entry points: train, resume, validate, generate, type."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO

from tests.helpers.cases import entries, picture
from tests.helpers.chinese import CAPTIONS, write_wordpiece
from tests.helpers.stock import NANO, USER_DIR, Finished, error_of, ok, run

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 180, 30),
    "blue": (30, 30, 200),
    "yellow": (220, 210, 40),
    "white": (240, 240, 240),
    "black": (10, 10, 10),
    "grey": (128, 128, 128),
}
TRAIN = ("--batch-size", 5, "--num-workers", 0, "--lr-scheduler", "fixed", "--seed", 3)


@dataclass(frozen=True)
class Case:
    """A task, its small files, and what it is judged by."""

    task: str
    data: Path
    metrics: tuple[str, ...]
    own: tuple[object, ...] = ()

    def train(self, world, save: Path, *flags: object) -> Finished:
        """`fairseq-train`; `flags` win."""
        nano = world.flags("caption")
        flags = (*nano[1:], *TRAIN, *self.own, "--save-dir", save, "--task", self.task, *flags)
        return run("train", self.data, *flags, log=save.parent / f"{save.name}.log")

    def evaluate(self, entry: str, save: Path, *flags: object, data: Path | None = None) -> Finished:
        """`fairseq-validate`, or `fairseq-generate` of `test` into the folder `out` beside the checkpoint's."""
        of = (
            "--user-dir",
            USER_DIR,
            "--task",
            self.task,
            "--cpu",
            "--num-workers",
            0,
            "--path",
            save / "checkpoint_last.pt",
        )
        if entry == "generate":
            of += ("--gen-subset", "test", "--results-path", save.parent / "out")
        return run(entry, data or self.data, *of, *flags, log=save.parent / f"{entry}.log")

    def numbers(self, save: Path) -> dict[str, float]:
        """What the last run of `fairseq-generate` wrote."""
        scores = json.loads((save.parent / "out" / "test_scores.json").read_text())
        return {name: scores[name] for name in self.metrics}


def write_rows(folder: Path, rows: Sequence[tuple[str, ...]], held_out: Sequence[tuple[str, ...]]) -> Path:
    """`train.tsv` of one, `valid.tsv` and `test.tsv` of the other."""
    folder.mkdir()
    for split, lines in (("train", rows), ("valid", held_out), ("test", held_out)):
        (folder / f"{split}.tsv").write_text("".join("\t".join(cells) + "\n" for cells in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, Case]:
    """Squares of seven colours, each colour a class, and a text."""
    root = tmp_path_factory.mktemp("classes-and-texts")
    named = [(picture(colour), name) for name, colour in COLOURS.items()]
    (root / "classes.txt").write_text("".join(f"a {name} square\n" for name in COLOURS))
    classes = [(cell, str(number), f"a {name} square") for number, (cell, name) in enumerate(named, 1)]
    texts = [(f"p{number}", cell, f"{name} SQUARE") for number, (cell, name) in enumerate(named)]
    unlabelled = (named[0][0], "0", "")
    classify = write_rows(root / "image_classify", classes * 2, [*classes, unlabelled])
    read = write_rows(root / "ocr", texts * 2, [*texts, ("7", named[0][0], " ")])
    text = "grey square"
    regions = [
        (str(number), cell, text, "1,1,9,9&&0,4,8,8" if number % 2 else "2,2,8,8")
        for number, (cell, _) in enumerate(named)
    ]
    find = write_rows(root / "refcoco", regions * 2, regions)
    several = ("--several-boxes", 2, "--geometric-augment", "--selected-cols", "0,1,2,3", "--eval-acc")
    things = [
        (str(number), cell, f"1,1,9,9,{number},{name}&&2,2,8,8,{number},{name}")
        for number, (cell, name) in enumerate(zip([cell for cell, _ in named], COLOURS, strict=True))
    ]
    detect = write_rows(root / "detection", things * 2, things)
    (root / "names.txt").write_text("".join(f"{name}\n" for name in COLOURS))
    objects = ("--ans2label-file", root / "names.txt", "--geometric-augment", "--eval-args", '{"max_len_b": 30}')
    of_classes = ("--ans2label-file", root / "classes.txt", "--patch-image-size", 32)
    return {
        "image_classify": Case("image_classify", classify, ("score", "top5"), of_classes),
        "detection": Case("detection", detect, ("ap50",), objects),
        "refcoco": Case("refcoco", find, ("score", "box_f1"), several),
        "ocr": Case("ocr", read, ("acc", "ned"), ("--eval-args", '{"max_len_b": 8}')),
    }


def weights(save: Path) -> dict[str, torch.Tensor]:
    return torch.load(save / "checkpoint_last.pt", weights_only=True)["model"]


def logged(finished: Finished, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf'"valid_{name}": "([\d.]+)"', finished.output)]


@pytest.mark.parametrize("task", ["image_classify", "ocr", "refcoco", "detection"])
def test_one_number_from_training_validation_and_generation(world, cases, tmp_path, task):
    case, save = cases[task], tmp_path / "save"
    best = ("--best-checkpoint-metric", case.metrics[0], "--maximize-best-checkpoint-metric")
    ok(case.train(world, save, *best, "--max-epoch", 1))
    resumed = ok(case.train(world, save, *best, "--max-epoch", 2))
    ok(case.train(world, tmp_path / "whole", *best, "--max-epoch", 2))
    expected = weights(tmp_path / "whole")
    assert all(value.equal(expected[name]) for name, value in weights(save).items())  # every draw as without a break

    in_training = {name: logged(resumed, name)[-1] for name in case.metrics}
    validated = ok(case.evaluate("validate", save, "--batch-size", 3, "--log-format", "json"))
    assert {name: logged(validated, name)[-1] for name in case.metrics} == in_training
    ok(case.evaluate("generate", save, "--batch-size", 8))
    assert case.numbers(save) == in_training
    printed = (tmp_path / "out" / "generate-test.txt").read_text()
    second = case.metrics[1] if task != "detection" else "coco_ap"
    assert re.search(rf"{case.metrics[0]} = [\d.]+ on 7 rows of test \({second} = [\d.]+[,)]", printed)

    found = entries(tmp_path / "out")
    if task == "refcoco":
        assert [entry["uniq_id"] for entry in found] == list(range(7))
        assert all(1 <= len(entry["boxes"]) == len(entry["confidences"]) <= 2 for entry in found)
        assert all(x0 < x1 and y0 < y1 for entry in found for x0, y0, x1, y1 in entry["boxes"])
        return
    if task == "detection":
        check_objects(case, save)
        return
    if task == "ocr":
        assert [entry["image_id"] for entry in found] == [*(f"p{number}" for number in range(7)), 7]
        answers = [entry["ocr"] for entry in found]
    else:
        assert [entry["uniq_id"] for entry in found] == list(range(8))
        answers = [entry["answer"] for entry in found]
        assert set(answers) <= {f"a {name} square" for name in COLOURS}
    shown = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", printed, re.M))
    assert [shown[str(row)].strip() for row in range(8)] == answers

    for number, line in enumerate((case.data / "test.tsv").read_text().splitlines()):
        (tmp_path / f"{number}.png").write_bytes(base64.b64decode(line.split("\t")[task == "ocr"]))
    of = ("--user-dir", USER_DIR, "--task", task, "--cpu", "--path", save / "checkpoint_last.pt", "--buffer-size", 8)
    typed = "".join(f"{number}.png\n" for number in range(8))
    spoken = ok(run("interactive", *of, stdin=typed, cwd=tmp_path, log=tmp_path / "spoken"))
    assert [line.split("\t")[2].strip() for line in spoken.lines("D-")] == answers


def check_objects(case: Case, save: Path) -> None:
    """Names of the set only, files that pycocotools reads, and the same from two processes."""
    out = save.parent / "out"
    found = entries(out)
    assert {one["name"] for entry in found for one in entry["objects"]} <= set(COLOURS)
    right = COCO(str(out / "test_coco_annotations.json"))
    assert {one["name"]: one["id"] for one in right.loadCats(right.getCatIds())} == dict(
        zip(COLOURS, range(7), strict=True)
    )
    told = json.loads((out / "test_coco_results.json").read_text())
    assert len(told) == sum(len(entry["objects"]) for entry in found) > 0
    assert right.loadRes(told) is not None and {one["image_id"] for one in told} <= set(range(7))
    alone = written(out)
    assert {"coco_ap", "coco_ap50", "ap50"} <= alone["test_scores.json"].keys()
    command = [sys.executable, "-m", "fairseq_cli.generate", case.data, "--user-dir", USER_DIR, "--task", "detection"]
    command += ["--cpu", "--path", save / "checkpoint_last.pt", "--gen-subset", "test", "--results-path", out]
    command += ["--batch-size", "2", "--num-workers", "0", "--distributed-world-size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([str(word) for word in command], check=True, capture_output=True, env=environment)
    assert close(written(out), alone)


def written(out: Path) -> dict[str, object]:
    """What stands in the result files, by name."""
    return {path.name: json.loads(path.read_text()) for path in out.glob("test_*.json")}


def close(one: object, other: object) -> bool:
    """Whether two values of JSON are the same but for the last digits of numbers, which the size of a batch changes."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    return abs(one - other) < 1e-3 if isinstance(one, float) and isinstance(other, float) else one == other


def test_the_five_likeliest_classes_are_looked_at_whatever_the_beam(world, cases, tmp_path):
    case, save = cases["image_classify"], tmp_path / "save"
    ok(case.train(world, save, "--max-update", 2, "--disable-validation"))
    ok(case.evaluate("generate", save, "--write-ranking", 7))
    expected, found = case.numbers(save), entries(tmp_path / "out")
    right = [f"a {name} square" for name in COLOURS]
    ranked = [[one["answer"] for one in entry["ranking"]] for entry in found[:7]]
    assert [sorted(ranking) for ranking in ranked] == [sorted(right)] * 7
    for name, within in (("score", 1), ("top5", 5)):
        share = sum(label in ranking[:within] for label, ranking in zip(right, ranked, strict=True)) / 7
        assert expected[name] == round(share, 3)
    ok(case.evaluate("generate", save, "--beam", 1))
    assert case.numbers(save) == expected
    ok(case.evaluate("generate", save, "--val-inference-type", "beamsearch", "--beam", 7))
    assert case.numbers(save) == expected
    ok(case.evaluate("generate", save, "--reject-below", 1))
    assert case.numbers(save) == {"score": 0.0, "top5": 0.0}
    assert {entry["answer"] for entry in entries(tmp_path / "out")} == {"no answer"}


def test_chinese_texts_are_learned_and_read(tmp_path):
    texts = dict(list(CAPTIONS.items())[2:])
    rows = [(str(number), picture(colour), text) for number, (colour, text) in enumerate(texts.items())]
    data = write_rows(tmp_path / "data", rows, rows)
    folder = write_wordpiece(tmp_path / "bpe", "图片上的文字是什么")
    flags = ("--task", "ocr", "--bpe", "bert", "--bpe-dir", folder, "--num-bins", 10, "--code-dict-size", 8)
    limits = ("--batch-size", 2, "--max-update", 40, "--lr", "2e-3", "--num-workers", 0, "--lr-scheduler", "fixed")
    where = ("--disable-validation", "--save-dir", tmp_path / "save", "--log-interval", 40)
    ok(run("train", data, *NANO, *flags, *limits, *where, log=tmp_path / "train.log"))
    case = Case("ocr", data, ("acc", "ned"))
    ok(case.evaluate("generate", tmp_path / "save"))
    assert [entry["ocr"] for entry in entries(tmp_path / "out")] == list(texts.values())
    assert case.numbers(tmp_path / "save") == {"acc": 1.0, "ned": 1.0}
    printed = (tmp_path / "out" / "generate-test.txt").read_text(encoding="utf-8")
    assert {line.replace(" ", "") for line in re.findall(r"^S-\d+\t(.*)$", printed, re.M)} == {"图片上的文字是什么?"}


@pytest.mark.parametrize(
    ("task", "column", "cell", "flags", "says"),
    [
        ("image_classify", 2, "a pink square", (), "train.tsv:3: label: no answer of this row is in "),
        ("image_classify", 2, "", (), "train.tsv:3: label: it is empty: write the name of a class"),
        ("image_classify", 0, "no picture", (), "train.tsv:3: image: "),
        (
            "image_classify",
            2,
            "x",
            ("--selected-cols", "0,3"),
            ": label: 3 columns, but column 3 was selected: columns are separated by tabs and counted from 0",
        ),
        ("ocr", 2, "", (), "train.tsv:3: text: it is empty: write what the picture says"),
        ("ocr", 1, "no picture", (), "train.tsv:3: image: "),
        ("ocr", 2, "x", ("--patch-image-size", 48), "--patch-image-size 48: --task ocr makes lines 64 pixels high"),
        ("ocr", 2, "x", ("--is-document",), "--patch-image-size 64: --is-document makes lines of 480 pixels"),
        ("ocr", 2, "x", ("--image-backend", "fast"), "--image-backend fast: --task ocr has only pil"),
    ],
)
def test_what_cannot_be_used_is_named(world, cases, tmp_path, task, column, cell, flags, says):
    data = tmp_path / "data"
    data.mkdir()
    lines = [line.split("\t") for line in (cases[task].data / "train.tsv").read_text().splitlines()]
    lines[2][column] = cell
    (data / "train.tsv").write_text("".join("\t".join(cells) + "\n" for cells in lines))
    case = Case(task, data, cases[task].metrics, cases[task].own)
    message = error_of(case.train(world, tmp_path / "save", "--max-epoch", 1, "--disable-validation", *flags))
    assert says in message


def test_without_classes_there_is_nothing_to_choose_from(world, cases, tmp_path):
    case = Case("image_classify", cases["image_classify"].data, ("score", "top5"))
    message = error_of(case.train(world, tmp_path / "save", "--max-epoch", 1))
    assert message.endswith(
        "--task image_classify needs its answer set: give --ans2label-file FILE (one answer a line)"
    )
