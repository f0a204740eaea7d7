"""Detection rows against the official dataset's, what becomes of odd objects, and what a hypothesis says."""

from __future__ import annotations

import math
from argparse import Namespace

import numpy as np
import pytest
import torch

from ofa_plugin.data import augment
from ofa_plugin.data.boxes import LabelledBox
from ofa_plugin.data.example import collate
from ofa_plugin.data.image import PictureLoader
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow, UserError
from ofa_plugin.tasks.detection import Detection, DetectionBuilder, ObjectsBuilder
from ofa_plugin.tasks.metrics.boxes import Detected
from tests.helpers.cases import CASES, EXPECTED
from tests.helpers.golden import golden, synthetic_image
from tests.helpers.pretraining import builder_of, configuration, detection_row, task_of, write_data, write_rows

GOLDEN = golden("pretrain_examples.json")["detection"]
JITTERS = golden("transform_large_scale_jitter.json")


def only(made, index=0, draw=None):
    [example] = made.examples(index, made.store[index], draw or np.random.default_rng(0))
    return example


class Drawn:
    """A generator that gives what it was told."""

    def __init__(self, flip, *jitter):
        self.flip, self.jitter = flip, jitter

    def random(self, count=None):
        return self.flip if count is None else np.array(self.jitter)


# Rows as official


@pytest.mark.parity
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["torch_seed"]))
def test_rows_match_the_official_dataset(shared, released, tmp_path, monkeypatch, case):
    """Text, ids and order, once the crop has left the boxes where the recorded one did."""
    codec, recorded = released(shared("bpe/gpt2")), case["example"]
    bins = np.array([token - codec.bin0 for token in recorded["target"] if token >= codec.bin0])
    boxes = bins.reshape(-1, 4) / 999 * 512
    path = write_rows(tmp_path / "d.tsv", ["d1", synthetic_image(64, 64), _OBJECTS])

    def jittered(image, boxes_in, side, draw):
        assert side == 256 and len(boxes_in) == 3
        return image.resize((side, side)), boxes, np.ones(3, dtype=bool)

    monkeypatch.setattr(augment, "large_scale_jitter", jittered)
    example = only(builder_of(DetectionBuilder, codec, path, code_image_size=128))
    batch = collate([example], codec.bos, codec.pad)
    assert example.uniq_id == recorded["id"] and example.kind == "detection"
    assert codec.decode(example.source) == recorded["source_text"]
    assert example.source.tolist() == recorded["source"] and example.target.tolist() == recorded["target"]
    assert batch["net_input"]["prev_output_tokens"].tolist() == [recorded["prev_output_tokens"]]
    assert batch["conf"].tolist() == recorded["conf"]
    assert list(example.image.shape) == recorded["patch_image_shape"]
    assert batch["net_input"]["patch_masks"].tolist() == recorded["patch_mask"]
    assert "code_masks" not in batch["net_input"] and recorded["code_mask"] == [False]


_OBJECTS = "0,0,20,20,7,Dog&&0,0,64,64,8,traffic light&&40,10,50,20,9,cat, big"


@pytest.mark.parity
@pytest.mark.parametrize("case", JITTERS["cases"], ids=lambda case: f"{case['w']}x{case['h']}-{case['torch_seed']}")
def test_jittered_rows_have_the_official_bins_and_names(shared, released, tmp_path, case):
    codec = released(shared("bpe/gpt2"))
    objects = [
        ",".join(map(str, [*box, number, name]))
        for number, (box, name) in enumerate(zip(case["boxes_in"], case["labels_in"], strict=True))
    ]
    path = write_rows(tmp_path / "d.tsv", ["d1", synthetic_image(case["w"], case["h"]), "&&".join(objects)])
    draw = Drawn(0.5, case["rand_scale_u"], *case["rand_offset_u"])
    example = only(builder_of(DetectionBuilder, codec, path, code_image_size=128), draw=draw)
    said = [
        token
        for bins, name in zip(case["bins"], case["labels_out"], strict=True)
        for token in (*codec.bins(bins).tolist(), *codec.encode(f" {name}").tolist())
    ]
    assert example.target.tolist() == [*said, codec.eos]


def test_a_mirrored_picture_has_mirrored_boxes_in_the_order_of_the_file(codec, tmp_path):
    path = write_rows(tmp_path / "d.tsv", ["d", synthetic_image(32, 32), "0,0,8,8,1,dog&&16,8,32,32,2,cat"])
    made = builder_of(DetectionBuilder, codec, path, max_image_size=32)
    straight, mirrored = (only(made, draw=Drawn(flip, 0, 0, 0)) for flip in (0.5, 0.49))
    cfg = Namespace(max_image_size=32)
    hypotheses = [_said(codec, *example.target.tolist()) for example in (straight, mirrored)]
    seen = [Detection().answer(codec, cfg, hypothesis, (1.0, 1.0)) for hypothesis in hypotheses]
    assert [[(one.name, tuple(np.rint(one.box))) for one in objects] for objects in seen] == [
        [("dog", (0, 0, 8, 8)), ("cat", (16, 8, 32, 32))],
        [("dog", (24, 0, 32, 8)), ("cat", (0, 8, 16, 32))],
    ]
    assert torch.equal(straight.image.flip(-1), mirrored.image)


