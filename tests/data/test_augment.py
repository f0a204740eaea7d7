from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ofa_plugin.data import augment
from ofa_plugin.data.augment import (
    GREY,
    OPS,
    center_crop,
    draw_side,
    horizontal_flip,
    jitter,
    large_scale_jitter,
    object_center_crop,
    pixels,
    rand_augment,
    short_side,
    square,
)
from ofa_plugin.data.boxes import as_array, to_bins
from tests.helpers.golden import golden

JITTERS = golden("transform_large_scale_jitter.json")
CROPS = golden("transform_object_center_crop.json")["cases"]
RESIZES = golden("transform_resize.json")["cases"]
GROUNDING = golden("pretrain_examples.json")["visual_grounding_geometry"]
RANDAUGMENT = golden("randaug_ops.json")
OFFICIAL_OPS = [case for case in RANDAUGMENT["cases"] if case["in_default_list"]]


def picture(width: int, height: int, colour=(0, 0, 0)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def marked(width: int, height: int, box) -> Image.Image:
    """Black, with white where the box is."""
    image = picture(width, height)
    image.paste((255, 255, 255), tuple(box))
    return image


def white_box(image: Image.Image) -> list[float]:
    """Where a picture of `marked` is at least half white: x0, y0, x1, y1."""
    white = np.asarray(image)[..., 0] >= 128
    (rows,), (columns,) = np.nonzero(white.any(1)), np.nonzero(white.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


# Sizes


@pytest.mark.parity
@pytest.mark.parametrize("case", RESIZES, ids=lambda case: f"{case['w']}x{case['h']}-{case['size']}-{case['max_size']}")
def test_resize_is_official(case):
    image, boxes, scale = short_side(
        picture(case["w"], case["h"]), as_array([case["box_in"]]), case["size"], case["max_size"]
    )
    assert image.size == (case["out_w"], case["out_h"])
    assert scale == pytest.approx((case["out_w"] / case["w"], case["out_h"] / case["h"]))
    assert boxes[0] == pytest.approx(case["box_out"], abs=1e-4)


def test_a_picture_of_the_right_size_is_not_resampled():
    image = noise(50, 40)
    assert short_side(image, as_array([]), 40, 70).image is image
    assert square(noise(40, 40), as_array([]), 40).scale == (1, 1)


def test_a_line_of_pixels_becomes_no_monster():
    image, boxes, scale = short_side(picture(2000, 1), as_array([(1000, 0, 2000, 1)]), 384, 672)
    assert image.size == (672, 384) and boxes.tolist() == [[336, 0, 672, 384]] and scale == (0.336, 384)


def test_a_square_is_the_patch_that_evaluation_sees():
    image, boxes, scale = square(noise(40, 30), as_array([(10, 15, 40, 30)]), 32)
    assert torch.equal(pixels(image), augment.pixels(noise(40, 30).resize((32, 32), Image.Resampling.BICUBIC)))
    assert boxes.tolist() == [[8, 16, 32, 32]] and scale == (0.8, 32 / 30)


def test_pixels_are_planes_of_uint8():
    image = noise(5, 3)
    assert pixels(image).dtype == torch.uint8
    assert np.array_equal(pixels(image).numpy(), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("patch", "largest", "longest"),
    [(384, 480, 672), (480, 480, 672), (400, 480, 672), (128, 160, 224), (256, 320, 448), (512, 640, 896), (3, 3, 5)],
)
def test_short_sides_are_uniform_in_their_range(patch, largest, longest):
    draw = np.random.default_rng(0)
    drawn = [draw_side(draw, patch) for _ in range(60 * (largest - patch + 1))]
    assert {limit for _, limit in drawn} == {longest}
    sides = Counter(side for side, _ in drawn)
    assert set(sides) == set(range(patch, largest + 1))
    assert max(abs(count - 60) for count in sides.values()) < 5 * 60**0.5


# Crops and flips


def test_center_crop_takes_the_middle_and_clips_boxes():
    image, boxes = center_crop(marked(10, 8, (4, 3, 7, 7)), as_array([(4, 3, 7, 7), (0, 0, 1, 8)]), 4)
    assert image.size == (4, 4)
    assert boxes.tolist() == [[1, 1, 4, 4], [0, 0, 0, 4]]
    assert white_box(image) == [1, 1, 4, 4]
    odd, moved = center_crop(noise(7, 9), as_array([(0, 0, 7, 9)]), 4)  # 1.5 goes to 2 and 2.5 to 2, as in Python
    assert difference(odd, noise(7, 9).crop((2, 2, 6, 6))) == 0 and moved.tolist() == [[0, 0, 4, 4]]


@pytest.mark.parity
@pytest.mark.parametrize("case", CROPS, ids=lambda case: "-".join(map(str, case["box"])))
def test_crop_around_an_object_is_official_to_half_a_pixel(case):
    """Official subtracts the offset before it is rounded, so that its boxes stand beside what the crop shows."""
    wanted = as_array([case["box"]])
    image, boxes = object_center_crop(noise(case["w"], case["h"]), wanted, case["crop"])
    left, top = case["pixel_offset_used"]
    assert difference(image, noise(case["w"], case["h"]).crop((left, top, left + 384, top + 384))) == 0
    assert boxes[0] == pytest.approx(case["box_out"], abs=0.5)
    assert boxes.tolist() == (wanted - [left, top, left, top]).clip(0, 384).tolist()
    assert wanted.tolist() == [case["box"]]  # the caller's stay


def test_an_object_stays_where_its_box_is():
    image, boxes = object_center_crop(marked(60, 41, (21, 10, 40, 35)), as_array([(21, 10, 40, 35)]), 30)
    assert white_box(image) == boxes[0].tolist() == [5, 2, 24, 27]  # 15.5 goes to 16 and 7.5 to 8: the even ones


@pytest.mark.parametrize("crop", [center_crop, object_center_crop])
def test_a_crop_larger_than_the_picture_is_refused(crop):
    with pytest.raises(ValueError, match="60 x 20 pixels has no crop of 30 x 30"):
        crop(picture(60, 20), as_array([(0, 0, 5, 5)]), 30)


@pytest.mark.parity
@pytest.mark.parametrize("case", GROUNDING, ids=lambda case: f"{case['w']}x{case['h']}-{case['resize_size']}")
def test_bins_of_grounding_are_official_to_the_rounded_offset(case):
    """At most half a pixel, so one bin, away from official; equal wherever the offset is a whole number."""
    resized = short_side(picture(case["w"], case["h"]), as_array([case["box"]]), case["resize_size"], 672)
    image, boxes = object_center_crop(resized.image, resized.boxes, 384)
    assert [3, image.height, image.width] == case["image_shape"]
    assert boxes[0] / 512 == pytest.approx(case["norm_box"], abs=0.5 / 512 + 1e-6)
    assert np.abs(to_bins(boxes, 1000)[0] - case["bins"]).max() <= 1


@pytest.mark.parity
@pytest.mark.parametrize("case", JITTERS["hflip"], ids=lambda case: f"{case['w']}x{case['h']}")
def test_flip_is_official(case):
    image, boxes = horizontal_flip(marked(case["w"], case["h"], map(int, case["box"])), as_array([case["box"]]))
    assert boxes.tolist() == [case["out"]] and white_box(image) == case["out"]


# Large scale jitter


@pytest.mark.parity
@pytest.mark.parametrize("case", JITTERS["cases"], ids=lambda case: f"{case['w']}x{case['h']}-{case['torch_seed']}")
def test_jitter_is_official_for_its_draws(case):
    side = JITTERS["output_size"]
    boxes = as_array(case["boxes_in"])
    plan = jitter((case["w"], case["h"]), boxes, side, case["rand_scale_u"], case["rand_offset_u"])
    assert plan.boxes.tolist() == [pytest.approx(box, abs=0.01) for box in case["boxes_out"]]  # two digits are written
    assert [label for label, kept in zip(case["labels_in"], plan.kept, strict=True) if kept] == case["labels_out"]
    assert to_bins(plan.boxes, 1000).tolist() == case["bins"]
    assert boxes.tolist() == case["boxes_in"]


def test_jitter_spans_its_range():
    assert jitter((640, 480), as_array([]), 256, 0.0, (0.0, 0.0))[:2] == ((341, 256), (0, 0))
    assert jitter((640, 480), as_array([]), 256, 1.0, (0.999, 0.999))[:2] == ((512, 384), (255, 127))


def test_the_jittered_picture_is_the_one_that_the_plan_describes():
    """Only the visible part is resampled: Pillow's whole-number weights then differ in their last digit."""
    image, box = noise(90, 60), as_array([(0, 0, 90, 60)])
    for seed in range(20):
        seen, boxes, kept = large_scale_jitter(image, box, 64, np.random.default_rng(seed))
        scale, down, across = np.random.default_rng(seed).random(3)
        plan = jitter(image.size, box, 64, scale, (down, across))
        left, top = plan.offset
        whole = image.resize(plan.size, Image.Resampling.BICUBIC).crop((left, top, left + 64, top + 64))
        assert difference(seen, whole) <= 2
        assert boxes.tolist() == plan.boxes.tolist() and kept.tolist() == [True]


def test_jittered_objects_stay_where_their_boxes_are():
    for seed in range(10):
        image, boxes, kept = large_scale_jitter(
            marked(120, 100, (30, 25, 90, 75)), as_array([(30, 25, 90, 75)]), 64, np.random.default_rng(seed)
        )
        assert image.size == (64, 64) and kept.tolist() == [True]
        assert white_box(image) == pytest.approx(boxes[0].tolist(), abs=1)


def test_an_object_out_of_sight_is_not_kept():
    objects = as_array([(0, 0, 4, 4), (38, 38, 62, 62), (92, 92, 100, 100)])
    seen = [large_scale_jitter(picture(100, 100), objects, 32, np.random.default_rng(seed)) for seed in range(60)]
    assert all(kept[1] and len(boxes) == kept.sum() for _, boxes, kept in seen)
    assert {tuple(kept.tolist()) for _, _, kept in seen} >= {(True, True, False), (False, True, True)}


def test_an_extreme_picture_is_jittered_without_computing_all_of_it():
    image, boxes, kept = large_scale_jitter(picture(1, 3000, (9, 9, 9)), as_array([]), 64, np.random.default_rng(0))
    assert image.getcolors() == [(64 * 64, (9, 9, 9))] and boxes.shape == (0, 4) and kept.shape == (0,)


# RandAugment


def test_the_ops_are_the_official_ones_at_their_amounts():
    official = {}
    for case in OFFICIAL_OPS:
        official.setdefault(case["op"], set()).add(case["args"][0] if case["args"] else 0.0)
    assert list(OPS) == list(official)
    for name, op in OPS.items():
        assert sorted({op.amount, -op.amount if op.signed else op.amount}) == pytest.approx(sorted(official[name]))


@pytest.mark.parity
@pytest.mark.parametrize(
    "case", OFFICIAL_OPS, ids=lambda case: "-".join(map(str, (case["op"], case["image"], *case["args"][:1])))
)
def test_ops_are_official(case):
    """Equal; shears and turns within one level, since OpenCV rounds where Pillow cuts off. But for two defects:

    - AutoContrast negates the darkest level as an unsigned byte, so that a channel without black turns white;
    - Sharpness lets a value beyond 0 .. 255 begin again at the other end.
    """
    shape = RANDAUGMENT["shape"]
    levels = np.array(RANDAUGMENT["images"][case["image"]], np.uint8).reshape(shape)
    wanted = np.array(case["out"]).reshape(shape)
    op = OPS[case["op"]]
    found = np.asarray(op.apply(Image.fromarray(levels), *case["args"][:1] or [op.amount])).astype(int)
    if case["op"] == "AutoContrast":
        for channel in range(3):
            low, high = int(levels[..., channel].min()), int(levels[..., channel].max())
            scale = 255 / (high - low)
            values = [np.clip(levels[..., channel] * scale + minus * scale, 0, 255).astype(int)
                      for minus in (-low, -low % 256)]  # fmt: skip
            assert np.array_equal(found[..., channel], values[0]) and np.array_equal(wanted[..., channel], values[1])
    elif case["op"] == "Sharpness":
        wrapped = found != wanted
        assert np.isin(found[wrapped], (0, 255)).all() and (np.abs(wanted - found)[wrapped] > 128).all()
        assert wrapped.sum() == (32 if case["image"] == "noise" else 0)
    else:
        assert np.abs(found - wanted).max() <= (case["op"] in ("ShearX", "ShearY", "Rotate"))


@pytest.mark.parametrize("factor", [0.5, 1.36])
def test_brightness_is_a_product_cut_off(factor):
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3))
    wanted = (np.arange(256, dtype=np.float32) * np.float32(factor)).clip(0, 255).astype(np.uint8)
    assert np.array_equal(np.asarray(OPS["Brightness"].apply(ramp, factor))[0, :, 0], wanted)


