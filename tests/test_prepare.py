"""`ofa prepare unify_task`: field cases, real photographs, every fault, and what the page on it says."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ofa_plugin import cli
from ofa_plugin.data import palette
from ofa_plugin.data.boxes import area, parse_box, parse_objects
from ofa_plugin.data.image import ImageReader
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.tasks.metrics.accuracy import best_answer, parse_answers
from tests.e2e.test_documents import typed
from tests.helpers.cases import CASES, EXPECTED
from tests.helpers.prepared import bad_rows, coco, jsonl, negatives, picture, prepare, rows
from tests.helpers.stock import ROOT

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 18, "name": "Dog"}]


@pytest.fixture
def photos(tmp_path):
    picture(tmp_path / "photos" / "1.jpg")
    picture(tmp_path / "photos" / "2.png", 60, 60)
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


# ---- field cases -----------------------------------------------------------------------------------------------------


def test_fc03_white_space_in_captions(out, capsys):
    case, right = CASES / "fc03", EXPECTED["fc03"]
    assert prepare(out, "--images", case / "img", "--captions", case / "captions.json") == 0
    assert [row.caption for row in rows(out, "vision_language")] == right["captions"]
    assert len((out / "train" / "vision_language_examples.tsv").read_bytes().split(b"\n")) == right["rows"] + 1
    printed = capsys.readouterr()
    assert f"white space became single spaces: {right['captions_changed_and_counted']} (" in printed.out
    assert "annotations[0] (id 0)" in printed.out and printed.err == ""


def test_fc04_the_formats_own_separators(out, capsys):
    case = CASES / "fc04"
    assert prepare(out, "--images", case / "img", "--captions", case / "captions.json") == 0
    captions = [row.caption for row in rows(out, "vision_language")]
    assert captions == ["a sign that reads R&B night", "salt & pepper", "a plain cup"]
    assert [len(caption.split("&&")) for caption in captions] == EXPECTED["fc04"]["references_per_image"]
    assert "texts in which '&&' became '&': 1 (" in capsys.readouterr().out


def test_fc07_ids_that_occur_twice_are_kept_and_named(photos, tmp_path, out, capsys):
    questions = [{"image": "1.jpg", "question": "what?", "answer": "a", "id": key} for key in (5, 6, "5", "05")]
    file = jsonl(tmp_path / "q.jsonl", questions)
    assert prepare(out, "--images", photos, "--questions", file) == 0
    assert [row.id for row in rows(out, "vision_language")] == ["5", "6", "5", "05"]
    line = f"ids that occur more than once, kept: 1 (question 5 at {file}:1, {file}:3)"
    assert line in capsys.readouterr().out


def test_fc09_the_extension_lies(out, capsys):
    case, right = CASES / "fc09", EXPECTED["fc09"]
    assert prepare(out, "--images", case, "--captions", case / "captions.jsonl") == 0
    written = rows(out, "vision_language")
    assert len(written) == right["rows"] and capsys.readouterr().err == ""
    for row, colour in zip(written, right["patch_colours"], strict=True):
        distance = np.abs(np.asarray(ImageReader(out)(row.image), int) - colour).max(-1)
        assert (distance <= right["tolerance"]).sum() > 200


def test_fc13_width_and_height_become_corners_once(tmp_path, out):
    picture(tmp_path / "img" / "a.jpg", 640, 512)
    assert prepare(out, "--images", tmp_path / "img", "--boxes", CASES / "fc13" / "instances.json") == 0
    [detection], [grounding] = rows(out, "detection"), rows(out, "vision_language")
    [labelled] = parse_objects(detection.objects)
    assert list(labelled.box) == list(parse_box(grounding.refs)) == EXPECTED["fc13"]["prepared_box"]
    assert (labelled.name, grounding.caption, grounding.type) == ("person", "person", "visual_grounding")
    assert grounding.refs == "20,183,69,356"


def test_fc19_ten_annotators(out):
    case = CASES / "fc19"
    files = ("--questions", case / "questions.json", "--annotations", case / "annotations.json")
    assert prepare(out, "--images", case / "img", *files) == 0
    [row] = rows(out, "vision_language")
    assert (row.id, row.question, row.type) == ("131089000", "What color is the grass?", "qa")
    assert parse_answers(row.refs) == EXPECTED["fc19"]["soft_scores"]
    assert best_answer(parse_answers(row.refs)) == "green"
    assert negatives(out) == ([], [], {"other": ["green"]})


# ---- real photographs ------------------------------------------------------------------------------------------------


def test_photographs_come_back_box_by_box(shared, tmp_path, out):
    """COCO's own forms, made of 20 rows that are right, give these rows again."""
    captions = list(TSVStore(shared("data/coco/caption/valid.tsv"), ("id", "image_id", "caption", "none", "image")))[
        :20
    ]
    lists = list(TSVStore(shared("data/coco/detection/valid.tsv"), ("id", "image", "objects")))[:20]
    (folder := tmp_path / "img").mkdir()
    images, objects, names, texts = {}, [], {}, []
    for row in [*captions, *lists]:
        key = int(getattr(row, "image_id", row.id))
        data = base64.b64decode(row.image)
        (folder / f"{key:012d}.jpg").write_bytes(data)
        width, height = ImageReader(None).decode(data).size
        images[key] = {"id": key, "file_name": f"{key:012d}.jpg", "width": width, "height": height}
    for row in lists:
        for each in parse_objects(row.objects):
            x0, y0, x1, y1 = each.box
            number = names.setdefault(each.name, len(names) + 1)
            box = [x0, y0, x1 - x0, y1 - y0]
            objects.append({"id": len(objects), "image_id": int(row.id), "category_id": number, "bbox": box})
    for row in captions:
        for text in row.caption.split("&&"):
            texts.append({"id": len(texts), "image_id": int(row.image_id), "caption": text})
    categories = [{"id": number, "name": name} for name, number in names.items()]
    of_boxes = [images[int(row.id)] for row in lists]
    boxes = coco(tmp_path / "instances.json", images=of_boxes, annotations=objects[::-1], categories=categories)
    sentences = coco(tmp_path / "captions.json", images=list(images.values()), annotations=texts)
    assert prepare(out, "--images", folder, "--captions", sentences, "--boxes", boxes, "--workers", 2) == 0

    found = {row.id: row for row in rows(out, "detection")}
    assert len(found) == len(lists)
    for row in lists:
        size = ImageReader(None).decode(base64.b64decode(row.image)).size
        right = sorted((each.name, *np.clip(each.box, 0, [*size, *size])) for each in parse_objects(row.objects))
        again = parse_objects(found[row.id].objects)
        written = sorted((each.name, *each.box) for each in again)
        for one, other in zip(written, right, strict=True):
            assert one[0] == other[0] and one[1:] == pytest.approx(other[1:], abs=6e-4)
        assert base64.b64decode(found[row.id].image) == base64.b64decode(row.image)
        areas = [area(each.box) for each in again]
        assert areas == sorted(areas, reverse=True)
    pairs = rows(out, "vision_language")
    written = sorted(row.caption for row in pairs if row.type == "caption")
    assert written == sorted(" ".join(text["caption"].split()) for text in texts)
    grounding = list(TSVStore(shared("data/coco/grounding/valid.tsv"), ("id", "image_id", "text", "box", "image")))
    right = {(row.image_id, row.text) for row in grounding if row.image_id in found}
    of_picture = {row.image: key for key, row in found.items()}
    once = [(of_picture[row.image], row.caption) for row in pairs if row.type == "visual_grounding"]
    assert len(once) == len(set(once)) and right and right <= set(once)
    for row in rows(out, "image"):
        square = ImageReader(out)(row.image)
        assert square.size == (256, 256) and palette.encode(square, 128) == [int(code) for code in row.codes.split(" ")]
    assert {row.id for row in rows(out, "image")} == {str(key) for key in images}


