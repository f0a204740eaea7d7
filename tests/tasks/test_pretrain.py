"""Pretraining rows against the official dataset's, the draws behind them, the task's options, and every bad row."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from ofa_plugin.data.codec import Codec
from ofa_plugin.data.example import collate
from ofa_plugin.data.mixture import ByKind
from ofa_plugin.data.negatives import Negatives
from ofa_plugin.errors import BadRow, UserError
from ofa_plugin.tasks.pretrain import KINDS, VisionLanguageBuilder
from tests.helpers.golden import golden, synthetic_image
from tests.helpers.pretraining import (
    SIDE,
    builder_of,
    caption_row,
    question_row,
    region_row,
    task_of,
    write_data,
    write_negatives,
    write_rows,
)
from tests.helpers.small_model import build_small

GOLDEN = golden("pretrain_examples.json")
IMAGE_TEXT = GOLDEN["image_text"]
STATS = golden("negative_sampling_stats.json")["stats"]
SPOKEN = [case for case in IMAGE_TEXT if case["kind"] != "visual_grounding"]
GROUNDED = [case for case in IMAGE_TEXT if case["kind"] == "visual_grounding"]
UNCHANGED = ("caption", 0)  # recorded: an exchanged object that left the caption as it was, and yet the answer "no"
ENOUGH = 100  # draws in which any choice that was recorded turns up


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A function that gives the codec of the released checkpoints, built once."""
    made = {}
    return lambda folder: made.setdefault(folder, Codec.build("gpt2", str(folder)))


@pytest.fixture
def codec(world):
    return Codec.build("sentencepiece", str(world.root / "bpe"), 100, 8)


@pytest.fixture
def make(tmp_path, codec):
    """A function from rows and wanted kinds to a builder; options by name."""

    def make(rows, *wanted, with_codec=codec, **given):
        path = write_rows(tmp_path / "rows.tsv", *rows)
        negatives = Negatives(write_negatives(tmp_path / "negative_sample")) if "matching" in wanted else None
        return builder_of(VisionLanguageBuilder, with_codec, path, wanted or tuple(KINDS), negatives, **given)

    return make


def examples(builder, seed=0, index=0):
    return list(builder.examples(index, builder.store[index], np.random.default_rng(seed)))


def official(case):
    """The row of a recorded case, with its picture."""
    return [case["row"][0], synthetic_image(8, 8), *case["row"][2:]]


def check(codec, example, recorded):
    batch = collate([example], codec.bos, codec.pad)
    assert example.uniq_id == recorded["id"]
    assert codec.decode(example.source) == recorded["source_text"]
    assert batch["net_input"]["src_tokens"].tolist() == [recorded["source"]]
    assert batch["target"].tolist() == [recorded["target"]]
    assert batch["net_input"]["prev_output_tokens"].tolist() == [recorded["prev_output_tokens"]]
    assert batch["conf"].tolist() == recorded["conf"]
    assert batch["ntokens"] == sum(token != codec.pad for token in recorded["target"])


# Rows as official


@pytest.mark.parity
@pytest.mark.parametrize("case", SPOKEN, ids=lambda case: f"{case['kind']}-{case['python_random_seed']}")
def test_caption_and_question_rows_match_the_official_dataset(shared, released, make, case):
    """Their texts and ids, once a draw makes the choice that was recorded."""
    codec = released(shared("bpe/gpt2"))
    first = {"caption": "caption", "qa": "vqa"}[case["row"][-1]]
    builder = make([official(case)], first, "matching", with_codec=codec, patch_image_size=8, max_src_length=80)
    about, recorded = case["examples"]
    drawn = [examples(builder, seed) for seed in range(ENOUGH)]
    for example, _ in drawn:
        assert example.kind == first
        check(codec, example, about)
    same = [pair[1] for pair in drawn if codec.decode(pair[1].source) == recorded["source_text"]]
    assert same and {example.kind for _, example in drawn} == {"matching"}
    if (case["kind"], case["python_random_seed"]) == UNCHANGED:
        assert recorded["target_text"] == " no"
        assert {codec.decode(example.target) for example in same} == {" yes"}
        return
    for example in same:
        check(codec, example, recorded)


