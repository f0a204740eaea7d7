"""Records out of JSON, JSONL and text, in memory a piece at a time."""

import json

import pytest

from ofa_plugin.data.prepare import readers
from ofa_plugin.data.prepare.readers import RecordFile, text_lines
from ofa_plugin.data.prepare.report import RowProblem
from ofa_plugin.errors import UserError


def values(path):
    return [(record.table, record.number, record.value) for record in RecordFile(path, "--captions")]


TABLES = {
    "info": {"year": 2017, "note": 'a "quoted" ] } text'},
    "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)],
    "number": 12345,
    "annotations": [{"id": n, "segmentation": [[n, 1.5, -2e-3]] * n, "caption": "é\u2028\\"} for n in range(5)],
    "empty": [],
}


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_tables_of_json_are_read_in_pieces_of_any_size(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(readers, "_CHUNK", chunk)
    (path := tmp_path / "a.json").write_text("\ufeff" + json.dumps(TABLES, indent=indent), encoding="utf-8")
    right = [(table, n, value) for table in ("images", "annotations") for n, value in enumerate(TABLES[table])]
    assert values(path) == right
    places = [str(record.place) for record in RecordFile(path, "--captions")]
    assert places[4] == f"{path}: annotations[1] (id 1)"


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_a_list_and_lines_hold_the_same_records(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(readers, "_CHUNK", chunk)
    rows = [{"image": "a", "caption": "x\u2028y"}, {"image": "b", "caption": "z"}]
    (tmp_path / "list").write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    (tmp_path / "lines").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n\r\n", encoding="utf-8"
    )
    assert values(tmp_path / "list") == [("", n, row) for n, row in enumerate(rows)]
    assert values(tmp_path / "lines") == [("", n, row) for n, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [{"id": 1}', "it ends before its ']'"),
        ('{"images": [{"id": 1} {"id": 2}]}', "'{' after 22 characters"),
        ('{"images": [{"id": 1},]}', "Expecting value after 22 characters"),
        ('{"images": [],}', "not readable as JSON"),
        ('{"images": [{"id": tru}]}', "not readable as JSON"),
        ('{"images": [] "annotations": []}', "not readable as JSON"),
        ('{"images": []} x', "'x' after"),
        ("[" * 100_000, "not readable as JSON"),
    ],
)
def test_broken_json_is_one_error_that_says_where(tmp_path, text, words):
    (path := tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="--captions .*a.json: not readable as JSON") as found:
        values(path)
    assert words in str(found.value)


def test_a_broken_first_line_of_jsonl_is_that_lines_problem(tmp_path):
    (path := tmp_path / "a.jsonl").write_text('{"image": "a", caption: "x"}\n{"image": "b"}\n')
    (_, _, first), (_, _, second) = values(path)
    assert isinstance(first, RowProblem) and second == {"image": "b"}
    path.write_text('hello\n{"image": "b"}\n')
    (_, _, first), (_, _, second) = values(path)
    assert isinstance(first, RowProblem) and second == {"image": "b"}


def test_a_line_ends_with_a_newline_and_nothing_else(tmp_path):
    (path := tmp_path / "a.txt").write_bytes("\ufeffone\u2028still\x0bone\r\n\ntwo\rtwo".encode() + b"\n\xff\n")
    *lines, (number, problem) = text_lines(path)
    assert lines == [(1, "one\u2028still\x0bone"), (2, ""), (3, "two\rtwo")]
    assert number == 4 and "byte 0xff after 0 bytes is not UTF-8" in str(problem)
