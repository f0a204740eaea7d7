"""Mistakes of the user's through the stock entry points: one line that says where and what to do, and no half files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.cases import caption_row, entries, generate, left_in, picture, train, vqa_row
from tests.helpers.stock import error_of, ok, run

GOOD = "".join(caption_row(number) for number in range(4))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A captioning TSV of four good rows."""
    (tmp_path / "good.tsv").write_text(GOOD)
    return tmp_path / "good.tsv"


@pytest.fixture
def refused(world, tmp_path):
    """Trains, expects an error that holds each of `words` and a save folder without a file."""

    def check(data: Path | str, *flags: object, words: tuple[str, ...], task: str = "caption") -> None:
        message = error_of(train(world, data, tmp_path / "save", *flags, task=task))
        for word in words:
            assert word in message, message
        assert left_in(tmp_path / "save") == []

    return check


@pytest.fixture
def not_generated(captioner, tmp_path):
    """Generates, expects an error that holds each of `words` and a result folder without a file."""

    def check(
        data: Path | str, *flags: object, words: tuple[str, ...], checkpoint: Path = captioner, task: str = "caption"
    ) -> None:
        message = error_of(generate(data, checkpoint, tmp_path / "out", *flags, task=task))
        for word in words:
            assert word in message, message
        assert left_in(tmp_path / "out") == []

    return check


def reordered(world, folder: Path) -> Path:
    """The world's vocabulary with the same symbols in another order."""
    shutil.copytree(world.root / "bpe", folder)
    lines = (folder / "dict.txt").read_text(encoding="utf-8").split("\n")[:-1]
    (folder / "dict.txt").write_text("\n".join([*lines[1:], lines[0], ""]), encoding="utf-8")
    return folder


# ---- flags -----------------------------------------------------------------------------------------------------------


def test_the_training_file_is_not_scored_under_its_own_name(world, tmp_path):
    flags = (*world.flags("caption"), "--valid-subset", "train", "--batch-size", 4, "--save-dir", tmp_path / "save")
    message = error_of(run("train", *flags, log=tmp_path / "log"))
    assert "--valid-subset train is trained on as well" in message
    assert "copy the file under another name" in message and "--disable-validation" in message


def test_no_data_at_all(world, tmp_path):
    flags = (*world.flags("caption")[1:], "--batch-size", 2, "--save-dir", tmp_path / "save")
    message = error_of(run("train", *flags, log=tmp_path / "log"))
    assert "no data: give a folder with <subset>.tsv" in message and left_in(tmp_path / "save") == []


def test_a_missing_bpe_dir(refused, good, tmp_path):
    missing = tmp_path / "nowhere"
    refused(good, "--bpe-dir", missing, words=(f"--bpe-dir {missing}", "no such folder"))
    refused(good, "--bpe-dir", "", words=("--bpe-dir is missing", "ofa train-bpe"))


def test_a_bpe_dir_of_the_wrong_kind(refused, good, world):
    refused(good, "--bpe", "gpt2", words=(f"--bpe-dir {world.root / 'bpe'}", "add --bpe sentencepiece"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{beam: 5}", ("--eval-args is no JSON", '{"beam": 5}')),
        ("[5]", ("--eval-args [5] is no JSON object", '{"beam": 5}')),
        ('{"beams": 5}', ("--eval-args: 'beams' is no setting", "known: beam, ")),
        ('{"beam": "five"}', ("--eval-args: beam is a whole number (by default 5), not 'five'",)),
    ],
)
def test_eval_args_that_are_no_settings(refused, good, text, words):
    refused(good, "--eval-args", text, words=words)


def test_columns_that_the_flag_or_the_file_has_not(refused, good):
    refused(good, "--selected-cols", "0,x,2", words=("--selected-cols '0,x,2'", "0,4,2"))
    refused(good, "--selected-cols", "0,9,2", words=(f"{good}:", ": image: 5 columns, but column 9", "--selected-cols"))
    refused(good, "--selected-cols", "0,4", words=("--selected-cols 0,4 names 2 columns", "id, image, caption"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ("--ans2label-file FILE", "--unconstrained-training")),
        (("--ans2label-file", "nowhere.txt"), ("--ans2label-file nowhere.txt", "no such file")),
        (("--ans2label-dict", '{"no": 0'), ("--ans2label-dict", "not readable as an answer set")),
        (("--ans2label-dict", '["no", "no"]'), ("--ans2label-dict: answer 2 ('no') is there twice", "remove it")),
    ],
)
def test_an_answer_set_that_is_none(world, tmp_path, flags, words):
    (tmp_path / "vqa.tsv").write_text(vqa_row(1))
    given = [word for word in world.flags("vqa")[1:] if not str(word).endswith("answers.txt")]
    given.remove("--ans2label-file")
    finished = run(
        *("train", tmp_path / "vqa.tsv", *given, "--batch-size", 2, "--max-update", 1),
        *("--save-dir", tmp_path / "save", *flags),
        log=tmp_path / "train.log",
    )
    message = error_of(finished)
    assert all(word in message for word in words), message
    assert left_in(tmp_path / "save") == []


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_missing_subset_lists_those_there_are(refused, not_generated, tmp_path, world):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.tsv").write_text(GOOD)
    refused(
        data, "--train-subset", "trian", words=("trian.tsv: no such file", "found in", ": train;", "--train-subset")
    )
    not_generated(data, words=(f"{data}/test.tsv: no such file", ": train;", "--gen-subset"))


