import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofa_plugin.data.boxes import (
    BoxProblem,
    LabelledBox,
    area,
    as_array,
    fit,
    hits,
    iou,
    parse_box,
    parse_objects,
    to_bins,
    to_pixels,
)
from ofa_plugin.errors import UserError
from tests.helpers.golden import golden

REFCOCO = golden("refcoco_boxes.json")["cases"]
ACCURACY = golden("iou_acc.json")
PAIRS = {  # field case 17: two boxes, their overlap, whether that counts
    "half, exactly": ((0, 0, 10, 10), (0, 5, 10, 10), 0.5, True),
    "one pixel grid": ((0, 0, 2, 2), (1, 1, 3, 3), 0.142857, False),
    "touching": ((0, 0, 10, 10), (10, 0, 20, 10), 0.0, False),
    "empty and equal": ((5, 5, 5, 5), (5, 5, 5, 5), 0.0, False),
    "user's two boxes": ((150, 500, 260, 700), (141, 576, 243, 600), 0.100468, False),
}


def problem(function, *args) -> str:
    with pytest.raises(BoxProblem) as caught:
        function(*args)
    assert isinstance(caught.value, UserError) and isinstance(caught.value, ValueError)
    assert str(caught.value) == f"{caught.value.reason}: {caught.value.remedy}"
    return str(caught.value)


# Cells


@pytest.mark.parametrize("cell", ["1,2.5,3e2,-4", " 1, 2.5 ,+300.,-4.0 ", "01,.25e1,300,-4"])
def test_a_box_is_four_numbers(cell):
    assert parse_box(cell) == (1.0, 2.5, 300.0, -4.0)


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("", "box '': one value, not four"),
        ("1,2,3", "box '1,2,3': 3 values, not four"),
        ("1,2,3,4,5", "box '1,2,3,4,5': 5 values, not four"),
        ("1 2 3 4", "box '1 2 3 4': one value, not four"),
        ("1,2,,4", "box '1,2,,4': x1 is '', no finite number"),
        ("1,2,3,nan", "box '1,2,3,nan': y1 is 'nan', no finite number"),
        ("1,1e999,3,4", "box '1,1e999,3,4': y0 is '1e999', no finite number"),
        ("1_0,2,3,4", "box '1_0,2,3,4': x0 is '1_0', no finite number"),
        ("\uff11,2,3,4", "box '\uff11,2,3,4': x0 is '\uff11', no finite number"),
        ("9" * 90, "box '" + "9" * 57 + "...': one value, not four"),
    ],
)
def test_anything_else_is_a_problem_that_says_what_was_found(cell, says):
    assert problem(parse_box, cell) == f"{says}: write x0,y0,x1,y1 in pixels"


def test_objects_keep_their_order_and_the_commas_of_their_names():
    """Field case 18."""
    cell = "8,8,32,40,3,red patch&&0,0,64,48,7,wall, painted"
    assert parse_objects(cell) == [
        LabelledBox((8.0, 8.0, 32.0, 40.0), "red patch"),
        LabelledBox((0.0, 0.0, 64.0, 48.0), "wall, painted"),
    ]
    assert parse_objects("") == parse_objects(" ") == []
    assert parse_objects("1,2,3,4,,cat ") == [LabelledBox((1.0, 2.0, 3.0, 4.0), "cat")]  # no reader needs the id


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("1,2,3,4,5,cat&&1,2,3,4,dog", "object 2 of 2, '1,2,3,4,dog': 5 of 6 parts: write x0,y0,x1,y1,object_id,"),
        ("1,2,3,4,5,cat&&", "object 2 of 2, '': 1 of 6 parts"),
        ("1,2,3,4,5, ", "object 1 of 1, '1,2,3,4,5, ': no object name"),
        ("1,2,x,4,5,cat", "object 1 of 1, '1,2,x,4,5,cat': x1 is 'x', no finite number: write x0,y0,x1,y1 in pixels"),
    ],
)
def test_a_malformed_object_is_named(cell, says):
    assert problem(parse_objects, cell).startswith(says)


