"""What is said of a scene is true, and what is asked has the answer that an independent reader finds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ofa_plugin.data.world.language import (
    ANSWERS,
    OBJECTS,
    ask,
    ask_region,
    captions,
    describe,
    expression,
    named_objects,
    with_article,
)
from ofa_plugin.data.world.scene import UNSEEN_PAIRS, Contents, random_scene
from tests.helpers.reader import answer, caption_is_true, is_true, meant, the


def scenes(count: int, shapes: tuple[int, int] = (1, 6), unseen: bool = False):
    for index in range(count):
        draw = np.random.default_rng((9, index))
        yield random_scene(draw, Contents(shapes, unseen=unseen), 128), draw


def test_captions_are_true_and_hold_the_objects_named():
    for scene, _ in scenes(200):
        told = captions(scene)
        assert len(set(told)) == len(told) == min(2, len(scene.shapes))
        assert all(caption_is_true(scene, caption) for caption in told), (told, scene)
        assert all(name in told[0] and name in OBJECTS for name in named_objects(scene))


def test_questions_have_the_answer_that_the_scene_gives_and_it_is_of_the_type_said():
    for scene, draw in scenes(400):
        for _ in range(4):
            question = ask(scene, draw)
            assert answer(scene, question.text) == question.answer, (question, scene)
            assert question.answer in ANSWERS[question.type]


def test_questions_and_expressions_about_an_unseen_pair_are_about_it():
    named = 0
    for scene, draw in scenes(300, unseen=True):
        shape = next(shape for shape in scene.shapes if shape.pair in UNSEEN_PAIRS)
        question = ask(scene, draw, shape)
        assert answer(scene, question.text) == question.answer and question.answer in ANSWERS[question.type]
        if question.text.startswith("how many"):
            assert shape in meant(scene, " ".join(question.text.split()[2:-2]))
            assert shape.colour in question.text or shape.kind in question.text
        named += any(" ".join(pair) in question.text for pair in UNSEEN_PAIRS)
        assert expression(scene, shape) == f"the {shape.colour} {shape.kind}"
        assert ask_region(shape, draw).answer in (shape.colour, shape.kind, shape.texture, shape.size)
    assert named > 60


def test_no_other_scene_makes_anything_name_an_unseen_pair():
    for scene, draw in scenes(1500, (2, 6)):
        said = (ask(scene, draw).text, ask(scene, draw).text, describe(scene, draw), *captions(scene))
        assert not [words for words in said for pair in UNSEEN_PAIRS if " ".join(pair) in words]


def test_an_expression_means_one_shape_and_depends_on_the_scene_alone():
    forms = Counter()
    for scene, _ in scenes(300, (2, 6)):
        found = [(shape, expression(scene, shape)) for shape in scene.shapes]
        assert found[0][1]  # the largest always has a name
        for shape, words in found:
            if words:
                assert the(scene, words.removeprefix("the ")) is shape and words == expression(scene, shape)
                forms["colour" if shape.colour in words else "other"] += 1
        assert len({words for _, words in found if words}) == sum(1 for _, words in found if words)
    assert forms["colour"] > forms["other"] > 0.08 * forms["colour"]


def test_texts_are_true_and_of_the_length_promised():
    for scene, draw in scenes(300):
        text = describe(scene, draw)
        assert 10 <= len(text.split()) <= 60, text
        assert all(is_true(scene, sentence) for sentence in text.removesuffix(".").split(". ")), (text, scene)


def test_no_answer_and_no_side_is_favoured():
    asked = [ask(scene, draw) for scene, draw in scenes(3000, (2, 6))]
    answers = Counter(question.answer for question in asked)
    assert len(answers) >= 20 and answers.most_common(1)[0][1] < 0.25 * len(asked)
    assert set(question.type for question in asked) == set(ANSWERS)
    for start in ("is there", "is the "):
        yes = [question.answer == "yes" for question in asked if question.text.startswith(start)]
        assert 0.42 < np.mean(yes) < 0.58
    for type, most in (("color", 0.2), ("shape", 0.25), ("how many", 0.35), ("texture", 0.5), ("size", 0.62)):
        found = Counter(question.answer for question in asked if question.type == type)
        assert max(found.values()) < most * sum(found.values()), (type, found)


def test_what_is_absent_mostly_shares_its_words_with_what_is_there():
    shared = []
    for scene, draw in scenes(1500, (2, 6)):
        question = ask(scene, draw)
        if question.text.startswith("is there") and question.answer == "no":
            words = question.text[:-1].split()[3:]
            near = [{s.size, s.texture, s.colour, s.kind} for s in scene.shapes]
            shared.append(all(any(word in shape for shape in near) for word in words))
            assert any(word in shape for word in words for shape in near)
    assert len(shared) > 60 and np.mean(shared) > 0.6


@pytest.mark.parametrize("words, expected", [("red star", "a red star"), ("orange star", "an orange star")])
def test_articles(words, expected):
    assert with_article(words) == expected
