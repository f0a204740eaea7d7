"""Acc@0.5 of regions, and average precision of lists of objects, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ofa_plugin.data.boxes import LabelledBox
from ofa_plugin.tasks.metrics.base import Tally
from ofa_plugin.tasks.metrics.boxes import (
    BoxF1,
    BoxRecall,
    Detected,
    DetectionAP,
    FirstRegionAccuracy,
    RegionAccuracy,
    pairs,
)
from ofa_plugin.tasks.refcoco import Grounding
from tests.helpers.cases import CASES, EXPECTED
from tests.helpers.golden import golden

ACCURACY = golden("iou_acc.json")
A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 40.0, 30.0), (50.0, 50.0, 60.0, 90.0)


def dog(box=A, confidence=0.9, name="dog"):
    return Detected(box, name, confidence)


def precision(*pictures):
    """The value over pictures, each (what was seen, what is there)."""
    metric = DetectionAP()
    sums = np.sum([metric.sums(seen, there) for seen, there in pictures], axis=0)
    assert len(sums) == metric.width
    return metric.value(*sums.tolist())


def there(*boxes, name="dog"):
    return [LabelledBox(box, name) for box in boxes]


@pytest.mark.parity
def test_regions_are_found_as_officially():
    for metric in (RegionAccuracy(), Grounding.Accuracy()):
        pairs = zip(map(tuple, ACCURACY["hyp"]), map(tuple, ACCURACY["ref"]), strict=True)
        assert [metric.score(seen, there) for seen, there in pairs] == ACCURACY["acc"]
    assert ACCURACY["thresh"] == 0.5
    assert (RegionAccuracy.name, Grounding.Accuracy.name) == ("score", "grounding_acc")


@pytest.mark.parametrize("name", EXPECTED["fc17"]["iou"])
def test_fc17_which_overlap_counts(name):
    first, second = json.loads((CASES / "fc17" / "pairs.json").read_text())[name]
    right = float(EXPECTED["fc17"]["correct_at_0.5"][name])
    assert RegionAccuracy().score(tuple(first), tuple(second)) == right
    assert precision(([dog(tuple(first))], there(tuple(second)))) == right


def test_an_answer_that_is_no_box_is_a_miss():
    tally = Tally([RegionAccuracy()])
    for answer in (None, A, B):
        tally.add(answer, A)
    assert tally.values() == {"score": 0.3333} and tally.rows == 3


def test_all_found_is_one():
    assert precision(([dog(A), dog(B, 0.4)], there(A, B)), ([dog(C, 0.1)], there(C))) == 1.0


def test_fc18_nothing_predicted_is_nought_and_no_crash():
    predictions = json.loads((CASES / "fc18" / "no_predictions.json").read_text())
    assert precision((predictions, there(A))) == EXPECTED["fc18"]["AP_of_no_predictions"] == 0.0
    assert precision((predictions, [])) == 0.0
    assert DetectionAP().value(*[0.0] * DetectionAP.width) == 0.0


def test_objects_where_none_are_lower_precision():
    assert precision(([dog(A, 0.9)], [])) == 0.0
    assert precision(([dog(A, 0.9)], []), ([dog(B, 0.5)], there(B))) == 0.5
    assert precision(([dog(A, 0.3)], []), ([dog(B, 0.5)], there(B))) == 1.0  # less sure than the right one


def test_an_object_is_found_once():
    assert precision(([dog(A, 0.9), dog(A, 0.8)], there(A))) == 1.0  # the duplicate comes behind full recall
    assert precision(([dog(A, 0.9), dog(A, 0.8), dog(B, 0.5)], there(A, B))) == pytest.approx(
        0.5 + 0.5 * 2 / 3, abs=1e-4
    )
    assert precision(([dog(A, 0.9), dog(A, 0.8)], there(A, A))) == 1.0  # two objects in one place


def test_the_surest_answer_takes_the_object_whatever_their_order():
    worse = (0.0, 0.0, 10.0, 6.0)
    for seen in ([dog(worse, 0.5), dog(A, 0.9)], [dog(A, 0.9), dog(worse, 0.5)]):
        right, wrong = np.split(np.array(DetectionAP().sums(seen, there(A))[:-1]), 2)
        assert right.nonzero()[0].tolist() == [45] and wrong.nonzero()[0].tolist() == [25]


def test_an_answer_takes_the_nearest_object_of_its_name():
    near = (1.0, 0.0, 11.0, 10.0)
    assert precision(([dog(A, 0.9), dog(near, 0.8)], there(near, A))) == 1.0
    assert precision(([dog(A, 0.9)], there(A, name="cat"))) == 0.0
    assert precision(([dog(A, 0.9, "dog"), dog(A, 0.8, "cat")], there(A, name="cat"))) == 0.5


def test_ranking_by_confidence_by_hand():
    """Right, wrong, right of three objects: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3; the best from there on."""
    picture = ([dog(A, 0.9), dog((70.0, 70.0, 80.0, 80.0), 0.8), dog(B, 0.7)], there(A, B, C))
    assert precision(picture) == pytest.approx(1 / 3 + 1 / 3 * 2 / 3, abs=1e-4)
    reversed_ranks = ([dog(A, 0.7), dog((70.0, 70.0, 80.0, 80.0), 0.8), dog(B, 0.9)], there(A, B, C))
    assert precision(reversed_ranks) == precision(picture)
    wrong_first = ([dog(A, 0.8), dog((70.0, 70.0, 80.0, 80.0), 0.9), dog(B, 0.7)], there(A, B, C))
    assert precision(wrong_first) == pytest.approx(2 / 3 * 2 / 3, abs=1e-4)


def test_answers_of_one_step_of_confidence_share_their_precision():
    assert precision(([dog(A, 0.901), dog(B, 0.919)], there(A))) == 0.5
    assert precision(([dog(A, 1.0), dog(B, 0.0)], there(A, B))) == 1.0  # the ends of the scale are steps too


def test_sums_add_up_however_rows_are_split():
    draw = np.random.default_rng(0)

    def boxes(count):
        corners = draw.integers(0, 40, (count, 2))
        return [(float(x), float(y), float(x + 10), float(y + 10)) for x, y in corners]

    rows = []
    for _ in range(40):
        objects = there(*boxes(int(draw.integers(0, 4))))
        seen = [dog(one.box, float(draw.random())) for one in objects if draw.random() < 0.6]
        seen += [dog(box, float(draw.random())) for box in boxes(int(draw.integers(0, 3)))]
        rows.append((seen, objects))
    whole = Tally([DetectionAP()])
    for seen, objects in rows:
        whole.add(seen, objects)
    value = whole.values()["detection_ap50"]
    assert 0.2 < value < 0.9
    for parts in (2, 3, 7):
        tallies = [Tally([DetectionAP()]) for _ in range(parts)]
        for number, (seen, objects) in enumerate(draw.permutation(np.array(rows, dtype=object)).tolist()):
            tallies[number % parts].add(seen, objects)
        logs = [tally.log() for tally in tallies]
        keys = DetectionAP.log_keys()
        assert list(logs[0]) == list(keys) and len(set(map(tuple, logs))) == 1
        assert DetectionAP().value(*(sum(log[key] for log in logs) for key in keys)) == value


# Several regions


@pytest.mark.parametrize(
    ("answered", "wanted", "first", "f1", "recall"),
    [
        ([], [A], 0, 0, 0),
        ([A], [A], 1, 1, 1),
        ([A], [B, A], 1, 2 / 3, 0.5),
        ([C, A, B], [A, B], 0, 0.8, 1),
        ([A, A], [A], 1, 2 / 3, 1),
        ([A, A], [A, B], 1, 0.5, 0.5),
    ],
)
def test_several_regions_are_found_once_each(answered, wanted, first, f1, recall):
    values = [metric().score(answered, wanted) for metric in (FirstRegionAccuracy, BoxF1, BoxRecall)]
    assert values == pytest.approx([first, f1, recall])


def test_boxes_are_paired_so_that_most_regions_are_found():
    """The first box overlaps both regions, the second only the first region."""
    wide, left, right = (0.0, 0.0, 12.0, 10.0), (0.0, 0.0, 9.0, 10.0), (3.0, 0.0, 14.0, 10.0)
    assert pairs([wide, left], [left, right]) == 2 and pairs([left, wide], [left, right]) == 2