def test_a_problem_pickles():
    first = BoxProblem("reason", "remedy")
    again = pickle.loads(pickle.dumps(first))
    assert (again.reason, again.remedy, str(again)) == ("reason", "remedy", "reason: remedy")


# In the picture


@pytest.mark.parametrize(
    ("box", "inside", "clamped"),
    [
        ((0, 0, 500, 332), (0, 0, 500, 332), False),
        ((0, 0, 500.5, 332), (0, 0, 500, 332), True),  # field case 15, line 4
        ((-1, -0.25, 501, 333), (0, 0, 500, 332), True),
        ((500.5, 3, 501, 9), (500, 3, 500, 9), True),
        ((20, 183, 20, 200), (20, 183, 20, 200), False),  # without area: whoever asks decides
    ],
)
def test_an_overshoot_of_a_pixel_is_clamped(box, inside, clamped):
    assert fit(box, 500, 332) == (inside, clamped)


@pytest.mark.parametrize(
    ("box", "size", "says"),
    [
        # field case 15
        (
            (26, 51, 639, 359),
            (500, 332),
            "box 26,51,639,359 of a picture of 500 x 332: x1 lies 139 px outside, y1 lies 27 px outside",
        ),
        ((-3.2, -0.4, 100, 50), (500, 332), "box -3.2,-0.4,100,50 of a picture of 500 x 332: x0 is negative"),
        ((510, 10, 600, 60), (500, 332), "box 510,10,600,60 of a picture of 500 x 332: wholly outside"),
        # field case 13
        (
            (499, 121, 177, 80),
            (640, 512),
            "box 499,121,177,80 of a picture of 640 x 512: x1<x0 and y1<y0: looks like x,y,width,height",
        ),
        ((9, 5, 3, 8), (10, 10), "box 9,5,3,8 of a picture of 10 x 10: x1<x0: looks like x,y,width,height"),
        ((1, 5, 3, 2), (10, 10), "box 1,5,3,2 of a picture of 10 x 10: y1<y0: looks like x,y,width,height"),
        ((9, 5, -3, 8), (10, 10), "box 9,5,-3,8 of a picture of 10 x 10: x1<x0: write x0,y0,x1,y1: left, top,"),
        ((90, 5, 3, 8), (10, 10), "box 90,5,3,8 of a picture of 10 x 10: x1<x0: write"),
        ((-5, -5, -2, -2), (10, 10), "box -5,-5,-2,-2 of a picture of 10 x 10: wholly outside"),
        ((0, 0, 11.5, 5), (10, 10), "box 0,0,11.5,5 of a picture of 10 x 10: x1 lies 1.5 px outside"),
    ],
)
def test_a_box_of_another_form_or_picture_is_a_problem(box, size, says):
    assert problem(fit, box, *size).startswith(says)


def test_area_of_nothing_is_nothing():
    assert area((1, 2, 4, 8)) == 18
    assert area((1, 2, 1, 8)) == area((4, 2, 1, 8)) == area((4, 8, 1, 2)) == 0
    assert as_array([]).shape == (0, 4) and as_array([(1, 2, 3, 4)]).dtype == np.float64


# Bins


@pytest.mark.parity
@pytest.mark.parametrize("case", REFCOCO, ids=lambda case: f"{case['w']}x{case['h']}-{case['patch_image_size']}")
def test_bins_and_pixels_are_official(case):
    """Where official has no bin, a corner lies outside: up to a pixel of that is clamped here, more is a problem."""
    width, height, size, bins = case["w"], case["h"], case["patch_image_size"], case["num_bins"]
    if case["box"][0] < -1:
        assert "x0 is negative, x1 lies 20 px outside" in problem(fit, case["box"], width, height)
        return
    if None in case["bins"]:
        assert "y1 lies 88.06 px outside" in problem(fit, case["box"], width, height)
        return
    box, clamped = fit(case["box"], width, height)
    assert not clamped
    scale = size / width, size / height
    assert scale == pytest.approx((case["w_resize_ratio"], case["h_resize_ratio"]), abs=1e-6)
    found = to_bins(as_array([box]) * [*scale, *scale], bins, case["max_image_size"])
    assert found.dtype == np.int64 and found.tolist() == [case["bins"]]
    pixels = to_pixels(found, bins, case["max_image_size"], scale)
    assert pixels.dtype == np.float64 and pixels[0] == pytest.approx(case["dequantised_box"], abs=1e-4)


