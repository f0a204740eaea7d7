"""Closed answers through the stock entry points: visual entailment, decoder prompts, object labels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.stock import error_of, ok, run

TRAIN = ("--batch-size", 16, "--num-workers", 0, "--lr-scheduler", "fixed", "--max-epoch", 2)


@pytest.fixture(scope="module")
def pairs(world, tmp_path_factory) -> Path:
    """The picture world in snli_ve's columns: each picture with its caption, and with the next picture's."""
    folder = tmp_path_factory.mktemp("snli_ve")
    for split in ("train", "valid", "test"):
        lines = (world.root / "caption" / f"{split}.tsv").read_text().splitlines()
        rows = [line.split("\t") for line in lines]
        written = []
        for number, (row, other) in enumerate(zip(rows, rows[1:] + rows[:1], strict=True)):
            mine, theirs = (cells[2].split("&&")[0] for cells in (row, other))
            label = "entailment" if number % 2 else "neutral" if mine == theirs else "contradiction"
            hypothesis = mine if number % 2 else theirs
            written.append("\t".join((f"p{number}", row[1], row[4], hypothesis, mine, label)))
        written[-1] = "\t".join([*written[-1].split("\t")[:5], "-" if split == "test" else "entailment"])
        (folder / f"{split}.tsv").write_text("\n".join(written) + "\n")
    return folder


def evaluated(data: Path, flags: tuple, save: Path, metric: str, tmp_path: Path) -> tuple[str, list[dict], str]:
    """Of a checkpoint: the metric of fairseq-validate, the result file and what fairseq-generate printed on `test`."""
    common = ("--user-dir", *flags[1:2], "--task", flags[3], "--cpu", "--num-workers", 0)
    common += ("--path", save / "checkpoint_last.pt")
    output = ok(
        run("validate", data, *common, "--batch-size", 5, "--log-format", "json", log=tmp_path / "validate.log")
    ).output
    generate = (data, *common, "--gen-subset", "test", "--results-path", tmp_path / "out", "--batch-size", 4)
    ok(run("generate", *generate, log=tmp_path / "generate.log"))
    entries = json.loads((tmp_path / "out" / "test_predict.json").read_text())
    value = re.findall(rf'"valid_{metric}": "([\d.]+)"', output)[-1]
    return value, entries, (tmp_path / "out" / "generate-test.txt").read_text()


@pytest.mark.parametrize("more", [(), ("--add-caption", "--prompt-type", "prev_output")])
def test_visual_entailment_trains_validates_and_answers(world, pairs, tmp_path, more):
    *_, vocabulary_dir = world.flags("caption")[world.flags("caption").index("--bpe-dir") :][:2]
    nano = world.flags("caption")[1 : world.flags("caption").index("--task")]
    vocabulary = ("--bpe", "sentencepiece", "--bpe-dir", vocabulary_dir, "--num-bins", 10, "--code-dict-size", 8)
    flags = (pairs, *nano, "--task", "snli_ve", *vocabulary, *TRAIN, *more)
    flags += ("--best-checkpoint-metric", "snli_score", "--maximize-best-checkpoint-metric")
    trained = ok(run("train", *flags, "--save-dir", tmp_path / "save", log=tmp_path / "log")).output
    in_training = re.findall(r'"valid_snli_score": "([\d.]+)"', trained)[-1]
    of = ("", nano[1], "", "snli_ve")
    value, entries, printed = evaluated(pairs, of, tmp_path / "save", "snli_score", tmp_path)
    assert value == in_training
    assert [entry["uniq_id"] for entry in entries] == [f"p{number}" for number in range(14)]
    assert {entry["answer"] for entry in entries} <= {"yes", "no", "maybe"}
    assert re.search(r"snli_score = [\d.]+ on 13 rows of test", printed)  # one has no gold label
    asked = "can image and text1" if more else "does the image describe"
    assert all(asked in line for line in printed.splitlines() if line.startswith("S-"))
    answers = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", printed, re.M))  # the prompt is not part of the answer
    assert [answers[str(number)].strip() for number in range(14)] == [entry["answer"] for entry in entries]
    if not more:
        check_inference_types(pairs, nano[1], tmp_path / "save" / "checkpoint_last.pt", entries, tmp_path)


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    """The same result file, but for the rounding of scores in batches of another size."""
    for mine, other in zip(ours, theirs, strict=True):
        assert {**mine, "score": 0} == {**other, "score": 0}
        assert mine["score"] == pytest.approx(other["score"], abs=5e-5)


def check_inference_types(data: Path, user_dir: str, checkpoint: Path, entries: list[dict], tmp_path: Path) -> None:
    """All candidates, the default for a small set, and a search find the same; each refuses what is the other's."""
    generate = (data, "--user-dir", user_dir, "--task", "snli_ve", "--cpu", "--num-workers", 0, "--batch-size", 5)
    generate += ("--path", checkpoint, "--gen-subset", "test", "--beam", 3, "--nbest", 3)
    found = {}
    for kind in ("allcand", "beamsearch"):
        flags = ("--val-inference-type", kind, "--results-path", tmp_path / kind)
        ok(run("generate", *generate, *flags, log=tmp_path / "log"))
        assert_same(json.loads((tmp_path / kind / "test_predict.json").read_text()), entries)
        printed = (tmp_path / kind / "generate-test.txt").read_text()
        found[kind] = re.findall(r"^D-(\d+)\t(\S+)\t(.*)$", printed, re.M)
    assert [(row, text) for row, _, text in found["allcand"]] == [(row, text) for row, _, text in found["beamsearch"]]
    scores = [[float(score) for _, score, _ in found[kind]] for kind in found]
    assert scores[0] == pytest.approx(scores[1], abs=2e-4)
    for row in range(14):  # log2 of probabilities that add up to one
        assert sum(2 ** float(score) for number, score, _ in found["allcand"] if int(number) == row) == pytest.approx(1)
    for flags, message in (
        (("--val-inference-type", "allcand", "--sampling"), "--sampling does not go with --val-inference-type allcand"),
        (("--sampling",), "a closed answer set is searched with --beam"),
        (("--val-inference-type", "most"), "--val-inference-type most: one of allcand, beamsearch"),
    ):
        assert message in error_of(run("generate", *generate, *flags, log=tmp_path / "log"))


