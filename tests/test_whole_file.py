"""Files that are there whole, or not at all."""

from __future__ import annotations

import stat

import pytest

from ofa_plugin.whole_file import replacing


@pytest.mark.parametrize("shared", [True, False])
def test_an_error_leaves_the_old_file_and_no_rest(tmp_path, shared):
    path = tmp_path / "answers.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path, text=True, shared=shared) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_that_write_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "index.npy"
    with replacing(path) as one, replacing(path) as other:
        one.write(b"one" * 1000)
        other.write(b"other")
        assert not path.exists()
    assert path.read_bytes() == b"one" * 1000 and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    path = tmp_path / "checkpoint_last.pt"
    path.with_name(f"{path.name}.tmp").write_bytes(b"half of a gigabyte")
    with replacing(path, shared=False) as file:
        file.write(b"all")
    assert path.read_bytes() == b"all" and list(tmp_path.iterdir()) == [path]


def test_others_may_read_it_as_they_may_any_new_file(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "trie.npz"
    plain.write_text("")
    with replacing(path) as file:
        file.write(b"tree")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_text_has_plain_newlines_in_utf_8(tmp_path):
    with replacing(tmp_path / "text", text=True) as file:
        file.write("Grüße\n")
    assert (tmp_path / "text").read_bytes() == "Grüße\n".encode()