@pytest.mark.parity
@pytest.mark.parametrize("case", GROUNDED, ids=lambda case: str(case["python_random_seed"]))
def test_grounding_rows_match_the_official_dataset(shared, released, make, monkeypatch, case):
    """But for a bin: ours moves a box by the whole pixels that its crop moves by, official by the fraction."""
    codec = released(shared("bpe/gpt2"))
    row = [case["row"][0], synthetic_image(500, 400), *case["row"][2:]]
    builder = make([row], "grounding", "region_caption", with_codec=codec, patch_image_size=384, max_src_length=80)
    where, what = case["examples"]
    bins = np.array(where["target"][:4]) - codec.bin0
    width = (bins[2] - bins[0]) / 999 * 512 / (300 - 120.5)  # by what official's draw has multiplied the picture's
    sides = {}
    for side in range(round(400 * width) - 1, round(400 * width) + 2):
        monkeypatch.setattr("ofa_plugin.data.augment.draw_side", lambda draw, size, side=side: (side, 672))
        pair = examples(builder)
        sides[int(np.abs(pair[0].target[:4].numpy() - codec.bin0 - bins).max())] = pair
    assert min(sides) <= 1
    grounding, region = sides[min(sides)]
    assert [list(grounding.image.shape)] == [where["patch_image_shape"]] and torch.equal(grounding.image, region.image)
    ours = grounding.target[:4].tolist()
    check(codec, grounding, {**where, "target": [*ours, codec.eos], "prev_output_tokens": [codec.bos, *ours]})
    source = [*what["source"][:-5], *ours, codec.eos]
    check(codec, region, {**what, "source": source, "source_text": codec.decode(torch.tensor(source))})
    assert (grounding.kind, region.kind) == ("grounding", "region_caption")


@pytest.mark.parity
@pytest.mark.parametrize(
    "case", GOLDEN["visual_grounding_geometry"], ids=lambda case: f"{case['w']}x{case['h']}-{case['resize_size']}"
)
def test_boxes_move_with_the_crop_as_officially(shared, released, make, monkeypatch, case):
    codec = released(shared("bpe/gpt2"))
    row = ["r", synthetic_image(case["w"], case["h"]), "a dog", "", ",".join(map(str, case["box"])), "", "", ""]
    row[-1] = "visual_grounding"
    monkeypatch.setattr("ofa_plugin.data.augment.draw_side", lambda draw, size: (case["resize_size"], 672))
    [example] = examples(make([row], "grounding", with_codec=codec, patch_image_size=384))
    assert list(example.image.shape) == case["image_shape"]
    assert np.abs(example.target[:4].numpy() - codec.bin0 - case["bins"]).max() <= 1
    assert example.target[4] == codec.eos and example.counts == {"clamped_boxes": 0}


def test_the_first_two_tokens_of_cc12m_have_no_loss_and_its_end_always_has(make, codec):
    for caption in ("the quick brown fox", "fox", "x"):
        for dataset, unscored in (("cc12m", 2), ("coco", 0)):
            [example] = examples(make([caption_row("a", caption, dataset)], "caption"))
            batch = collate([example], codec.bos, codec.pad)
            ids = codec.encode(f" {caption}").tolist()
            lost = min(unscored, len(ids))
            assert batch["target"].tolist() == [[codec.pad] * lost + ids[lost:] + [codec.eos]]
            assert batch["net_input"]["prev_output_tokens"].tolist() == [[codec.bos, *ids]]
            assert batch["ntokens"] == len(ids) - lost + 1


@pytest.mark.parametrize("shorter", ["caption", "a", "a b c d e f"])
def test_unscored_positions_of_one_row_are_those_of_that_row(make, codec, shorter):
    rows = [caption_row("a", "the quick brown fox jumps", "cc12m"), caption_row("b", shorter, "coco")]
    builder = make(rows, "caption")
    batch = collate([examples(builder)[0], examples(builder, index=1)[0]], codec.bos, codec.pad)
    assert batch["target"][0, :2].tolist() == [codec.pad] * 2 and batch["target"][0, 2] != codec.pad
    assert batch["target"][1, 0] != codec.pad


