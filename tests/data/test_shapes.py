"""The picture world says what its pictures show."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ofa_plugin.data.shapes import COLOURS, random_scene, write_world


@pytest.mark.parametrize("seed", range(12))
def test_a_picture_shows_the_named_colours_where_the_caption_says(seed):
    scene = random_scene(np.random.default_rng(seed))
    pixels = scene.draw(64)
    for shape in (scene.first, scene.second):
        seen = pixels.getpixel((round(shape.x * 64), round(shape.y * 64)))
        assert np.abs(np.subtract(seen, COLOURS[shape.colour])).max() < 12
    plain, inverse = scene.captions()
    assert plain == f"a {scene.first.name} {scene.relation} a {scene.second.name}"
    assert inverse.startswith(f"a {scene.second.name} ")
    axis = (scene.first.x, scene.second.x) if scene.relation == "left of" else (scene.first.y, scene.second.y)
    assert axis[0] < axis[1]


@pytest.mark.parametrize("seed", range(40))
def test_a_question_has_the_answer_that_the_scene_gives(seed):
    draw = np.random.default_rng(seed)
    scene = random_scene(draw)
    question, answer = scene.question(draw)
    names = {scene.first.name, scene.second.name}
    if question.startswith("is there a "):
        assert answer == ("yes" if question[len("is there a ") : -1] in names else "no")
    elif question.startswith("what color is the "):
        assert f"{answer} {question[len('what color is the ') : -1]}" in names
    elif question.startswith("what shape is the "):
        assert f"{question.split()[4]} {answer}" in names
    else:
        first = question.endswith(("left?", "top?"))
        assert answer == (scene.first if first else scene.second).kind


def test_the_same_seed_gives_the_same_files_and_every_answer_is_in_the_set(tmp_path):
    for name in ("a", "b"):
        write_world(tmp_path / name, {"train": 20, "test": 5}, seed=4, side=32)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.*"))]
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    answers = set((tmp_path / "a" / "vqa" / "answers.txt").read_text().split())
    rows = [line.split("\t") for line in (tmp_path / "a" / "vqa" / "train.tsv").read_text().splitlines()]
    assert {row[3].removeprefix("1.0|!+") for row in rows} <= answers
    assert Image.open(io.BytesIO(base64.b64decode(rows[0][-1]))).size == (32, 32)
