"""Scores that need no look at a picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ofa_plugin.data import palette
from ofa_plugin.data.boxes import LabelledBox
from ofa_plugin.tasks import baselines
from ofa_plugin.tasks.baselines import (
    another_text,
    constant_box,
    constant_object,
    frequent_caption,
    majority_answer,
    majority_by_question,
    surrounding_code,
)
from ofa_plugin.tasks.metrics.infilling import Gapped


def test_the_most_frequent_answer_of_training_is_given_to_everything():
    assert majority_answer(["yes", "no", "yes"], ["no", "yes", "no", "2"]) == 0.25


def test_a_known_question_gets_its_own_most_frequent_answer():
    training = [("is it?", "no"), ("is it?", "no"), ("which?", "red"), ("who?", "red"), ("what?", "red")]
    tested = [("is it?", "no"), ("is it?", "yes"), ("new?", "red"), ("which?", "red")]
    assert majority_by_question(training, tested) == 0.75


def test_the_constant_box_is_chosen_in_training():
    training = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [51, 50, 61, 60], [52, 50, 62, 60]], float)
    tested = np.array([[51, 50, 61, 60], [0, 0, 10, 10], [0, 0, 9, 10], [56, 50, 66, 60]], float)
    assert constant_box(training, tested) == 0.25


def test_the_most_frequent_caption_scores_its_own_pictures_only():
    references = [["a red circle left of a square"], ["two blue stars over there"], ["three green crosses apart"]]
    assert frequent_caption(["two blue stars over there"] * 2 + ["nothing"], references) == pytest.approx(10 / 3)


def test_captions_of_equal_frequency_count_alike(monkeypatch):
    references = [["a red circle left of a square"], ["two blue stars over there"], ["three green crosses apart"]]
    assert frequent_caption(["two blue stars over there", "nothing"], references) == pytest.approx(5 / 3)
    monkeypatch.setattr(baselines, "MOST_TIES", 1)
    assert frequent_caption(["nothing", "two blue stars over there"], references) == 0


def test_the_constant_object_has_the_most_frequent_name_and_the_best_box_of_that_name():
    cats = [LabelledBox((0, 0, 10, 10), "cat"), LabelledBox((0, 0, 10, 9), "cat"), LabelledBox((50, 50, 60, 60), "cat")]
    dogs = [LabelledBox((20, 20, 30, 30), "dog")] * 2
    training = [cats, dogs, []]
    assert constant_object(training, [[LabelledBox((0, 0, 10, 10), "cat")]]) == 1
    assert constant_object(training, [[LabelledBox((0, 0, 10, 10), "cow")], dogs[:1]]) == 0
    assert constant_object(training, [[cats[0]], dogs[:1]]) == 0.25  # half of the objects, at a precision of a half


@pytest.mark.parametrize("side", [32, 40])  # 40: the middle ends within a cell
def test_the_code_around_the_middle_is_told_from_the_cells_that_show_none_of_it(side):
    frame, middle = (255, 0, 0), (0, 0, 255)
    picture = Image.new("RGB", (2 * side, 2 * side), frame)
    picture.paste(middle, (side // 2, side // 2, side // 2 + side, side // 2 + side))
    outside, inside = (palette.encode(Image.new("RGB", (8, 8), colour), 8)[0] for colour in (frame, middle))
    assert surrounding_code([picture, picture], [[outside] * 16, [inside] * 12 + [outside] * 4]) == 0.625


def test_another_text_gives_back_what_both_have_in_the_gap():
    one = Gapped((1, 2, 3, 4), (False, True, True, False))
    other = Gapped((1, 2, 9, 4), (False, False, True, False))
    assert another_text([one, other]) == pytest.approx(1 / 3, abs=1e-4)
