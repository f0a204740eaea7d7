"""Answer sets as the official pickles have them: read where plain, refused where they could do anything else."""

from __future__ import annotations

import os
import pickle

import pytest

from ofa_plugin.data import answers
from ofa_plugin.data.answers import read_answers
from ofa_plugin.errors import UserError


class Order(str):
    """Something that is no plain value."""


class Shell:
    """Would run a command when it is read."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_official_pickles_are_read_in_the_order_of_their_keys(tmp_path, protocol):
    """`trainval_ans2label.pkl` and `class2label_new.pkl`: text to number, of which only the order counts."""
    file = tmp_path / "trainval_ans2label.pkl"
    file.write_bytes(pickle.dumps({"yes": 1, "no": 0, "tabby, tabby cat": 2, "日本": 3}, protocol))
    assert read_answers(str(file)) == ["yes", "no", "tabby, tabby cat", "日本"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_a_command_runs_nothing(tmp_path, protocol):
    file, trace = tmp_path / "a.pkl", tmp_path / "trace"
    for content in ({"yes": Shell(f"touch {trace}")}, [Shell(f"touch {trace}")], {"yes": Order("x")}):
        file.write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(UserError, match=r"--ans2label-file .*a\.pkl: not readable as an answer set \(it names "):
            read_answers(str(file))
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        b"\x80\x04.",
        b"(lp0\nV",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"Pother\n.",
        b"]R.",
    ],
)
def test_what_is_no_pickle_is_one_clear_line(tmp_path, content):
    file = tmp_path / "a.pkl"
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=r"^--ans2label-file .*a\.pkl: not readable as an answer set \(.*; write a text"
    ):
        read_answers(str(file))


def test_a_pickle_of_other_things_and_one_too_large(tmp_path, monkeypatch):
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps({1: "yes"}))
    with pytest.raises(UserError, match="expected a list of texts, or a dict with answers as keys"):
        read_answers(str(file))
    monkeypatch.setattr(answers, "LARGEST", 3)
    with pytest.raises(UserError, match=rf"a\.pkl: {file.stat().st_size} bytes, too many for an answer set"):
        read_answers(str(file))
