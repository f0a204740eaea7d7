"""Referring expressions: rows against the official dataset's, boxes there and back, and what is no answer."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch

from ofa_plugin.data.codec import Codec
from ofa_plugin.data.image import PictureLoader
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow
from ofa_plugin.tasks.refcoco import Grounding, RefcocoBuilder, SeveralRegions, read_boxes
from tests.helpers.cases import CASES, EXPECTED
from tests.helpers.golden import golden, settings, synthetic_image

GOLDEN = golden("refcoco_boxes.json")
SWITCHES = {"several_boxes": 1, "geometric_augment": False}
FILE_ORDER = [0, 4, 2, 3]  # of the official files


def builder(path, codec, columns=None, training=True, **given):
    cfg = settings(**{"patch_image_size": 32, "max_image_size": 512, "max_src_length": 80, **SWITCHES, **given})
    store = TSVStore(str(path), RefcocoBuilder.columns, columns)
    return RefcocoBuilder(store, codec, cfg, training, PictureLoader(path.parent, cfg.patch_image_size))


def only(made, index=0):
    [example] = made.examples(index, made.store[index], np.random.default_rng(0))
    return example


def written(tmp_path, *row):
    (tmp_path / "rows.tsv").write_text("\t".join(row) + "\n", encoding="utf-8")
    return tmp_path / "rows.tsv"


def hypothesis(*ids):
    return {"tokens": torch.tensor(ids, dtype=torch.int64), "positional_scores": torch.zeros(len(ids))}


@pytest.mark.parity
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['w']}x{case['h']}-{case['box'][0]:g}")
def test_rows_match_the_official_dataset(shared, released, tmp_path, case):
    """Where official has `<unk>` for a corner outside of the picture, there is a bad row."""
    codec = released(shared("bpe/gpt2"))
    cell = ",".join(map(str, case["box"]))
    path = written(tmp_path, "u", synthetic_image(case["w"], case["h"]), GOLDEN["text"], cell)
    sizes = {name: case[name] for name in ("patch_image_size", "max_image_size")}
    made = builder(path, codec, **sizes)
    if None in case["bins"]:
        with pytest.raises(BadRow, match=rf"rows.tsv:1: box: box .* of a picture of {case['w']} x {case['h']}: "):
            only(made)
        return
    example = only(made)
    assert example.source.tolist() == case["source_ids"] and example.target.tolist() == case["target_ids"]
    assert list(example.image.shape) == case["image_tensor_shape"]
    assert example.scale == pytest.approx((case["w_resize_ratio"], case["h_resize_ratio"]), abs=1e-6)
    assert example.reference == tuple(case["box"]) and example.counts == {"clamped_boxes": 0}
    cfg = Namespace(**sizes)
    answer = Grounding().answer(codec, cfg, hypothesis(*example.target.tolist()), example.scale)
    assert answer == pytest.approx(case["dequantised_box"], abs=1e-4)
    assert Grounding.metrics[0]().score(answer, example.reference) == 1.0


def test_an_overshoot_of_a_pixel_is_clamped_where_official_writes_unknown(codec, tmp_path):
    path = written(tmp_path, "u", synthetic_image(40, 30), "a dog", "-0.5,-1,40.9,31")
    example = only(builder(path, codec, max_image_size=32))
    assert (example.target - codec.bin0).tolist()[:4] == [0, 0, 99, 99] and codec.unk not in example.target
    assert example.counts == {"clamped_boxes": 1}
    assert example.reference == (-0.5, -1, 40.9, 31)  # what was asked for


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("", "1,1,5,5"), "text: it is empty: write what the region shows, or leave the row out"),
        (("a dog", ""), "box: box '': one value, not four: write x0,y0,x1,y1 in pixels"),
        (("a dog", "1,1,1,5"), "box: box 1,1,1,5 has no area: give the corners of a region"),
    ],
    ids=["no text", "no box", "no area"],
)
def test_a_bad_row_is_named_with_what_to_do(codec, tmp_path, row, says):
    path = written(tmp_path, "u", synthetic_image(40, 30), *row)
    with pytest.raises(BadRow) as caught:
        only(builder(path, codec))
    assert str(caught.value) == f"{path}:1: {says}"


def test_fc13_width_and_height_where_corners_are_wanted(codec):
    path, expected = CASES / "fc13" / "refcoco.tsv", EXPECTED["fc13"]
    wide = Codec(codec.tokenizer, codec._record, 1000, 8)
    made = builder(path, wide, FILE_ORDER, patch_image_size=512)
    assert (only(made).target[:4] - wide.bin0).tolist() == expected["target_bins_patch_512"]
    for line, reason in expected["bad_rows"].items():
        with pytest.raises(BadRow) as caught:
            only(made, int(line) - 1)
        message = str(caught.value)
        assert message.startswith(f"{path}:{line}: box: box ")
        assert reason in message or (reason == "zero width" and "has no area" in message)


def test_fc15_boxes_of_a_picture_of_another_size(codec):
    path = CASES / "fc15" / "refcoco.tsv"
    made = builder(path, codec, FILE_ORDER)
    says = {
        1: "box 26,51,639,359 of a picture of 500 x 332: x1 lies 139 px outside, y1 lies 27 px outside",
        2: "box -3.2,-0.4,100,50 of a picture of 500 x 332: x0 is negative",
        3: "box 510,10,600,60 of a picture of 500 x 332: wholly outside",
    }
    for line, reason in says.items():
        with pytest.raises(BadRow) as caught:
            only(made, line - 1)
        assert str(caught.value) == f"{path}:{line}: box: {reason}: give boxes of this very picture, in its pixels"
    assert sorted(EXPECTED["fc15"]["by_line"]) == ["1", "2", "3", "4"]
    example = only(made, 3)
    assert example.counts == {"clamped_boxes": 1}
    x0, y0, x1, y1 = read_boxes(example.target, codec, 512, example.scale)[0]
    assert [x0, y0] == [0, 0]  # as if clipping was asked for; a bin is 512 / 99 pixels of 32
    assert [x1, y1] == pytest.approx(EXPECTED["fc15"]["if_clipping_is_asked"]["4"][2:], abs=512 / 99 / 32 * 500)


def test_a_typed_row_needs_no_box(codec, tmp_path):
    path = written(tmp_path, "u", synthetic_image(40, 30), "a dog", "1,1,5,5")
    made = builder(path, codec, training=False)
    row = made.store[0]._replace(box=None)
    [example] = made.examples(0, row, np.random.default_rng(0))
    assert example.target.tolist() == [codec.pad] and example.reference is None


@pytest.mark.parametrize(
    "written",
    [
        "",
        "b",
        "b b b",
        "b b b b b",
        "b b b b b b b b",
        "b b t b b",
        "t",
        "b t b b b",
        "b b b b t",
        "c c c c",
        "t t t t",
    ],
)
def test_what_is_no_box_is_no_answer(codec, written):
    """b a bin, t a word, c a code."""
    ids = {"b": codec.bin0 + 7, "t": 9, "c": codec.code0 + 1}
    tokens = [ids[letter] for letter in written.split()] + [codec.eos]
    kind, cfg = Grounding(), Namespace(max_image_size=512)
    answer = kind.answer(codec, cfg, hypothesis(*tokens), (1.0, 1.0))
    assert answer is None
    assert kind.entry("u", answer) == {"uniq_id": "u", "box": []}
    assert kind.metrics[0]().score(answer, (0, 0, 5, 5)) == 0.0


def test_a_box_is_read_in_pixels_of_the_stored_picture_and_written_to_a_hundredth(codec):
    kind, cfg = Grounding(), Namespace(max_image_size=64)
    tokens = [codec.bin0, codec.bin0 + 33, codec.bin0 + 66, codec.bin0 + 99]
    for end in ([codec.eos], []):  # stock's hypotheses end in eos; one that was cut may not
        answer = kind.answer(codec, cfg, hypothesis(*tokens, *end), (2.0, 0.5))
        assert answer == pytest.approx((0, 64 / 3 / 0.5, 64 * 2 / 3 / 2, 64 / 0.5))
    assert kind.entry(7, answer) == {"uniq_id": 7, "box": [0, 42.67, 21.33, 128.0]}


# Several boxes, and pictures that training changes


def test_several_boxes_there_and_back(codec, tmp_path):
    path = written(tmp_path, "u", synthetic_image(40, 30), "dogs", "0,0,20,15&&20,15,40.5,30")
    made = builder(path, codec, training=False, max_image_size=32, several_boxes=3)
    example = only(made)
    assert example.reference == [(0, 0, 20, 15), (20, 15, 40.5, 30)] and example.counts == {"clamped_boxes": 1}
    kind, cfg = SeveralRegions(3), Namespace(max_image_size=32)
    said = hypothesis(*example.target.tolist())
    said["positional_scores"] = torch.tensor([0.7] * 4 + [0.2] * 4 + [1.0]).log()
    answer = kind.answer(codec, cfg, said, example.scale)
    boxes = [region.box for region in answer]
    assert np.allclose(boxes, [(0, 0, 20, 15), (20, 15, 40, 30)], atol=0.3)
    assert all(metric().score(boxes, example.reference) == 1.0 for metric in kind.metrics)
    entry = kind.entry(7, answer)
    assert [len(box) for box in entry["boxes"]] == [4, 4] and entry["confidences"] == [0.7, 0.2]
    assert (kind.rules(codec).least, kind.rules(codec).most, kind.settings["max_len_b"]) == (1, 3, 12)


@pytest.mark.parametrize(
    ("most", "box", "says"),
    [
        (2, "1,1,5,5&&1,1,9,9&&1,1,8,8", "3 boxes, and --several-boxes is 2: raise it, or leave the row out"),
        (2, "1,1,5,5&&", "box '': one value, not four: write x0,y0,x1,y1 in pixels"),
        (1, "1,1,5,5&&1,1,9,9", "box '1,1,5,5&&1,1,9,9': 7 values, not four: write x0,y0,x1,y1 in pixels"),
    ],
)
def test_boxes_that_cannot_be_used_are_named(codec, tmp_path, most, box, says):
    path = written(tmp_path, "u", synthetic_image(40, 30), "dogs", box)
    with pytest.raises(BadRow) as caught:
        only(builder(path, codec, several_boxes=most))
    assert str(caught.value) == f"{path}:1: box: {says}"


def test_training_pictures_change_where_that_is_asked_for(codec, tmp_path):
    """A draw of its own for each seed; the same for the same; no mirror where the text names a side."""
    cell = "0,0,4,30"  # a mirrored picture has it at the right, and no frame that holds it leaves the left edge far
    lefts = {}
    for text in ("a dog", "left dog"):
        path = written(tmp_path, "u", synthetic_image(40, 30), text, cell)
        made = builder(path, codec, max_image_size=32, geometric_augment=True)
        row = made.store[0]
        made_of = [next(made.examples(0, row, np.random.default_rng(seed))).target.tolist() for seed in range(30)]
        assert made_of[3] == next(made.examples(0, row, np.random.default_rng(3))).target.tolist()
        lefts[text] = [ids[0] - codec.bin0 for ids in made_of]
    assert len(set(lefts["a dog"])) > 10 and max(lefts["a dog"]) > 50 > max(lefts["left dog"])
    whole = builder(path, codec, training=False, max_image_size=32, geometric_augment=True)
    assert torch.equal(only(whole).target, only(builder(path, codec, max_image_size=32)).target)
