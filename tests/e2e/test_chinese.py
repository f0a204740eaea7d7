"""Chinese captions through the stock entry points, with a vocabulary of a few dozen pieces."""

from __future__ import annotations

import json
import re
import shutil

from tests.helpers.cases import entries
from tests.helpers.chinese import CAPTIONS, write_captions, write_wordpiece
from tests.helpers.stock import NANO, USER_DIR, error_of, ok, run


def test_chinese_captions_are_learned_and_generated(tmp_path):
    data = write_captions(tmp_path / "data", "train", "test")
    folder = write_wordpiece(tmp_path / "bpe")
    flags = ("--task", "caption", "--bpe", "bert", "--bpe-dir", folder, "--num-bins", 10, "--code-dict-size", 8)
    limits = ("--batch-size", 4, "--max-update", 80, "--lr", "2e-3", "--patch-image-size", 32, "--num-workers", 0)
    where = ("--disable-validation", "--save-dir", tmp_path / "save", "--log-interval", 40)
    trained = run("train", data, *NANO, *flags, *limits, "--lr-scheduler", "fixed", *where, log=tmp_path / "train.log")
    ok(trained)

    checkpoint = tmp_path / "save" / "checkpoint_last.pt"
    generate = ("generate", data, "--user-dir", USER_DIR, "--task", "caption", "--cpu", "--path", checkpoint)
    generate += ("--gen-subset", "test", "--num-workers", 0, "--results-path", tmp_path / "out")
    ok(run(*generate, log=tmp_path / "generate.log"))
    spaced = [" ".join(caption) for caption in CAPTIONS.values()]
    assert [entry["caption"] for entry in entries(tmp_path / "out")] == spaced
    printed = (tmp_path / "out" / "generate-test.txt").read_text(encoding="utf-8")
    assert set(re.findall(r"^S-\d+\t(.*)$", printed, re.M)) == {"图 片 描 述 了 什 么 内 容?"}
    shown = dict(re.findall(r"^D-(\d+)\t\S+\t(.*)$", printed, re.M))
    assert [shown[str(row)] for row in range(4)] == spaced
    assert dict(re.findall(r"^T-(\d+)\t(.*)$", printed, re.M)) == shown
    [score] = re.findall(r"cider = ([\d.]+) on 4 rows", printed)
    assert float(score) > 5  # references stand without spaces in the file

    shutil.move(folder, tmp_path / "moved")
    assert f"no longer in {folder}" in error_of(run(*generate, log=tmp_path / "gone.log"))
    ok(run(*generate, "--bpe-dir", tmp_path / "moved", log=tmp_path / "found.log"))
    saved = json.loads((tmp_path / "out" / "test_predict.json").read_text(encoding="utf-8"))
    assert [entry["caption"] for entry in saved] == spaced