def test_an_epoch_s_rows_of_eight_bring_four_extras(world, tmp_path):
    """Of the official `collate_8`: two texts, a picture to fill in and one of objects; ours are parts of their own."""
    recorded = GOLDEN["collate_8"]
    task = task_of(world, write_data(tmp_path / "data"), "--pretrain-seed", 3)
    task.load_dataset("train")
    mixture = task.datasets["train"]
    batches = mixture.batch_by_size(mixture.ordered_indices(), max_sentences=8)
    assert [len(batch) for batch in batches] == [12, 12, 12]
    for indices in batches:
        batch = mixture.collater([mixture[index] for index in indices])
        rows = {name: part["nsentences"] for name, part in batch["parts"].items()}
        assert rows == {"vision_language": recorded["v1_nsentences"], "text": 2, "image": 1, "detection": 1}
        assert sum(list(rows.values())[1:]) == recorded["v2_nsentences"]
        inputs = {name: part["net_input"] for name, part in batch["parts"].items()}
        masks = [inputs[name].get("code_masks") for name in ("vision_language", "text", "detection")]
        assert masks == [None, None, None] and inputs["image"]["code_masks"].tolist() == [True]
        assert "patch_images" not in inputs["text"]  # officially grey pictures behind a mask
        assert inputs["vision_language"]["patch_images"].shape == (8, 3, SIDE, SIDE)  # of two examples each
        assert inputs["detection"]["patch_images"].shape == inputs["image"]["patch_images"].shape == (1, 3, 32, 32)
        conf = [value for name in ("text", "image", "detection") for value in batch["parts"][name]["conf"].tolist()]
        assert conf == recorded["v2_conf"]
        assert batch["parts"]["vision_language"]["conf"].tolist() == recorded["v1_conf"]


