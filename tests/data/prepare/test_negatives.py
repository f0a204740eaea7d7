"""Types of answers, and lists from which something else can always be drawn."""

import pytest

from ofa_plugin.data.prepare.negatives import Negatives, question_type


@pytest.mark.parametrize(
    ("question", "answer", "asked", "answered", "right"),
    [
        ("How many dogs?", "2", None, None, "how many"),
        ("how many dogs?", "2", "how many people are in", "number", "how many"),
        ("is it?", "Yes", None, None, "yes/no"),
        ("is it?", "maybe", "is it", "yes/no", "yes/no"),
        ("is it red or blue?", "red", "is it", "other", "is it"),
        ("What colour is it?", "red", None, None, "color"),
        ("which colors are there?", "red", None, None, "color"),
        ("what coloring book is it?", "a", None, None, "other"),
        ("What color is it?", "red", "what color is the", "other", "what color is the"),
        ("where?", "here", None, None, "other"),
    ],
)
def test_question_types(question, answer, asked, answered, right):
    assert question_type(question, answer, asked, answered) == right


def test_an_answer_is_in_one_type_and_every_list_leaves_a_choice():
    negatives = Negatives()
    for answer, kind in (("2", "how many"), ("3", "how many"), ("red", "color"), ("2", "what is"), ("2", "how many")):
        negatives.add_answer(answer, kind)
    assert negatives.by_type() == {"how many": ["2", "3"], "other": ["2", "3", "red"]}
    negatives.add_answer("mug", "what is")
    assert negatives.by_type() == {"how many": ["2", "3"], "other": ["red", "mug"]}
    negatives.add_answer("blue", "color")
    assert negatives.by_type() == {
        "how many": ["2", "3"],
        "color": ["red", "blue"],
        "other": ["2", "3", "red", "mug", "blue"],
    }


def test_without_answers_other_is_there_and_empty():
    assert Negatives().by_type() == {"other": []}
