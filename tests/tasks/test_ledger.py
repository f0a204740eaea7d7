"""Bad rows: counted against a cap and written down in training, reported in their place where that is asked for."""

from __future__ import annotations

import pytest
import torch

from ofa_plugin.errors import BadRow, UserError
from ofa_plugin.tasks.ledger import Ledger
from tests.helpers.pretraining import (
    caption_row,
    detection_row,
    image_row,
    question_row,
    region_row,
    task_of,
    write_data,
    write_rows,
)


def bad(line, path="a  b/train.tsv", reason="it is\tempty"):
    return BadRow(path, line, "caption", reason, "write one")


def ledger(folder, allowed=3, files=("a  b/train.tsv",)):
    return Ledger(str(folder), set(files), allowed, 100)


def test_each_bad_row_is_written_once(tmp_path, caplog):
    book = ledger(tmp_path / "save")
    assert not (tmp_path / "save").exists()  # no bad row, no file
    assert [row.line for row in book.note([bad(4), bad(2), bad(4)])] == [4, 2]
    assert book.note([bad(2)]) == []
    assert book.path == tmp_path / "save" / "bad_rows.tsv"
    lines = book.path.read_text().split("\n")
    assert lines == [f"a  b/train.tsv\t{line}\tcaption\tit is empty\twrite one" for line in (4, 2)] + [""]
    assert caplog.text.count("left out of training") == 2


def test_one_too_many_stops_and_says_what_is_allowed(tmp_path):
    book = ledger(tmp_path, allowed=1)
    book.note([bad(4)])
    with pytest.raises(BadRow) as caught:
        book.note([bad(9)])
    share = "bad row 2 of 100 rows, and --max-bad-fraction allows 1"
    assert str(caught.value) == f"a  b/train.tsv:9: caption: it is\tempty: write one ({share})"


def test_a_resumed_run_counts_on_and_other_files_do_not_count(tmp_path):
    ledger(tmp_path).note([bad(4), bad(2)])
    ledger(tmp_path, files=("other.tsv",)).note([bad(1, "other.tsv")])
    again = ledger(tmp_path, allowed=2)
    assert again.known == {("a  b/train.tsv", 4), ("a  b/train.tsv", 2)} and again.note([bad(2)]) == []
    with pytest.raises(BadRow, match="bad row 3 of 100"):
        again.note([bad(7)])


def test_every_process_has_a_file_of_its_own_and_reads_all(tmp_path, monkeypatch):
    ledger(tmp_path).note([bad(4)])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    other = ledger(tmp_path)
    assert other.path.name == "bad_rows.rank1.tsv" and other.known == {("a  b/train.tsv", 4)}
    other.note([bad(4), bad(5)])
    assert other.path.read_text().count("\n") == 1


def test_a_line_that_a_killed_run_left_half_written_is_no_row(tmp_path):
    (tmp_path / "bad_rows.tsv").write_text("a  b/train.tsv\t1\tx\ty\tz\na  b")
    assert [row.line for row in ledger(tmp_path).note([bad(1), bad(2)])] == [2]
    assert ledger(tmp_path).known == {("a  b/train.tsv", 1), ("a  b/train.tsv", 2)}