def test_half_of_the_pictures_are_mirrored(codec, tmp_path):
    path = write_rows(tmp_path / "d.tsv", ["d", synthetic_image(8, 8), "0,0,4,8,1,dog"])
    made = builder_of(DetectionBuilder, codec, path, code_image_size=8, max_image_size=16)
    draw = np.random.default_rng(0)
    lefts = [int(only(made, draw=draw).target[0]) - codec.bin0 for _ in range(200)]
    assert abs(sum(left > 0 for left in lefts) - 100) < 4 * math.sqrt(200 / 4)


def test_evaluation_sees_the_whole_picture_and_keeps_the_objects_as_stored(codec, tmp_path):
    path = write_rows(tmp_path / "d.tsv", ["d", synthetic_image(40, 20), "0,0,40,20,1,dog&&10,5,20,10,2,cat"])
    made = builder_of(DetectionBuilder, codec, path, training=False, max_image_size=32)
    example = only(made)
    assert example.image.shape == (3, 32, 32) and example.scale == (0.8, 1.6)
    assert example.reference == [LabelledBox((0, 0, 40, 20), "dog"), LabelledBox((10, 5, 20, 10), "cat")]
    hypothesis = _said(codec, *example.target.tolist())
    seen = Detection().answer(codec, Namespace(max_image_size=32), hypothesis, example.scale)
    assert [one.name for one in seen] == ["dog", "cat"] and seen[0].box == pytest.approx((0, 0, 40, 20))
    assert seen[1].box == pytest.approx((10, 5, 20, 10), abs=0.5)
    assert torch.equal(only(made, draw=np.random.default_rng(9)).image, example.image)


# Odd rows


def test_objects_are_clamped_left_out_and_counted(codec, tmp_path):
    objects = "-0.5,0,20,20,1,dog&&5,5,5,9,2,flat cat&&4,3,41,30.5,3,bus&&7,8,9,8,4,line"
    path = write_rows(tmp_path / "d.tsv", detection_row(), detection_row("e", objects))
    example = only(builder_of(DetectionBuilder, codec, path, training=False), 1)
    assert example.counts == {"clamped_boxes": 2, "empty_boxes": 2}
    assert example.notes == (
        f"{path}:2: objects: the flat cat has no area and is left out",
        f"{path}:2: objects: the line has no area and is left out",
    )
    assert [one.name for one in example.reference] == ["dog", "bus"]
    assert example.reference[1].box == (4, 3, 40, 30)


@pytest.mark.parametrize("objects", ["", "  ", "5,5,5,9,2,cat", "5,5,5,9,2,cat&&1,1,9,1,3,dog"])
@pytest.mark.parametrize("training", [True, False])
def test_a_picture_without_objects_is_a_counted_negative(codec, tmp_path, objects, training):
    path = write_rows(tmp_path / "d.tsv", detection_row("d", objects))
    example = only(builder_of(DetectionBuilder, codec, path, training=training))
    assert example.target.tolist() == [codec.eos]
    empty = objects.count("&&") + bool(objects.strip())
    assert example.counts == {"clamped_boxes": 0, "empty_boxes": empty, "empty_detections": 1}
    batch = collate([example], codec.bos, codec.pad)
    assert batch["ntokens"] == 1 and batch["net_input"]["prev_output_tokens"].tolist() == [[codec.bos]]


def test_a_crop_that_shows_no_object_makes_a_negative_as_officially(codec, tmp_path):
    path = write_rows(tmp_path / "d.tsv", ["d", synthetic_image(100, 20), "0,0,2,2,1,dog"])
    example = only(builder_of(DetectionBuilder, codec, path), draw=Drawn(0.5, 1, 1, 1))
    assert example.target.tolist() == [codec.eos] and example.counts["empty_detections"] == 1
    assert example.counts["empty_boxes"] == 0 and example.notes == ()


