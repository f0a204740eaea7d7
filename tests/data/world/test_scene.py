"""Scenes: room for every shape, clear differences, and no unseen pair where none may be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ofa_plugin.data.world.scene import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    SEEN_PAIRS,
    UNSEEN_BACKGROUNDS,
    UNSEEN_PAIRS,
    Contents,
    random_scene,
)


def scenes(contents: Contents, count: int = 150, side: int = 128):
    return [random_scene(np.random.default_rng((5, index)), contents, side) for index in range(count)]


@pytest.mark.parametrize("side", [48, 64, 128, 200])
def test_shapes_keep_clear_of_one_another_and_of_the_border(side):
    found = scenes(Contents((2, 6)), 60, side)
    for scene in found:
        for shape in scene.shapes:
            x0, y0, x1, y1 = shape.box
            assert min(x0, y0) >= 0.06 * side and max(x1, y1) <= 0.94 * side
        for shape, other in itertools.combinations(scene.shapes, 2):
            apart = [max(other.box[n] - shape.box[n + 2], shape.box[n] - other.box[n + 2]) for n in (0, 1)]
            assert max(apart) >= 1
    assert {len(scene.shapes) for scene in found} == {2, 3, 4, 5, 6}


def test_the_two_largest_are_clearly_so_and_stand_clearly_to_one_another():
    for scene in scenes(Contents((2, 6))):
        widths = [shape.width for shape in scene.shapes]
        assert widths == sorted(widths, reverse=True)
        assert all(widths[n] >= 1.15 * widths[n + 1] for n in range(min(2, len(widths) - 1)))
        assert scene.relation(*scene.shapes[:2])
        large = [shape.width for shape in scene.shapes if shape.size == "large"]
        small = [shape.width for shape in scene.shapes if shape.size == "small"]
        assert not large or not small or min(large) >= 1.3 * max(small)


def test_unseen_pairs_are_where_they_belong_and_their_words_everywhere():
    assert len(UNSEEN_PAIRS) + len(SEEN_PAIRS) == len(COLOURS) * len(KINDS)
    seen = {shape.pair for scene in scenes(Contents((2, 6)), 400) for shape in scene.shapes}
    assert seen == set(SEEN_PAIRS)
    for colour, kind in UNSEEN_PAIRS:
        assert any(pair[0] == colour for pair in SEEN_PAIRS) and any(pair[1] == kind for pair in SEEN_PAIRS)
    for scene in scenes(Contents((1, 6), unseen=True)):
        unseen = [number for number, shape in enumerate(scene.shapes) if shape.pair in UNSEEN_PAIRS]
        assert len(unseen) == 1 and unseen[0] < 2


def test_every_colour_is_far_from_the_others_and_from_every_background():
    found = scenes(Contents((1, 1), BACKGROUNDS + UNSEEN_BACKGROUNDS), 400)
    assert {scene.background.family for scene in found} == {*BACKGROUNDS, *UNSEEN_BACKGROUNDS}
    colours = np.array(list(COLOURS.values()), float)
    tones = np.array([tone for scene in found for tone in scene.background.tones], float)
    assert np.linalg.norm(colours[:, None] - tones, axis=-1).min() > 75
    apart = np.linalg.norm(colours[:, None] - colours, axis=-1)
    assert apart[~np.eye(len(colours), dtype=bool)].min() > 75


def test_a_scene_is_known_by_its_digest():
    one, same, other = (random_scene(np.random.default_rng(seed), Contents((2, 6)), 64) for seed in (1, 1, 2))
    assert one == same and one.digest == same.digest != other.digest
