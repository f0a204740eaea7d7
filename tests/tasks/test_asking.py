"""Instructions of the user's own."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from ofa_plugin.data.boxes import to_bins
from ofa_plugin.data.codec import Codec
from ofa_plugin.data.dataset import OFADataset
from ofa_plugin.data.image import PictureLoader
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow, UserError
from ofa_plugin.tasks.asking import AskedForm, AskedScore
from ofa_plugin.tasks.interactive import TypedLines
from tests.helpers.golden import synthetic_image
from tests.helpers.prepared import picture
from tests.helpers.pretraining import SIDE, configuration, task_of, write_rows

COLUMNS = ("id", "image", "question", "box", "other_box", "answers")
ROW = ["a", synthetic_image(40, 30), "What COLOUR -is it?", "4,3,24,27", "0,0,40,30", "1.0|!+red"]


@pytest.fixture
def codec(world):
    return Codec.build("sentencepiece", str(world.root / "bpe"), 100, 8)


@pytest.fixture
def ask(tmp_path, codec):
    """A function from an instruction to its builder of one row."""

    def ask(instruction, row=ROW, columns=COLUMNS):
        form = AskedForm(instruction, tuple(columns))
        path = write_rows(tmp_path / "rows.tsv", row)
        store = TSVStore(path, form.columns, [int(number) for number in form.selected["other"].split(",")])
        return form(store, codec, configuration(), False, PictureLoader(tmp_path, SIDE))

    return ask


def only(builder, index=0):
    [example] = builder.examples(index, builder.store[index], np.random.default_rng(0))
    return example


def ids(codec, box):
    """The bins of a box of the picture of 40 x 30, seen as 32 x 32."""
    scale = [SIDE / 40, SIDE / 30] * 2
    return codec.bins(to_bins(np.array([box]) * scale, 100, 512).ravel().tolist()).tolist()


BOX, OTHER = (4, 3, 24, 27), (0, 0, 40, 30)


@pytest.mark.parametrize(
    ("instruction", "pieces"),
    [
        ("what is this?", [" what is this?"]),
        ("{question}", [" what colour  is it?"]),
        ('is " {question} " easy?', [' is " what colour  is it? " easy?']),
        ("{question}{question}", [" what colour  is it?what colour  is it?"]),
        ("{box} what is here?", [BOX, " what is here?"]),
        ("what is in {box} here?", [" what is in", BOX, " here?"]),
        ("what is here? region:{box}", [" what is here? region:", BOX]),
        ("{box}", [BOX]),
        ("is {box} left of {other_box}?", [" is", BOX, " left of", OTHER, " ?"]),
        ("{box}{other_box}", [BOX, OTHER]),
        ("{box} {box}", [BOX, BOX]),
        ("{question} region: {box}", [" what colour  is it? region:", BOX]),
        ("  Where?  ", [" Where?"]),
    ],
)
def test_pieces_stand_where_the_instruction_says(ask, codec, instruction, pieces):
    """Columns are tidied as questions are, what is typed stays; texts begin with a space, as the official ones do."""
    example = only(ask(instruction))
    pieces = [piece.replace("colour  is", "colour is") if isinstance(piece, str) else piece for piece in pieces]
    said = [codec.encode(piece).tolist() if isinstance(piece, str) else ids(codec, piece) for piece in pieces]
    assert example.source.tolist() == [codec.bos, *sum(said, []), codec.eos]


def test_the_picture_is_seen_whole_and_boxes_are_in_its_pixels(ask):
    example = only(ask("what is in {box}?"))
    assert example.image.shape == (3, SIDE, SIDE) and example.scale == (SIDE / 40, SIDE / 30)
    assert (example.uniq_id, example.kind, example.counts) == ("a", "", {})


@pytest.mark.parametrize(
    ("cell", "reference", "target"),
    [
        ("1.0|!+red", {"red": 1.0}, " red"),
        ("0.6|!+blue&&1.0|!+red", {"blue": 0.6, "red": 1.0}, " blue"),
        ("a red one", {"a red one": 1.0}, " a red one"),
        (" red ", {"red": 1.0}, " red"),
        ("", None, None),
        ("  ", None, None),
    ],
)
def test_references_are_answers_with_confidences_or_one_answer_or_none(ask, codec, cell, reference, target):
    builder = ask("{question}", [*ROW[:5], cell])
    example = only(builder)
    assert example.reference == builder.reference(builder.store[0]) == reference
    wanted = [codec.pad] if target is None else [*codec.encode(target).tolist(), codec.eos]
    assert example.target.tolist() == wanted
    if reference:
        assert AskedScore().score(target.strip(), reference) == reference[target.strip()]


def test_without_a_column_of_answers_or_ids_there_is_no_reference_and_the_line_is_the_id(ask):
    example = only(ask("{question}", ROW[1:3], ("image", "question")))
    assert example.reference is None and example.uniq_id == "1"


@pytest.mark.parametrize(
    ("column", "cell", "says"),
    [
        ("question", "", "question: it is empty: write what --instruction is to say here"),
        ("question", "***", "question: it is empty: write what --instruction is to say here"),
        ("box", "1,2,3", "box: box '1,2,3': 3 values, not four: write x0,y0,x1,y1 in pixels"),
        ("box", "1,2,1,9", "box: box 1,2,1,9 has no area: give the corners of a region"),
        (
            "other_box",
            "0,0,40,33",
            "other_box: box 0,0,40,33 of a picture of 40 x 30: y1 lies 3 px outside: "
            "give boxes of this very picture, in its pixels",
        ),
        (
            "answers",
            "high|!+red",
            "answers: confidence 'high' is not a number: write 1.0|!+yes, several joined by &&, or one answer",
        ),
    ],
)
def test_a_bad_row_is_named_with_what_to_do(ask, tmp_path, column, cell, says):
    row = list(ROW)
    row[COLUMNS.index(column)] = cell
    builder = ask("is {question} {box} {other_box}?", row)
    with pytest.raises(BadRow) as caught:
        only(builder)
    assert str(caught.value) == f"{tmp_path / 'rows.tsv'}:1: {says}"
    assert builder.reference(builder.store[0]) in (None, {"red": 1.0})  # asked for every row when a file is opened


@pytest.mark.parametrize(
    ("instruction", "columns", "says"),
    [
        (
            "{colour}",
            "id,image,box",
            "--instruction: {colour} is not there to be used; --columns id,image,box offers {box}",
        ),
        ("{image}", "id,image", "--instruction: {image} is not there to be used; --columns id,image offers none"),
        ("{id} {box}", "id,image,box", "--instruction: {id} is not there to be used"),
        ("{answers}", "image,answers", "--instruction: {answers} is not there to be used"),
        ("{}", "image,box", "--instruction: {} is not there to be used; --columns image,box offers {box}"),
        ("{0}", "image,box", "--instruction: {0} is not there to be used"),
        ("a { b", "image", "--instruction 'a { b': a brace without its other half"),
        ("a } b", "image", "--instruction 'a } b': a brace without its other half"),
        ("{{box}}", "image,box", "--instruction '{{box}}': a brace without its other half"),
        ("", "image", "--instruction is empty: write what the model is to do"),
        ("  ", "image", "--instruction is empty"),
        ("what?", "id,box", "--columns id,box: there is no image"),
        ("what?", "", "--columns : '' is no name, or is there twice; write id,image,question,box"),
        ("what?", "image,image", "--columns image,image: 'image' is no name, or is there twice"),
        ("what?", "image,2nd", "--columns image,2nd: '2nd' is no name"),
        ("what?", "id, image", "--columns id, image: ' image' is no name"),
        ("what?", "image,_box", "--columns image,_box: '_box' is no name"),
        ("what?", "image,class", "--columns image,class: 'class' is no name"),
    ],
)
def test_an_instruction_that_cannot_be_given_is_refused(instruction, columns, says):
    with pytest.raises(UserError) as caught:
        AskedForm(instruction, tuple(columns.split(",")))
    assert says in str(caught.value)


def test_spawned_workers_build_the_same(ask, codec):
    builder = ask("what is in {box}? {question}")
    again = pickle.loads(pickle.dumps(builder))
    assert torch.equal(only(again).source, only(builder).source) and again.form == builder.form
    dataset = OFADataset(builder, "test", 1, False, 4, 50)
    loader = torch.utils.data.DataLoader(
        dataset,
        collate_fn=dataset.collater,
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context("spawn"),
    )
    [batch] = loader
    assert batch["net_input"]["src_tokens"].tolist() == [only(builder).source.tolist()]


# The task


@pytest.fixture
def evaluated(world, monkeypatch):
    """A function as `task_of`, of a task that generates."""
    monkeypatch.setattr("ofa_plugin.tasks.base.saved_task_config", lambda path: {})
    return lambda data, *flags: task_of(world, data, *flags, path="checkpoint.pt")


def test_the_rows_of_any_tsv_can_be_asked_about(evaluated, codec, tmp_path):
    write_rows(tmp_path / "test.tsv", ROW[1:4], ROW[1:4])
    flags = ("--instruction", "{question} {box}", "--columns", "image,question,box")
    task = evaluated(tmp_path, *flags)
    task.load_dataset("test")
    dataset = task.datasets["test"]
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["uniq_ids"] == ["1", "2"] and batch["references"] == [None, None] and "kind" not in batch
    assert task.generation_settings(None, "").beam == 5 and task._scores() == (AskedScore,)
    with pytest.raises(UserError, match="--instruction needs --columns"):
        evaluated(tmp_path, "--instruction", "what?")


def test_a_file_whose_answers_cannot_be_read_opens_and_names_the_row(evaluated, tmp_path):
    write_rows(tmp_path / "test.tsv", [ROW[1], "what", "high|!+red"])
    task = evaluated(tmp_path, "--instruction", "{question}", "--columns", "image,question,answers")
    task.load_dataset("test")
    [bad] = task.datasets["test"][0].bad
    assert str(bad).startswith(f"{tmp_path / 'test.tsv'}:1: answers: confidence 'high' is not a number")


@pytest.mark.parametrize("columns", ["id,image,question,answers", "image,question"])
def test_lines_may_be_typed_whether_the_columns_have_an_id_or_not(evaluated, columns, tmp_path):
    task = evaluated(tmp_path, "--instruction", "{question}", "--columns", columns)
    assert task.builder.typed(task.cfg) == ("image", "question")
    line = f"{picture(tmp_path / 'a.png')}\twhat is it"
    lines = TypedLines("stdin", [line], 3, task.builder.columns, task.builder.typed(task.cfg))
    builder = task.make_builder(lines, False, PictureLoader(None, SIDE))
    example = only(builder)
    assert example.uniq_id == "3" and example.reference is None
    assert task.codec.decode(example.source) == " what is it"
