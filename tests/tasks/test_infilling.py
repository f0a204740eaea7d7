"""Text and image infilling rows against the official dataset's, bad rows, and what a hypothesis says."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
import torch

from ofa_plugin.data.example import collate
from ofa_plugin.errors import BadRow
from ofa_plugin.tasks.infilling import ImageBuilder, ImageInfilling, TextBuilder, TextInfilling
from ofa_plugin.tasks.metrics.infilling import Gapped, InfilledAccuracy
from tests.helpers.golden import golden
from tests.helpers.pretraining import builder_of, image_row, write_rows

GOLDEN = golden("pretrain_examples.json")
TEXTS = {  # as recorded, before the official clean-up
    "t1": "Hello world. The quick brown fox jumps over the lazy dog near the river bank on a sunny day",
    "t2": "Short Text",
}
ENOUGH = 3000  # draws, among which every recorded one is


def only(made, index=0, seed=0):
    [example] = made.examples(index, made.store[index], np.random.default_rng(seed))
    return example


# Text


@pytest.mark.parity
@pytest.mark.parametrize("recorded", GOLDEN["pure_text"], ids=lambda example: example["id"])
def test_texts_match_the_official_dataset(shared, released, tmp_path, recorded):
    codec = released(shared("bpe/gpt2"))
    path = write_rows(tmp_path / "t.tsv", [recorded["id"], f"  {TEXTS[recorded['id']]} "])
    made = builder_of(TextBuilder, codec, path)
    for seed in range(ENOUGH):
        example = only(made, seed=seed)
        assert example.target.tolist() == recorded["target"]
        if example.source.tolist() == recorded["source"]:
            break
    else:
        pytest.fail("no draw makes the recorded gap")
    batch = collate([example], codec.bos, codec.pad)
    assert batch["net_input"]["prev_output_tokens"].tolist() == [recorded["prev_output_tokens"]]
    assert batch["conf"].tolist() == recorded["conf"] and example.uniq_id == recorded["id"]
    assert codec.decode(example.source) == recorded["source_text"]
    assert codec.decode(example.target) == recorded["target_text"]
    assert set(batch["net_input"]) == {"src_tokens", "src_lengths", "prev_output_tokens"}  # officially a masked picture
    assert recorded["patch_mask"] == recorded["code_mask"] == [False]


@pytest.mark.parity
def test_of_a_long_text_the_second_window_is_learned_as_officially(shared, released, tmp_path):
    codec, recorded = released(shared("bpe/gpt2")), GOLDEN["text_truncation"]
    text = " ".join(f"word{number % 7} river" for number in range(640))
    whole = codec.encode(f" {text}")
    assert len(whole) >= recorded["n_bpe_full"] and recorded["equals_bpe_256_to_512"]
    example = only(builder_of(TextBuilder, codec, write_rows(tmp_path / "t.tsv", ["t", text])))
    assert len(example.target) == recorded["target_len_with_eos"]
    assert example.target.tolist() == [*whole[256:512].tolist(), codec.eos]


def test_evaluated_texts_know_their_gaps(codec, tmp_path):
    path = write_rows(tmp_path / "t.tsv", ["t", "A dog and a cat sit on a red bus, and nothing else is there"])
    made = builder_of(TextBuilder, codec, path, training=False)
    example = only(made, seed=1)
    assert isinstance(example.reference, Gapped) and only(made, seed=1).reference == example.reference
    tokens, removed = example.reference.tokens, example.reference.removed
    assert [*tokens, codec.eos] == example.target.tolist() and len(tokens) == len(removed) and any(removed)
    shown = [token for token in example.source.tolist() if token != codec.mask]
    before = len(codec.encode(' what is the complete text of "')) + 1
    behind = len(codec.encode(' "?')) + 1
    assert shown[before:-behind] == [token for token, gone in zip(tokens, removed, strict=True) if not gone]
    answer = TextInfilling().answer(codec, None, {"tokens": example.target}, (1.0, 1.0))
    assert InfilledAccuracy().sums(answer, example.reference) == (sum(removed), sum(removed))
    assert only(builder_of(TextBuilder, codec, path)).reference is None


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_text_is_a_bad_row(codec, tmp_path, text):
    path = write_rows(tmp_path / "t.tsv", ["a", "a dog"], ["b", text])
    with pytest.raises(BadRow) as caught:
        only(builder_of(TextBuilder, codec, path), 1)
    assert str(caught.value) == f"{path}:2: text: it is empty: write a text, or leave the row out"


def test_the_settings_of_the_noise_are_those_of_the_options(codec, tmp_path):
    path = write_rows(tmp_path / "t.tsv", ["t", "a dog and a cat sit on a red bus"])
    nothing = only(builder_of(TextBuilder, codec, path, mask_ratio=0.0))
    assert codec.mask not in nothing.source
    everything = only(builder_of(TextBuilder, codec, path, mask_ratio=1.0, mask_length="word", replace_length=0))
    before, behind = codec.encode(' what is the complete text of "').tolist(), codec.encode(' "?').tolist()
    assert everything.source.tolist() == [codec.bos, *before, *behind, codec.eos]


# Image


@pytest.mark.parity
def test_pictures_match_the_official_dataset(shared, released, tmp_path):
    codec, recorded = released(shared("bpe/gpt2")), GOLDEN["pure_image"]
    codes = [37 * number % 8192 for number in range(256)]
    path = write_rows(tmp_path / "i.tsv", image_row(recorded["id"], " ".join(map(str, codes)), (256, 256)))
    example = only(builder_of(ImageBuilder, codec, path, code_image_size=128))
    assert example.uniq_id == recorded["id"] and example.source.tolist() == recorded["source"]
    assert codec.decode(example.source) == recorded["source_text"]
    assert example.target[:4].tolist() == recorded["target_first4"]
    assert len(example.target) == recorded["target_len"] and example.target[-1] == recorded["target_last"]
    assert (example.target[:-1] - codec.code0).tolist() == codes
    batch = collate([example], codec.bos, codec.pad)
    pixels = batch["net_input"]["patch_images"][0]
    assert list(pixels.shape) == recorded["patch_image_shape"]
    assert batch["conf"].tolist() == recorded["conf"]
    assert batch["net_input"]["code_masks"].tolist() == recorded["code_mask"]
    assert batch["net_input"]["patch_masks"].tolist() == recorded["patch_mask"]
    hidden = pixels.eq(0).all(0)  # no uint8 becomes 0, so these are the hole and nothing else
    rows, columns = hidden.any(1).nonzero().squeeze(1), hidden.any(0).nonzero().squeeze(1)
    assert [int(rows[0]), int(rows[-1])] == GOLDEN["pure_image_zero_rows"]
    assert [int(columns[0]), int(columns[-1])] == GOLDEN["pure_image_zero_cols"]
    assert int(hidden.sum()) == 128 * 128


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            image_row(codes="0 1 2"),
            "codes: 3 codes, not 4: write 4 numbers in 0..7, separated by spaces; see --code-image-size",
        ),
        (
            image_row(codes=""),
            "codes: 0 codes, not 4: write 4 numbers in 0..7, separated by spaces; see --code-image-size",
        ),
        *(
            (
                image_row(codes=f"0 1 2 {wrong}"),
                f"codes: code '{wrong}': write 4 numbers in 0..7, separated by spaces; see --code-dict-size",
            )
            for wrong in ("8", "-1", "1.0", "a", "²", "٣", "1_0")
        ),
        (
            image_row(size=(32, 30)),
            "image: a picture of 32 x 30 pixels, not 32 x 32: store it in that size, with codes made from it, or see "
            "--code-image-size",
        ),
    ],
    ids=["few", "none", "8", "negative", "fraction", "letter", "square", "arabic", "underscore", "size"],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_bad_row_is_named_with_what_to_do(codec, tmp_path, row, says, training):
    path = write_rows(tmp_path / "i.tsv", image_row(), row)
    made = builder_of(ImageBuilder, codec, path, training=training)
    with pytest.raises(BadRow) as caught:
        only(made, 1)
    assert str(caught.value) == f"{path}:2: {says}"
    placeholder = collate([only(made), made.placeholder(1, caught.value)], codec.bos, codec.pad)  # --bad-rows report
    assert placeholder["net_input"]["code_masks"].tolist() == [True, True]
    assert placeholder["target"][1].eq(codec.pad).all() and placeholder["errors"] == [None, str(caught.value)]


def test_evaluated_pictures_know_their_codes(codec, tmp_path):
    path = write_rows(tmp_path / "i.tsv", image_row(codes="0  1 2 07"))
    example = only(builder_of(ImageBuilder, codec, path, training=False))
    assert example.reference == [0, 1, 2, 7]
    kind = ImageInfilling()
    answer = kind.answer(codec, None, {"tokens": example.target}, (1.0, 1.0))
    assert answer == example.reference and kind.entry("i", answer) == {"uniq_id": "i", "codes": [0, 1, 2, 7]}
    assert kind.metrics[0]().sums(answer, example.reference) == (4, 4)


@pytest.mark.parametrize(("side", "count"), [(8, 1), (16, 4), (128, 256), (256, 1024)])
def test_exactly_the_codes_of_the_middle_are_generated(side, count):
    settings = ImageInfilling().generation(Namespace(code_image_size=side))
    assert settings == {"beam": 1, "min_len": count, "max_len_a": 0, "max_len_b": count}


def test_no_answer_is_an_empty_one(codec):
    nothing = {"tokens": torch.tensor([codec.eos])}
    for kind, entry in ((ImageInfilling(), {"codes": []}), (TextInfilling(), {"tokens": []})):
        assert kind.entry("u", kind.answer(codec, None, nothing, (1.0, 1.0))) == {"uniq_id": "u", **entry}
