"""Bad rows: training goes on without a few, and says which; validation and generation stop, or report them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_pretraining import evaluated, generated, logged, results
from tests.helpers.stock import USER_DIR, Finished, error_of, ok, run

UNKNOWN_TYPE = "type: 'drawing' is unknown: write one of caption, qa, visual_grounding"
Spoil = Callable[..., Path]


def spoiled(root: Path, folder: Path, subset: str, **bad: list[int]) -> Path:
    """A copy of the world in which these rows of a file of the subset, counted from 1, are bad."""
    folder.mkdir()
    for part in ("train", "valid", "test"):
        shutil.copytree(root / part, folder / part)
    (folder / "negative_sample").symlink_to(root / "negative_sample")
    for source, numbers in bad.items():
        file = folder / subset / f"{source}_examples.tsv"
        lines = file.read_text().splitlines()
        for number in numbers:
            cells = lines[number - 1].split("\t")
            if source == "vision_language":
                cells[-1] = "drawing"
            elif source == "detection":
                cells[-1] = "1,2,3"
            else:
                cells[1] = ""
            lines[number - 1] = "\t".join(cells)
        file.write_text("".join(f"{line}\n" for line in lines))
    return folder


def trained(shapes, data: Path, save: Path, *flags: object) -> Finished:
    return run(
        *("train", *shapes.flags(data), "--batch-size", 8, "--num-workers", 0, "--save-dir", save),
        *("--lr-scheduler", "fixed", *flags),
        log=save.with_suffix(".log"),
    )


def ledger(save: Path) -> list[list[str]]:
    file = save / "bad_rows.tsv"
    return [line.split("\t") for line in file.read_text().splitlines()] if file.exists() else []


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_goes_on_without_a_few_bad_rows_and_a_resumed_run_knows_them(shapes, tmp_path):
    data = spoiled(shapes.root, tmp_path / "data", "train", vision_language=[5], text=[2])
    flags = ("--disable-validation", "--max-bad-fraction", "0.05", "--num-workers", 1)
    first = ok(trained(shapes, data, tmp_path / "save", *flags, "--max-epoch", 1))
    rows = ledger(tmp_path / "save")
    path = {name: str(data / "train" / f"{name}_examples.tsv") for name in ("vision_language", "text")}
    assert sorted(rows) == sorted(
        [
            [path["vision_language"], "5", *re.split(": ", UNKNOWN_TYPE)],
            [path["text"], "2", "text", "it is empty", "write a text, or leave the row out"],
        ]
    )
    [epoch] = logged(first.output, "train")
    assert epoch["train_bad_rows"] == 2 and epoch["train_bsz"] == 20  # others took their places
    assert f"{path['vision_language']}:5: {UNKNOWN_TYPE} (left out of training; see " in first.output
    # the cap is now just what the ledger holds: 2 of 76 rows
    again = ok(trained(shapes, data, tmp_path / "save", *flags, "--max-epoch", 2, "--max-bad-fraction", "0.03"))
    assert ledger(tmp_path / "save") == rows and "left out of training" not in again.output
    # and with one row more there are too many
    data = spoiled(shapes.root, tmp_path / "more", "train", vision_language=[5, 6], text=[2])
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "more").rename(tmp_path / "data")
    flags = (*flags, "--max-epoch", 3, "--max-bad-fraction", "0.03")
    message = error_of(trained(shapes, tmp_path / "data", tmp_path / "save", *flags))
    assert f"{path['vision_language']}:6: {UNKNOWN_TYPE} (bad row 3 of 76 rows, and --max-bad-fraction allows 2)" in (
        message
    )


@pytest.mark.parametrize(
    ("cap", "words"),
    [("0", (":5: type: 'drawing'",)), ("0.014", ("bad row 2 of 76 rows, and --max-bad-fraction allows 1)",))],
)
def test_training_stops_at_a_bad_row_too_many(shapes, tmp_path, cap, words):
    bad = {"vision_language": [5]} if cap == "0" else {"vision_language": [5], "detection": [3]}
    data = spoiled(shapes.root, tmp_path / "data", "train", **bad)
    flags = ("--disable-validation", "--max-epoch", 1, "--max-bad-fraction", cap)
    message = error_of(trained(shapes, data, tmp_path / "save", *flags))
    assert all(word in message for word in words), message
    assert len(ledger(tmp_path / "save")) == (0 if cap == "0" else 1)


# ---- validation and generation ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoiled_valid(shapes, tmp_path_factory) -> Path:
    """Row 3 of the vision-language file and row 2 of the detection file of `valid` are bad."""
    folder = tmp_path_factory.mktemp("spoiled") / "data"
    return spoiled(shapes.root, folder, "valid", vision_language=[3], detection=[2])


def test_validation_inside_training_stops_at_a_bad_row_or_reports_it(shapes, spoiled_valid, tmp_path):
    """The cap of training has nothing to do with it: there is no bad row in the training files."""
    message = error_of(trained(shapes, spoiled_valid, tmp_path / "stop", "--max-update", 1))
    assert f"{spoiled_valid}/valid/vision_language_examples.tsv:3: {UNKNOWN_TYPE}" in message
    flags = ("--max-update", 2, "--bad-rows", "report", "--max-bad-fraction", "0")
    finished = ok(trained(shapes, spoiled_valid, tmp_path / "report", *flags, "--validate-interval-updates", 1))
    first, second = logged(finished.output, "valid")
    assert first["valid_bad_rows"] == second["valid_bad_rows"] > 0 and second["valid_matching_acc"] >= 0
    assert ledger(tmp_path / "report") == [] and "left out of training" not in finished.output
    named = f"{spoiled_valid}/valid/vision_language_examples.tsv:3: {UNKNOWN_TYPE} (not scored)"
    assert finished.output.count(named) == 1  # though two validations met it in five kinds


def test_generation_stops_at_a_bad_row_and_writes_nothing(shapes, spoiled_valid, pretrained, tmp_path):
    checkpoint = pretrained[0] / "checkpoint_last.pt"
    message = error_of(generated(spoiled_valid, checkpoint, tmp_path / "out"))
    assert f"{spoiled_valid}/valid/vision_language_examples.tsv:3: {UNKNOWN_TYPE}" in message
    assert not list((tmp_path / "out").glob("valid_*.json"))
    log = tmp_path / "log"
    flags = ("--valid-subset", "valid", "--kinds", "detection")
    message = error_of(evaluated("validate", spoiled_valid, checkpoint, log, *flags))
    assert "valid/detection_examples.tsv:2: objects: " in message


def test_reported_rows_have_an_entry_and_the_others_their_scores(shapes, spoiled_valid, pretrained, tmp_path):
    checkpoint = pretrained[0] / "checkpoint_last.pt"
    ok(generated(shapes.root, checkpoint, tmp_path / "good"))
    finished = ok(generated(spoiled_valid, checkpoint, tmp_path / "out", "--bad-rows", "report"))
    good, _ = results(tmp_path / "good")
    entries, scores = results(tmp_path / "out")
    wrong = [entry for entry in entries if "error" in entry]
    of_row = [entry for entry in wrong if "vision_language_examples.tsv:3: " + UNKNOWN_TYPE in entry["error"]]
    of_detection = [entry for entry in wrong if "detection_examples.tsv:2: objects: " in entry["error"]]
    assert of_row and len(of_detection) == 1 and len(wrong) == len(of_row) + 1
    assert {entry["uniq_id"] for entry in of_row} == {2} and of_detection[0]["uniq_id"] == 1
    assert all(set(entry) == {"uniq_id", "error"} for entry in wrong)
    assert scores["rows"] == len(entries) and scores["scored"] == len(entries) - len(wrong)
    rest = [entry for entry in good if entry["uniq_id"] != 2 or "expression" not in entry]
    kept = [entry for entry in entries if "error" not in entry]
    assert kept == [entry for entry in rest if entry in kept] and len(kept) >= len(good) - 3
    assert finished.output.count(UNKNOWN_TYPE) >= 1


def test_captioning_treats_bad_rows_alike(world, captioner, tmp_path):
    """A caption row with a broken picture, one that lacks a column, one that is no UTF-8, among good ones."""
    lines = (world.root / "caption" / "test.tsv").read_bytes().splitlines(keepends=True)
    cells = lines[1].split(b"\t")
    lines[1] = b"\t".join([*cells[:4], b"no picture.png\n"])
    lines[3] = b"\t".join(lines[3].split(b"\t")[:3]) + b"\n"
    lines[5] = lines[5].replace(b"\t", b"\t\xff", 2)
    (tmp_path / "test.tsv").write_bytes(b"".join(lines))
    (tmp_path / "good.tsv").write_bytes(b"".join(line for n, line in enumerate(lines) if n not in (1, 3, 5)))

    def generate(out: str, subset: str, *flags: object) -> Finished:
        return run(
            *("generate", tmp_path, "--user-dir", USER_DIR, "--task", "caption", "--cpu", "--path", captioner),
            *("--gen-subset", subset, "--batch-size", 4, "--num-workers", 0, "--results-path", tmp_path / out, *flags),
            log=tmp_path / f"{out}.log",
        )

    message = error_of(generate("stop", "test"))
    assert "test.tsv:" in message and not list((tmp_path / "stop").glob("*.json"))
    ok(generate("report", "test", "--bad-rows", "report"))
    entries = json.loads((tmp_path / "report" / "test_predict.json").read_text())
    scores = json.loads((tmp_path / "report" / "test_scores.json").read_text())
    assert [number for number, entry in enumerate(entries) if "error" in entry] == [1, 3, 5]
    for number, words in {1: "image: ", 3: "columns", 5: "UTF-8"}.items():
        assert f"test.tsv:{number + 1}: " in entries[number]["error"] and words in entries[number]["error"]
    assert (scores["rows"], scores["scored"]) == (len(lines), len(lines) - 3)
    ok(generate("rest", "good"))
    rest = json.loads((tmp_path / "rest" / "good_predict.json").read_text())
    assert [entry for entry in entries if "error" not in entry] == rest


def test_captioning_leaves_a_few_bad_rows_out_of_training(world, tmp_path):
    lines = (world.root / "caption" / "train.tsv").read_text().splitlines(keepends=True)
    lines[7] = "\t".join([*lines[7].split("\t")[:4], "no picture.png\n"])
    (tmp_path / "train.tsv").write_text("".join(lines))
    flags = (*world.flags("caption")[1:], "--batch-size", 16, "--max-epoch", 1, "--num-workers", 0)
    flags = (tmp_path, *flags, "--disable-validation", "--lr-scheduler", "fixed", "--max-bad-fraction", "0.05")
    finished = ok(run("train", *flags, "--save-dir", tmp_path / "save", log=tmp_path / "log"))
    [row] = ledger(tmp_path / "save")
    assert row[:3] == [str(tmp_path / "train.tsv"), "8", "image"]
    assert '"train_bad_rows": "1"' in finished.output and '"train_bsz": "16"' in finished.output
