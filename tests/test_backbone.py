"""`ofa train-backbone` and `--resnet-model-path`: from a detection file to the start of a training run."""

from __future__ import annotations

import base64
import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ofa_plugin import backbone, cli
from ofa_plugin.errors import BadRow, UserError
from ofa_plugin.models.ofa.checkpoint import load_backbone
from ofa_plugin.models.ofa.resnet import RESNETS, ResNet
from tests.helpers.pretraining import write_rows
from tests.helpers.small_model import small_model
from tests.helpers.stock import USER_DIR, error_of, ok, run

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (30, 30, 230)}
PLAN = backbone.Plan("resnet_nano", 32, 60, 8, 4e-3, seed=1, autocast="none", workers=0)


def coloured(number: int) -> list[str]:
    """A picture of 64 pixels with one coloured square in its left and one in its right half; every seventh is empty."""
    draw = np.random.default_rng(number)
    picture, objects = Image.new("RGB", (64, 64)), []
    for left in (0, 32) if number % 7 else ():
        name = str(draw.choice(list(COLOURS)))
        x, y = left + int(draw.integers(0, 12)), int(draw.integers(0, 44))
        ImageDraw.Draw(picture).rectangle((x, y, x + 19, y + 19), COLOURS[name])
        objects.append(f"{x},{y},{x + 20},{y + 20},0,{name.title()} square")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return [str(number), base64.b64encode(file.getvalue()).decode(), "&&".join(objects)]


@pytest.fixture(scope="module")
def detections(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("backbone") / "detection.tsv", *map(coloured, range(120)))


# ---- what is learned -------------------------------------------------------------------------------------------------


def test_names_are_learned_at_the_patches_in_the_middle_of_their_boxes(detections):
    seen = []
    _, right = backbone.train_backbone(detections, PLAN, seen.append)
    assert len(seen) == PLAN.batches and right >= 0.9  # chance is a third
    _, untrained = backbone.train_backbone(detections, PLAN._replace(batches=1), seen.append)
    assert untrained <= 0.7


def test_the_same_weights_from_the_same_seed_with_any_number_of_workers(detections):
    short = PLAN._replace(batches=3)
    first, again, other = (
        backbone.train_backbone(detections, plan, lambda _: None)[0].state_dict()
        for plan in (short, short._replace(workers=2), short._replace(seed=2))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_every_learned_row_comes_once_an_epoch_and_a_held_out_one_never(detections):
    data = backbone.NamedObjects(detections, 32, seed=1)
    assert list(data.vocabulary) and set(data.vocabulary) == {*COLOURS, "square"}
    assert sorted([*data.learned, *data.held_out]) == list(range(120)) and len(data.held_out) == 6
    keys = [key for batch in data.batches(31, 8) for key in batch]
    epochs = [[row for row, epoch in keys if epoch == wanted] for wanted in (1, 2, 3)]
    assert [sorted(rows) for rows in epochs[:2]] == [sorted(data.learned)] * 2 and epochs[0] != epochs[1]
    assert len(keys) == 31 * 8 and set(epochs[2]) < set(data.learned)


def test_a_patch_shows_the_middle_of_its_object_also_when_the_picture_is_turned_round(detections):
    data = backbone.NamedObjects(detections, 64, seed=1)
    turned = set()
    for row in range(1, 7):
        for draw in (None, 1, 2, 3, 4):
            sample = data[row, draw]
            for (_, y, x), words in zip(sample.places.tolist(), sample.words, strict=True):
                patch = sample.images[0, :, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].float()
                colour = torch.tensor([COLOURS[name] for name in data.vocabulary if name in COLOURS])
                named = [name for name, there in zip(data.vocabulary, words, strict=True) if there]
                # the middle of a square of 20 pixels lies in its patch, so most of the patch has its colour
                [expected] = [COLOURS[name] for name in named if name in COLOURS]
                nearest = (colour[:, :, None, None] - patch).abs().sum(1).argmin(0).mode().values.mode().values
                assert tuple(colour[nearest].tolist()) == expected
            turned.add((row, sample.images.sum(dim=(0, 1, 2))[:32].sum().item()))
    assert len(turned) > 6  # some draws mirror


def test_only_a_name_whose_every_word_leads_counts_as_right():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert backbone._right(logits, torch.tensor([[1.0, 1.0, 0.0]] * 3)) == 1


# ---- the command -----------------------------------------------------------------------------------------------------


def command(*words: object) -> int:
    return cli.main(["train-backbone", *map(str, words)])


def test_the_command_writes_weights_that_training_starts_from(detections, shapes, tmp_path, capsys):
    file = tmp_path / "backbone.pt"
    assert command(detections, file, "--batches", 4, "--image-size", 64, "--batch-size", 8) == 0
    said = capsys.readouterr()
    assert f"named rightly: --resnet-type resnet_nano --resnet-model-path {file}" in said.out and "4/4" in said.err
    weights = torch.load(file, weights_only=True)

    save = tmp_path / "save"
    flags = (*shapes.flags(), "--batch-size", 8, "--num-workers", 0, "--disable-validation", "--save-dir", save)
    flags += ("--lr", 1e-12, "--lr-scheduler", "fixed", "--max-update", 1, "--resnet-model-path", file)
    printed = ok(run("train", *flags, "--freeze-resnet-weights", log=tmp_path / "log")).output
    assert f"the image backbone starts from {file}" in printed and "drawn at random" not in printed
    state = torch.load(save / "checkpoint_last.pt", weights_only=True)
    for name in (name for name in weights if name.endswith("weight")):
        torch.testing.assert_close(state["model"][f"encoder.embed_images.{name}"], weights[name], rtol=0, atol=1e-6)
    assert state["cfg"]["model"]["resnet_model_path"] is None

    file.unlink()  # a checkpoint needs no file beside it
    ok(
        run(
            *("generate", shapes.root, "--user-dir", USER_DIR, "--task", "unify_task", "--cpu"),
            *("--path", save / "checkpoint_last.pt", "--gen-subset", "valid", "--kinds", "vqa", "--num-workers", 0),
            log=tmp_path / "generated",
        )
    )
    missing = run("train", *flags, log=tmp_path / "log")
    assert f"--resnet-model-path {file}: cannot be read" in error_of(missing)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--resnet-type", "ViT-B/16"), "--resnet-type ViT-B/16 cannot be trained so: take one of resnet18"),
        (("--batches", 0), "--batches 0: give a number from 1 on"),
        (("--image-size", 8), "--image-size 8: give a number from 16 on"),
        (("--lr", 0), "--lr 0.0: give a rate between 0 and 1"),
    ],
)
def test_a_flag_that_cannot_be_used_is_named(detections, tmp_path, capsys, flags, said):
    assert command(detections, tmp_path / "out.pt", *flags) == 1
    assert f"error: {said}" in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()


