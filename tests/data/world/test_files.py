"""The files: their columns, what training may never see, the same bytes from any number of processes."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ofa_plugin.data import palette
from ofa_plugin.data.world.drawing import draw_scene
from ofa_plugin.data.world.files import ROW_TYPES, SOURCES, SPLITS, World, claim, total, write_mark, write_world
from ofa_plugin.data.world.language import OBJECTS, expression, full_name
from ofa_plugin.data.world.scene import COLOURS, UNSEEN_BACKGROUNDS, UNSEEN_PAIRS
from ofa_plugin.errors import UserError
from tests.helpers.reader import answer, caption_is_true, is_true, the

WORLD = World(rows=48, held_out=24, seed=7, side=64, code_side=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("files") / "world"
    claim(out)
    made: list[int] = []
    write_world(out, WORLD, 1, made.append)
    assert sum(made) == total(WORLD)
    return out


def rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def examples(folder: Path, split: str, source: str) -> list[list[str]]:
    return rows(folder / split / f"{source}_examples.tsv")


def picture(cell: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(cell)))


def test_any_number_of_processes_writes_the_same_bytes(folder, tmp_path):
    claim(tmp_path / "again")
    write_world(tmp_path / "again", WORLD, 2, lambda made: None)
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert found == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    for name in found:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert {str(name.parent) for name in found} == {
        *(".", "negative_sample", "caption", "vqa_gen", "refcoco", "region_vqa", "described"),
        *SPLITS,
    }
    assert not [name for name in found if name.suffix == ".tmp"]


def test_another_seed_gives_another_world():
    other = World(rows=48, held_out=24, seed=8, side=64, code_side=64)
    assert WORLD.lines("train", "text", 0) != other.lines("train", "text", 0)


@pytest.mark.parametrize("split", SPLITS)
def test_mixture_rows_have_the_official_columns_and_say_what_the_scene_shows(folder, split):
    found = examples(folder, split, "vision_language")
    assert len(found) == (48 if split == "train" else 24)
    for index, row in enumerate(found):
        scene, _ = WORLD.scene(split, "vision_language", index)
        id, image, caption, question, refs, objects, dataset, type = row
        assert (id, dataset) == (str(index), "shapes")
        assert picture(image).tobytes() == draw_scene(scene).tobytes() and picture(image).size == (64, 64)
        assert type == ("caption", "qa", "visual_grounding")[index % 3]
        if type == "caption":
            assert caption_is_true(scene, caption) and (question, refs) == ("", "")
            assert all(name in caption for name in objects.split("&&"))
        elif type == "qa":
            assert refs == f"1.0|!+{answer(scene, question)}" and (caption, objects) == ("", "")
        else:
            shape = the(scene, caption.removeprefix("the "))
            assert refs == ",".join(map(str, shape.box)) and (question, objects) == ("", "")
            assert expression(scene, shape) == caption


@pytest.mark.parametrize("split", SPLITS)
def test_text_image_and_detection_rows(folder, split):
    text, image, detection = (examples(folder, split, source) for source in SOURCES[1:])
    assert [len(text), len(image), len(detection)] == ([12, 8, 8] if split == "train" else [8, 8, 8])
    for index, (_, said) in enumerate(text):
        scene, _ = WORLD.scene(split, "text", index)
        assert all(is_true(scene, sentence) for sentence in said.removesuffix(".").split(". "))
    for _, cell, codes in image:
        shown, numbers = picture(cell), list(map(int, codes.split(" ")))
        assert shown.size == (128, 128) and len(numbers) == 64
        mosaic = palette.decode(numbers)
        cells = shown.crop((32, 32, 96, 96)).reduce(8).resize((64, 64), Image.Resampling.NEAREST)
        assert np.abs(np.asarray(mosaic, int) - np.asarray(cells, int)).mean() < 25
    for index, (_, cell, objects) in enumerate(detection):
        scene, _ = WORLD.scene(split, "detection", index)
        assert picture(cell).tobytes() == draw_scene(scene).tobytes()
        listed = [name.split(",", 5) for name in objects.split("&&")]
        assert [tuple(map(float, cells[:4])) for cells in listed] == [shape.box for shape in scene.shapes]
        assert [cells[5] for cells in listed] == [f"{shape.colour} {shape.kind}" for shape in scene.shapes]
        assert all(0 <= int(cells[4]) < 48 for cells in listed)


def test_objects_to_learn_to_see_by_are_those_of_the_detection_file_as_captions_call_them(folder):
    described = rows(folder / "described" / "train.tsv")
    assert [path.name for path in (folder / "described").iterdir()] == ["train.tsv"]
    for index, (row, plain) in enumerate(zip(described, examples(folder, "train", "detection"), strict=True)):
        scene, _ = WORLD.scene("train", "detection", index)
        assert row[:2] == plain[:2]
        called, named = (objects.split("&&") for objects in (row[2], plain[2]))
        assert [cell.rsplit(",", 1)[0] for cell in called] == [cell.rsplit(",", 1)[0] for cell in named]
        assert [cell.rsplit(",", 1)[1] for cell in called] == [full_name(shape) for shape in scene.shapes]
        assert all(cell.rsplit(",", 1)[1] in OBJECTS for cell in called)


def test_plain_training_files_are_the_rows_of_the_mixture(folder):
    mixed = examples(folder, "train", "vision_language")
    for name, type, columns in (
        ("caption", "caption", {2: 2, 1: 4}),
        ("vqa_gen", "qa", {3: 2, 4: 3, 1: 5}),
        ("refcoco", "visual_grounding", {2: 2, 4: 3, 1: 4}),
    ):
        plain, same = rows(folder / name / "train.tsv"), [row for row in mixed if row[7] == type]
        assert len(plain) == len(same) == 16
        for ours, theirs in zip(plain, same, strict=True):
            assert [ours[column] for column in columns.values()] == [theirs[column] for column in columns]
    assert not (folder / "region_vqa" / "train.tsv").exists()
    captions = (folder / "negative_sample" / "all_captions.txt").read_text().splitlines()
    assert captions == [row[2] for row in rows(folder / "caption" / "train.tsv")]


@pytest.mark.parametrize("split", SPLITS[1:])
def test_plain_held_out_files_tell_ask_and_name_of_every_picture(folder, split):
    told, asked, named, marked = (
        rows(folder / name / f"{split}.tsv") for name in ("caption", "vqa_gen", "refcoco", "region_vqa")
    )
    assert len(told) == len(asked) == len(named) == len(marked) == 24
    for index in range(24):
        scene, _ = WORLD.scene(split, "vision_language", index)
        assert told[index][4] == asked[index][5] == named[index][4] == marked[index][1]
        captions = told[index][2].split("&&")
        assert len(captions) == 2 and all(caption_is_true(scene, caption) for caption in captions)
        assert asked[index][3] == f"1.0|!+{answer(scene, asked[index][2])}"
        assert named[index][3] == ",".join(map(str, the(scene, named[index][2].removeprefix("the ")).box))
        _, _, question, box, said = marked[index]
        shape = next(shape for shape in scene.shapes if ",".join(map(str, shape.box)) == box)
        word = "kind" if question == "what kind of shape is in the region?" else question.split()[1]
        assert said == f"1.0|!+{getattr(shape, word.replace('color', 'colour'))}"


def test_no_picture_is_in_two_splits(folder):
    shown: dict[str, str] = {}
    digests: dict[bytes, str] = {}
    for split in SPLITS:
        for source in ("vision_language", "image", "detection"):
            for index, row in enumerate(examples(folder, split, source)):
                assert shown.setdefault(row[1], split) == split
                assert digests.setdefault(WORLD.scene(split, source, index)[0].digest, split) == split
    assert len(digests) == sum(total_of(split) for split in SPLITS)


def total_of(split: str) -> int:
    return sum(amount for source, amount in WORLD.amounts(split).items() if source != "text")


def test_unseen_pairs_are_nowhere_in_training(folder):
    pairs = re.compile("|".join(" ".join(pair) for pair in UNSEEN_PAIRS))
    training = [*(folder / "train").iterdir(), *folder.glob("*/train.tsv"), *(folder / "negative_sample").iterdir()]
    training.append(folder / "vqa_gen" / "answers.txt")
    assert len(training) == 12
    for path in training:
        for row in rows(path):
            assert not [cell for cell in row if len(cell) < 1000 and pairs.search(cell)], (path, row)
    for split in set(SPLITS) - {"unseen_pairs"}:
        for source, amount in WORLD.amounts(split).items():
            for index in range(amount):
                scene, _ = WORLD.scene(split, source, index)
                assert not {shape.pair for shape in scene.shapes} & set(UNSEEN_PAIRS)
                assert (scene.background.family in UNSEEN_BACKGROUNDS) == (split == "unseen_backgrounds")
    found = rows(folder / "refcoco" / "unseen_pairs.tsv")
    assert all(pairs.search(row[2]) for row in found)
    assert all(pairs.search(row[2]) for row in rows(folder / "caption" / "unseen_pairs.tsv"))


def test_sets_of_answers_and_objects(folder):
    types = json.loads((folder / "negative_sample" / "type2ans.json").read_text())
    assert list(types) == ["color", "shape", "how many", "yes/no", "size", "texture", "other"] and all(types.values())
    answers = (folder / "vqa_gen" / "answers.txt").read_text().splitlines()
    assert answers == [answer for typed in types.values() for answer in typed] and len(set(answers)) == len(answers)
    used = {row[3].removeprefix("1.0|!+") for path in (folder / "vqa_gen").glob("*.tsv") for row in rows(path)}
    assert used <= set(answers)
    assert (folder / "negative_sample" / "object.txt").read_text().splitlines() == list(OBJECTS)
    assert json.loads((folder / "codebook.json").read_text()) == palette.codebook().tolist()
    assert len(set(types["color"]) & set(COLOURS)) == 8


def test_two_splits_with_one_picture_are_refused_and_nothing_is_left_half_written(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "lines", lambda self, split, source, index: (b"same", {f"{split}/a.tsv": "x"}))
    claim(tmp_path / "out")
    with pytest.raises(UserError, match="--seed 7: valid and train share a picture; take another seed"):
        write_world(tmp_path / "out", WORLD, 1, lambda made: None)
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["world.json"]


def test_only_an_empty_folder_or_one_of_ours_is_written_to(tmp_path):
    claim(tmp_path / "new" / "deep")
    assert json.loads((tmp_path / "new" / "deep" / "world.json").read_text())["finished"] is False
    write_mark(tmp_path / "new" / "deep", {"finished": True})
    claim(tmp_path / "new" / "deep")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file: a file; OUT is a folder"):
        claim(tmp_path / "file")
    for content in ("[]", "{}", "text", '{"made_by": "me"}'):
        (tmp_path / "world.json").write_text(content)
        with pytest.raises(UserError, match="not empty and not made by `ofa make-shapes`"):
            claim(tmp_path)
        assert (tmp_path / "world.json").read_text() == content


def test_an_easy_world_has_one_or_two_shapes_and_no_larger_number_as_answer(tmp_path):
    easy = World(rows=12, held_out=12, seed=1, shapes=(1, 2), side=48, code_side=32)
    write_world(tmp_path, easy, 1, lambda made: None)
    counts = {len(easy.scene("train", "vision_language", index)[0].shapes) for index in range(12)}
    assert counts == {1, 2}
    types = json.loads((tmp_path / "negative_sample" / "type2ans.json").read_text())
    assert types["how many"] == ["0", "1", "2"]


@pytest.mark.parametrize("proportion", [(1, 1, 1), (1, 3, 2), (5, 1, 1), (1, 1, 7)])
def test_rows_come_in_proportion_and_evenly_spread(proportion):
    turns = World(rows=24, held_out=8, seed=1, proportion=proportion).turns
    total = sum(proportion)
    assert len(turns) == total
    for kind, share in zip(ROW_TYPES, proportion, strict=True):
        assert turns.count(kind) == share
        for place in range(1, total + 1):
            assert abs(turns[:place].count(kind) - place * share / total) < 1
    assert proportion != (1, 1, 1) or turns == ROW_TYPES
