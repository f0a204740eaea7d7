import json
import multiprocessing
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa_plugin.data.negatives import Negatives
from ofa_plugin.data.text import tidy_caption
from ofa_plugin.errors import BadRow, UserError
from tests.helpers.golden import golden

GOLDEN = golden("negative_sampling_stats.json")
FILES, STATS = GOLDEN["negatives"], GOLDEN["stats"]
DRAWS = 10000
CLOSE = 0.02  # as the fixture advises


def write(folder, captions=None, objects=None, answers=None):
    """A folder as the fixture's, but for what is given: the content of files, in bytes or as lists and dicts."""
    folder.mkdir(exist_ok=True)
    contents = {
        "all_captions.txt": FILES["all_caption_list"] if captions is None else captions,
        "object.txt": FILES["all_object_list"] if objects is None else objects,
        "type2ans.json": FILES["type2ans_dict"] if answers is None else answers,
    }
    for name, content in contents.items():
        if isinstance(content, list):
            content = "".join(f"{line}\n" for line in content)
        elif isinstance(content, dict):
            content = json.dumps(content)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def negatives(tmp_path):
    """A function that makes the negatives of a folder: see `write`."""
    return lambda **contents: Negatives(write(tmp_path / "negative_sample", **contents))


def captions(negatives: Negatives, caption: str, objects: list[str], count: int = DRAWS) -> dict[str, float]:
    draw = np.random.default_rng(0)
    return shares(negatives.caption(caption, objects, draw) for _ in range(count))


def answers(negatives: Negatives, answer: str, confidence: float, count: int = DRAWS) -> dict[str, float]:
    draw = np.random.default_rng(0)
    return shares(negatives.answer(answer, confidence, draw) for _ in range(count))


def shares(drawn) -> dict[str, float]:
    counts = Counter(drawn)
    return {text: count / counts.total() for text, count in counts.items()}


def close(**wanted: float):
    return pytest.approx(wanted, abs=CLOSE)


# Official numbers


@pytest.mark.parity
def test_four_of_ten_captions_have_an_object_exchanged(negatives):
    """The share is official's; there, the last object of the list is hardly ever drawn, here it is as often as others.

    The negative caption is any of those that differ; officially it may be the positive one.
    """
    found = captions(negatives(), "A Dog chases a cat-toy!", ["dog", "cat toy"])
    swapped = {text: share for text, share in found.items() if text not in FILES["all_caption_list"]}
    assert sum(swapped.values()) == pytest.approx(STATS["caption"]["frac_object_replaced"], abs=CLOSE)
    wanted = [f"a {other} chases a cat toy!" for other in ("cat", "bus", "tree")]
    wanted += [f"a dog chases a {other}!" for other in ("cat", "bus", "tree")]
    assert swapped == pytest.approx(dict.fromkeys(wanted, 0.4 / 6), abs=CLOSE)


@pytest.mark.parity
def test_without_objects_every_other_caption_is_as_likely(negatives):
    found = captions(negatives(), "a dog chases a cat", [])
    assert found == pytest.approx(STATS["caption_no_objects"], abs=CLOSE)


@pytest.mark.parity
@pytest.mark.parametrize("case", STATS["answer"], ids=lambda case: f"{case['answer']}-{case['conf']}")
def test_wrong_answers_are_distributed_as_official(negatives, case):
    """But for `other`, whose last answer (sky) official hardly ever draws: its share is spread over all three here."""
    found = answers(negatives(), case["answer"], case["conf"])
    wanted = {text: share for text, share in case["dist"].items() if text not in ("pizza", "table")}
    of_other = sum(share for text, share in case["dist"].items() if text in ("pizza", "table"))
    wanted |= dict.fromkeys(FILES["type2ans_dict"]["other"], of_other / 3)
    assert found == pytest.approx(wanted, abs=CLOSE)


# Captions


def test_the_caption_itself_is_no_negative(negatives):
    found = captions(negatives(captions=["A red bus!", "two men", "a red-bus!", "a cat sits"]), "a  Red bus!", [])
    assert found == {"two men": pytest.approx(0.5, abs=CLOSE), "a cat sits": pytest.approx(0.5, abs=CLOSE)}


def test_a_caption_among_many_equal_ones_is_found(negatives):
    many = negatives(captions=["a dog"] * 3000 + ["a cat"] + ["a dog"] * 3000)
    assert captions(many, "A dog", [], 20) == {"a cat": 1.0}