# ---- what comes out --------------------------------------------------------------------------------------------------


def everything(tmp_path, photos):
    """Flags with some of each kind, good and bad."""
    captions = [
        {"image": f"{1 + n % 2}.{'jpg' if n % 2 == 0 else 'png'}", "caption": f"caption {n % 7}"} for n in range(40)
    ]
    questions = [{"image": "1.jpg", "question": "what?", "answer": f"a {n}"} for n in range(5)]
    lists = [{"image": "1.jpg", "objects": [{"box": [0, 0, 9, 9 * n], "name": "Cat"}]} for n in range(3)]
    regions = [
        {"image": "2.png", "text": "it", "box": [0, 0, 30, 20]},
        {"image": "2.png", "text": "it", "box": [0, 0, 99, 99]},
    ]
    flags = [
        "--images",
        photos,
        "--captions",
        jsonl(tmp_path / "c.jsonl", [*captions, {"image": "3.jpg", "caption": "x"}]),
    ]
    flags += ["--questions", jsonl(tmp_path / "q.jsonl", questions), "--boxes", jsonl(tmp_path / "b.jsonl", lists)]
    flags += [jsonl(tmp_path / "r.jsonl", regions), "--text", tmp_path / "t.txt"]
    (tmp_path / "t.txt").write_bytes(b"one\r\n\ntwo\n")
    return flags


def test_every_number_of_workers_writes_the_same_files(tmp_path, photos, capsys):
    flags = everything(tmp_path, photos)
    written = []
    for workers in (1, 4):
        out = tmp_path / f"out{workers}"
        assert prepare(out, *flags, "--workers", workers) == 1
        written.append({str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()})
    assert written[0] == written[1]
    assert sorted(written[0]) == [
        "negative_sample/all_captions.txt",
        "negative_sample/object.txt",
        "negative_sample/type2ans.json",
        "train/bad_rows.tsv",
        "train/detection_examples.tsv",
        "train/image_examples.tsv",
        "train/text_examples.tsv",
        "train/vision_language_examples.tsv",
    ]
    captions, objects, types = negatives(out)
    assert captions == [f"caption {n}" for n in (0, 2, 4, 6, 1, 3, 5)] and objects == ["cat"]
    assert types == {"other": [f"a {n}" for n in range(5)]}


