"""Scores that need no look at a picture."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_plugin.tasks import baselines
from ofa_plugin.tasks.baselines import constant_box, frequent_caption, majority_answer, majority_by_question


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
