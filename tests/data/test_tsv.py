import logging
import multiprocessing
import os
import pickle
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_plugin.data import tsv
from ofa_plugin.data.tsv import TSVStore, parse_selected_cols
from ofa_plugin.errors import BadRow, UserError


@pytest.fixture
def write(tmp_path):
    def write(content: bytes, name: str = "train.tsv"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def indexed(monkeypatch, tmp_path):
    """Every file gets an index file, and the cache is this test's own."""
    monkeypatch.setattr(tsv, "INDEX_FROM_BYTES", 0)
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))


def rows(path, columns=("a", "b"), **kwargs):
    return [tuple(row) for row in TSVStore(path, columns, **kwargs)]


def bad(path, index=0, columns=("a", "b"), **kwargs) -> str:
    with pytest.raises(BadRow) as caught:
        TSVStore(path, columns, **kwargs)[index]
    return str(caught.value).replace(str(path), "f.tsv")


# What a row is


def test_rows_are_read_in_any_order_and_fields_have_names(write):
    store = TSVStore(write(b"0\tcat\n1\tdog\n2\tbird\n"), ("id", "text"))
    assert len(store) == 3
    assert [store[i].text for i in (2, 0, 1)] == ["bird", "cat", "dog"]
    assert store.line(2) == 3
    assert store.row_bytes.dtype == np.int64 and store.row_bytes.tolist() == [5, 5, 6]
    with pytest.raises(IndexError, match="rows 0 to 2, not 3"):
        store[3]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\tb\nc\td\n", [("a", "b"), ("c", "d")]),
        (b"a\tb\nc\td", [("a", "b"), ("c", "d")]),  # no newline at the end
        (b"a\tb\r\nc\td\r\n", [("a", "b"), ("c", "d")]),
        (b"a\tb\r\nc\td\r", [("a", "b"), ("c", "d")]),
        (b"\xef\xbb\xbfa\tb\nc\td\n", [("a", "b"), ("c", "d")]),
        ("a\u2028x\tb\u0085\n\0\t😀\x0b\n".encode(), [("a\u2028x", "b\u0085"), ("\0", "😀\x0b")]),
        (b'"a\tb"\n"\t""\n', [('"a', 'b"'), ('"', '""')]),  # quotation marks are text
        (b"a\rx\tb\n", [("a\rx", "b")]),  # a carriage return inside a row too
        (b"\t\n", [("", "")]),
    ],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_line_ends_and_odd_characters(write, indexed, monkeypatch, content, expected, in_memory):
    if in_memory:
        monkeypatch.setattr(tsv, "INDEX_FROM_BYTES", 1 << 20)
    path = write(content)
    assert rows(path) == expected
    assert rows(path) == expected  # and from the stored index
    assert os.path.exists(f"{path}.ofa-index.npy") is not in_memory


@settings(max_examples=150, deadline=None)
@given(data=st.binary(min_size=1, max_size=400), chunk=st.integers(1, 50), long_row=st.sampled_from([1, 10**9]))
def test_index_is_a_naive_split_for_any_bytes(tmp_path_factory, data, chunk, long_row):
    path = tmp_path_factory.mktemp("any") / "any.tsv"
    path.write_bytes(data)
    body = data.removeprefix(b"\xef\xbb\xbf")
    expected = body.removesuffix(b"\n").split(b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tsv, "_CHUNK", chunk)
        patch.setattr(tsv, "_LONG_ROW", long_row)
        if data.startswith((b"\xff\xfe", b"\xfe\xff")) or not body:
            with pytest.raises(UserError):
                TSVStore(path, ("a",))
            return
        store = TSVStore(path, ("a",), required=0)
        assert len(store) == len(expected)
        assert store.row_bytes.tolist() == [len(row) for row in expected]
        got = [b"\t".join(store._cells(i)) for i in range(len(store))]
        assert got == [row.removesuffix(b"\r") for row in expected]
        for index, row in enumerate(expected):  # reading is total: a row, or a bad row that names its line
            try:
                assert store[index].a in (None, row.removesuffix(b"\r").split(b"\t")[0].decode())
            except BadRow as error:
                assert error.line == index + 1


def test_quotation_marks_of_field_case_1(shared):
    path = shared("fixtures/field-cases/fc01/caption.tsv")
    captions = [row.caption for row in TSVStore(path, ("id", "image", "caption"), [0, 4, 2])]
    assert captions == ['"a dog', "a cat", 'he said "hi" twice', "the dog's bone", '"', 'a "big" red bus"']