def test_documents_are_lines_whatever_ends_them(tmp_path, photos, out):
    prepare(out, *everything(tmp_path, photos))
    assert [tuple(row) for row in rows(out, "text")] == [("t-1", "one"), ("t-3", "two")]


def test_captions_take_the_names_of_the_boxes_unless_they_have_their_own(tmp_path, photos, out):
    captions = [{"image": "1.jpg", "caption": "x"}, {"image": "1.jpg", "caption": "y", "objects": ["Sofa", "sofa"]}]
    boxes = [{"image": "1.jpg", "objects": [{"box": [0, 0, 9, 9], "name": name} for name in ("Dog", "cat", "Dog")]}]
    files = ("--captions", jsonl(tmp_path / "c.jsonl", captions), "--boxes", jsonl(tmp_path / "b.jsonl", boxes))
    assert prepare(out, "--images", photos, *files) == 0
    pairs = rows(out, "vision_language")
    assert [row.objects for row in pairs if row.type == "caption"] == ["dog&&cat", "sofa"]
    assert [row.caption for row in pairs if row.type == "visual_grounding"] == ["cat"]  # two dogs are ambiguous
    assert {row.dataset for row in pairs} == {"c", "b"}


def test_no_grounding_and_no_codes_leave_these_rows_out(tmp_path, photos, out):
    prepare(out, *everything(tmp_path, photos), "--no-grounding", "--no-codes")
    assert [row.id for row in rows(out, "vision_language") if row.type == "visual_grounding"] == ["r-1"]
    assert not (out / "train" / "image_examples.tsv").exists()


def test_max_side_shrinks_pictures_and_boxes_alike(tmp_path, photos, out):
    line = {"image": "1.jpg", "objects": [{"box": [10, 20, 99, 80], "name": "wall, painted"}]}
    assert prepare(out, "--images", photos, "--boxes", jsonl(tmp_path / "b.jsonl", [line]), "--max-side", 50) == 0
    [row], [pair] = rows(out, "detection"), rows(out, "vision_language")
    assert ImageReader(out)(row.image).size == (50, 40)
    assert row.objects == "5,10,49.5,40,0,wall, painted" and pair.refs == "5,10,49.5,40"


def test_image_paths_are_read_from_beside_the_rows(tmp_path, out):
    picture(out / "train" / "img" / "a.png", 60, 60)
    captions = jsonl(tmp_path / "c.jsonl", [{"image": "a.png", "caption": "x"}])
    assert prepare(out, "--images", out / "train" / "img", "--captions", captions, "--image-paths") == 0
    [row] = rows(out, "vision_language")
    assert row.image == "img/a.png" and ImageReader(out / "train")(row.image).size == (60, 60)
    assert ImageReader(out / "train")(rows(out, "image")[0].image).size == (256, 256)


def test_code_image_size_sets_the_square_and_the_number_of_codes(photos, out, capsys):
    assert prepare(out, "--images", photos, "--code-image-size", 64) == 0
    for row in rows(out, "image"):
        assert ImageReader(out)(row.image).size == (128, 128) and len(row.codes.split(" ")) == 64


def test_a_folder_alone_gives_image_rows_of_its_pictures(photos, out, capsys):
    picture(photos / "deeper" / "3.JPG")
    for name in (".DS_Store", "._1.jpg", "notes.txt"):
        (photos / name).write_text("x")
    assert prepare(out, "--images", photos) == 0
    assert [row.id for row in rows(out, "image")] == ["1.jpg", "2.png", "deeper/3.JPG"]
    assert "files that are no pictures, passed over: 1 (notes.txt)" in capsys.readouterr().out
    assert sorted(path.name for path in (out / "train").iterdir()) == ["image_examples.tsv"]


def test_the_central_square_of_a_very_long_picture(tmp_path, out):
    image = Image.new("RGB", (4000, 4), (0, 0, 0))
    image.paste((255, 255, 255), (1998, 0, 2002, 4))
    (tmp_path / "img").mkdir()
    image.save(tmp_path / "img" / "long.png")
    assert prepare(out, "--images", tmp_path / "img") == 0
    assert set(rows(out, "image")[0].codes.split(" ")) == {"255"}


def test_a_jpeg_with_a_rotation_is_stored_as_it_is_and_counted(tmp_path, out, capsys):
    (tmp_path / "img").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "img" / "1.jpg", exif=exif)
    captions = jsonl(tmp_path / "c.jsonl", [{"image": "1.jpg", "caption": "x"}])
    assert prepare(out, "--images", tmp_path / "img", "--captions", captions, "--max-side", 20) == 0
    assert "with an EXIF rotation, not applied (see --exif-transpose of training): 1 (1.jpg)" in capsys.readouterr().out
    cell = rows(out, "vision_language")[0].image
    assert ImageReader(out)(cell).size == (20, 10)
    assert ImageReader(out, exif_transpose=True)(cell).size == (10, 20)  # a shrunk picture keeps the entry


# ---- subsets, force, whole files -------------------------------------------------------------------------------------


