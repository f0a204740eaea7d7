"""Document frequencies in files."""

from __future__ import annotations

import collections
import json
import os
import pickle

import pytest

from ofa_plugin.errors import UserError
from ofa_plugin.tasks.metrics import CIDErD, count_frequencies, read_frequencies, read_official, write_frequencies

CAPTIONS = [["a red bus", "the bus"], ["two men play tennis", "a man"], ["un été, à Paris"]]
FLAG = "--scst-cider-cached-tokens"


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "df.json"
    counted = count_frequencies(CAPTIONS)
    write_frequencies(path, counted, {"made_by": "test"})
    assert read_frequencies(str(path), FLAG) == counted
    assert counted.counts["a",] == 2 and counted.counts["bus", "<eos>"] == 1 and counted.images == 3
    assert counted.counts["été",] == 1 and "," not in {word for ngram in counted.counts for word in ngram}
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["format"], content["version"], content["origin"]) == ("ofa-cider-df", 1, {"made_by": "test"})
    assert [entry.name for entry in tmp_path.iterdir()] == ["df.json"]


def test_ends_in_the_table_change_nothing_where_ends_are_not_counted():
    with_ends, without = CIDErD(*count_frequencies(CAPTIONS)), CIDErD()
    without.prepare(CAPTIONS)
    for caption in ("a red bus", "two men play a bus"):
        assert with_ends.score(caption, CAPTIONS[0]) == without.score(caption, CAPTIONS[0])


def test_given_frequencies_stay_and_do_not_grow():
    """Officially every word that is looked up stays in the table."""
    counted = count_frequencies(CAPTIONS)
    size, cider = len(counted.counts), CIDErD(*counted)
    cider.prepare([["another", "thing"]])
    cider.score("something never heard of", ["nor this"])
    assert cider.images == 3 and len(cider.frequencies) == size


def official(path, table, images=3.0, protocol=2):
    path.write_bytes(pickle.dumps({"document_frequency": table, "ref_len": images}, protocol))
    return str(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_official_pickle_is_converted(tmp_path, protocol):
    table = collections.defaultdict(float, {ngram: float(n) for ngram, n in count_frequencies(CAPTIONS).counts.items()})
    read = read_official(official(tmp_path / "coco-train-words.p", table, protocol=protocol))
    assert read == count_frequencies(CAPTIONS)


def test_a_pickle_of_python_2_is_converted(tmp_path):
    """As Python 2 wrote it: bytes for texts, `__builtin__` for `builtins`."""
    (tmp_path / "old.p").write_bytes(
        b"(dp0\nS'document_frequency'\np1\nccollections\ndefaultdict\np2\n(c__builtin__\nfloat\np3\ntp4\nRp5\n"
        b"(S'a'\nS'bus'\ntp6\nF2.0\nssS'ref_len'\np7\nF5.0\ns."
    )
    assert read_official(str(tmp_path / "old.p")) == ({("a", "bus"): 2.0}, 5.0)


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["document_frequency", "ref_len", "inside"])
def test_a_malicious_pickle_is_refused_by_name_and_nothing_runs(tmp_path, where):
    payload = Payload(tmp_path / "ran")
    table = {("a",): payload} if where == "inside" else payload if where == "document_frequency" else {("a",): 1.0}
    path = official(tmp_path / "bad.p", table, payload if where == "ref_len" else 3.0)
    with pytest.raises(UserError, match=r"--from-official .*bad\.p: it names (posix|nt)\.mkdir"):
        read_official(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("named", ["builtins eval", "builtins getattr", "collections OrderedDict", "os system"])
def test_only_containers_and_numbers_may_be_named(tmp_path, named):
    module, name = named.split()
    (tmp_path / "bad.p").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(UserError, match=f"it names {module}.{name}"):
        read_official(str(tmp_path / "bad.p"))


@pytest.mark.parametrize(
    ("table", "images", "said"),
    [
        ({("a",): "1"}, 3.0, "the frequency of 'a' is '1'"),
        ({("a",): float("nan")}, 3.0, "the frequency of 'a' is nan"),
        ({"a": 1.0}, 3.0, "'a' is no n-gram"),
        ({("a", "b", "c", "d", "e"): 1.0}, 3.0, "is no n-gram of 1 to 4 words"),
        ({("a",): 1.0}, 0.0, "the number of images is 0.0"),
        ({("a",): 1.0}, True, "the number of images is True"),
        ({}, 3.0, "no n-gram in it"),
        ([], 3.0, "expected a dict of document_frequency and ref_len"),
    ],
)
def test_another_table_is_refused(tmp_path, table, images, said):
    with pytest.raises(UserError, match=said):
        read_official(official(tmp_path / "df.p", table, images))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02}.", "not JSON .*if it is the official pickle, convert it: `ofa cider-df df.json --from-official "),
        (b'{"a": 1}', "no document frequencies; `ofa cider-df FILE train.tsv` counts them"),
        (b'{"format": "ofa-cider-df", "version": 2}', "of version 2, and this program reads 1"),
        (b'{"format": "ofa-cider-df", "version": 1}', "damaged"),
        (b'{"format": "ofa-cider-df", "version": 1, "frequencies": {"a": 1}}', "the number of images is None"),
    ],
)
def test_another_file_is_refused_with_the_flag_that_named_it(tmp_path, content, said):
    (tmp_path / "df").write_bytes(content)
    with pytest.raises(UserError, match=f"{FLAG} .*df: {said}"):
        read_frequencies(str(tmp_path / "df"), FLAG)


def test_missing_files_say_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"no such file; `ofa cider-df FILE train\.tsv` counts one"):
        read_frequencies(str(tmp_path / "none.json"), FLAG)
    with pytest.raises(UserError, match="--from-official .*none.p: no such file"):
        read_official(str(tmp_path / "none.p"))
    (tmp_path / "torn.p").write_bytes(b"\x80\x02}q")
    with pytest.raises(UserError, match="not readable as a pickle"):
        read_official(str(tmp_path / "torn.p"))
