"""Texts, ids, boxes and confidences as rows can hold them."""

import pytest

from ofa_plugin.data.prepare.clean import (
    AMPERSANDS,
    EMPTY_ANSWERS,
    WHITE_SPACE,
    box_text,
    confidences,
    tidy,
    tidy_box,
    tidy_id,
)
from ofa_plugin.data.prepare.report import RowProblem
from tests.helpers.cases import EXPECTED


@pytest.mark.parametrize(
    ("text", "right", "kinds"),
    [
        ('he said "hi"', 'he said "hi"', set()),
        ("\ta\r\n b\u2028c\u00a0\u3000d\x0b\x85", "a b c d", {WHITE_SPACE}),
        ("R&&B &&& b&c", "R&B & b&c", {AMPERSANDS}),
    ],
)
def test_a_text_is_one_line_without_the_separator(text, right, kinds):
    changes = set()
    assert tidy(text, "caption", changes) == right
    assert changes == kinds


@pytest.mark.parametrize(("key", "right"), [(5, "5"), ("05", "05"), (None, "file-3"), ("a\tb", "a b")])
def test_ids_are_texts(key, right):
    assert tidy_id(key, "file-3", set()) == right


@pytest.mark.parametrize("key", [True, 1.0, ["5"], ""])
def test_other_ids_are_refused(key):
    with pytest.raises(RowProblem, match="id"):
        tidy_id(key, "file-3", set())


def test_boxes_are_written_to_a_thousandth_without_superfluous_zeros():
    assert box_text((0.0, 1.07, 439.5, 1234.56789)) == "0,1.07,439.5,1234.568"
    assert box_text((-0.0001, 10, 100, 2000)) == "0,10,100,2000"
    assert tidy_box([20, 183, 49, 173], sized=True) == (20, 183, 69, 356)
    assert tidy_box([0.1, 0.2, 0.2, 0.1], sized=True) == (0.1, 0.2, 0.3, 0.3)


@pytest.mark.parametrize("count", range(1, 11))
def test_votes_of_ten_annotators_are_the_mean_over_leaving_one_out(count):
    answers = ["a"] * count + [f"other {n}" for n in range(10 - count)]
    left_out = [min(1, (answers[:n] + answers[n + 1 :]).count("a") / 3) for n in range(10)]
    found = confidences({"answers": answers}, set())["a"]
    assert found == pytest.approx(sum(left_out) / 10) == pytest.approx(EXPECTED["fc19"]["by_count"][str(count)])


def test_the_most_frequent_answer_comes_first_and_empty_ones_only_count_as_annotators():
    changes = set()
    answers = ["a"] * 4 + ["b"] * 5 + [""]
    assert list(confidences({"answers": [{"answer": answer} for answer in answers]}, changes).items()) == [
        ("b", 1.0),
        ("a", 1.0),
    ]
    assert changes == {EMPTY_ANSWERS}


def test_fewer_annotators_count_by_their_share():
    assert confidences({"answers": ["a"]}, set()) == {"a": 1.0}
    assert confidences({"answers": ["a"] * 4 + ["b"]}, set()) == {"a": 1.0, "b": 0.6}
    assert confidences({"answer": "a, b"}, set()) == {"a, b": 1.0}
    assert confidences({"answers": {"a": 0.3, "b ": 0.9, "b": 0.6}}, set()) == {"b": 0.9, "a": 0.3}
