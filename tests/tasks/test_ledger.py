"""The ledger of bad rows: each once, against a cap, over restarts."""

from __future__ import annotations

import pytest

from ofa_plugin.errors import BadRow
from ofa_plugin.tasks.ledger import Ledger


def bad(line: int, path: str = "a.tsv") -> BadRow:
    return BadRow(path, line, "image", "it is\ta stone", "take a picture")


def test_a_row_is_written_once(tmp_path):
    ledger = Ledger(str(tmp_path / "save"), {"a.tsv"}, 3, 100)
    assert not (tmp_path / "save").exists()  # a good run leaves no file
    assert [row.line for row in ledger.note([bad(1), bad(2), bad(1)])] == [1, 2]
    assert ledger.note([bad(2)]) == []
    assert ledger.path.read_text() == "".join(f"a.tsv\t{n}\timage\tit is a stone\ttake a picture\n" for n in (1, 2))


def test_one_row_too_many_is_raised_by_name(tmp_path):
    ledger = Ledger(str(tmp_path), {"a.tsv"}, 1, 100)
    with pytest.raises(BadRow, match=r"a.tsv:9: image: .* \(bad row 2 of 100 rows, and --max-bad-fraction allows 1\)"):
        ledger.note([bad(4), bad(9)])
    assert len(ledger.path.read_text().splitlines()) == 1


def test_what_every_rank_wrote_before_counts_but_not_what_is_of_other_files(tmp_path):
    (tmp_path / "bad_rows.tsv").write_text("a.tsv\t1\tx\ty\tz\nother.tsv\t1\tx\ty\tz\n")
    (tmp_path / "bad_rows.rank1.tsv").write_text("a.tsv\t2\tx\ty\tz\n")
    ledger = Ledger(str(tmp_path), {"a.tsv"}, 2, 100)
    assert ledger.note([bad(1), bad(2)]) == []
    with pytest.raises(BadRow, match="bad row 3 of 100"):
        ledger.note([bad(3)])


def test_a_line_that_a_killed_run_left_half_written_is_no_row(tmp_path):
    (tmp_path / "bad_rows.tsv").write_text("a.tsv\t1\tx\ty\tz\na.ts")
    ledger = Ledger(str(tmp_path), {"a.tsv"}, 5, 100)
    assert [row.line for row in ledger.note([bad(1), bad(2)])] == [2]
    again = Ledger(str(tmp_path), {"a.tsv"}, 5, 100)
    assert again.known == {("a.tsv", 1), ("a.tsv", 2)}