def test_negatives_are_those_of_training_and_other_subsets_leave_them_alone(tmp_path, photos, out, capsys):
    files = {}
    for name in ("valid", "train", "test"):
        line = {"image": "1.jpg", "caption": f"a {name} caption"}
        files[name] = ("--images", photos, "--captions", jsonl(tmp_path / f"{name}.jsonl", [line]), "--subset", name)
    assert prepare(out, *files["valid"]) == 0
    assert negatives(out)[0] == ["a valid caption"]  # there were none
    assert "there were none; --subset train makes its own" in capsys.readouterr().out
    assert prepare(out, *files["train"]) == 1
    assert "negative_sample/all_captions.txt" in capsys.readouterr().err
    assert prepare(out, *files["train"], "--force") == 0
    assert negatives(out)[0] == ["a train caption"]
    assert prepare(out, *files["test"]) == 0
    assert negatives(out)[0] == ["a train caption"]
    assert [row.caption for row in rows(out, "vision_language", "test")] == ["a test caption"]


def test_what_is_there_is_refused_without_force_and_other_files_stay(tmp_path, photos, out, capsys):
    flags = ("--images", photos, "--captions", jsonl(tmp_path / "c.jsonl", [{"image": "1.jpg", "caption": "old"}]))
    assert prepare(out, *flags) == 0
    (tmp_path / "t.txt").write_text("a text")
    assert prepare(out, "--text", tmp_path / "t.txt") == 0  # adds a file
    jsonl(tmp_path / "c.jsonl", [{"image": "1.jpg", "caption": "new"}])
    capsys.readouterr()
    assert prepare(out, *flags) == 1
    assert re.fullmatch(
        r"error: \S+vision_language_examples.tsv and 4 more: already there; .*\n", capsys.readouterr().err
    )
    assert [row.caption for row in rows(out, "vision_language")] == ["old"]
    assert prepare(out, *flags, "--force") == 0
    assert [row.caption for row in rows(out, "vision_language")] == ["new"]
    assert [row.text for row in rows(out, "text")] == ["a text"]


def test_force_leaves_no_file_of_an_earlier_run_in_the_place_of_one_without_rows(tmp_path, photos, out):
    line = {"image": "1.jpg", "objects": [{"box": [0, 0, 9, 9], "name": "a"}]}
    flags = ("--images", photos, "--boxes", jsonl(tmp_path / "b.jsonl", [line]))
    assert prepare(out, *flags) == 0 and rows(out, "detection")
    jsonl(tmp_path / "b.jsonl", [{"image": "1.jpg", "text": "it", "box": [0, 0, 9, 9]}])
    assert prepare(out, *flags, "--force") == 0
    assert not (out / "train" / "detection_examples.tsv").exists() and len(rows(out, "vision_language")) == 1


def test_nothing_is_left_behind_when_a_run_fails_half_way(tmp_path, photos, out, capsys):
    flags = ["--images", photos, "--captions", jsonl(tmp_path / "c.jsonl", [{"image": "1.jpg", "caption": "x"}])]
    (tmp_path / "broken.json").write_text('{"images": [], "annotations": [{"id": 1, "bbox": [1, 2')
    assert prepare(out, *flags, "--boxes", tmp_path / "broken.json") == 1
    assert "broken.json: not readable as JSON (" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_an_old_list_of_bad_rows_goes_with_the_run_that_has_none(tmp_path, photos, out, capsys):
    file = jsonl(tmp_path / "c.jsonl", [{"image": "1.jpg", "caption": "x"}, {"image": "1.jpg", "caption": ""}])
    assert prepare(out, "--images", photos, "--captions", file) == 1 and len(bad_rows(out)) == 1
    jsonl(file, [{"image": "1.jpg", "caption": "x"}])
    assert prepare(out, "--images", photos, "--captions", file, "--force") == 0 and bad_rows(out) == []


def test_a_link_to_the_pictures_is_followed_and_paths_out_of_the_folder_are_not(tmp_path, photos, out, capsys):
    (tmp_path / "linked").symlink_to(photos)
    lines = [
        {"image": name, "caption": name} for name in ("1.jpg", "../photos/1.jpg", str(photos / "1.jpg"), "/etc/passwd")
    ]
    captions = jsonl(tmp_path / "c.jsonl", lines)
    assert prepare(out, "--images", tmp_path / "linked", "--captions", captions) == 1
    assert [row.caption for row in rows(out, "vision_language")] == ["1.jpg", str(photos / "1.jpg")]
    assert [row[1] for row in bad_rows(out)] == ["2", "4"]


# ---- bad rows --------------------------------------------------------------------------------------------------------