@pytest.mark.parametrize("name", ["a b", "a=b", "naïve", "100%", "a,b", "a:b"])
def test_awkward_folder_names(tmp_path, indexed, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "train.tsv").write_bytes(b"1\tx\n")
    assert rows(tmp_path / name / "train.tsv") == [("1", "x")]


def test_one_id_twice_and_ids_are_text(shared):
    path = shared("fixtures/field-cases/fc07/vqa.tsv")
    assert [row.id for row in TSVStore(path, ("id",))] == ["5", "6", "5", "05"]


# Columns


def test_selected_cols_renumber_and_trailing_columns_may_be_missing(write):
    path = write(b"0\t1\t2\n")
    assert rows(path, ("a", "b"), selected_cols=[2, 0]) == [("2", "0")]
    assert rows(path, ("a", "b", "c"), selected_cols=[2, 0], required=2) == [("2", "0", None)]
    assert rows(path, ("a", "b", "c"), selected_cols=[2, None, 0], required=1) == [("2", None, "0")]
    assert rows(path, ("a", "b", "c", "d"), required=2) == [("0", "1", "2", None)]


def test_selected_cols_that_do_not_fit_the_task_are_refused(write):
    path = write(b"0\t1\t2\n")
    with pytest.raises(UserError, match="--selected-cols 0,1,2 names 3 columns, at most 2: id, text"):
        TSVStore(path, ("id", "text"), [0, 1, 2])
    with pytest.raises(UserError, match="--selected-cols 0,- names 1 columns, not the 2 needed: id, text"):
        TSVStore(path, ("id", "text"), [0, None])
    with pytest.raises(UserError, match="--selected-cols 0 names 1 columns, not the 2 needed: id, text"):
        TSVStore(path, ("id", "text"), [0])
    with pytest.raises(UserError, match="--columns -1: columns are counted from 0"):
        TSVStore(path, ("id",), [-1], flag="--columns")


def test_parse_selected_cols():
    assert parse_selected_cols("0,4, 2") == [0, 4, 2]
    assert parse_selected_cols("0,-,2") == [0, None, 2]
    for text in ("", "0,x", "0,-1", "0;1"):
        with pytest.raises(UserError, match=f"--selected-cols '{text}' is not a list of column numbers"):
            parse_selected_cols(text)


def test_too_few_columns(write):
    path = write(b"0\t1\t2\n0\t1\n")
    assert bad(path, columns=("id", "image"), selected_cols=[0, 4]) == (
        "f.tsv:1: image: 3 columns, but column 4 was selected: "
        "columns are separated by tabs and counted from 0; check --selected-cols"
    )
    assert bad(path, 1, ("id", "image"), selected_cols=[0, 2]).startswith(
        "f.tsv:2: image: 2 columns, but column 2 was selected: "
    )
    assert bad(path, 1) == (
        "f.tsv:2: row: 2 columns, the file's first row has 3: a column left out, or a text cut short?"
    )


def test_a_stray_tab_is_a_bad_row_and_no_shifted_column(write):
    assert bad(write(b"0\t1\t2\na\tb\tc\td\n"), 1) == (
        "f.tsv:2: row: 4 columns, the file's first row has 3: a tab inside a text?"
    )


def test_a_blank_line(write):
    assert bad(write(b"0\t1\n\n2\t3\n"), 1) == "f.tsv:2: row: blank line: delete it"
    assert bad(write(b"0\t1\n\r\n2\t3\n"), 1) == "f.tsv:2: row: blank line: delete it"


def test_bytes_that_are_no_utf8_are_one_bad_row(write):
    path = write(b"0\tcaf\xe9 x\n1\tcaf\xc3\xa9\n")
    assert bad(path) == "f.tsv:1: b: byte 0xe9 after 3 bytes is not UTF-8: save the file as UTF-8"
    assert TSVStore(path, ("a", "b"))[1].b == "café"
    assert TSVStore(path, ("a",))[0].a == "0"  # a column that nobody reads may hold anything


def test_a_line_is_read_as_it_stands(write):
    store = TSVStore(write(b"\xef\xbb\xbfid\ttext\r\n\n a\tb\tc\xe2\x80\xa8d\n\xff"), ("id", "text"))
    assert [store.text(i) for i in (2, 0, 1)] == [" a\tb\tc\u2028d", "id\ttext", ""]
    with pytest.raises(BadRow, match=":4: row: byte 0xff after 0 bytes is not UTF-8"):
        store.text(3)
    for index in (4, -1):
        with pytest.raises(IndexError, match=f"rows 0 to 3, not {index}"):
            store.text(index)