@pytest.mark.parametrize(
    ("row", "kinds", "officially"),
    [
        (caption_row(), ("caption", "matching"), "caption"),
        (caption_row(dataset="cc12m"), ("caption", "matching"), "caption_cc12m"),
        (question_row(), ("vqa", "matching"), "qa"),
        (question_row(answers="0.05|!+red"), ("vqa", "matching"), "qa_lowconf"),
        (region_row(), ("grounding", "region_caption"), "visual_grounding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_evaluated_row_gives_one_example_of_each_kind_at_a_time(world, tmp_path, row, kinds, officially):
    """Official evaluation lets matching out and has both examples of a region in one batch; ours has every kind, each
    in batches of its own.
    """
    counts = {case["kind"]: case["n_examples_non_train"] for case in GOLDEN["non_train"]}
    assert counts[officially] == len([kind for kind in kinds if kind != "matching"])
    data = write_data(tmp_path / "data", "train")
    write_rows(data / "valid" / "vision_language_examples.tsv", row)
    task = task_of(world, data)
    task.load_dataset("valid")
    dataset = task.datasets["valid"]
    assert isinstance(dataset, ByKind) and {name: len(one) for name, one in dataset.datasets.items()} == dict.fromkeys(
        kinds, 1
    )
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_sentences=4)
    found = [dataset.collater([dataset[index] for index in indices]) for indices in batches]
    assert [(batch["kind"], batch["nsentences"]) for batch in found] == [(kind, 1) for kind in kinds]
    assert all(batch["references"] != [None] for batch in found)


# Draws


def test_statements_are_true_and_false_alike_and_false_ones_come_from_everywhere(make, codec):
    """As the official 150 of 300, and 0.4 of the false captions with an object exchanged."""
    builder = make([caption_row("c", "a dog chases a cat", objects="dog&&cat")], "matching", patch_image_size=8)
    draw = np.random.default_rng(5)
    said = Counter()
    for _ in range(600):  # officially 300 draws
        [example] = builder.examples(0, builder.store[0], draw)
        said[codec.decode(example.target).strip(), codec.decode(example.source).strip()] += 1
    answers = Counter()
    for (answer, _), count in said.items():
        answers[answer] += count
    assert abs(answers["yes"] - 300) < 4 * np.sqrt(600 / 4) and answers.total() == 600
    assert [text for answer, text in said if answer == "yes"] == ['does the image describe " a dog chases a cat "?']
    false = {text.split('"')[1].strip(): count for (answer, text), count in said.items() if answer == "no"}
    whole = {"a red bus", "two men", "a cat sits"}
    swapped = {text for text in false if text not in whole}
    assert whole < set(false) and "a dog chases a cat" not in false
    assert swapped == {
        f"a {a} chases a {b}" for a, b in [("bus", "cat"), ("tree", "cat"), ("dog", "bus"), ("dog", "tree")]
    }
    share = sum(false[text] for text in swapped) / sum(false.values())
    assert share == pytest.approx(0.4, abs=0.12)  # four deviations of 300 draws


@pytest.mark.parity
@pytest.mark.parametrize("case", [STATS["answer"][number] for number in (0, 1, 4)], ids=lambda case: f"{case['conf']}")
def test_false_answers_follow_the_recorded_distribution(make, codec, case):
    """But for type `other`, whose last answer official leaves out; each case alone: tests/data/test_negatives.py."""
    answer, count = case["answer"], 1200
    builder = make([question_row(answers=f"{case['conf']}|!+{answer}")], "matching", patch_image_size=8)
    draw, said = np.random.default_rng(6), Counter()
    for _ in range(count):
        [example] = builder.examples(0, builder.store[0], draw)
        said[codec.decode(example.target).strip(), codec.decode(example.source).split('"')[3].strip()] += 1
    right = said.pop(("yes", answer))
    assert abs(right - count / 2) < 4 * np.sqrt(count / 4) and {judged for judged, _ in said} == {"no"}
    false = {text: number / said.total() for (_, text), number in said.items()}
    other = [false.pop(text, 0) for text in ("pizza", "table", "sky")]
    recorded = dict(case["dist"])
    assert sum(other) == pytest.approx(recorded.pop("pizza") + recorded.pop("table"), abs=0.08)
    assert all(other) and false == pytest.approx(recorded, abs=0.08)  # four deviations of 600 draws


def test_the_confidence_of_an_answer_weighs_both_examples(make):
    pair = examples(make([question_row(answers="0.3|!+red&&0.6|!+blue")], "vqa", "matching"))
    assert [example.confidence for example in pair] == [0.6, 0.6]


def test_both_examples_of_a_row_show_one_picture(make):
    for row, kinds in (
        (caption_row(), ("caption", "matching")),
        (question_row(), ("vqa", "matching")),
        (region_row(), ("grounding", "region_caption")),
    ):
        first, second = examples(make([row], *kinds), seed=4)
        assert torch.equal(first.image, second.image) and first.scale == second.scale


def test_a_clamped_box_counts_once_for_both_examples(make):
    first, second = examples(make([region_row(box="-0.5,0,20,30")], "grounding", "region_caption"))
    assert first.counts == {"clamped_boxes": 1} and second.counts == {}
    [alone] = examples(make([region_row(box="-0.5,0,20,30")], "region_caption"))
    assert alone.counts == {"clamped_boxes": 1}


def test_rows_draw_for_themselves_in_every_epoch_and_evaluation_never_changes(world, tmp_path):
    data = tmp_path / "data"
    for subset in ("train", "valid"):
        rows = [caption_row("c", "a dog", objects="dog")] * 6
        write_rows(data / subset / "vision_language_examples.tsv", *rows)
    write_negatives(data / "negative_sample")
    task = task_of(world, data)
    task.load_dataset("train")
    train = task.datasets["train"]

    def seen(dataset, index):
        return [(one.source.tolist(), one.image.numpy().tobytes()) for one in dataset[index][1].examples]

    first = [seen(train, index) for index in range(6)]
    assert len({pictures[0][1] for pictures in first}) > 3  # not one draw for all rows
    assert len({str(pictures[1][0]) for pictures in first}) > 1  # nor one statement
    assert [seen(train, index) for index in range(6)] == first
    train.set_epoch(2)
    assert [seen(train, index) for index in range(6)] != first
    train.set_epoch(1)
    assert [seen(train, index) for index in range(6)] == first
    task.load_dataset("valid")
    valid = task.datasets["valid"]
    before = [seen(valid, index) for index in range(len(valid))]
    valid.set_epoch(2)
    assert [seen(valid, index) for index in range(len(valid))] == before
    assert len({pictures[0][1] for pictures in before}) == 1  # the whole picture, as it is
    again = task_of(world, data)
    again.load_dataset("valid")
    assert [seen(again.datasets["valid"], index) for index in range(len(valid))] == before


def test_rand_augment_can_be_left_out(make, monkeypatch):
    monkeypatch.setattr("ofa_plugin.data.augment.draw_side", lambda draw, size: (size, 2 * size))

    def pictures(**given):
        builder = make([caption_row()], "caption", **given)
        return {examples(builder, seed)[0].image.numpy().tobytes() for seed in range(12)}

    assert len(pictures()) > 3 and len(pictures(no_rand_augment=True)) == 1


def test_files_of_one_run_draw_differently(world, tmp_path):
    """Row 0 of one file and row 0 of another do not share their random numbers."""
    data = write_data(tmp_path / "data")
    task = task_of(world, data)
    task.load_dataset("train")
    parts = task.datasets["train"].parts
    assert [part.dataset._stream for part in parts.values()] == [(0,), (1,), (2,), (3,)]
    drawn = [np.random.default_rng((1, 1, 0, *part.dataset._stream)).random() for part in parts.values()]
    assert len(set(drawn)) == 4


# Bad rows


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            [*caption_row()[:7], "captions"],
            "type: 'captions' is unknown: write one of caption, qa, visual_grounding",
        ),
        (caption_row(caption=" "), "caption: it is empty: write a caption, or leave the row out"),
        (caption_row(caption=" && "), "caption: it is empty: write a caption, or leave the row out"),
        (question_row(question=" "), "question: it is empty: write a question, or leave the row out"),
        (
            question_row(answers="red"),
            "refs: expected confidence|!+answer, found 'red': write 1.0|!+yes, several joined by &&",
        ),
        (
            question_row(answers=""),
            "refs: expected confidence|!+answer, found '': write 1.0|!+yes, several joined by &&",
        ),
        (
            question_row(answers="2|!+red"),
            "refs: confidence 2 is not between 0 and 1: write 1.0|!+yes, several joined by &&",
        ),
        (region_row(text=" "), "caption: it is empty: write what the region shows, or leave the row out"),
        (region_row(box="1,2,3"), "refs: box '1,2,3': 3 values, not four: write x0,y0,x1,y1 in pixels"),
        (
            region_row(box="1.0|!+yes"),
            "refs: box '1.0|!+yes': one value, not four: write x0,y0,x1,y1 in pixels",
        ),
        (
            region_row(box="1,2,3,y"),
            "refs: box '1,2,3,y': y1 is 'y', no finite number: write x0,y0,x1,y1 in pixels",
        ),
        (
            region_row(box="0,0,41.5,30"),
            "refs: box 0,0,41.5,30 of a picture of 40 x 30: x1 lies 1.5 px outside: "
            "give boxes of this very picture, in its pixels",
        ),
        (region_row(box="4,5,4,20"), "refs: box 4,5,4,20 has no area: give the corners of a region"),
        (region_row(box="40.2,5,41,20"), "refs: box 40.2,5,41,20 has no area: give the corners of a region"),
        (
            region_row(box="42,5,50,20"),
            "refs: box 42,5,50,20 of a picture of 40 x 30: wholly outside: "
            "give boxes of this very picture, in its pixels",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("training", [True, False])
def test_a_bad_row_is_named_with_what_to_do(make, tmp_path, row, says, training):
    builder = make([caption_row(), row], *KINDS, training=training)
    with pytest.raises(BadRow) as caught:
        examples(builder, index=1)
    assert str(caught.value) == f"{tmp_path / 'rows.tsv'}:2: {says}"


def test_a_row_of_an_unwanted_type_is_not_built(world, tmp_path):
    data = write_data(tmp_path / "data")
    task = task_of(world, data, "--kinds", "vqa,text_infilling")
    task.load_dataset("train")
    mixture = task.datasets["train"]
    assert len(mixture) == 8 and list(mixture.parts) == ["vision_language", "text"]
    names = {example.kind for index in range(8) for example in mixture[index][1].examples}
    assert names == {"vqa"}
    assert [mixture[index][1].examples[0].uniq_id for index in range(8)] == [f"q{n}" for n in range(8)]


def test_a_row_of_unknown_type_is_met_whatever_kinds_are_wanted(world, tmp_path):
    data = tmp_path / "data"
    wrong = [*caption_row("w")[:7], "captoin"]
    write_rows(data / "train" / "vision_language_examples.tsv", caption_row(), wrong, question_row())
    task = task_of(world, data, "--kinds", "vqa", "--max-bad-fraction", 0)
    task.load_dataset("train")
    mixture = task.datasets["train"]
    assert len(mixture) == 2
    [bad] = mixture[0][1].bad
    assert str(bad).startswith(f"{data}/train/vision_language_examples.tsv:2: type: 'captoin' is unknown")


# Options


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--kinds", "vqa,captions"), f"--kinds vqa,captions: 'captions' is none of {', '.join(KINDS)}"),
        (("--kinds", ""), f"--kinds : '' is none of {', '.join(KINDS)}"),
        (("--mixture", "8:2:1"), "--mixture 8:2:1: four whole numbers from 1 on, e.g. 8:2:1:1"),
        (("--mixture", "8:0:1:1"), "--mixture 8:0:1:1: four whole numbers"),
        (("--mixture", "8:-2:1:1"), "--mixture 8:-2:1:1: four whole numbers"),
        (("--mixture", "8:²:1:1"), "--mixture 8:²:1:1: four whole numbers"),
        (("--mixture", "8:2.5:1:1"), "--mixture 8:2.5:1:1: four whole numbers"),
        (("--kind-weights", "vqa"), "--kind-weights vqa: write KIND=NUMBER above 0, KIND one of caption, vqa"),
        (("--kind-weights", "vqa=2,"), "--kind-weights : write KIND=NUMBER above 0"),
        (("--kind-weights", "vqa=0"), "--kind-weights vqa=0: write KIND=NUMBER above 0"),
        (("--kind-weights", "vqa=nan"), "--kind-weights vqa=nan: write KIND=NUMBER above 0"),
        (("--kind-weights", "vqa=inf"), "--kind-weights vqa=inf: write KIND=NUMBER above 0"),
        (("--kind-weights", "vqa=2,colour=3"), "--kind-weights colour=3: write KIND=NUMBER above 0"),
        (
            ("--max-image-size", 31),
            "--max-image-size 31: the bins must span every picture, and 32 pixels is the larger of --patch-image-size "
            "32 and twice --code-image-size 16",
        ),
        (("--code-image-size", 64), "--max-image-size 64: the bins must span every picture, and 128 pixels is"),
        (("--code-image-size", 20), "--code-image-size 20: a code is 8 pixels of a side; give a multiple of 8"),
        (("--code-image-size", 0), "--code-image-size 0: a code is 8 pixels of a side"),
        (("--code-image-size", -8), "--code-image-size -8: a code is 8 pixels of a side"),
        (("--instruction", "what?", "--columns", "id,image"), "--instruction is for generation"),
        (("--columns", "id,image"), "--columns names the columns for --instruction: give both"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_an_option_that_makes_no_sense_is_refused_by_name(world, tmp_path, flags, says):
    with pytest.raises(UserError) as caught:
        task_of(world, tmp_path, *flags)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--mask-ratio", 1.5), "--mask-ratio 1.5: give a share from 0 to 1"),
        (("--mask-length", "words"), "--mask-length words: choose one of subword, word, span-poisson"),
        (("--replace-length", 2), "--replace-length 2: choose 1"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_noise_that_makes_no_sense_is_refused_when_texts_are_opened(world, tmp_path, flags, says):
    task = task_of(world, write_data(tmp_path / "data"), *flags)
    with pytest.raises(UserError) as caught:
        task.load_dataset("train")
    assert says in str(caught.value)


def test_a_kind_named_twice_counts_once(world, tmp_path):
    assert task_of(world, tmp_path, "--kinds", "vqa,caption,vqa").wanted == ("vqa", "caption")


def test_weights_multiply_the_confidence_of_their_kinds(world, tmp_path):
    data = write_data(tmp_path / "data")
    task = task_of(world, data, "--kind-weights", "matching=2,detection=0.5")
    task.load_dataset("train")
    mixture = task.datasets["train"]
    [batch] = [
        mixture.collater([mixture[index] for index in indices])
        for indices in mixture.batch_by_size(np.arange(8), max_sentences=8)
    ]
    part = batch["parts"]["vision_language"]
    by_kind = dict(zip(part["kinds"].tolist(), part["conf"].tolist(), strict=True))
    names = part["kind_names"]
    assert {names[kind]: conf for kind, conf in by_kind.items()} == {
        **{"caption": 1.0, "vqa": 1.0, "grounding": 1.0, "region_caption": 1.0, "matching": 2.0}
    }
    assert batch["parts"]["detection"]["conf"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("absent", "kinds"),
    [
        ((), tuple(KINDS)),
        (("text",), tuple(kind for kind in KINDS if kind != "text_infilling")),
        (("image", "detection"), tuple(kind for kind in KINDS if kind not in ("image_infilling", "detection"))),
        (("vision_language",), ("text_infilling", "image_infilling", "detection")),
        (("vision_language", "text", "image"), ("detection",)),
    ],
    ids=str,
)
def test_the_kinds_of_a_run_are_those_that_have_a_file(world, tmp_path, absent, kinds, caplog):
    data = write_data(tmp_path / "data", "train", "valid")
    for name in absent:
        for subset in ("train", "valid"):
            (data / subset / f"{name}_examples.tsv").unlink()
    task = task_of(world, data)
    with caplog.at_level("INFO"):
        task.load_dataset("train")
    mixture = task.datasets["train"]
    batch = next(iter(mixture.batch_by_size(mixture.ordered_indices(), max_sentences=8)))
    parts = mixture.collater([mixture[index] for index in batch])["parts"]
    assert all(part["kind_names"] == kinds for part in parts.values())
    task.load_dataset("valid")
    assert tuple(task.datasets["valid"].datasets) == kinds
    missing = [kind for kind in KINDS if kind not in kinds]
    assert (f"train: without {', '.join(missing)}, for which there is no file" in caplog.text) is bool(missing)


@pytest.mark.parametrize(
    ("kinds", "absent", "says"),
    [
        (
            "detection,vqa",
            ("detection",),
            "{data}: train has no detection_examples.tsv (--detection-data) for detection",
        ),
        (
            "text_infilling,image_infilling",
            ("text", "image"),
            "{data}: train has no text_examples.tsv (--text-data) or image_examples.tsv (--image-data) "
            "for text_infilling, image_infilling",
        ),
        ("vqa", ("vision_language",), "{data}: train has no vision_language_examples.tsv (DATA) for vqa"),
    ],
    ids=["detection", "infilling", "vqa"],
)
def test_a_wanted_kind_without_its_file_is_an_error(world, tmp_path, kinds, absent, says):
    data = write_data(tmp_path / "data")
    for name in absent:
        (data / "train" / f"{name}_examples.tsv").unlink()
    with pytest.raises(UserError) as caught:
        task_of(world, data, "--kinds", kinds).load_dataset("train")
    assert str(caught.value) == says.format(data=data)


def test_matching_needs_its_files_and_nothing_else_does(world, tmp_path):
    data = write_data(tmp_path / "data")
    for file in (data / "negative_sample").iterdir():
        file.unlink()
    (data / "negative_sample").rmdir()
    with pytest.raises(UserError) as caught:
        task_of(world, data).load_dataset("train")
    assert str(data / "negative_sample") in str(caught.value)
    assert "--neg-sample-dir" in str(caught.value) and "--kinds" in str(caught.value)
    task_of(world, data, "--kinds", ",".join(kind for kind in KINDS if kind != "matching")).load_dataset("train")
    with pytest.raises(UserError, match="matching needs false statements: give --neg-sample-dir"):
        task_of(world, data / "train" / "vision_language_examples.tsv").load_dataset("train")
    with pytest.raises(UserError, match="elsewhere: no such folder"):
        task_of(world, data, "--neg-sample-dir", tmp_path / "elsewhere").load_dataset("train")
    task_of(world, data, "--neg-sample-dir", write_negatives(tmp_path / "elsewhere")).load_dataset("train")


@pytest.mark.parametrize("name", ["vision_language", "text", "image", "detection"])
def test_an_empty_file_is_an_error(world, tmp_path, name):
    data = write_data(tmp_path / "data")
    (data / "train" / f"{name}_examples.tsv").write_text("")
    with pytest.raises(UserError, match=rf"{name}_examples.tsv is empty: it needs at least one row"):
        task_of(world, data).load_dataset("train")


def test_a_file_without_a_row_of_the_wanted_kinds_is_an_error(world, tmp_path):
    data = tmp_path / "data"
    write_rows(data / "train" / "vision_language_examples.tsv", region_row())
    path = data / "train" / "vision_language_examples.tsv"
    with pytest.raises(UserError) as caught:
        task_of(world, data, "--kinds", "caption").load_dataset("train")
    assert str(caught.value) == f"{path}: it has no row for --kinds caption"


@pytest.fixture
def evaluated(world, monkeypatch):
    """A function as `task_of`, of a task that generates."""
    monkeypatch.setattr("ofa_plugin.tasks.base.saved_task_config", lambda path: {})
    return lambda data, *flags: task_of(world, data, *flags, path="checkpoint.pt")


def test_generation_has_the_settings_and_the_answers_of_each_kind(evaluated, tmp_path):
    task = evaluated(tmp_path)
    settings = {kind: task.generation_settings(None, kind) for kind in KINDS}
    limits = {kind: (one.beam, one.min_len, one.max_len_b) for kind, one in settings.items()}
    assert limits.pop("text_infilling")[:2] == (1, 1)
    assert limits == {
        "caption": (5, 1, 60),
        "vqa": (5, 1, 30),
        "matching": (5, 1, 200),
        "grounding": (5, 4, 4),
        "region_caption": (5, 1, 60),
        "image_infilling": (1, 4, 4),
        "detection": (1, 1, 200),
    }
    codec = task.codec
    rules = {kind: type(KINDS[kind].rules(codec)).__name__ for kind in KINDS if KINDS[kind].rules(codec)}
    assert rules == {"matching": "Trie", "grounding": "Boxes", "image_infilling": "Range", "detection": "Boxes"}
    assert [kind for kind in KINDS if KINDS[kind].answers] == ["matching"]


def test_explicit_files_win_over_those_of_the_folder(world, evaluated, tmp_path):
    data = write_data(tmp_path / "data", "train", "test")
    other = write_rows(tmp_path / "other.tsv", ["x", "9 dogs", "a"], ["y", "3 dogs", "b"])
    flags = ("--text-data", other, "--text-selected-cols", "2,1")
    task = task_of(world, data, *flags)
    task.load_dataset("train")
    part = task.datasets["train"].parts["text"].dataset
    assert [part.builder.store[row] for row in range(len(part))] == [("a", "9 dogs"), ("b", "3 dogs")]
    task = evaluated(data, *flags)
    task.load_dataset("test")
    assert len(task.datasets["test"].datasets["text_infilling"]) == 2
    task = task_of(world, data, "--text-data", other, "--text-selected-cols", "2,7")
    task.load_dataset("train")
    [bad] = task.datasets["train"].parts["text"].dataset[0].bad
    assert str(bad).startswith(f"{other}:1: ") and "--text-selected-cols" in str(bad)


def test_a_subset_that_is_not_there_is_named_beside_those_that_are(world, tmp_path):
    data = write_data(tmp_path / "data", "train", "valid")
    with pytest.raises(UserError) as caught:
        task_of(world, data).load_dataset("test")
    assert "test: no such folder" in str(caught.value) and "train, valid" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "--batch-size is needed, and no --max-tokens"),
        (
            (None, 12),
            "--batch-size 12 cannot hold vision_language, text, image, detection as 8:2:1:1; the next value "
            "that can is 16",
        ),
        ((4096,), "--batch-size is needed, and no --max-tokens"),
    ],
    ids=str,
)
def test_a_batch_that_cannot_hold_every_kind_is_refused(world, tmp_path, given, says):
    task = task_of(world, write_data(tmp_path / "data"))
    task.load_dataset("train")
    mixture = task.datasets["train"]
    with pytest.raises(UserError) as caught:
        mixture.batch_by_size(mixture.ordered_indices(), *given)
    assert says in str(caught.value)


@pytest.mark.parametrize(("flag", "step"), [("8:2:1:1", 8), ("4:2:2:2", 2), ("1:1:1:1", 1), ("3:1:1:6", 3)])
def test_the_mixture_says_how_many_rows_go_together(world, tmp_path, flag, step):
    task = task_of(world, write_data(tmp_path / "data"), "--mixture", flag)
    task.load_dataset("train")
    mixture = task.datasets["train"]
    batches = mixture.batch_by_size(mixture.ordered_indices(), max_sentences=step)
    leading, *rest = map(int, flag.split(":"))
    expected = [step, *(max(1, round(step * rows / leading)) for rows in rest)]
    counted = Counter(mixture[index][0] for index in batches[0])
    assert list(counted.values()) == expected


def test_codes_have_the_positions_of_the_grid_and_words_those_of_text(evaluated, tmp_path):
    """`ofa_nano` has 256 of the latter, and the official middle of a picture 256 codes and their end."""
    task = evaluated(tmp_path)
    model, _ = build_small(recipe=None, max_target_positions=4)
    generator = task._make_generator([model], kind="image_infilling")
    assert (generator.min_len, generator.max_len_b) == (4, 4) and generator.max_len > 4
    with pytest.raises(UserError, match="--max-len-b 4 goes past the decoder's 4 positions"):
        task._make_generator([model], kind="grounding")
