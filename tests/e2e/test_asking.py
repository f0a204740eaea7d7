"""An instruction of the user's own on a pretrained checkpoint: what is asked about a marked region."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from tests.helpers.stock import USER_DIR, Finished, error_of, ok, run

ABOUT = ("--instruction", " {question} region: {box}", "--columns", "id,image,question,box,answers")


def asked(entry: str, checkpoint: Path, *flags: object, log: Path, **where: object) -> Finished:
    return run(
        *(entry, "--user-dir", USER_DIR, "--task", "unify_task", "--cpu", "--path", checkpoint, *flags),
        log=log,
        **where,
    )


@pytest.fixture(scope="module")
def answered(shapes, pretrained, tmp_path_factory) -> tuple[str, Path]:
    """What fairseq-generate printed about region_vqa/test.tsv, and its result folder."""
    folder, data = tmp_path_factory.mktemp("asked"), shapes.root / "region_vqa"
    flags = (data, *ABOUT, "--gen-subset", "test", "--batch-size", 4, "--num-workers", 0, "--results-path", folder)
    finished = asked("generate", pretrained[0] / "checkpoint_last.pt", *flags, log=folder / "log")
    return ok(finished).output, folder


def rows(shapes) -> list[list[str]]:
    return [line.split("\t") for line in (shapes.root / "region_vqa" / "test.tsv").read_text().splitlines()]


def test_a_question_about_a_region_is_answered_and_scored(shapes, answered):
    output, folder = answered
    entries = json.loads((folder / "test_predict.json").read_text())
    scores = json.loads((folder / "test_scores.json").read_text())
    assert [entry["uniq_id"] for entry in entries] == list(range(12)) and scores["rows"] == scores["scored"] == 12
    right = sum(entry["answer"] == row[4].split("|!+")[1] for entry, row in zip(entries, rows(shapes), strict=True))
    assert scores["asked_score"] == pytest.approx(right / 12, abs=1e-3)
    assert f"asked_score = {scores['asked_score']} on 12 rows of test" in output
    printed = (folder / "generate-test.txt").read_text()
    for number, row in enumerate(rows(shapes)):
        source = re.search(rf"^S-{number}\t(.*)$", printed, re.M)[1]
        bins = "".join(f"<bin_{round(float(corner) * 99 / 64)}>" for corner in row[3].split(","))
        assert source.replace(" ", "") == f"{row[2]} region:{bins}".replace(" ", "")


def test_a_typed_line_is_asked_like_a_row(shapes, pretrained, answered, tmp_path):
    picked = rows(shapes)[:3]
    for row in picked:
        (tmp_path / f"{row[0]}.png").write_bytes(base64.b64decode(row[1]))
    typed = "".join(f"{row[0]}.png\t{row[2]}\t{row[3]}\n" for row in picked)
    checkpoint = pretrained[0] / "checkpoint_last.pt"
    spoken = ok(asked("interactive", checkpoint, *ABOUT, stdin=typed, cwd=tmp_path, log=tmp_path / "log")).output
    here, there = decoded(spoken), decoded((answered[1] / "generate-test.txt").read_text())
    assert list(here) == [0, 1, 2] and len({score for score, _ in here.values()}) == 3  # rows differ
    for number, (score, text) in here.items():
        assert (score, text) == (pytest.approx(there[number][0], abs=2e-4), there[number][1])


def decoded(printed: str) -> dict[int, tuple[float, str]]:
    """Row to (score, text) of its D- line."""
    found = re.findall(r"^D-(\d+)\t(\S+)\t(.*)$", printed, re.M)
    return {int(number): (float(score), text) for number, score, text in found}


def test_mistakes_are_named(shapes, pretrained, tmp_path):
    checkpoint, data = pretrained[0] / "checkpoint_last.pt", shapes.root / "region_vqa"

    def refused(*flags: object) -> str:
        return error_of(asked("generate", checkpoint, data, *flags, log=tmp_path / "log"))

    message = refused("--instruction", " {colour}?", "--columns", "id,image,question,box,answers")
    assert "--instruction: {colour} is not there to be used; --columns id,image,question,box,answers offers" in message
    assert "--instruction needs --columns" in refused("--instruction", " {question}")
    line = "0.png\twhat is it?\t1,2,900,4\n"
    (tmp_path / "0.png").write_bytes(base64.b64decode(rows(shapes)[0][1]))
    typed = error_of(asked("interactive", checkpoint, *ABOUT, stdin=line, cwd=tmp_path, log=tmp_path / "log"))
    assert "stdin:1: box: " in typed