def test_a_header_is_named_and_later_rows_are_read(shared, write):
    path = shared("fixtures/field-cases/fc06/caption.tsv")
    message = "f.tsv:1: row: looks like a header (uniq_id, image_id, caption, ...): remove the line"
    assert bad(path, columns=("id", "image", "caption"), selected_cols=[0, 4, 2]) == message
    assert TSVStore(path, ("id", "image", "caption"), [0, 4, 2])[1].caption == "a patch number 0"
    assert rows(write(b"12\tid\n")) == [("12", "id")]
    assert rows(write(b"name\tcat\n")) == [("name", "cat")]


# Files


def test_missing_empty_and_other_files_are_named(tmp_path, write):
    with pytest.raises(UserError, match=r"nope.tsv: no such file: check the data path and the name of the subset"):
        TSVStore(tmp_path / "nope.tsv", ("a",))
    with pytest.raises(UserError, match="is not a regular file"):
        TSVStore(tmp_path, ("a",))
    for content in (b"", b"\xef\xbb\xbf"):
        with pytest.raises(UserError, match=r"train.tsv is empty: it needs at least one row"):
            TSVStore(write(content), ("a",))
    with pytest.raises(UserError, match="is UTF-16 text: save it as UTF-8"):
        TSVStore(write("a\tb\n".encode("utf-16")), ("a",))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a regular file"):  # and does not wait for a writer
        TSVStore(tmp_path / "pipe", ("a",))


def test_a_file_that_changes_under_a_run_is_noticed(write):
    path = write(b"0\tcat\n1\tdog\n2\tbird\n")
    store = TSVStore(path, ("a", "b"))
    for changed in (b"0\tcats\n1\tdog\n2\tbird\n", b"0\tcat\n"):
        path.write_bytes(changed)
        for row in range(2):
            with pytest.raises(UserError, match="train.tsv has changed since it was opened"):
                store[row if changed != b"0\tcat\n" else 2]


# The index file


def test_index_is_stored_beside_the_file_and_used(write, indexed, monkeypatch):
    path = write(b"0\t1\n2\t3\n")
    assert rows(path) == [("0", "1"), ("2", "3")]
    stored = np.load(f"{path}.ofa-index.npy", allow_pickle=False)
    assert stored.dtype == np.int64 and stored.tolist()[-4:] == [2, 0, 4, 8]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["train.tsv", "train.tsv.ofa-index.npy"]
    monkeypatch.setattr(tsv, "_scan", None)  # would fail
    assert rows(path) == [("0", "1"), ("2", "3")]


@pytest.mark.parametrize("change", ["content", "mtime", "size"])
def test_index_of_another_state_of_the_file_is_made_again(write, indexed, change):
    path = write(b"0\t1\n2\t3\n")
    rows(path)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes({"content": b"0\n1\n2\n3\n", "mtime": b"0\t1\n2\t3\n", "size": b"0\t1\n2\t3\n4\t5\n"}[change])
    os.utime(path, ns=times if change != "mtime" else (times[0], times[1] + 1))
    before = os.stat(f"{path}.ofa-index.npy").st_ino
    assert len(TSVStore(path, ("a",))) == {"content": 4, "mtime": 2, "size": 3}[change]
    assert os.stat(f"{path}.ofa-index.npy").st_ino != before


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "pickle", "zip", "float", "rows"])
def test_a_damaged_index_is_made_again(write, indexed, damage):
    path = write(b"0\t1\n2\t3\n")
    expected = rows(path)
    index = path.with_name("train.tsv.ofa-index.npy")
    good = np.load(index)
    if damage in ("cut", "empty", "garbage"):
        index.write_bytes({"cut": index.read_bytes()[:-4], "empty": b"", "garbage": b"\x93NUMPY garbage"}[damage])
    elif damage == "zip":
        np.savez(index.with_suffix(".npz"), good)
        index.with_suffix(".npz").rename(index)
    else:
        np.save(index, {"pickle": np.array([print], object), "float": good * 1.0, "rows": good[:-1]}[damage])
    assert rows(path) == expected
    assert np.array_equal(np.load(index), good)