def test_the_cap_is_one_for_all_processes(tmp_path, monkeypatch):
    book = ledger(tmp_path, allowed=3)
    book.note([bad(4)])
    book.count(1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    ledger(tmp_path, allowed=3).note([bad(5), bad(6)])
    book.count(2)  # what the other has noted
    with pytest.raises(UserError, match=r"4 bad rows of 100, and --max-bad-fraction allows 3: see .*bad_rows\*.tsv"):
        book.count(1)
    book.read()
    assert book.met == 3 and book.note([bad(5)]) == []  # the other's are no news to this one


# Through the task


@pytest.fixture
def evaluated(world, monkeypatch):
    """A function as `task_of`, of a task that generates."""
    monkeypatch.setattr("ofa_plugin.tasks.base.saved_task_config", lambda path: {})
    return lambda data, *flags: task_of(world, data, *flags, path="checkpoint.pt")


def test_training_goes_on_without_a_bad_row_and_with_the_next_in_its_place(world, tmp_path):
    data = tmp_path / "data"
    rows = [caption_row("a"), caption_row("b", " "), caption_row("c", "two cats")]
    path = write_rows(data / "train" / "vision_language_examples.tsv", *rows)
    flags = ("--kinds", "caption", "--max-bad-fraction", 0.4, "--save-dir", tmp_path / "save")
    task = task_of(world, data, *flags)
    task.load_dataset("train")
    mixture = task.datasets["train"]
    batch = mixture.collater([mixture[index] for index in range(3)])
    assert batch["parts"]["vision_language"]["uniq_ids"] == ["a", "c", "c"]
    assert task._counts(batch, task._ledger)["n_bad_rows"] == 1 and task._counts(batch, task._ledger)["n_bad_rows"] == 0
    reason = "caption\tit is empty\twrite a caption, or leave the row out\n"
    assert (tmp_path / "save" / "bad_rows.tsv").read_text() == f"{path}\t2\t{reason}"


def test_with_the_default_cap_a_small_file_stops_at_its_first_bad_row(world, tmp_path):
    data = tmp_path / "data"
    path = write_rows(data / "train" / "vision_language_examples.tsv", caption_row("a", ""), caption_row("b"))
    task = task_of(world, data, "--kinds", "caption", "--save-dir", tmp_path / "save")
    task.load_dataset("train")
    mixture = task.datasets["train"]
    with pytest.raises(BadRow) as caught:
        task._counts(mixture.collater([mixture[0], mixture[1]]), task._ledger)
    assert str(caught.value) == (
        f"{path}:1: caption: it is empty: write a caption, or leave the row out "
        "(bad row 1 of 2 rows, and --max-bad-fraction allows 0)"
    )


def test_a_file_of_bad_rows_stops(world, tmp_path):
    data = tmp_path / "data"
    write_rows(data / "train" / "vision_language_examples.tsv", *[caption_row("a", "")] * 3)
    task = task_of(world, data, "--kinds", "caption", "--max-bad-fraction", 0.9)
    task.load_dataset("train")
    mixture = task.datasets["train"]
    with pytest.raises(BadRow, match="1: caption: it is empty"):
        task.train_step(mixture.collater([mixture[0], mixture[1]]), None, None, None, 1)


BAD = {
    "caption": ("vision_language", caption_row(), caption_row("w", "")),
    "vqa": ("vision_language", question_row(), question_row("w", answers="red")),
    "matching": ("vision_language", question_row(), question_row("w", "")),
    "grounding": ("vision_language", region_row(), region_row("w", box="0,0,1")),
    "region_caption": ("vision_language", region_row(), region_row("w", box="0,0,99,9")),
    "text_infilling": ("text", ["t", "a dog"], ["w", " "]),
    "image_infilling": ("image", image_row(), image_row("w", "0 1 2 99")),
    "detection": ("detection", detection_row(), detection_row("w", "no box")),
}


@pytest.mark.parametrize("kind", BAD)
def test_evaluation_stops_at_a_bad_row_or_reports_it_in_its_place(evaluated, tmp_path, kind):
    source, good, wrong = BAD[kind]
    data = write_data(tmp_path / "data", "test", each=1)
    path = write_rows(data / "test" / f"{source}_examples.tsv", good, wrong)
    task = evaluated(data, "--kinds", kind, "--gen-subset", "test")
    task.load_dataset("test")
    dataset = task.datasets["test"]
    with pytest.raises(BadRow) as caught:
        task.valid_step(dataset.collater([dataset[0], dataset[1]]), None, None)
    assert str(caught.value).startswith(f"{path}:2: ")
    task = evaluated(data, "--kinds", kind, "--gen-subset", "test", "--bad-rows", "report")
    task.load_dataset("test")
    dataset = task.datasets["test"]
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["uniq_ids"] == [good[0], "w"] and batch["kind"] == kind
    assert batch["errors"] == [None, str(caught.value)]
    assert batch["references"][0] is not None and batch["references"][1] is None
    assert batch["target"][1].eq(task.codec.pad).all() and batch["id"].tolist() == [0, 1]


def test_other_ways_to_treat_bad_rows_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="--bad-rows skip: one of stop, report"):
        task_of(world, tmp_path, "--bad-rows", "skip")
    with pytest.raises(UserError, match="--max-bad-fraction 1.0: a share of the rows, from 0 to less than 1"):
        task_of(world, tmp_path, "--max-bad-fraction", 1)