def test_a_missing_validation_subset_is_told_before_training(world, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.tsv").write_text(GOOD)
    finished = run(
        *("train", data, *world.flags("caption")[1:], "--batch-size", 2, "--max-update", 1),
        *("--save-dir", tmp_path / "save"),
        log=tmp_path / "train.log",
    )
    message = error_of(finished)
    assert "valid.tsv: no such file" in message and "--disable-validation" in message
    assert left_in(tmp_path / "save") == [] and "train_inner" not in finished.output


def test_an_empty_file(refused, not_generated, tmp_path):
    empty = tmp_path / "empty.tsv"
    empty.write_text("")
    refused(empty, words=(f"{empty} is empty", "at least one row"))
    not_generated(empty, words=(f"{empty} is empty", "at least one row"))


def test_missing_data(refused, not_generated):
    refused("nowhere.tsv", words=("nowhere.tsv: no such file or folder", "DATA"))
    not_generated("here.tsv,nowhere.tsv", words=("no such file or folder (a comma separates files", "DATA"))


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_another_number_of_columns(refused, tmp_path, workers):
    (tmp_path / "rows.tsv").write_text(GOOD + "9\t9\ta\ttab\t\t" + picture() + "\n")
    words = (f"{tmp_path}/rows.tsv:5: row: 6 columns, the file's first row has 5", "a tab inside a text?")
    refused(tmp_path / "rows.tsv", "--num-workers", workers, "--max-update", 3, words=words)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (picture()[:60], (":5: image: ", "--lenient-images")),
        ("photos/absent.jpg", (":5: image: no picture 'photos/absent.jpg'", "check the path")),
        ("../good.tsv", (":5: image: '../good.tsv' leaves the data folder", "without ..")),
        ("bm8gcGljdHVyZQ==", (":5: image: 10 bytes that are no picture", "JPEG")),
    ],
    ids=["cut short", "absent", "outside", "no picture"],
)
def test_a_picture_that_cannot_be_read(refused, not_generated, tmp_path, image, words):
    data = tmp_path / "rows.tsv"
    data.write_text(GOOD + caption_row(9, image=image))
    refused(data, "--max-update", 3, words=words)
    not_generated(data, words=(f"{data}{words[0]}", *words[1:]))  # two batches had been answered before it


def test_several_bad_rows_of_a_batch_are_counted(not_generated, tmp_path):
    data = tmp_path / "rows.tsv"
    data.write_text("".join(caption_row(number, image="absent.png") for number in range(3)))
    not_generated(data, "--batch-size", 3, words=(f"{data}:1: image:", "(2 more bad rows in this batch)"))


def test_a_bad_row_that_validation_meets(world, good, tmp_path):
    bad = tmp_path / "bad.tsv"
    bad.write_text(GOOD + caption_row(9, image="absent.png"))
    finished = run(
        *("train", f"{good},{bad}", *world.flags("caption")[1:], "--batch-size", 4, "--max-epoch", 1),
        *("--num-workers", 0, "--save-dir", tmp_path / "save"),
        log=tmp_path / "train.log",
    )
    assert f"{bad}:5: image: no picture 'absent.png'" in error_of(finished)
    assert left_in(tmp_path / "save") == []


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ("1.0|!+maybe", ("no answer of this row is in", "answers.txt (maybe)", "add one to the set")),
        ("1.0|!+yes|!+no", ("1.0|!+yes",)),
        ("sure|!+yes", ("'sure'", "1.0|!+yes")),
        ("", ("1.0|!+yes",)),
    ],
)
def test_answers_that_cannot_be_learned(refused, tmp_path, world, answers, words):
    data = tmp_path / "vqa.tsv"
    data.write_text(vqa_row(1) + vqa_row(2, answers))
    refused(data, words=(f"{data}:2: answers: ", *words), task="vqa")


