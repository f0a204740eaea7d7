"""`fairseq-generate` in several processes: one result, that of a single process."""

from __future__ import annotations

import json
import re

import pytest

from tests.helpers.stock import USER_DIR, error_of, ok, run


@pytest.fixture
def generated(shapes, pretrained, tmp_path):
    """Runs `fairseq-generate` on all kinds of the small world; gives how it ended and the folder of its results."""

    def generate(name: str, *flags: object, data=None):
        out = tmp_path / name
        finished = run(
            *("generate", data or shapes.root, "--user-dir", USER_DIR, "--task", "unify_task", "--cpu"),
            *("--path", pretrained[0] / "checkpoint_last.pt", "--gen-subset", "valid", "--batch-size", 3),
            *("--num-workers", 0, "--results-path", out, *flags),
            log=tmp_path / "log",
        )
        return finished, out

    return generate


def contents(out) -> tuple:
    entries, scores = (json.loads((out / f"valid_{kind}.json").read_text()) for kind in ("predict", "scores"))
    lines = (out / "generate-valid.txt").read_text().splitlines()
    numbered = [(int(found[1]), line) for line in lines if (found := re.match(r"[A-Z]-(\d+)\t", line))]
    return entries, scores, [line for _, line in sorted(numbered, key=lambda one: one[0])], lines[-1]


def test_two_processes_give_the_result_of_one(generated):
    one, alone = generated("one")
    two, together = generated("two", "--distributed-world-size", 2)
    ok(one), ok(two)
    entries, scores, lines, last = contents(together)
    expected, expected_scores, expected_lines, expected_last = contents(alone)
    assert scores == expected_scores
    for mine, other in zip(entries, expected, strict=True):
        assert mine | {"score": None} == other | {"score": None}
        assert mine["score"] == pytest.approx(other["score"], abs=2e-5)
    assert [line.split("\t")[0] for line in lines] == [line.split("\t")[0] for line in expected_lines]
    words = [[line for line in of if line[:2] in ("S-", "T-")] for of in (lines, expected_lines)]
    assert words[0] == words[1]
    assert last.partition(": ")[2] == expected_last.partition(": ")[2] and last.partition(": ")[2] in two.output
    assert sorted(path.name for path in together.iterdir()) == sorted(path.name for path in alone.iterdir())


def test_more_processes_than_batches(generated):
    few = ("--kinds", "detection", "--batch-size", 8)
    one, alone = generated("one", *few)
    three, together = generated("three", *few, "--distributed-world-size", 3)
    ok(one), ok(three)
    assert contents(together)[1] == contents(alone)[1]


def test_a_process_that_fails_ends_all_and_is_named(generated, shapes, tmp_path):
    (tmp_path / "data").mkdir()
    for path in shapes.root.iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    (tmp_path / "data" / "valid").unlink()
    (tmp_path / "data" / "valid").mkdir()
    for path in (shapes.root / "valid").iterdir():
        (tmp_path / "data" / "valid" / path.name).write_bytes(path.read_bytes())
    rows = (tmp_path / "data" / "valid" / "detection_examples.tsv").read_text().splitlines()
    rows[-1] = "\t".join([*rows[-1].split("\t")[:2], "1,2,3"])
    (tmp_path / "data" / "valid" / "detection_examples.tsv").write_text("\n".join(rows) + "\n")
    finished, out = generated("out", "--distributed-world-size", 2, data=tmp_path / "data")
    assert re.search(r"process [01] of 2 failed: .*detection_examples.tsv:8: objects: ", error_of(finished))
    assert not list(out.iterdir())


def test_several_processes_need_a_folder(shapes, pretrained, tmp_path):
    finished = run(
        *("generate", shapes.root, "--user-dir", USER_DIR, "--task", "unify_task", "--cpu", "--batch-size", 3),
        *("--path", pretrained[0] / "checkpoint_last.pt", "--distributed-world-size", 2),
        log=tmp_path / "log",
    )
    assert "several processes write files: add --results-path" in error_of(finished)
