import json
from pathlib import Path

import pytest

from ofa_plugin.data.text import (
    names_a_side,
    space_characters,
    strip_punctuation,
    tidy_caption,
    tidy_question,
    vqa_source,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "text"


def cases(name: str) -> list[dict]:
    return json.loads((FIXTURES / name).read_text(encoding="utf-8"))["cases"]


@pytest.mark.parity
@pytest.mark.parametrize("case", cases("pre_caption.json"), ids=lambda case: f"{case['in']!r}-{case['max_words']}")
def test_tidy_caption_is_official(case):
    assert tidy_caption(case["in"], case["max_words"]) == case["out"]


@pytest.mark.parity
@pytest.mark.parametrize("case", cases("pre_question.json"), ids=lambda case: f"{case['in']!r}-{case['max_words']}")
def test_tidy_question_and_vqa_source_are_official(case):
    assert tidy_question(case["in"], case["max_words"]) == case["out"]
    assert vqa_source(case["in"], case["max_words"]) == case["vqa_task_text"]


def test_a_leading_space_protects_punctuation():
    assert tidy_caption(" #1 fan") == "#1 fan"
    assert tidy_caption("#1 fan") == "1 fan"


def test_punctuation_is_deleted_not_replaced():
    assert strip_punctuation("trees-beyond, R&&B!") == "treesbeyond RB"
    assert strip_punctuation("“café”…") == "“café”…"  # only ASCII's


def test_chinese_characters_are_set_apart():
    assert space_characters("2只猫 ok，") == "2 只  猫  ok，"
    assert space_characters("かな 한국 café") == "かな 한국 café"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("the dog on the Left", True),
        ("topmost plate", True),
        ("2nd from the wall", True),
        ("左边的狗", True),
        ("white blood cell", False),
        ("a bright lefty with laptops", False),
    ],
)
def test_a_text_that_names_a_side_is_known(text, named):
    assert names_a_side(text) is named