HALF = '{"image": "1.jpg", "caption": "half \\ud83d"}'
BAD_CAPTIONS = [
    ({"image": "no.jpg", "caption": "x"}, "no picture 'no.jpg' in "),
    ({"image": "damaged.jpg", "caption": "x"}, "damaged.jpg: 8 bytes that are no picture"),
    ('{"image": "1.jpg", "caption": "x"', "not readable as JSON"),
    ("[1]", "[1] is no JSON object"),
    ({"image": "1.jpg"}, "caption is missing"),
    ({"image": "1.jpg", "caption": " \u2028 "}, "caption is empty"),
    ({"image": "1.jpg", "caption": 7}, "caption is 7, which is no text"),
    ({"image": "1.jpg", "caption": []}, "caption is an empty list"),
    ({"image": "1.jpg", "caption": "x", "objects": "dog"}, "objects is 'dog', which is no list"),
    ({"image": "1.jpg", "caption": "x", "id": 1.5}, "id 1.5 is neither a text nor an integer"),
    ({"caption": "x"}, "no picture is named"),
    ({"image": "http://a/b.jpg", "caption": "x"}, "is a web address"),
    ({"image": "../c.jsonl", "caption": "x"}, "leaves the folder"),
    ({"image": 77, "caption": "x"}, "no picture with the number 77"),
    ({"image": 3, "caption": "x"}, "may be a_3.png and b_3.png"),
    (HALF, "caption holds U+D83D, half a character"),
]


def test_every_bad_caption_is_named_and_the_others_are_written(tmp_path, photos, out, capsys):
    (photos / "damaged.jpg").write_bytes(b"\xff\xd8\xffabcde")
    picture(photos / "a_3.png")
    picture(photos / "b_3.png")
    good = {"image": "1.jpg", "caption": "good"}
    file = jsonl(tmp_path / "c.jsonl", [good, *(line for line, _ in BAD_CAPTIONS), good])
    with open(file, "ab") as more:
        more.write(b'{"image": "1.jpg", "caption": "\xff"}\n')
    assert prepare(out, "--images", photos, "--captions", file) == 1
    assert [row.id for row in rows(out, "vision_language")] == ["c-1", f"c-{len(BAD_CAPTIONS) + 2}"]
    printed = capsys.readouterr()
    reasons = {int(where): (reason, remedy) for _, where, reason, remedy in bad_rows(out)}
    for line, (_, reason) in enumerate(BAD_CAPTIONS, 2):
        assert reason in reasons[line][0]
        assert f"{file}:{line}: {' '.join(reasons[line][0].split())}: {reasons[line][1]}" in printed.err
    last = len(BAD_CAPTIONS) + 3
    assert reasons[last] == ("byte 0xff after 31 bytes is not UTF-8", "save the file as UTF-8")
    assert len(reasons) == len(BAD_CAPTIONS) + 1 == len(printed.err.splitlines())
    assert f"bad rows: {len(reasons)} left out, listed in {out / 'train' / 'bad_rows.tsv'}" in printed.out
    assert prepare(out, "--images", photos, "--captions", file, "--force", "--allow-bad", len(reasons)) == 0
    assert prepare(out, "--images", photos, "--captions", file, "--force", "--allow-bad", len(reasons) - 1) == 1


BAD_QUESTIONS = [
    ({"question": "what?", "answer": "a|!+b"}, "answer 'a|!+b' holds |!+"),
    ({"question": "what?", "answers": {"a": 3}}, "confidence 3 of answer 'a' is no number in 0..1"),
    ({"question": "what?", "answers": {"a": True}}, "confidence True of answer 'a'"),
    ({"question": "what?"}, "question 9 has no answer"),
    ({"question": "what?", "answers": []}, "no answer"),
    ({"question": "what?", "answers": ["", ""]}, "no answer"),
    ({"question": "what?", "answers": 5}, "answers is 5"),
    ({"question": "", "answer": "a"}, "question is empty"),
]


def test_every_bad_question_is_named(tmp_path, photos, out, capsys):
    lines = [{"image": "1.jpg", "id": 9, **line} for line, _ in BAD_QUESTIONS]
    good = {"image": "1.jpg", "question": "what?", "answers": {"a, b": 0.3, "c && d": 1}}
    assert prepare(out, "--images", photos, "--questions", jsonl(tmp_path / "q.jsonl", [*lines, good])) == 1
    [row] = rows(out, "vision_language")
    assert row.refs == "1.0|!+c & d&&0.3|!+a, b"
    for (_, reason), named in zip(BAD_QUESTIONS, bad_rows(out), strict=True):
        assert reason in named[2]


BAD_BOXES = [
    ({"text": "it", "box": [10, 10, 10, 20]}, "", "box 10,10,10,20 has no area"),
    ({"text": "it", "box": [10, 10, 102, 20]}, "", "x1 lies 2 px outside"),
    ({"text": "it", "box": [50, 60, 20, 10]}, "", "x1<x0 and y1<y0: looks like x,y,width,height"),
    ({"text": "it", "box": [1, 2, 3]}, "", "is no list of four numbers"),
    ('{"image": "1.jpg", "text": "it", "box": [1, 2, NaN, 4]}', "", "holds something that is no pixel"),
    ({"box": [1, 2, 3, 4]}, "", "text is missing"),
    ({"caption": "x"}, "", "neither a list of objects nor a text and its box"),
    (
        {"objects": [{"box": [0, 0, 5, 5], "name": "a"}, {"box": [0, 0, 500, 5], "name": "b"}]},
        ": objects[1]",
        "outside",
    ),
    ({"objects": [{"box": [0, 0, 5, 5], "name": " "}]}, ": objects[0]", "name is empty"),
    ({"objects": [7]}, ": objects[0]", "no JSON object"),
    (
        {"objects": [{"box": [0, 0, 5, 5], "name": "a"}], "width": 200, "height": 160},
        "",
        "boxes of a picture of 200 x 160",
    ),
]


