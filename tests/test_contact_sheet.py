"""The contact sheet shows what was asked, what the model says, and what would have been right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ofa_plugin import contact_sheet
from ofa_plugin.contact_sheet import BLACK, GREY, MODEL, PICTURE, RIGHT
from ofa_plugin.data import palette
from ofa_plugin.data.boxes import LabelledBox
from ofa_plugin.data.codec import Codec
from ofa_plugin.data.example import Example

SIDE = 64


@pytest.fixture
def codec(world):
    return Codec.build("sentencepiece", str(world.root / "bpe"), 10, 256)


def example(codec, kind, source, target, **more):
    """A grey picture of 64 pixels, asked about."""
    ids = [codec.encode(piece) if isinstance(piece, str) else piece for piece in source]
    shown = {} if kind == "text_infilling" else {"image": torch.full((3, SIDE, SIDE), 90, dtype=torch.uint8)}
    source, target = torch.cat(ids), target if isinstance(target, torch.Tensor) else codec.encode(target)
    return Example(0, "0", "x.tsv:1", source, target, kind=kind, **shown, **more)


def said(panel):
    """The texts of a panel, with their one colour."""
    return [(" ".join(word for word, _ in text), {colour for _, colour in text}) for text in panel.texts]


def outlined(picture, colour):
    """Left, top, right and bottom of what is drawn in a colour, or None."""
    return Image.fromarray((np.asarray(picture) == colour).all(-1)).getbbox()


def test_an_answer_stands_beside_the_right_one(codec):
    asked = example(codec, "vqa", [" is it red?"], " yes")
    panel = contact_sheet.panel("vqa", "questions", asked, {"answer": "no"}, codec)
    assert said(panel) == [("is it red?", {GREY}), ("no", {MODEL}), ("right: yes", {RIGHT})]
    assert [picture.size for picture in panel.pictures] == [(PICTURE, PICTURE)]


def test_both_boxes_stand_where_they_say(codec):
    asked = example(codec, "grounding", [" which region?"], codec.bins([1, 1, 4, 4]), reference=(8.0, 16.0, 32.0, 48.0))
    (picture,) = contact_sheet.panel("grounding", "", asked, {"box": [40.0, 40.0, 56.0, 60.0]}, codec).pictures
    assert outlined(picture, RIGHT) == (22, 46, 98, 146)  # three times as large, two pixels around
    assert outlined(picture, MODEL) == (118, 118, 170, 182)
    (picture,) = contact_sheet.panel("grounding", "", asked, {"box": []}, codec).pictures
    assert outlined(picture, MODEL) is None


def test_boxes_are_drawn_on_the_picture_as_the_model_saw_it(codec):
    asked = example(codec, "grounding", [" where?"], " x", reference=(16.0, 32.0, 64.0, 96.0), scale=(0.5, 0.5))
    (picture,) = contact_sheet.panel("grounding", "", asked, {"box": []}, codec).pictures
    assert outlined(picture, RIGHT) == (22, 46, 98, 146)


def test_the_asked_region_is_drawn_and_its_bins_are_not_written(codec):
    asked = example(codec, "region_caption", ["  what? region:", codec.bins([0, 3, 3, 9])], " the star")
    panel = contact_sheet.panel("region_caption", "", asked, {"answer": "the cross"}, codec)
    assert said(panel)[0][0] == "what? region: [box]"
    assert outlined(panel.pictures[0], GREY) == (0, 62, 66, 192)


def test_detected_objects_are_named(codec):
    asked = example(codec, "detection", [" what?"], " x", reference=[LabelledBox((8, 8, 16, 16), "red star")])
    found = [{"box": [40, 40, 56, 56], "name": "red cross", "confidence": 0.5}]
    panel = contact_sheet.panel("detection", "", asked, {"objects": found}, codec)
    assert [text for text, _ in said(panel)] == ["what?", "red cross", "right: red star"]
    assert outlined(panel.pictures[0], MODEL) and outlined(panel.pictures[0], RIGHT)
    assert said(contact_sheet.panel("detection", "", asked, {"objects": []}, codec))[1][0] == "nothing"


def test_the_codes_fill_the_middle(codec):
    asked = example(codec, "image_infilling", [" what is the middle?"], codec.codes([0] * 16), hole=32)
    codes = palette.encode(Image.new("RGB", (32, 32), (255, 0, 0)), 32)
    filled, true = contact_sheet.panel("image_infilling", "", asked, {"codes": codes}, codec).pictures
    assert outlined(filled, (255, 0, 0)) == (48, 48, 144, 144)
    assert outlined(true, (90, 90, 90)) == (0, 0, 192, 192)


def test_words_that_were_not_to_be_seen_have_the_models_colour(codec):
    gapped = [' what is "', torch.tensor([codec.mask]), ' a star "?']
    asked = example(codec, "text_infilling", gapped, " there is a star")
    entry = {"tokens": codec.encode(" what is a star").tolist()}
    panel = contact_sheet.panel("text_infilling", "", asked, entry, codec)
    assert panel.pictures == []
    assert panel.texts[1] == [("what", MODEL), ("is", MODEL), ("a", BLACK), ("star", BLACK)]
    assert said(panel)[0][0] == 'what is " ___ a star "?'


def test_every_panel_has_its_place_on_the_sheet():
    blue = Image.new("RGB", (64, 64), (0, 0, 255))
    panels = [contact_sheet.Panel("a", [blue], [contact_sheet.words("long " * 40, BLACK)])] * 5
    sheet = contact_sheet.draw(panels)
    assert sheet.size == (contact_sheet.COLUMNS * contact_sheet.WIDTH, 2 * contact_sheet.HEIGHT)
    written = np.asarray(sheet.convert("L")) < 128
    assert not written[:, [k * contact_sheet.WIDTH - 1 for k in range(1, 5)]].any()  # no text runs into the next
    blues = (np.asarray(sheet) == (0, 0, 255)).all(-1).sum()
    assert blues == 5 * PICTURE**2