def test_an_unknown_label_is_named_with_its_line(world, pairs, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    lines = (pairs / "train.tsv").read_text().splitlines()
    lines[2] = "\t".join([*lines[2].split("\t")[:5], "perhaps"])
    (data / "train.tsv").write_text("\n".join(lines) + "\n")
    flags = [data, *world.flags("caption")[1:], *TRAIN, "--disable-validation", "--save-dir", tmp_path / "save"]
    flags[flags.index("--task") + 1] = "snli_ve"
    message = error_of(run("train", *flags, log=tmp_path / "log"))
    assert f"{data}/train.tsv:3: label: label 'perhaps' is unknown: write one of contradiction" in message


@pytest.mark.parametrize("kind", ["src", "prev_output"])
@pytest.mark.parametrize("answers", ["closed", "free"])
def test_questions_repeated_by_the_decoder(world, tmp_path, kind, answers):
    """The same answers in batches of any size: prompts of different length do not disturb each other."""
    flags = [*world.flags("vqa"), *TRAIN, "--prompt-type", kind, "--save-dir", tmp_path / "save"]
    if answers == "free":
        where = flags.index("--ans2label-file")
        flags[where : where + 2] = ["--unconstrained-training"]
    trained = ok(run("train", *flags, log=tmp_path / "log")).output
    in_training = re.findall(r'"valid_vqa_score": "([\d.]+)"', trained)[-1]
    of = ("", world.flags("vqa")[2], "", "vqa_gen")
    value, entries, printed = evaluated(world.root / "vqa", of, tmp_path / "save", "vqa_score", tmp_path)
    assert value == in_training
    generate = (world.root / "vqa", "--user-dir", of[1], "--task", "vqa_gen", "--cpu", "--num-workers", 0)
    generate += ("--path", tmp_path / "save" / "checkpoint_last.pt", "--gen-subset", "test", "--batch-size", 14)
    ok(run("generate", *generate, "--results-path", tmp_path / "all", log=tmp_path / "log"))
    assert_same(json.loads((tmp_path / "all" / "test_predict.json").read_text()), entries)
    assert not any("?" in entry["answer"] for entry in entries)
    scores = re.findall(r"^P-\d+\t(.*)$", printed, re.M)
    tokens = re.findall(r"^H-\d+\t\S+\t(.*)$", printed, re.M)
    assert [len(line.split()) for line in scores] == [len(line.split()) + 1 for line in tokens]  # the end symbol too
    refused = error_of(run("generate", *generate, "--prefix-size", 1, log=tmp_path / "log"))
    assert "--prefix-size does not go with --prompt-type" in refused


def test_a_prompt_of_another_kind_is_refused(world, tmp_path):
    flags = (*world.flags("vqa"), *TRAIN, "--prompt-type", "both", "--save-dir", tmp_path / "save")
    assert "--prompt-type both: one of none, src, prev_output" in error_of(run("train", *flags, log=tmp_path / "log"))


def test_every_row_with_answers_of_its_own(world, tmp_path):
    """Multiple choice: trained, validated and answered among the row's own answers, and typed with them."""
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "valid", "test"):
        rows = [line.split("\t") for line in (world.root / "vqa" / f"{split}.tsv").read_text().splitlines()]
        right = [max(row[3].split("&&")).partition("|!+")[2] for row in rows]
        for row, answer in zip(rows, right, strict=True):
            row.append("&&".join(dict.fromkeys([answer, "perhaps a red one", "no idea"])))
        (data / f"{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    columns = ("--multiple-choice", "--selected-cols", f"0,5,2,3,-,-,{len(rows[0]) - 1}")
    flags = [data, *world.flags("vqa")[1:], *TRAIN]
    where = flags.index("--ans2label-file")
    flags[where : where + 2] = columns
    trained = ok(run("train", *flags, "--save-dir", tmp_path / "save", log=tmp_path / "log")).output
    of = ("", world.flags("vqa")[2], "", "vqa_gen")
    value, entries, _ = evaluated(data, of, tmp_path / "save", "vqa_score", tmp_path)
    assert value == re.findall(r'"valid_vqa_score": "([\d.]+)"', trained)[-1]
    for row, entry in zip(rows, entries, strict=True):
        assert entry["answer"] in row[-1].split("&&")
    generate = (data, "--user-dir", of[1], "--task", "vqa_gen", "--cpu", "--num-workers", 0, "--gen-subset", "test")
    generate += ("--path", tmp_path / "save" / "checkpoint_last.pt")
    refused = error_of(run("generate", *generate, "--sampling", "--nbest", 5, log=tmp_path / "log"))
    assert "--sampling does not go with --multiple-choice" in refused
    refused = error_of(run("generate", *generate, "--selected-cols", "0,5,2,3,4", log=tmp_path / "log"))
    assert "--multiple-choice reads a seventh column, but --selected-cols names none" in refused
    (data / "test.tsv").write_text("\t".join([*rows[0][:-1], "red&&&&blue"]) + "\n")
    refused = error_of(run("generate", *generate, log=tmp_path / "log"))
    assert "test.tsv:1: choices: 'red&&&&blue': one of them is empty: write the row's answers, joined by &&" in refused