def test_every_bad_box_is_named_and_a_list_that_lacks_one_is_counted(tmp_path, photos, out, capsys):
    lines = [line if isinstance(line, str) else {"image": "1.jpg", **line} for line, _, _ in BAD_BOXES]
    file = jsonl(tmp_path / "b.jsonl", lines)
    assert prepare(out, "--images", photos, "--boxes", file) == 1
    named = {place: reason for _, place, reason, _ in bad_rows(out)}
    assert len(named) == len(BAD_BOXES)
    for line, (_, where, reason) in enumerate(BAD_BOXES, 1):
        assert reason in named[f"{line}{where}"]
    assert [(row.id, row.objects) for row in rows(out, "detection")] == [("b-8", "0,0,5,5,0,a")]  # no false negatives
    printed = capsys.readouterr()
    assert f"detection rows that lack an object named above: 1 ({file}:8)" in printed.out
    assert f"{file}:8: objects[1]: box 0,0,500,5 of a picture of 100 x 80" in printed.err


def test_boxes_are_clamped_dropped_and_left_out_by_rule(tmp_path, photos, out, capsys):
    images = [{"id": key, "file_name": name} for key, name in ((1, "1.jpg"), (2, "2.png"), (3, "3.jpg"), (4, "4.jpg"))]
    picture(photos / "3.jpg")
    picture(photos / "4.jpg")
    boxes = [
        (1, 1, [10, 10, 90.75, 20], 0),  # ends 0.75 px outside
        (1, 18, [5, 5, 0, 30], 0),
        (1, 18, [40, 40, 20, 30], 0),
        (2, 18, [0, 0, 60, 60], 1),
        (3, 1, [3, 3, 0, 0], 0),
    ]
    annotations = [
        {"id": 100 + n, "image_id": image, "category_id": kind, "bbox": box, "iscrowd": crowd, "segmentation": [[1, 2]]}
        for n, (image, kind, box, crowd) in enumerate(boxes)
    ]
    file = coco(tmp_path / "i.json", images=images, annotations=annotations, categories=CATEGORIES)
    assert prepare(out, "--images", photos, "--boxes", file) == 0
    printed = capsys.readouterr().out
    assert [(row.id, row.objects) for row in rows(out, "detection")] == [
        ("1", "10,10,100,30,1,cat&&40,40,60,70,18,Dog"),
        ("3", ""),
        ("4", ""),
    ]
    grounding = [(row.id, row.caption, row.refs) for row in rows(out, "vision_language")]
    assert grounding == [("100", "cat", "10,10,100,30")]  # of two dogs one has no area, but there are two
    assert f"up to 1 px outside, clamped: 1 ({file}: annotations[0] (id 100))" in printed
    assert f"without an area, left out: 2 ({file}: annotations[1] (id 101): Dog 5,5,5,35; " in printed
    assert f"iscrowd, left out: 1 ({file}: annotations[3] (id 103))" in printed
    assert f"kept as negatives of detection: 2 ({file}: images[2] (id 3); {file}: images[3] (id 4))" in printed
    assert f"nothing but crowds, without a detection row: 1 ({file}: images[1] (id 2))" in printed
    assert negatives(out)[1] == ["cat", "dog"]


def test_faults_of_coco_files_are_named_by_table_and_id(tmp_path, photos, out, capsys):
    (photos / "damaged.jpg").write_bytes(b"\xff\xd8\xffabcde")
    images = [
        {"id": 1, "file_name": "1.jpg", "width": 100, "height": 80},
        {"id": 2, "file_name": "missing.jpg"},
        {"id": 3, "file_name": "damaged.jpg"},
        {"id": 1, "file_name": "2.png"},
        {"file_name": "2.png"},
        {"id": 6, "file_name": "2.png", "width": 120, "height": 120},
    ]
    boxes = [
        {"id": 10, "image_id": 1, "category_id": 18, "bbox": [30, 30, 60, 70]},
        {"id": 11, "image_id": 1, "category_id": 5, "bbox": [30, 30, 6, 7]},
        {"id": 12, "image_id": 1, "category_id": 18, "bbox": [30, 30, -6, 7]},
        {"id": 13, "image_id": 2, "category_id": 18, "bbox": [30, 30, 6, 7]},
        {"id": 14, "image_id": 3, "category_id": 18, "bbox": [30, 30, 6, 7]},
        {"id": 15, "image_id": 99, "category_id": 18, "bbox": [30, 30, 6, 7]},
        {"id": 16, "image_id": 6, "category_id": 18, "bbox": [30, 30, 6, 7]},
        {"id": 17, "category_id": 18, "bbox": [30, 30, 6, 7]},
    ]
    file = coco(tmp_path / "i.json", annotations=boxes, images=images, categories=CATEGORIES)  # tables in any order
    assert prepare(out, "--images", photos, "--boxes", file) == 1
    named = {place: reason for _, place, reason, _ in bad_rows(out)}
    right = {
        "images[1] (id 2)": "no picture 'missing.jpg' in ",
        "images[2] (id 3)": "damaged.jpg: 8 bytes that are no picture",
        "images[3] (id 1)": "id 1 is another picture's too",
        "images[4]": "id is missing",
        "images[5] (id 6)": "boxes of a picture of 120 x 120, but it has 60 x 60",
        "annotations[0] (id 10)": "looks like x0,y0,x1,y1 where COCO has x,y,width,height",
        "annotations[1] (id 11)": "category_id 5 is not in categories",
        "annotations[2] (id 12)": "has a negative width or height",
        "annotations[5] (id 15)": "no picture with the number 99",
        "annotations[7] (id 17)": "image_id is missing",
    }
    assert named.keys() == right.keys()
    for place, reason in right.items():
        assert reason in named[place], place
    printed = capsys.readouterr()
    assert f"{file}: annotations[1] (id 11): category_id 5 is not in categories: add it there\n" in printed.err
    assert "objects of pictures that could not be used: 2 (" in printed.out
    assert not (out / "train" / "detection_examples.tsv").exists()