def test_an_empty_caption_is_no_target_but_can_be_answered(refused, captioner, tmp_path):
    data = tmp_path / "rows.tsv"
    data.write_text("".join(caption_row(number, "") for number in range(3)))
    refused(data, words=(f"{data}:", ": caption: it is empty", "leave the row out"))
    finished = ok(generate(data, captioner, tmp_path / "out"))
    assert "3 of 3 rows have no reference and are not scored" in finished.output
    assert "cider not computed: no row of test has a reference" in finished.output
    assert len(entries(tmp_path / "out")) == 3


# ---- lengths ---------------------------------------------------------------------------------------------------------


def test_answers_longer_than_the_decoder(not_generated, good):
    not_generated(good, "--max-len-b", 256, words=("--max-len-b 256", "256 positions", "--max-target-positions"))


def test_a_source_longer_than_the_encoder(refused, not_generated, answerer, tmp_path):
    data = tmp_path / "vqa.tsv"
    data.write_text(vqa_row(1, question=" ".join(["q7x#"] * 128)))
    words = ("--max-source-positions", "256", "--max-src-length")
    refused(data, words=words, task="vqa")
    not_generated(data, words=words, checkpoint=answerer, task="vqa")


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_vocabulary_in_another_order_is_refused(refused, not_generated, captioner, good, world, tmp_path):
    other = reordered(world, tmp_path / "other")
    words = ("was trained with another vocabulary (of the same size, in another order)", "--bpe-dir", "--num-bins")
    refused(good, "--bpe-dir", other, "--restore-file", captioner, words=(str(captioner), *words))
    refused(good, "--bpe-dir", other, "--finetune-from-model", captioner, words=(str(captioner), *words))
    not_generated(good, "--bpe-dir", other, words=(f"--bpe-dir {other} is another vocabulary", "leave the flag out"))


def test_a_vocabulary_of_another_size_is_refused(refused, captioner, good):
    refused(
        good, "--num-bins", 4, "--restore-file", captioner, words=(str(captioner), "another vocabulary", "--num-bins")
    )


def test_an_architecture_that_is_not_the_checkpoints(refused, captioner, good):
    refused(good, "--arch", "ofa_tiny", "--restore-file", captioner, words=(str(captioner), "another size", "--arch"))


def test_a_checkpoint_that_is_not_there(refused, not_generated, good, tmp_path):
    missing = tmp_path / "nowhere.pt"
    refused(good, "--restore-file", missing, words=(f"--restore-file {missing}: no such file", "from scratch"))
    not_generated(good, checkpoint=missing, words=(f"--path {missing}: no such file", "check the path"))


def test_gradients_that_are_no_numbers_name_the_update_and_what_to_do(world, tmp_path):
    command = ("train", *world.flags("caption"), "--batch-size", 16, "--max-update", 6, "--num-workers", 0)
    limits = ("--lr-scheduler", "fixed", "--lr", "1e9", "--disable-validation", "--save-dir", tmp_path / "save")
    message = error_of(run(*command, *limits, log=tmp_path / "train.log"))
    assert "update " in message and "train.tsv:" in message and "--lr" in message


def test_an_unknown_metric_to_choose_by_is_named_with_those_there_are(world, tmp_path):
    command = ("train", *world.flags("caption"), "--batch-size", 16, "--max-update", 1, "--num-workers", 0)
    limits = ("--lr-scheduler", "fixed", "--best-checkpoint-metric", "ciderr", "--save-dir", tmp_path / "save")
    message = error_of(run(*command, *limits, log=tmp_path / "train.log"))
    assert "--best-checkpoint-metric ciderr: validation logs bleu1, bleu2, bleu3, bleu4, bsz, cider, loss" in message


def test_an_unknown_metric_to_choose_by_is_named_in_a_resumed_run_too(world, tmp_path):
    """Stock looks for the best value so far before the task is asked: KeyError."""
    command = ("train", *world.flags("caption"), "--batch-size", 16, "--num-workers", 0, "--lr-scheduler", "fixed")
    command += ("--save-dir", tmp_path / "save")
    ok(run(*command, "--max-update", 1, log=tmp_path / "train.log"))
    finished = run(*command, "--max-update", 2, "--best-checkpoint-metric", "ciderr", log=tmp_path / "train.log")
    assert "--best-checkpoint-metric ciderr: validation logs bleu1, bleu2, bleu3, bleu4, bsz, cider, loss" in error_of(
        finished
    )


@pytest.mark.parametrize("flag", ["--batch-size", "--max-tgt-length", "--max-src-length", "--patch-image-size"])
def test_a_size_of_nothing_is_refused_by_its_flag(world, tmp_path, flag):
    command = ("train", *world.flags("caption"), "--batch-size", 16, "--max-update", 1, "--num-workers", 0)
    limits = ("--lr-scheduler", "fixed", "--disable-validation", "--save-dir", tmp_path / "save", flag, 0)
    assert f"{flag} 0" in error_of(run(*command, *limits, log=tmp_path / "train.log"))
