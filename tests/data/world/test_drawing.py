"""Pictures: a box ends where the shape does, a shape has its colour, and its texture shows."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageChops

from ofa_plugin.data.world.drawing import draw_background, draw_scene, encode_png
from ofa_plugin.data.world.scene import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    TEXTURES,
    UNSEEN_BACKGROUNDS,
    Background,
    Contents,
    Scene,
    Shape,
    random_scene,
)

GREY = Background("plain", ((40, 44, 50),) * 2, 0.2, 0.0, 0)


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [9, 17, 22, 44])
def test_a_box_is_tight_around_what_is_drawn(kind, texture, width):
    scene = Scene(128, (Shape("purple", kind, texture, "small", 31, 20, width),), GREY)
    changed = ImageChops.difference(draw_scene(scene), draw_background(GREY, 128)).convert("L")
    assert changed.getbbox() == scene.shapes[0].box


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_drawn_outside_the_boxes_and_each_box_shows_its_colour(seed):
    scene = random_scene(np.random.default_rng(seed), Contents((2, 6)), 128)
    picture, behind = (np.asarray(image, int) for image in (draw_scene(scene), draw_background(scene.background, 128)))
    outside = np.ones((128, 128), bool)
    for shape in scene.shapes:
        x0, y0, x1, y1 = map(int, shape.box)
        outside[y0:y1, x0:x1] = False
        inside = picture[y0:y1, x0:x1].reshape(-1, 3)
        assert (np.abs(inside - COLOURS[shape.colour]).max(1) <= 2).mean() > 0.12
    assert (picture == behind)[outside].all()


@pytest.mark.parametrize("kind", KINDS)
def test_textures_of_small_shapes_differ_from_one_another(kind):
    pictures = [
        np.asarray(draw_scene(Scene(128, (Shape("red", kind, texture, "small", 50, 50, 18),), GREY)), int)
        for texture in TEXTURES
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (np.abs(pictures[one] - pictures[other]).max(2) > 60).sum() >= 9  # pixels


@pytest.mark.parametrize("family", BACKGROUNDS + UNSEEN_BACKGROUNDS)
def test_a_background_lies_between_its_tones_and_has_a_pattern(family):
    background = Background(family, ((30, 40, 50), (60, 52, 70)), 0.25, 0.7, 3)
    pixels = np.asarray(draw_background(background, 96), int).reshape(-1, 3)
    assert (pixels.min(0) >= (30, 40, 50)).all() and (pixels.max(0) <= (60, 52, 70)).all()
    assert (len(np.unique(pixels, axis=0)) > 1) == (family != "plain")
    if family != "plain":
        assert pixels.min(0).tolist() == [30, 40, 50] and pixels.max(0).tolist() == [60, 52, 70]


def test_files_are_small_and_hold_the_picture():
    images = [draw_scene(random_scene(np.random.default_rng((1, n)), Contents((2, 6)), 128)) for n in range(40)]
    cells = [base64.b64decode(encode_png(image)) for image in images]
    assert np.mean([len(cell) for cell in cells]) < 8192
    assert Image.open(io.BytesIO(cells[0])).tobytes() == images[0].tobytes()
