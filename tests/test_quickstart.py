"""The quickstart's own steps; `.ci/run` walks the whole way with QUICK=1."""

from __future__ import annotations

import json
import sys

import pytest

from ofa_plugin import quickstart
from ofa_plugin.errors import UserError


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(UserError, match="name another folder"):
        quickstart._empty(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_an_earlier_run_makes_way(tmp_path):
    quickstart._empty(tmp_path / "new")
    (tmp_path / "new" / "old.tsv").touch()
    quickstart._empty(tmp_path / "new")
    assert [file.name for file in (tmp_path / "new").iterdir()] == [".made-by-quickstart"]


def test_shuffling_changes_the_pictures_and_nothing_else(tmp_path, world):
    quickstart._shuffle_pictures(world.root / "test", tmp_path / "shuffled")
    names = sorted(file.name for file in (tmp_path / "shuffled").iterdir())
    assert names == [f"{source}_examples.tsv" for source in ("detection", "image", "vision_language")]  # and no texts
    for name in names:
        before, after = (quickstart._cells(folder / name) for folder in (world.root / "test", tmp_path / "shuffled"))
        assert [row[:1] + row[2:] for row in before] == [row[:1] + row[2:] for row in after]
        assert all(one[1] != other[1] for one, other in zip(before, after, strict=True))
        assert sorted(row[1] for row in before) == sorted(row[1] for row in after)


def test_one_core_computes_what_two_would(tmp_path, monkeypatch):
    """The batches of an update are the same: shared out, or one after the other."""
    started = []
    monkeypatch.setattr(
        quickstart, "_run_all", lambda out, commands: "train-backbone" in commands or started.append(commands)
    )
    for cores in (1, 2, 8):
        monkeypatch.setattr(quickstart, "_cores", lambda cores=cores: cores)
        quickstart._train(tmp_path, batches=4, updates=6)
    words = [[list(map(str, command)) for command in commands.values()] for commands in started]
    flags = ("--distributed-world-size", "--update-freq")
    assert [[first[first.index(flag) + 1] for flag in flags] for first, *_ in words] == [["1", "2"], *[["2", "1"]] * 2]
    assert [len(commands) for commands in words] == [1, 2, 2]
    assert [command[-2:] for command in words[1]] == [["--distributed-rank", "0"], ["--distributed-rank", "1"]]
    assert "--distributed-init-method" not in words[0][0]


@pytest.mark.parametrize(
    ("instructions", "gpu", "updates"), [("AVX2", False, 450), ("AVX2", True, 700), ("AVX512", False, 700)]
)
def test_processors_without_avx512_do_fewer_updates(monkeypatch, instructions, gpu, updates):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(quickstart, "_has_gpu", lambda: gpu)
    assert quickstart._updates() == updates


def test_a_failed_command_ends_the_others_and_is_shown(tmp_path, capsys):
    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    fail = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    with pytest.raises(SystemExit, match="second ended with exit code 1; its whole output: .*second.log"):
        quickstart._run_all(tmp_path, {"first": wait, "second": fail})
    assert "no such thing" in capsys.readouterr().err


def test_the_progress_is_that_of_the_last_line(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("| loading\n")
    assert quickstart._progress(log) == ""
    for update in (10, 20):
        state = {"num_updates": str(update), "eta_min": "3.5", "accuracy_vqa": "41.6", "accuracy_caption": "50"}
        with log.open("a") as file:
            file.write(f"2026 | INFO | train_inner | {json.dumps(state)}\n")
    assert quickstart._progress(log) == "update 20, 3.5 minutes left; tokens right: caption 50 %, vqa 42 %"


@pytest.mark.parametrize(
    ("cider", "accuracy", "passed"), [(3.0, 0.6, True), (2.9, 0.6, False), (3.0, 0.54, False), (0.0, 0.0, False)]
)
def test_the_gate(tmp_path, monkeypatch, capsys, cider, accuracy, passed):
    """Twice the best guess for captions, fifteen points more for questions."""
    (tmp_path / "results").mkdir()
    for subset, scores in (("test", (cider, accuracy)), ("shuffled", (1.0, 0.2))):
        text = json.dumps(dict(zip(("cider", "vqa_score"), scores, strict=True)))
        (tmp_path / "results" / f"{subset}_scores.json").write_text(text)
    guesses = dict.fromkeys(quickstart.TABLE, 0.1) | {"caption": 1.5, "vqa": 0.4}
    monkeypatch.setattr(quickstart, "_guesses", lambda data, examples: guesses)
    assert quickstart._report(tmp_path, {}) is passed
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[3:6] == [f"{cider:.2f}", "1.00", "1.50"]
    assert printed[2].split()[3:9] == [f"{100 * accuracy:.1f}", "%", "20.0", "%", "40.0", "%"]