def test_bins_of_field_case_13():
    assert to_bins(np.array([[20 * 0.8, 183, 69 * 0.8, 356]]), 1000).tolist() == [[31, 357, 108, 695]]


def test_halves_go_to_the_even_bin_as_in_torch():
    frame, bins = 8.0, 9  # a bin is a pixel
    halves = np.array([[0.5, 1.5, 2.5, 3.5]])
    assert to_bins(halves, bins, frame).tolist() == [[0, 2, 2, 4]] == torch.tensor(halves).round().int().tolist()
    assert to_bins(np.array([[0, 0, 256, 256]]), 1000).tolist() == [[0, 0, 500, 500]]  # 499.5


@pytest.mark.parametrize("value", [-0.5, 512.01, float("nan"), float("inf")])
def test_a_corner_outside_the_frame_has_no_bin(value):
    with pytest.raises(ValueError, match=rf"box corner at {value:g} px, but bins span 0 .. 512"):
        to_bins(np.array([[0, 0, value, 3]]), 1000)


def test_rounding_at_the_frame_is_no_corner_outside():
    whole = np.array([[0, 0, 333 * (512 / 333), 512 + 1e-9]])
    assert to_bins(whole, 1000).tolist() == [[0, 0, 999, 999]]


@given(st.lists(st.integers(0, 99), min_size=4, max_size=4), st.integers(1, 2000), st.integers(1, 2000))
def test_bins_survive_the_way_to_pixels_and_back(bins, width, height):
    scale = 64 / width, 64 / height
    pixels = to_pixels(np.array([bins]), 100, 64, scale)
    assert to_bins(pixels * [*scale, *scale], 100, 64).tolist() == [bins]


def test_no_boxes_have_no_bins():
    assert to_bins(as_array([]), 1000).shape == to_pixels(as_array([]), 1000).shape == (0, 4)


# Overlap


@pytest.mark.parametrize("kind", [tuple, np.float32, np.float64, torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_overlap_of_field_case_17(name, kind):
    first, second, overlap, counts = PAIRS[name]
    if isinstance(kind, torch.dtype):
        first, second = torch.tensor(first, dtype=kind), torch.tensor(second, dtype=kind)
    elif kind is not tuple:
        first, second = np.array(first, kind), np.array(second, kind)
    assert iou(first, second) == iou(second, first) == pytest.approx(overlap, abs=1e-6)
    assert hits(first, second) is hits(second, first) is counts


@pytest.mark.parity
@pytest.mark.parametrize(("key", "threshold"), [("acc", 0.5), ("acc_at_0.4", 0.4)])
def test_hits_are_official(key, threshold):
    pairs = zip(ACCURACY["hyp"], ACCURACY["ref"], strict=True)
    assert [float(hits(hypothesis, reference, threshold)) for hypothesis, reference in pairs] == ACCURACY[key]


def test_a_box_without_overlap_hits_at_no_threshold():
    assert not hits((0, 0, 1, 1), (2, 2, 3, 3), threshold=0.0)
    assert hits((0, 0, 9, 9), (8, 8, 10, 10), threshold=0.0)


corners = st.integers(-50, 50).map(float)


@given(st.tuples(corners, corners, corners, corners), st.tuples(corners, corners, corners, corners))
def test_overlap_is_symmetric_and_at_most_one(a, b):
    assert 0 <= iou(a, b) == iou(b, a) <= 1
    assert iou(a, a) == (1 if area(a) else 0)
