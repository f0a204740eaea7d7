"""`ofa cider-df`."""

from __future__ import annotations

import json
import pickle

import pytest

from ofa_plugin import cli
from ofa_plugin.tasks.metrics import count_frequencies, read_frequencies


def rows(path, *lines):
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_rows_of_one_image_are_one_document(tmp_path, capsys):
    first = rows(tmp_path / "a.tsv", ("0", "7", "A red bus."), ("1", "7", "the bus"), ("2", "8", ""))
    second = rows(tmp_path / "b.tsv", ("3", "9", "two men&&a man, sitting"))
    out = tmp_path / "new" / "df.json"
    assert cli.main(["cider-df", str(out), first, second]) == 0
    assert read_frequencies(str(out), "--x") == count_frequencies(
        [["A red bus", "the bus"], ["two men", "a man sitting"]]
    )
    printed = capsys.readouterr().out
    assert "of 2 images, counted on 4 captions, 1 rows without one left out: --scst-cider-cached-tokens " in printed
    origin = json.loads(out.read_text())["origin"]
    assert origin["made_by"].startswith("ofa cider-df ") and origin["files"] == ["a.tsv", "b.tsv"]
    assert (origin["captions"], origin["rows_left_out"]) == (4, 1)


def test_the_official_cache_is_converted(tmp_path, capsys):
    counted = count_frequencies([["a bus"], ["a man"]])
    (tmp_path / "words.p").write_bytes(pickle.dumps({"document_frequency": dict(counted.counts), "ref_len": 2.0}))
    assert cli.main(["cider-df", str(tmp_path / "df.json"), "--from-official", str(tmp_path / "words.p")]) == 0
    assert read_frequencies(str(tmp_path / "df.json"), "--x") == counted
    assert f"of 2 images, converted from {tmp_path / 'words.p'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["df.json"], "give TSV files to count on, or --from-official FILE"),
        (["df.json", "a.tsv", "--from-official", "x.p"], "give TSV files to count on, or --from-official FILE"),
        (["train.tsv", "a.tsv"], "train.tsv: give the file to write a name that ends in .json"),
        (["df.json", "none.tsv"], "none.tsv"),
        (["df.json", "a.tsv", "--columns", "1"], "--columns 1 names 1 columns, not the 2 needed: id, captions"),
        (["df.json", "a.tsv", "--columns", "1,9"], "a.tsv:1: captions: 3 columns, but column 9 was selected"),
        (["df.json", "a.tsv", "--columns", "0,1"], "a.tsv:1: no image id: check --columns 0,1"),
        (["df.json", "empty.tsv"], "empty.tsv: no caption in column 2: check --columns"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "a.tsv", ("", "7", "a bus"))
    rows(tmp_path / "empty.tsv", ("0", "7", ""))
    assert cli.main(["cider-df", *arguments]) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "df.json").exists()