@pytest.mark.parametrize(
    ("objects", "says"),
    [
        (
            "1,2,3,4,5",
            "object 1 of 1, '1,2,3,4,5': 5 of 6 parts: write x0,y0,x1,y1,object_id,object_name, joined by &&",
        ),
        (
            "4,3,24,27,1,dog&&4,3,24,y,1,cat",
            "object 2 of 2, '4,3,24,y,1,cat': y1 is 'y', no finite number: write x0,y0,x1,y1 in pixels",
        ),
        (
            "4,3,24,27,1, ",
            "object 1 of 1, '4,3,24,27,1, ': no object name: write x0,y0,x1,y1,object_id,object_name, joined by &&",
        ),
        (
            "4,3,24,27,1,dog&&",
            "object 2 of 2, '': 1 of 6 parts: write x0,y0,x1,y1,object_id,object_name, joined by &&",
        ),
        (
            "4,3,42,27,1,dog",
            "box 4,3,42,27 of a picture of 40 x 30: x1 lies 2 px outside: "
            "give boxes of this very picture, in its pixels",
        ),
        (
            "24,27,4,3,1,dog",
            "box 24,27,4,3 of a picture of 40 x 30: x1<x0 and y1<y0: looks like x,y,width,height: "
            "write x0,y0,x1,y1, where x1 = x + width",
        ),
    ],
    ids=["short", "letter", "unnamed", "trailing", "outside", "width"],
)
def test_a_bad_row_is_named_with_what_to_do(codec, tmp_path, objects, says):
    path = write_rows(tmp_path / "d.tsv", detection_row(), detection_row("e", objects))
    with pytest.raises(BadRow) as caught:
        only(builder_of(DetectionBuilder, codec, path), 1)
    assert str(caught.value) == f"{path}:2: objects: {says}"


def test_what_was_put_right_is_logged_once_and_counted_always(world, tmp_path, caplog):
    data = write_data(tmp_path / "data")
    path = data / "train" / "detection_examples.tsv"
    write_rows(path, detection_row("d", "5,5,5,9,2,cat&&-1,0,40,30,3,dog"))
    task = task_of(world, data, "--kinds", "detection")
    task.load_dataset("train")
    mixture = task.datasets["train"]
    for _ in range(2):
        counts = task._counts(mixture.collater([mixture[0]]))
        assert counts == {"n_bad_rows": 0, "n_clamped_boxes": 1, "n_empty_boxes": 1, "n_empty_detections": 0}
    assert caplog.text.count(f"{path}:1: objects: the cat has no area and is left out") == 1


def test_fc18_names_with_commas_no_objects_and_the_order_of_the_file(codec):
    """The order is the file's; pictures without objects are legal."""
    path, expected = CASES / "fc18" / "detection.tsv", EXPECTED["fc18"]
    for training in (True, False):
        made = builder_of(DetectionBuilder, codec, path, training=training)
        draw = Drawn(0.5, 0, 0, 0.5)
        examples = [only(made, index, draw) for index in range(3)]
        assert examples[1].target.tolist() == [codec.eos] and examples[1].counts["empty_detections"] == 1
        cfg = Namespace(max_image_size=512)
        hypotheses = [_said(codec, *example.target.tolist()) for example in examples]
        seen = [[one.name for one in Detection().answer(codec, cfg, said, (1.0, 1.0))] for said in hypotheses]
        assert seen == expected["names"]
    assert [[one.name for one in example.reference] for example in examples] == expected["names"]


# What a hypothesis says


def _said(codec, *ids, scores=None):
    scores = [0.0] * len(ids) if scores is None else scores
    return {"tokens": torch.tensor(ids, dtype=torch.int64), "positional_scores": torch.tensor(scores)}


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("", []),
        ("bbbb", []),
        ("d", []),
        ("bbbd", []),
        ("bbbbbd", []),
        ("bbdbb", []),
        ("bbbbd", ["dog"]),
        ("dbbbbd", ["dog"]),
        ("bbbbdbbbb", ["dog"]),
        ("bbbbdbbbc", ["dog"]),
        ("bbbdbbbbc", ["cat"]),
        ("bbbbdbbbbc", ["dog", "cat"]),
        ("bbbbdc", ["dog cat"]),
        ("bbbb_", []),
    ],
)
def test_four_bins_and_a_name_are_an_object_and_all_else_is_none(codec, written, names):
    words = {"d": codec.encode(" dog").tolist(), "c": codec.encode(" cat").tolist(), "_": codec.encode(" ").tolist()}
    words["b"] = [codec.bin0 + 3]
    ids = [token for letter in written for token in words[letter]]
    for end in ([codec.eos], []):
        seen = Detection().answer(codec, Namespace(max_image_size=512), _said(codec, *ids, *end), (1.0, 1.0))
        assert [one.name for one in seen] == names
        assert all(one.box == pytest.approx((3 * 512 / 99,) * 4) for one in seen)