def test_objects_are_exchanged_where_they_stand_as_whole_words(negatives):
    found = captions(negatives(), "Cats and a CAT, a catfish and the cat's cat", ["cat"])
    swapped = {text for text in found if text not in FILES["all_caption_list"]}
    assert swapped == {f"cats and a {other}, a catfish and the {other}'s {other}" for other in ("dog", "bus", "tree")}


def test_an_object_that_the_caption_does_not_name_is_not_exchanged(negatives):
    found = captions(negatives(), "dogs run", ["dog", "", "bus"])
    assert set(found) == set(FILES["all_caption_list"])


def test_what_is_in_the_picture_too_is_no_exchange(negatives):
    found = captions(negatives(objects=["dog", "Cat", "bus", "dog", ""]), "a dog", ["dog", "cat"])
    assert set(found) == {*FILES["all_caption_list"], "a bus"}
    only = captions(negatives(objects=["dog", "cat"]), "a dog", ["dog", "cat"], 500)
    assert set(only) == set(FILES["all_caption_list"])


def test_names_and_captions_are_plain_text(negatives):
    odd = negatives(objects=["c++", r"\1 [a-z]", "(dog)"], captions=['"quoted', "tab\there", "a\u2028b"])
    assert set(captions(odd, "learn c++ now", ["C++"], 500)) == {
        r"learn \1 [a z] now", "learn (dog) now", '"quoted', "tab\there", "a\u2028b",
    }  # fmt: skip


def test_a_negative_caption_is_as_tidy_as_a_true_one(negatives):
    loud = negatives(captions=["  TWO-tone <person>!", "#A Bus", "one two three four"], objects=["Big-Dog", "cat"])
    assert set(captions(loud, "A CAT", ["Cat"], 300)) == {
        "two tone person!", "a bus", "one two three four", "a big dog"
    }  # fmt: skip
    draw = np.random.default_rng(0)
    cut = {loud.caption("see A CAT run", ["Cat"], draw, max_words=2) for _ in range(300)}
    assert cut == {"two tone", "a bus", "one two"}  # the cat is beyond the second word
    assert {loud.caption("A CAT run", ["Cat"], draw, max_words=2) for _ in range(300)} == cut | {"a big"}


def test_captions_that_differ_too_late_are_refused(negatives):
    late = negatives(captions=["a b c", "a b d"])
    draw = np.random.default_rng(0)
    assert late.caption("a b c", [], draw, max_words=3) == "a b d"
    with pytest.raises(UserError, match="all_captions.txt: all captions have the same first 2 words: add other ones"):
        late.caption("a b c", [], draw, max_words=2)


words = st.text(st.sampled_from("aAb-. ,\t"), max_size=6)


@settings(max_examples=200, deadline=None)
@given(words, st.lists(words, max_size=3), st.integers(0, 99))
def test_a_negative_caption_always_differs(tmp_path_factory, caption, objects, seed):
    folder = write(tmp_path_factory.mktemp("n") / "s", captions=["a", "A", "b", ",b", "a b"], objects=["a", "b", ",A"])
    found = Negatives(folder).caption(caption, objects, np.random.default_rng(seed))
    assert found == tidy_caption(found) or found.startswith(",")  # which a space protected
    for again in (found, tidy_caption(found), tidy_caption(found, 80)):
        assert again.strip() and again != tidy_caption(caption)


# Answers


def test_a_count_is_never_below_nothing(negatives):
    counts = negatives(answers={"how many": ["0", "1"], "other": ["pizza", "sky"]})
    assert answers(counts, "0", 1.0) == close(**{"1": 0.9, "pizza": 0.05, "sky": 0.05})
    assert answers(counts, "1", 1.0) == close(**{"0": 0.7, "2": 0.2, "pizza": 0.05, "sky": 0.05})


def test_an_answer_alone_in_its_type_falls_back_to_other(negatives):
    alone = negatives(answers={"color": ["Red", "red "], "other": ["pizza", "sky"]})
    assert answers(alone, "red", 1.0) == close(pizza=0.5, sky=0.5)


def test_an_answer_of_type_other_is_not_its_own_negative(negatives):
    assert answers(negatives(), "Table", 1.0) == close(pizza=0.5, sky=0.5)


def test_answers_are_given_as_written_and_known_however_written(negatives):
    shirts = negatives(answers={"wear": ["T-shirt", "t shirt", "Hat"], "other": ["pizza", "sky"]})
    assert answers(shirts, "hat", 1.0) == close(**{"T-shirt": 0.9, "pizza": 0.05, "sky": 0.05})
    assert answers(shirts, "t-shirt", 1.0) == close(**{"Hat": 0.9, "pizza": 0.05, "sky": 0.05})