def test_read_only_folder_keeps_its_index_in_the_cache(write, indexed, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "train.tsv"
    path.write_bytes(b"0\t1\n")
    folder.chmod(0o555)
    try:
        assert rows(path) == [("0", "1")]
        assert [entry.name for entry in folder.iterdir()] == ["train.tsv"]
        (entry,) = (tmp_path / "cache").iterdir()
        assert entry.name.startswith("train.tsv-") and entry.name.endswith(".ofa-index.npy")
        monkeypatch.delenv("OFA_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert rows(path) == [("0", "1")]
        assert len(list((tmp_path / "xdg" / "ofa").iterdir())) == 1
    finally:
        folder.chmod(0o755)


def test_without_any_place_for_the_index_it_stays_in_memory(write, indexed, monkeypatch, caplog):
    monkeypatch.setattr(tsv, "_read_only", lambda folder: True)
    path = write(b"0\t1\n")
    with caplog.at_level(logging.WARNING, "ofa_plugin.data.tsv"):
        assert rows(path) == [("0", "1")]
    assert "its index can be kept nowhere" in caplog.text and "OFA_CACHE" in caplog.text
    assert [entry.name for entry in path.parent.iterdir() if entry.is_file()] == ["train.tsv"]


def test_a_full_disk_leaves_no_half_index(write, indexed, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = write(b"0\t1\n")
    assert rows(path) == [("0", "1")]
    assert [entry.name for entry in path.parent.rglob("*") if "index" in entry.name and "lock" not in entry.name] == []


def test_one_process_indexes_while_the_others_wait(write, indexed, monkeypatch, caplog):
    path = write(b"0\t1\n2\t3\n")
    scan, scans = tsv._scan, []

    def slow(*args):
        scans.append(1)
        time.sleep(0.2)
        return scan(*args)

    monkeypatch.setattr(tsv, "_scan", slow)
    with caplog.at_level(logging.INFO, "ofa_plugin.data.tsv"):
        threads = [threading.Thread(target=lambda: rows(path)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(scans) == 1
    assert "waiting for the process that indexes it" in caplog.text


def test_the_lock_of_a_dead_process_stops_nobody(write, indexed):
    path = write(b"0\t1\n")
    path.with_name("train.tsv.ofa-index.npy.lock").write_bytes(b"")
    assert rows(path) == [("0", "1")]


def test_progress_of_a_long_scan_has_an_end_time(write, monkeypatch, caplog):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(tsv.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(tsv, "_CHUNK", 4)
    with caplog.at_level(logging.INFO, "ofa_plugin.data.tsv"):
        assert len(TSVStore(write(b"0\t1\n" * 4), ("a", "b"))) == 4
    assert "train.tsv: indexing, 25 % done, 9 s left" in caplog.text


# Processes


def read(store, start, step, results):
    results.put([store[i].a for i in range(start, len(store), step)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_forked_and_spawned_workers_read_the_same_rows(write, indexed, method):
    context = multiprocessing.get_context(method)
    store = TSVStore(write(b"".join(b"%d\tx\n" % i for i in range(500))), ("a", "b"))
    assert store[7].a == "7"
    results = context.SimpleQueue()
    workers = [context.Process(target=read, args=(store, start, 2, results)) for start in range(2)]
    for worker in workers:
        worker.start()
    got = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(map(int, sum(got, []))) == list(range(500))
    assert store[499].a == "499"  # the parent's own descriptor is still open


@pytest.mark.parametrize("in_memory", [True, False])
def test_store_and_rows_pickle(write, indexed, monkeypatch, tmp_path, in_memory):
    monkeypatch.setattr(tsv, "INDEX_FROM_BYTES", 1 << 20 if in_memory else 0)
    write(b"".join(b"%d\tx\n" % i for i in range(2000)))
    monkeypatch.chdir(tmp_path)
    store = TSVStore("train.tsv", ("a", "b"))
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000 or in_memory  # the offsets are mapped again, not sent
    monkeypatch.chdir("/")  # a worker may stand elsewhere
    copy = pickle.loads(pickled)
    assert copy[1999] == store[1999] and copy.path == "train.tsv"
    row = pickle.loads(pickle.dumps(store[3]))
    assert row == ("3", "x") and row.a == "3"


def test_descriptors_do_not_leak(write):
    path = write(b"0\t1\n")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    for _ in range(20):
        TSVStore(path, ("a", "b"))[0]
    assert len(os.listdir("/proc/self/fd")) == before