def test_an_object_is_as_sure_as_its_tokens_on_average(codec):
    dog, cat = codec.encode(" dog").tolist(), codec.encode(" cat").tolist()
    ids = [codec.bin0, codec.bin0, codec.bin0 + 99, codec.bin0 + 99]
    scores = [math.log(0.5)] * (4 + len(dog)) + [math.log(0.9)] * (4 + len(cat)) + [math.log(0.1)]
    hypothesis = _said(codec, *ids, *dog, *ids, *cat, codec.eos, scores=scores)
    seen = Detection().answer(codec, Namespace(max_image_size=512), hypothesis, (0.5, 2.0))
    assert [one.name for one in seen] == ["dog", "cat"]
    assert [one.confidence for one in seen] == pytest.approx([0.5, 0.9], abs=1e-6)
    assert seen[0].box == (0, 0, 1024, 256)


def test_an_impossible_token_makes_no_noise(codec):
    dog = codec.encode(" dog").tolist()
    hypothesis = _said(codec, *[codec.bin0] * 4, *dog, scores=[-math.inf] * (4 + len(dog)))
    [seen] = Detection().answer(codec, Namespace(max_image_size=512), hypothesis, (1.0, 1.0))
    assert seen.confidence == 0.0


def test_an_entry_lists_boxes_names_and_confidences():
    answer = [Detected((0.123, 1, 2, 3.999), "dog", 0.123456)]
    assert Detection().entry("u", answer) == {
        "uniq_id": "u",
        "objects": [{"box": [0.12, 1, 2, 4.0], "name": "dog", "confidence": 0.1235}],
    }
    assert Detection().entry("u", []) == {"uniq_id": "u", "objects": []}


# The task of its own


def of_task(world, data, *flags, **kwargs):
    return task_of(world, data, "--task", "detection", "--max-image-size", "64", *flags, **kwargs)


def test_pictures_have_the_size_that_was_asked_for_and_move_only_with_the_flag(codec, tmp_path):
    path = write_rows(tmp_path / "d.tsv", detection_row("d", "0,0,20,15,7,Dog"))
    plain = {"patch_image_size": 48, "geometric_augment": False, "names": None}
    whole = only(builder_of(ObjectsBuilder, codec, path, **plain))
    assert whole.image.shape == (3, 48, 48) and whole.kind == "" and whole.confidence == 1.0
    cfg = Namespace(max_image_size=configuration().max_image_size)
    seen = Detection().answer(codec, cfg, _said(codec, *whole.target.tolist()), whole.scale)
    assert [one.name for one in seen] == ["Dog"] and seen[0].box == pytest.approx((0, 0, 20, 15), abs=3)  # half a bin
    made = builder_of(ObjectsBuilder, codec, path, **{**plain, "geometric_augment": True})
    views = [only(made, draw=np.random.default_rng(seed)) for seed in range(4)]
    assert len({view.image.numpy().tobytes() for view in views}) > 1
    still = builder_of(ObjectsBuilder, codec, path, training=False, **{**plain, "geometric_augment": True})
    assert torch.equal(only(still).image, whole.image) and only(still).reference == [LabelledBox((0, 0, 20, 15), "Dog")]


def test_names_outside_of_the_set_are_bad_rows_and_remembered_by_the_checkpoint(world, tmp_path):
    write_rows(tmp_path / "train.tsv", detection_row("d", "0,0,20,15,7,red&&0,0,9,9,1,blue"))
    (tmp_path / "names.txt").write_text("red\ngreen\n")
    task = of_task(world, tmp_path, "--ans2label-file", str(tmp_path / "names.txt"))
    assert task.cfg.ans2label_file is None and task.cfg.names == '["red", "green"]'
    task.load_dataset("train")
    with pytest.raises(BadRow, match="train.tsv:1: objects: 'blue' is none of the names: add it to --ans2label-file"):
        only(task.datasets["train"].builder)
    rules = task.rules_of("")
    assert rules.vocabulary == len(task.codec.dictionary)
    (tmp_path / "names.txt").write_text("a\u2581b\n")
    with pytest.raises(UserError, match="the vocabulary cannot write"):
        of_task(world, tmp_path, "--ans2label-file", str(tmp_path / "names.txt"))


def test_training_needs_the_column_of_objects(codec, tmp_path):
    path = write_rows(tmp_path / "d.tsv", detection_row()[:2])
    for training in (True, False):
        made = ObjectsBuilder(
            TSVStore(path, ObjectsBuilder.columns, (0, 1), 2),
            codec,
            configuration(geometric_augment=False, names=None),
            training,
            PictureLoader(path.parent, 32),
        )
        if training:
            with pytest.raises(BadRow, match="d.tsv:1: objects: no column of objects is selected"):
                only(made)
        else:
            assert only(made).reference is None and only(made).target.tolist() == [codec.pad]