def test_questions_and_annotations_meet_by_id(tmp_path, photos, out, capsys):
    def votes(*answers):
        return [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers, 1)]

    picture(photos / "COCO_train2014_000000000012.jpg")
    questions = [
        {"question_id": 1, "image_id": 12, "question": "How many cats are there?"},
        {"question_id": 2, "image_id": 12, "question": "Is it red?"},
        {"question_id": 3, "image_id": 12, "question": "What is it?"},
        {"question_id": 4, "image_id": 12, "question": "What is this?"},
        {"question_id": 5, "image_id": 12, "question": "Unanswered?"},
        {"question_id": 6, "image_id": 12, "question": "How many dogs are there?"},
    ]
    annotations = [
        {"question_id": 6, "question_type": "how many", "answer_type": "number", "answers": votes(*["3"] * 10)},
        {
            "question_id": 2,
            "question_type": "is it",
            "answer_type": "yes/no",
            "answers": votes(*["no"] * 6, *["yes"] * 4),
        },
        {"question_id": 4, "question_type": "what is", "answer_type": "other", "answers": votes(*["mug"] * 10)},
        {
            "question_id": 3,
            "question_type": "what is",
            "answer_type": "other",
            "answers": votes(*["m&m's"] * 9, "a, b"),
        },
        {"question_id": 1, "question_type": "how many cats", "answer_type": "number", "answers": votes(*["2"] * 9, "")},
        {"question_id": 8, "question_type": "what is", "answer_type": "other", "answers": votes("lost")},
    ]
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}, indent=2))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
    files = ("--questions", tmp_path / "q.json", "--annotations", tmp_path / "a.json")
    assert prepare(out, "--images", photos, *files) == 1
    assert [(row.id, row.refs) for row in rows(out, "vision_language")] == [
        ("1", "1.0|!+2"),
        ("2", "1.0|!+no&&1.0|!+yes"),
        ("3", "1.0|!+m&m's&&0.3|!+a, b"),
        ("4", "1.0|!+mug"),
        ("6", "1.0|!+3"),
    ]
    assert bad_rows(out) == [
        [
            str(tmp_path / "q.json"),
            "questions[4] (id 5)",
            "question 5 has no answer",
            "give --annotations that hold its question_id",
        ]
    ]
    assert "annotations without a question, left out: 1 (question_id 8)" in capsys.readouterr().out
    assert negatives(out)[2] == {
        "how many": ["2", "3"],
        "what is": ["m&m's", "mug"],
        "other": ["2", "no", "m&m's", "mug", "3"],  # only `no` would be left, so all are
    }


