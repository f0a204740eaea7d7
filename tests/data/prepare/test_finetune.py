"""`ofa prepare` of every task but pretraining: field cases, forms of files, splits, answer sets, faults."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from ofa_plugin import cli
from ofa_plugin.data.image import ImageReader
from ofa_plugin.data.prepare import kept
from ofa_plugin.data.prepare.pictures import PictureStore
from tests.helpers.cases import CASES, EXPECTED
from tests.helpers.own_data import SOURCES, VOC, photos, prepare, prepared, table
from tests.helpers.prepared import coco, jsonl, picture


def cells(out, name="train"):
    return [line.split("\t") for line in (out / f"{name}.tsv").read_text("utf-8").split("\n")[:-1]]


def faults(out, name="train"):
    return (out / f"{name}.bad_rows.txt").read_text("utf-8")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


# ---- every task ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", SOURCES)
def test_what_is_prepared_passes_the_check_of_its_task(task, tmp_path, capsys):
    data = prepared(task, tmp_path)
    assert cli.main(["check", str(data), task]) == 0
    printed = capsys.readouterr().out
    assert "train.tsv: " in printed and "valid.tsv: " in printed and " 0 bad" in printed
    assert f"next: ofa check {data} {task}" in printed
    assert {path.name for path in data.iterdir()} <= {"train.tsv", "valid.tsv", "answers.txt", "names.txt"}


def test_the_tasks_of_prepare_are_those_of_training():
    from ofa_plugin.data.prepare import FINETUNED, PREPARERS
    from ofa_plugin.data.prepare.finetune import FORMS
    from ofa_plugin.tasks.checking import checkable

    assert set(FORMS) == set(FINETUNED) and set(PREPARERS) == set(checkable())


# ---- field cases -----------------------------------------------------------------------------------------------------


def test_fc03_captions_on_one_line_each(out, capsys):
    case, right = CASES / "fc03", EXPECTED["fc03"]
    assert prepare("caption", out, "--images", case / "img", "--captions", case / "captions.json") == 0
    assert [row[2] for row in cells(out)] == right["captions"]
    assert {len(row) for row in cells(out)} == {right["columns_in_every_row"]}
    assert f"single spaces: {right['captions_changed_and_counted']} (" in capsys.readouterr().out


def test_fc08_a_folder_a_class(tmp_path, out, capsys):
    shutil.copytree(CASES / "fc08" / "train", tmp_path / "train")
    (tmp_path / "train" / "empty_class").mkdir()
    assert prepare("image_classify", out, "--images", tmp_path / "train") == 0
    right, printed = EXPECTED["fc08"], capsys.readouterr().out
    assert (out / "answers.txt").read_text().split("\n")[:-1] == right["classes"]
    assert [row[1:] for row in cells(out)] == [["1", "cat"]] * 2 + [["2", "dog"]] * 2
    assert f"no pictures of a class, passed over: {right['skipped_and_counted']} (" in printed
    assert "classes without a picture: 1 (empty_class)" in printed


def test_fc11_odd_pictures_are_kept_and_counted(tmp_path, out, capsys):
    img = tmp_path / "img"
    img.mkdir()
    Image.new("RGBA", (8, 8), (255, 0, 255, 0)).save(img / "hidden.png")
    Image.new("CMYK", (8, 8)).save(img / "cmyk.jpg")
    Image.new("I;16", (8, 8)).save(img / "deep.png")
    Image.new("P", (8, 8)).save(img / "palette.png")
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    frames[0].save(img / "two.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (400, 2)).save(img / "long.png")
    rows = [{"image": path.name, "caption": "a thing"} for path in sorted(img.iterdir())]
    assert prepare("caption", out, "--images", img, "--captions", jsonl(tmp_path / "c.jsonl", rows)) == 0
    printed = capsys.readouterr().out
    assert len(cells(out)) == 6
    for what in ("transparency", "CMYK", "16 bits a channel", "several frames", "sides of 20 to 1"):
        assert f"changed: pictures with {what}" in printed


def test_fc13_width_and_height_become_corners_once(tmp_path, out):
    picture(tmp_path / "img" / "a.jpg", 640, 512)
    boxes = ("--images", tmp_path / "img", "--boxes", CASES / "fc13" / "instances.json")
    for task, column in (("refcoco", 3), ("detection", 2)):
        assert prepare(task, out / task, *boxes) == 0
        assert cells(out / task)[0][column].startswith(",".join(map(str, EXPECTED["fc13"]["prepared_box"])))


def test_fc19_ten_annotators(out):
    case = CASES / "fc19"
    files = ("--questions", case / "questions.json", "--annotations", case / "annotations.json")
    assert prepare("vqa_gen", out, "--images", case / "img", *files) == 0
    assert cells(out)[0][3] == "1.0|!+green&&0.9|!+gray&&0.3|!+black, white&&0.3|!+brown"
    assert (out / "answers.txt").read_text() == "green\n"


def test_fc25_pairs_without_an_agreed_label(out, capsys):
    case, right = CASES / "fc25", EXPECTED["fc25"]
    assert prepare("snli_ve", out, "--images", case / "img", "--rows", case / "snli_ve.jsonl") == 0
    assert len(cells(out)) == right["kept_by_prepare"]
    assert {row[5] for row in cells(out)} == {"entailment", "neutral", "contradiction"}
    assert "('-' or empty), left out: 2 (" in capsys.readouterr().out


def test_fc26_numbers_need_their_order(tmp_path, out, capsys):
    rows = table(tmp_path / "r.tsv", ("premise", "hypothesis", "label"), ("a", "b", "0"), ("c", "d", "2"), sign="\t")
    assert prepare("mnli", out, "--rows", rows) == 1
    assert "name yours, for example --label-order entailment,neutral,contradiction" in capsys.readouterr().err
    assert prepare("mnli", out, "--rows", rows, "--label-order", "neutral,entailment,contradiction") == 0
    assert [row[2] for row in cells(out)] == ["neutral", "contradiction"]


# ---- forms of files --------------------------------------------------------------------------------------------------


def test_training_has_a_row_a_caption_and_evaluation_a_row_a_picture(tmp_path, out):
    rows = [{"image": "0.png", "caption": ["one", "two && three"]}]
    flags = ("--images", photos(tmp_path), "--captions", jsonl(tmp_path / "c.jsonl", rows))
    for subset, joined, right in (
        ("train", (), ["one", "two & three"]),
        ("valid", (), ["one&&two & three"]),
        ("rl", ("--join-captions",), ["one&&two & three"]),
    ):
        assert prepare("caption", out, *flags, "--subset", subset, *joined) == 0
        assert [row[2] for row in cells(out, subset)] == right


def test_csv_with_a_bom_carriage_returns_quotes_accents_and_emoji(tmp_path, out):
    text = '\ufeffimage,question,answer\r\n0.png,"is it ""red"", or not?","yes, it is"\r\n1.png,what?,café 🐶\r\n'
    (tmp_path / "q.csv").write_bytes(text.encode())
    assert prepare("vqa_gen", out, "--images", photos(tmp_path), "--questions", tmp_path / "q.csv") == 0
    assert [row[2:4] for row in cells(out)] == [
        ['is it "red", or not?', "1.0|!+yes, it is"],
        ["what?", "1.0|!+café 🐶"],
    ]
    assert (out / "answers.txt").read_text("utf-8") == "yes, it is\ncafé 🐶\n"


def test_a_quotation_mark_is_text_in_a_tsv_and_a_cell_too_many_is_named(tmp_path, out):
    rows = table(tmp_path / "r.tsv", ("sentence", "label"), ('"a dog', "1"), ("b", "c", "0"), ("d", "0"), sign="\t")
    assert prepare("cola", out, "--rows", rows) == 1
    assert [row[1:] for row in cells(out)] == [['"a dog', "1"], ["d", "0"]]
    assert "\t3\t3 columns, the first line names 2\ta tab inside a text" in faults(out)


def test_a_csv_whose_quotation_mark_is_never_closed_swallows_nothing(tmp_path, out, capsys):
    rows = table(tmp_path / "r.csv", ("sentence", "label"), ('"a', "1"), ("b", "0"))
    assert prepare("cola", out, "--rows", rows) == 1
    assert f"{rows}:2: not readable as CSV" in capsys.readouterr().err and not list(out.glob("*"))


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("box",), ('"2,3,22,13"',)),
        (("bbox",), ('"[2, 3, 20, 10]"',)),
        (("x0", "y0", "x1", "y1"), ("2", "3", "22", "13")),
        (("x", "y", "w", "h"), ("2", "3", "20", "10")),
    ],
)
def test_boxes_of_a_table_of_expressions(tmp_path, out, names, values):
    rows = table(tmp_path / "r.csv", ("image", "text", *names), ("0.png", "it", *values))
    assert prepare("refcoco", out, "--images", photos(tmp_path), "--refs", rows) == 0
    assert cells(out)[0][3] == "2,3,22,13"


def test_refs_take_their_boxes_from_instances_and_one_split_of_them(tmp_path, out, capsys):
    (tmp_path / "own").mkdir()
    flags = SOURCES["refcoco"](tmp_path / "own")
    assert prepare("refcoco", out, *flags, "--take", "split=train") == 0
    assert [row[2:4] for row in cells(out)][:2] == [["the wall", "2,3,22,13"], ["the red one", "2,3,22,13"]]
    assert prepare("refcoco", out / "2", *flags, "--take", "split=testA") == 0
    assert "records passed over by --take: 8" in capsys.readouterr().out
    assert prepare("refcoco", out / "3", *flags[:4]) == 1
    assert "ann_id 100 has no box\tgive the COCO instances that hold it as --boxes" in faults(out / "3")


def test_pascal_voc(tmp_path, out):
    (tmp_path / "voc").mkdir()
    good = VOC.format(n=0, name="wall, painted")
    for name, text in {
        "a": good,
        "b": good[:60],
        "c": good.replace("<xmax>30", "<xmax>x"),
        "d": f"<!DOCTYPE a [<!ENTITY e 'x'>]>{good}",
        "e": good.replace("<width>40", "<width>80"),
    }.items():
        (tmp_path / "voc" / f"{name}.xml").write_text(text)
    assert prepare("detection", out, "--images", photos(tmp_path), "--boxes", tmp_path / "voc") == 1
    assert [row[2] for row in cells(out)] == ["2,3,30,20,0,wall, painted"]
    for reason in ("not readable as XML", "that is no pixel", "defines entities", "boxes of a picture of 80 x 30"):
        assert reason in faults(out)
    assert (out / "names.txt").read_text() == "wall, painted\n"


def test_class_names_say_what_a_folder_is_called(tmp_path, out):
    (tmp_path / "own").mkdir()
    flags = SOURCES["image_classify"](tmp_path / "own")
    names = table(tmp_path / "n.csv", ("label", "name"), ("red", "scarlet wall"))
    assert prepare("image_classify", out, *flags, "--class-names", names) == 0
    assert (out / "answers.txt").read_text() == "blue\ngreen\nscarlet wall\n"


# ---- splits and answer sets ------------------------------------------------------------------------------------------


def test_a_split_is_by_picture_and_the_same_for_the_same_seed(tmp_path):
    asked = [{"image": f"{n % 8}.png", "question": f"what {n}?", "answer": "a"} for n in range(40)]
    flags = ("--images", photos(tmp_path), "--questions", jsonl(tmp_path / "q.jsonl", asked))
    seen = []
    for name, more in (("a", ()), ("b", ("--workers", 4)), ("c", ("--seed", 2))):
        out = tmp_path / name
        assert prepare("vqa_gen", out, *flags, "--split", "train=0.5,valid=0.25,test=0.25", *more) == 0
        parts = [{row[1] for row in cells(out, subset)} for subset in ("train", "valid", "test")]
        assert [len(part) for part in parts] == [4, 2, 2] and len(set.union(*parts)) == 8
        assert [len(cells(out, subset)) for subset in ("train", "valid", "test")] == [20, 10, 10]
        seen.append(parts)
    assert seen[0] == seen[1] != seen[2]


def test_the_answer_set_is_the_most_frequent_of_training(tmp_path, out, capsys):
    answers = ["a", "a", "a", "b", "b", "c"]
    asked = [{"image": "0.png", "question": "what?", "answer": answer} for answer in answers]
    flags = ("--images", photos(tmp_path), "--questions", jsonl(tmp_path / "q.jsonl", asked))
    assert prepare("vqa_gen", out, *flags, "--answers", 2) == 0
    assert (out / "answers.txt").read_text() == "a\nb\n" and len(cells(out)) == 5
    assert "training rows whose answers are all outside answers.txt, left out: 1 (" in capsys.readouterr().out
    assert prepare("vqa_gen", out, *flags, "--subset", "valid") == 0  # the set stays, the row stays, and is counted
    printed = capsys.readouterr().out
    assert "2 answers, as they were" in printed and "rows whose answers are all outside answers.txt: 1" in printed
    assert (out / "answers.txt").read_text() == "a\nb\n" and len(cells(out, "valid")) == 6
    assert prepare("vqa_gen", out, *flags, "--min-count", 3, "--force") == 0
    assert (out / "answers.txt").read_text() == "a\n"


# ---- whole runs ------------------------------------------------------------------------------------------------------


def test_what_a_killed_run_left_is_cleared_and_a_living_one_s_is_not(tmp_path, out, capsys):
    out.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    living = os.getppid()
    for name in (f".train.tsv.{gone.pid}.tmp", f".prepare.{gone.pid}.sqlite", f".train.tsv.{living}.tmp", ".other.tmp"):
        (out / name).write_text("half")
    rows = table(tmp_path / "r.csv", ("sentence", "label"), ("a", "1"))
    assert prepare("cola", out, "--rows", rows) == 0
    assert "an earlier run did not finish; its 2 files are deleted" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == [".other.tmp", f".train.tsv.{living}.tmp", "train.tsv"]


def test_a_run_that_was_stopped_goes_on_with_the_pictures_that_it_had_made(tmp_path, out, capsys, monkeypatch):
    """A picture that has changed since, and all of them with other settings, are made anew; the rows are the same."""
    names = [f"{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        picture(tmp_path / "img" / name, 40 + number, 30)
    rows = jsonl(tmp_path / "c.jsonl", [{"image": name, "caption": f"number {name}"} for name in names])
    flags = ("--images", tmp_path / "img", "--captions", rows, "--max-side", 42)
    assert prepare("caption", tmp_path / "whole", *flags) == 0
    made, make = [], PictureStore.__call__
    monkeypatch.setattr(kept, "TOGETHER", 1)

    def spied(store, path):
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append(os.path.basename(path))
        return make(store, path)

    monkeypatch.setattr(PictureStore, "__call__", spied)
    stop = 4
    with pytest.raises(KeyboardInterrupt):
        prepare("caption", out, *flags, "--workers", 1)
    assert made == names[:4] and [path.name for path in out.iterdir()] == [kept.FILE]
    picture(tmp_path / "img" / "1.png", 20, 20)
    capsys.readouterr()
    stop = None
    assert prepare("caption", out, *flags, "--workers", 1) == 0
    assert made[4:] == ["1.png", "4.png", "5.png"]
    assert f"{out}: goes on with 4 pictures of a run that did not finish" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["train.tsv"]
    now, then = cells(out), cells(tmp_path / "whole")
    assert [row for row in now if row[1] != "1.png"] == [row for row in then if row[1] != "1.png"]
    assert ImageReader(out)(now[1][4]).size == (20, 20)

    stop = len(made) + 2
    with pytest.raises(KeyboardInterrupt):
        prepare("caption", out, *flags, "--workers", 1, "--force")
    stop, start = None, len(made)
    assert prepare("caption", out, *flags[:-1], 41, "--workers", 1, "--force") == 0
    assert made[start:] == names  # made for other sides


def test_pictures_that_were_kept_in_a_damaged_file_or_by_a_living_run_are_made_anew(tmp_path, out):
    picture(tmp_path / "img" / "a.png", 40, 30)
    rows = jsonl(tmp_path / "c.jsonl", [{"image": "a.png", "caption": "a"}])
    flags = ("--images", tmp_path / "img", "--captions", rows, "--force")
    out.mkdir()
    (out / kept.FILE).write_bytes(b"no database" * 100)
    assert prepare("caption", out, *flags) == 0
    with kept.KeptPictures(PictureStore(None, None, None), out) as living:
        living(str(tmp_path / "img" / "a.png"))
        assert prepare("caption", out, *flags) == 0
        assert (out / kept.FILE).exists()
    assert not (out / kept.FILE).exists() and len(cells(out)) == 1


def test_the_source_is_never_changed_and_huge_pictures_shrink_with_their_boxes(tmp_path, out):
    (tmp_path / "own").mkdir()
    flags = SOURCES["detection"](tmp_path / "own")
    before = {path: path.read_bytes() for path in (tmp_path / "own").rglob("*") if path.is_file()}
    assert prepare("detection", out, *flags, "--max-side", 20) == 0
    assert before == {path: path.read_bytes() for path in (tmp_path / "own").rglob("*") if path.is_file()}
    assert ImageReader(out)(cells(out)[0][1]).size == (20, 15) and cells(out)[0][2] == "1,1.5,15,10,0,red"


FAULTS = [
    ("caption", ("--rows", "rows.csv"), "--rows: caption reads --captions: give these"),
    ("caption", (), "nothing to prepare: caption reads --captions"),
    ("cola", ("--rows", "odd.csv"), "has none of the fields sentence, label, but a, b: name them so"),
    ("cola", ("--rows", "rows.csv", "--split", "train=0.5"), "the shares add up to 0.5, not to 1"),
    ("cola", ("--rows", "rows.csv", "--split", "train"), "write NAME=VALUE"),
    ("cola", ("--rows", "rows.csv", "--split", "train=x"), "write a name and a share for each subset"),
    ("cola", ("--rows", "rows.csv", "--split", "../a=1"), "--split ../a: give a plain name"),
    ("cola", ("--rows", "rows.csv", "--label-order", "1,0"), "have no order to be named"),
    ("mnli", ("--rows", "rows.csv", "--label-order", "a,b"), "in the order of your numbers"),
    ("vqa_gen", ("--questions", "rows.csv"), "vqa_gen needs pictures: give their folder as --images"),
    ("vqa_gen", ("--questions", "rows.csv", "--images", ".", "--answers", "0"), "--answers 0 --min-count 1: give 1"),
    ("image_classify", ("--images", "empty"), "no folder in it; image_classify reads a folder a class"),
    ("image_classify", ("--images", ".", "--class-names", "odd.csv"), "write label and name"),
    ("detection", ("--images", ".", "--boxes", "empty"), "no .xml of Pascal VOC in this folder"),
    ("unify_task", ("--rows", "rows.csv"), "--rows: unify_task reads --captions"),
    ("unify_task", ("--text", "rows.csv", "--split", "a=1"), "unify_task makes one subset at a time"),
]


@pytest.mark.parametrize(("task", "flags", "says"), FAULTS)
def test_every_fault_is_one_line_that_says_what_to_do(task, flags, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    table(tmp_path / "rows.csv", ("sentence", "label"), ("a", "1"))
    table(tmp_path / "odd.csv", ("a", "b"), ("a", "1"))
    assert prepare(task, tmp_path / "out", *flags) == 1
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1


def test_labels_that_are_unknown_are_bad_rows(tmp_path, out):
    rows = table(tmp_path / "r.csv", ("sentence", "label"), ("a", "1"), ("b", "7"), ("c", "good"), ("d", "-1"))
    assert prepare("sst2", out, "--rows", rows) == 1
    assert len(cells(out)) == 1 and "label '7' is unknown\twrite one of 0, 1" in faults(out)


def test_coco_boxes_that_are_corners_are_named(tmp_path, out):
    images = [{"id": 0, "file_name": "0.png", "width": 40, "height": 30}]
    boxes = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [20, 10, 40, 30]}]
    file = coco(tmp_path / "i.json", images=images, annotations=boxes, categories=[{"id": 1, "name": "wall"}])
    assert prepare("detection", out, "--images", photos(tmp_path), "--boxes", file) == 1
    assert "looks like x0,y0,x1,y1 where COCO has x,y,width,height" in faults(out)
