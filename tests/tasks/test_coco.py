"""Numbers of categories, files in COCO's form, and average precision by pycocotools."""

from __future__ import annotations

import sys

import pytest

from ofa_plugin.tasks import coco

KNOWN = {0: [((0, 0, 10, 10), "dog", "18"), ((20, 0, 30, 10), "cat", "17")], 3: [], 4: [((5, 5, 9, 9), "dog", "18")]}
IMAGES = {0: 139, 3: "x", 4: "05"}


def seen(**moved: tuple[float, ...]) -> dict[int, list[coco.Seen]]:
    """Every object, some of them moved."""
    return {row: [(moved.get(name, box), name, 0.9) for box, name, _ in objects] for row, objects in KNOWN.items()}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (("18", "17", "18"), {"dog": 18, "cat": 17, "fox": 19}),
        (("0", "0", "0"), {"cat": 1, "dog": 2, "fox": 3}),  # one number for two names
        (("18", "17", "19"), {"cat": 1, "dog": 2, "fox": 3}),  # two numbers for one name
        (("18", "n01", "18"), {"cat": 1, "dog": 2, "fox": 3}),
    ],
)
def test_the_numbers_of_the_file_count_where_every_name_has_its_own(numbers, expected):
    given = iter(numbers)
    known = {row: [(box, name, next(given)) for box, name, _ in objects] for row, objects in KNOWN.items()}
    assert coco.categories(known, {0: [((0, 0, 1, 1), "fox", 0.5)]}) == expected


def test_files_are_in_the_form_of_coco():
    ids = coco.categories(KNOWN, {})
    told = coco.results({4: [((5.25, 5, 9, 9.5), "cat", 0.25)], 0: [((0, 0, 10, 10), "dog", 0.5)]}, ids, IMAGES)
    assert told == [
        {"image_id": 139, "category_id": 18, "bbox": [0, 0, 10, 10], "score": 0.5},
        {"image_id": "05", "category_id": 17, "bbox": [5.25, 5, 3.75, 4.5], "score": 0.25},
    ]
    written = coco.annotations(KNOWN, ids, IMAGES)
    assert [image["id"] for image in written["images"]] == [139, "x", "05"]
    assert [(one["id"], one["image_id"], one["area"]) for one in written["annotations"]] == [
        (1, 139, 100),
        (2, 139, 100),
        (3, "05", 16),
    ]
    assert written["categories"] == [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (seen(), (1.0, 1.0)),
        ({}, (0.0, 0.0)),
        ({row: [] for row in KNOWN}, (0.0, 0.0)),
        (seen(cat=(20, 0, 30, 5.6)), (0.6, 1.0)),  # an overlap of 0.56 passes 2 of 10 thresholds, dogs pass all
        (seen(cat=(100, 100, 110, 110)), (0.5, 0.5)),
        ({**seen(), 9: [((0, 0, 1, 1), "dog", 1.0)]}, (1.0, 1.0)),  # a row without reference
        ({**seen(), 3: [((0, 0, 1, 1), "fox", 1.0)]}, (1.0, 1.0)),  # COCO passes over names that no object has
        ({**seen(), 3: [((0, 0, 1, 1), "cat", 1.0)]}, (0.75, 0.75)),  # surer than the right one, in an empty picture
    ],
)
def test_average_precision_is_that_of_coco(answers, expected):
    pytest.importorskip("pycocotools")
    found = coco.average_precision(KNOWN, answers)
    assert (found["coco_ap"], found["coco_ap50"]) == pytest.approx(expected, abs=2e-3)


def test_without_pycocotools_one_line_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    assert coco.average_precision(KNOWN, seen()) == {}
    assert "pip install 'ofa-plugin[eval]'" in caplog.text