def test_equalize_spreads_the_levels_evenly():
    """The rule is official's: levels up to this one, by steps of the 255th part of all but the brightest."""
    levels = np.random.default_rng(1).binomial(60, 0.5, (64, 64, 3)).astype(np.uint8)
    found = np.asarray(OPS["Equalize"].apply(Image.fromarray(levels), 0.0))
    for channel in range(3):
        counts = np.bincount(levels[..., channel].ravel(), minlength=256)
        step = counts[counts > 0][:-1].sum() // 255
        table = ((step // 2 + np.concatenate([[0], np.cumsum(counts)[:-1]])) // step).clip(0, 255)
        assert step > 0 and np.array_equal(found[..., channel], table[levels[..., channel]])


def test_a_warp_uncovers_grey():
    white = picture(64, 64, (255, 255, 255))
    for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        for sign in (1, -1):
            warped = OPS[name].apply(white, sign * OPS[name].amount)
            assert warped.size == (64, 64) and GREY in [colour for _, colour in warped.getcolors()]


def test_half_of_the_drawn_ops_are_carried_out_and_signs_are_even(monkeypatch):
    done = []
    counting = [op._replace(apply=lambda image, amount, name=name: done.append((name, amount)) or image)
                for name, op in OPS.items()]  # fmt: skip
    monkeypatch.setattr(augment, "_DRAWN", tuple(counting))
    draw, image = np.random.default_rng(0), picture(4, 4)
    for _ in range(4000):
        rand_augment(image, draw)
    assert len(done) == pytest.approx(4000, abs=4 * 2000**0.5)  # 8,000 drawn
    names = Counter(name for name, _ in done)
    assert set(names) == set(OPS) and all(count == pytest.approx(400, abs=80) for count in names.values())
    for name, op in OPS.items():
        amounts = Counter(amount for which, amount in done if which == name)
        if op.signed:
            assert amounts[-op.amount] / names[name] == pytest.approx(0.5, abs=0.1) and len(amounts) == 2
        else:
            assert set(amounts) == {op.amount}


def test_pictures_of_one_epoch_are_augmented_differently():
    image = noise(32, 32)
    seen = {rand_augment(image, np.random.default_rng((1, row))).tobytes() for row in range(40)}
    assert len(seen) > 15
    same = [rand_augment(image, np.random.default_rng((1, 7))).tobytes() for _ in range(2)]
    assert same[0] == same[1]


def test_no_choice_comes_from_a_global_generator():
    state, torch_state = np.random.get_state()[1].tolist(), torch.get_rng_state()
    draw = np.random.default_rng(0)
    for _ in range(10):
        rand_augment(noise(16, 16), draw)
        large_scale_jitter(noise(16, 16), as_array([]), 8, draw)
        draw_side(draw, 8)
    assert np.random.get_state()[1].tolist() == state and torch.equal(torch.get_rng_state(), torch_state)


# Reframing


def _marked(box):
    """A black picture of 90 x 60 pixels, white in a box."""
    image = Image.new("RGB", (90, 60))
    image.paste((255, 255, 255), box)
    return image


@pytest.mark.parametrize("mirror", [True, False])
def test_a_frame_holds_the_box_and_shows_it_where_it_says(mirror):
    box = (30, 12, 66, 42)
    lefts = set()
    for seed in range(60):
        draw = np.random.default_rng(seed)
        image, boxes = augment.reframed(_marked(box), np.array([box], float), 96, draw, mirror)
        assert image.size == (96, 96) and boxes.shape == (1, 4) and boxes.min() >= 0 and boxes.max() <= 96
        white = np.argwhere(np.asarray(image)[:, :, 0] > 190)  # grey of what is uncovered is 128
        seen = (*white.min(0)[::-1], *(white.max(0)[::-1] + 1))
        assert seen == pytest.approx(boxes[0], abs=2)
        lefts.add(round(float(boxes[0, 0])))
    assert len(lefts) > 20


def test_a_frame_without_boxes_and_around_a_whole_picture():
    for seed in range(30):
        draw = np.random.default_rng(seed)
        image, boxes = augment.reframed(_marked((0, 0, 90, 60)), as_array([]), 32, draw)
        assert image.size == (32, 32) and boxes.shape == (0, 4)
        whole = np.array([[0.0, 0.0, 90.0, 60.0]])
        _, boxes = augment.reframed(_marked((0, 0, 90, 60)), whole, 32, draw)
        assert (boxes[0, 2:] > boxes[0, :2]).all() and boxes.min() >= 0 and boxes.max() <= 32


def test_a_mirror_is_drawn_only_where_it_may_be():
    box = np.array([[0.0, 0.0, 30.0, 20.0]])
    image = Image.new("RGB", (90, 60), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 15, 20))  # the left half of the box is red
    sides = {True: set(), False: set()}
    for seed in range(40):
        for mirror in sides:
            view, ((x0, y0, x1, y1),) = augment.reframed(image, box, 96, np.random.default_rng(seed), mirror)
            sides[mirror].add(view.getpixel((int(x0 + (x1 - x0) / 4), int((y0 + y1) / 2)))[0] > 128)
    assert sides == {True: {True, False}, False: {True}}