# ---- what is refused whole -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "nothing to prepare: give --captions"),
        (["--captions", "c.jsonl"], "--captions needs --images"),
        (["--captions", "none.jsonl", "--images", "photos"], "--captions none.jsonl: no such file"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--annotations", "c.jsonl", "--images", "photos"], "--annotations holds the answers to --questions"),
        (["--images", "photos", "--workers", "0"], "--workers 0"),
        (["--images", "photos", "--max-side", "0"], "--max-side 0"),
        (["--images", "photos", "--code-image-size", "100"], "--code-image-size 100 is no multiple of 8"),
        (["--images", "photos", "--subset", "a/b"], "--subset a/b"),
        (["--images", "photos", "--subset", "negative_sample"], "--subset negative_sample"),
        (["--images", "photos", "--image-paths"], "--image-paths: a row may only name pictures below its own folder"),
        (["--images", "photos", "--image-paths", "--max-side", "9"], "--max-side makes new pictures"),
        (
            ["--images", "photos", "--boxes", "captions.json"],
            "annotations[0] (id 4) has no bbox, but id, image_id, caption",
        ),
        (["--images", "photos", "--captions", "plain.txt"], "--captions plain.txt: neither JSON nor JSONL"),
        (["--images", "photos", "--captions", "empty.txt"], "--captions empty.txt: the file is empty"),
        (["--images", "photos", "--captions", "no_rows.json"], "--captions no_rows.json: holds no annotations"),
        (["--images", "photos", "--boxes", "no_names.json"], "--boxes no_names.json: no categories"),
    ],
)
def test_a_wrong_flag_or_file_is_one_line_and_writes_nothing(tmp_path, photos, out, capsys, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "c.jsonl", [{"image": "1.jpg", "caption": "x"}])
    images = [{"id": 1, "file_name": "1.jpg"}]
    coco(
        tmp_path / "captions.json",
        images=images,
        categories=CATEGORIES,
        annotations=[{"id": 4, "image_id": 1, "caption": "x"}],
    )
    coco(tmp_path / "no_rows.json", images=images, annotations=[])
    coco(tmp_path / "no_names.json", images=images, annotations=[{"id": 4, "image_id": 1, "bbox": [1, 2, 3, 4]}])
    (tmp_path / "plain.txt").write_text("hello\nworld\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert prepare(out, *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and len(error.splitlines()) == 1
    assert not out.exists() or list(out.iterdir()) == []


def test_names_of_files_may_be_odd(tmp_path, out, capsys):
    os.mkdir(folder := os.fsencode(tmp_path / "img"))
    picture(tmp_path / "1.jpg").rename(os.fsdecode(folder + b"/caf\xe9\t 1.jpg"))
    file = jsonl(tmp_path / "my\tcaptions.jsonl", [{"image": 1, "caption": "x"}, {"image": "\ud83d", "caption": "x"}])
    assert prepare(out, "--images", tmp_path / "img", "--captions", file) == 1
    [row], [image] = rows(out, "vision_language"), rows(out, "image")
    assert (row.id, row.dataset, image.id) == ("my captions-1", "my captions", "caf\\udce9 1.jpg")
    assert len(bad_rows(out)) == 1 and "no picture '\\ud83d'" in capsys.readouterr().err


def test_an_unknown_task_is_told_which_ones_there_are(tmp_path, capsys):
    assert cli.main(["prepare", "dance", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: TASK dance: unknown; choose one of unify_task, caption, vqa")


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path, photos, capsys):
    (tmp_path / "file").write_text("")
    assert prepare(tmp_path / "file" / "out", "--images", photos) == 1
    assert re.match(r"error: \S+: Not a directory", capsys.readouterr().err)


def test_the_help_costs_neither_torch_nor_fairseq():
    script = (
        "import sys\n"
        "from ofa_plugin.cli import main\n"
        "try:\n    main(['prepare', '--help'])\n"
        "except SystemExit as left:\n    assert left.code == 0\n"
        "assert not {'torch', 'fairseq', 'numpy', 'PIL'} & set(sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert all(flag in finished.stdout for flag in ("--captions", "--annotations", "--allow-bad", "--no-grounding"))


# ---- the page --------------------------------------------------------------------------------------------------------


def section(title):
    """The part of docs/own-data.md below a heading."""
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)[1]


def test_the_example_of_the_page_gives_what_the_page_says(tmp_path):
    page = section("Pretraining")
    [commands] = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    written = dict(re.findall(r"```\w+ (\S+)\n(.*?)```", page, re.DOTALL))
    said = written.pop("output")
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    picture(tmp_path / "photos" / "dog.jpg")
    picture(tmp_path / "photos" / "kitchen.png")
    finished = typed(commands, tmp_path, vocab_size="300")
    assert finished.stdout.startswith(said) and finished.stderr == ""
    [following] = re.findall(r"next: (ofa train-bpe .*)\n +(fairseq-train .*)\n", finished.stdout)
    assert "vision_language_examples.tsv:2,3,4,5 data/train/text_examples.tsv:1" in following[0]
    vocabulary, training = f"{following[0]} --vocab-size 300", f"{following[1]} --max-update 2"
    typed(f"{vocabulary}\n{training} --disable-validation --save-dir save", tmp_path, batch_size="8")
    assert (tmp_path / "save" / "checkpoint_last.pt").exists()
    assert os.path.exists(tmp_path / "my-bpe" / "dict.txt")
    assert [row.type for row in rows(tmp_path / "data", "vision_language", "valid")] == ["caption"]
    refs = [row.refs for row in rows(tmp_path / "data", "vision_language") if row.type == "qa"]
    assert refs == ["1.0|!+1", "1.0|!+red&&0.3|!+orange", "1.0|!+yes&&0.75|!+no"]


SECTIONS = ("Captions", "Questions", "Referring expressions", "Objects", "Classes", "Entailment", "Text on pictures")


@pytest.mark.parametrize("title", (*SECTIONS, "Texts alone"))
def test_every_example_of_the_page_prepares_and_checks(title, tmp_path, monkeypatch, capsys):
    part = section(title)
    for name, text in re.findall(r"```\w+ (\S+)\n(.*?)```", part, re.DOTALL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for path in ("photos/dog.jpg", "photos/kitchen.png", "photos-by-class/dog/1.jpg", "photos-by-class/cat/2.jpg"):
        picture(tmp_path / path)
    [commands] = re.findall(r"```bash\n(.*?)```", part, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for line in commands.splitlines():
        verb, *arguments = shlex.split(line)
        assert verb == "ofa" and cli.main(arguments) == 0, capsys.readouterr().err
    assert " rows to train on, 0 bad" in capsys.readouterr().out