@pytest.mark.parametrize("answer", ["many", "\u00b2", "9" * 5000, "-3"])
def test_a_count_that_is_no_number_is_an_answer_as_any(negatives, answer):
    counts = negatives(answers={"how many": [answer, "1"], "other": ["pizza", "sky"]})
    assert answers(counts, answer, 1.0, 5000) == close(**{"1": 0.9, "pizza": 0.05, "sky": 0.05})


# Files


def test_blank_lines_and_windows_line_ends_count_for_nothing(negatives):
    odd = negatives(
        captions=b"\xef\xbb\xbfa red bus\r\n\r\n \t\n\ntwo men\r\n", objects="dog\r\n\r\n\u2028\ncat\r\nbus\ntree"
    )
    assert captions(odd, "a dog", ["dog"]) == close(
        **{"a red bus": 0.3, "two men": 0.3, "a cat": 0.4 / 3, "a bus": 0.4 / 3, "a tree": 0.4 / 3}
    )


def test_u2028_splits_no_line(negatives):
    odd = negatives(captions="a\u2028b\ntwo\u0085men\n", objects="dog\u2028house\ncat\n")
    assert set(captions(odd, "my cat", ["cat"], 200)) == {"a\u2028b", "two\u0085men", "my dog\u2028house"}


def refusal(negatives, **contents) -> str:
    with pytest.raises(UserError) as caught:
        negatives(**contents)
    return str(caught.value)


def test_a_missing_folder_or_file_is_named_with_the_flags(tmp_path):
    with pytest.raises(UserError) as caught:
        Negatives(tmp_path / "no")
    remedy = "check --neg-sample-dir (by default DATA/negative_sample), or leave `matching` out of --kinds"
    assert str(caught.value).startswith(f"{tmp_path}/no: no such folder, but image-text matching needs it: {remedy}")
    folder = write(tmp_path / "there")
    (folder / "object.txt").unlink()
    (folder / "type2ans.json").unlink()
    with pytest.raises(UserError) as caught:
        Negatives(folder)
    assert f"{folder} lacks object.txt, type2ans.json, which image-text matching needs: {remedy}" in str(caught.value)


def test_empty_files_are_refused(negatives):
    assert "all_captions.txt is empty: it needs at least one row" in refusal(negatives, captions=b"")
    assert "object.txt is empty: write an object's name on each line" in refusal(negatives, objects="\n \r\n")
    assert "type2ans.json:1: not JSON (Expecting value)" in refusal(negatives, answers=b"")


def test_captions_that_are_all_the_same_are_refused(negatives):
    assert "all_captions.txt holds no caption: image-text matching needs two" in refusal(negatives, captions=" \n\n!\n")
    same = refusal(negatives, captions=["a dog", "", "A  dog", "!a dog"])
    assert "all_captions.txt holds one caption only: image-text matching needs two different ones" in same


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"other": ["a", "b"],\n "color": ["red",\n}', "type2ans.json:3: not JSON (Expecting value): write {type: ["),
        ("[1]", "type2ans.json:1: a list instead of an object: write {type: [answers]} with a type 'other'"),
        ('{"other": ["a", "b"],\n "color": "red"}', "type2ans.json:2: type 'color': a text instead of a list"),
        ('{"other": ["a", "b"],\n\n "how many": ["1", 2]}', "type2ans.json:3: type 'how many': 2 among its answers is"),
        ('{"color": ["red"]}', "type2ans.json: no type 'other', which serves answers of no type"),
        ('{"other": ["a", "A"]}', "type2ans.json: type 'other' needs two different answers"),
        (b'{"other":\n["\xff"]}', "type2ans.json:2: not UTF-8: save the file as UTF-8"),
    ],
)
def test_answers_of_another_form_are_refused(negatives, content, says):
    assert says in refusal(negatives, answers=content)


def test_a_caption_that_is_no_utf8_is_named_by_its_line(negatives):
    broken = negatives(captions=b"a dog\na cat\n\xff\n")
    with pytest.raises(BadRow, match=r"all_captions.txt:3: row: byte 0xff after 0 bytes is not UTF-8"):
        captions(broken, "a dog", [], 50)


# Workers


def _first(negatives: Negatives) -> list[str]:
    draw = np.random.default_rng(3)
    return [negatives.caption("a dog", ["dog"], draw) for _ in range(20)]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_draw_the_same(negatives, start):
    here = negatives()
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.apply(_first, (here,)) == _first(here)


def test_captions_are_not_carried_along(negatives):
    large = negatives(captions=[f"caption {number} of very many" for number in range(60000)])
    assert len(pickle.dumps(large)) < 5000
    assert _first(pickle.loads(pickle.dumps(large))) == _first(large)