def test_a_folder_that_is_not_there_is_told_before_the_work(detections, tmp_path, capsys):
    assert command(detections, tmp_path / "none" / "out.pt") == 1
    assert f"no folder {tmp_path / 'none'}" in capsys.readouterr().err


def test_files_that_teach_nothing_are_refused(tmp_path):
    rows = [coloured(number) for number in range(1, 25)]
    nameless = write_rows(tmp_path / "nameless.tsv", *([*row[:2], ""] for row in rows))
    short = write_rows(tmp_path / "short.tsv", *rows[:1])
    with pytest.raises(UserError, match=f"{nameless}: no object in any row"):
        backbone.train_backbone(nameless, PLAN, print)
    with pytest.raises(UserError, match=f"{short}: one row is too few"):
        backbone.train_backbone(short, PLAN, print)
    rows[4][2] = "1,2,3,4"
    with pytest.raises(BadRow, match="bad.tsv:5: objects: object 1 of 1"):
        backbone.train_backbone(write_rows(tmp_path / "bad.tsv", *rows), PLAN, print)
    rows[4][2] = "1,2,300,400,0,red square"
    with pytest.raises(BadRow, match="far.tsv:5: objects: box 1,2,300,400 of a picture of 64 x 64"):
        backbone.train_backbone(write_rows(tmp_path / "far.tsv", *rows), PLAN, print)


# ---- other people's weights ------------------------------------------------------------------------------------------


def whole_resnet() -> dict[str, torch.Tensor]:
    """The weights of a ResNet with its fourth stage and classifier, as torchvision names them."""
    torch.manual_seed(5)
    rest = {"layer4.0.conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
    return {**ResNet("resnet_nano").state_dict(), **rest}


@pytest.mark.parametrize("norm", [{}, {"frozen": True}])
@pytest.mark.parametrize("form", ["plain", "wrapped", "state_dict", "old"])
def test_the_fourth_stage_and_the_classifier_are_left_out(tmp_path, caplog, form, norm):
    state = whole_resnet()
    if form == "wrapped":
        state = {f"module.{name}": value for name, value in state.items()}
    if form == "old":  # before torch 0.4.1
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    saved = {"state_dict": state, "epoch": 90} if form == "state_dict" else state
    torch.save(saved, tmp_path / "resnet.pth", _use_new_zipfile_serialization=form != "old")
    new = ResNet("resnet_nano", **norm)
    with caplog.at_level(logging.INFO):
        load_backbone(new, str(tmp_path / "resnet.pth"))
    theirs = whole_resnet()
    assert all(torch.equal(value, theirs[name]) for name, value in new.state_dict().items())
    assert f"the image backbone starts from {tmp_path / 'resnet.pth'}" in caplog.text


def test_the_backbone_of_an_ofa_checkpoint_is_taken(tmp_path):
    small = small_model()
    torch.save({"model": small.state_dict(), "epoch": 3}, tmp_path / "ofa.pt")
    kind = small.cfg.resnet_type
    assert kind in RESNETS
    new = ResNet(kind)
    load_backbone(new, str(tmp_path / "ofa.pt"))
    theirs = small.encoder.embed_images.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in new.state_dict().items())


class Runs:
    """What a pickle could do on loading."""

    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("conv1.weight"), "conv1.weight is not there; check --resnet-type"),
        (lambda state: state.update(conv9=torch.zeros(1)), "conv9 is of no use; check --resnet-type"),
        (lambda state: state.update({"conv1.weight": torch.zeros(3)}), "conv1.weight is of another size"),
        (lambda state: state.update(code=Runs()), "nothing of it was used"),
        (lambda state: state.update(number=3), "holds no state dict"),
    ],
)
def test_weights_of_something_else_are_refused(tmp_path, capsys, change, said):
    state = whole_resnet()
    change(state)
    torch.save(state, tmp_path / "other.pt")
    new = ResNet("resnet_nano")
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(UserError, match=f"^--resnet-model-path {tmp_path / 'other.pt'}: .*{said}"):
        load_backbone(new, str(tmp_path / "other.pt"))
    assert all(torch.equal(value, before[name]) for name, value in new.state_dict().items())
    assert "ran" not in capsys.readouterr().out


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "empty.pt").touch()
    for name, said in {"none.pt": "No such file", "text.pt": "damaged", "empty.pt": "damaged", ".": "cannot"}.items():
        with pytest.raises(UserError, match=said):
            load_backbone(ResNet("resnet_nano"), str(tmp_path / name))
