"""Rows of text in pictures against the official dataset's: where the picture stands, what of its text is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ofa_plugin.data.codec import Codec
from ofa_plugin.data.image import ImageReader, PictureLoader
from ofa_plugin.data.simplified import simplify
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow
from ofa_plugin.tasks.ocr import CHINESE_INSTRUCTION, OcrBuilder, fitted, padded, stacked
from tests.helpers.chinese import write_wordpiece
from tests.helpers.golden import golden, settings, synthetic_image

GOLDEN = golden("dataset_ocr.json")


def builder(tmp_path, codec, row, training=True, **given):
    (tmp_path / "rows.tsv").write_text("\t".join(row) + "\n", encoding="utf-8")
    cfg = settings(**{"patch_image_size": 64, "is_document": False, **given})
    store = TSVStore(str(tmp_path / "rows.tsv"), OcrBuilder.columns)
    return OcrBuilder(store, codec, cfg, training, PictureLoader(tmp_path, cfg.patch_image_size))


def only(made, seed=0):
    [example] = made.examples(0, made.store[0], np.random.default_rng(seed))
    return example


def picture(width, height):
    return ImageReader("/")(synthetic_image(width, height))


@pytest.mark.parity
@pytest.mark.parametrize("case", GOLDEN["resize"], ids=lambda case: f"{case['w']}x{case['h']}-{case['patch']}")
def test_size_and_edges_are_official_wherever_the_picture_is_put(case):
    """The fixture tells where Python's generator of that seed has put it, and that rows or columns repeat its edge."""
    image = picture(case["w"], case["h"])
    left, top, *size = case["content_xywh"]
    assert list(fitted(image.size, case["patch"])) == size
    content = image.resize(tuple(size), Image.Resampling.BICUBIC)
    square = np.asarray(padded(content, case["patch"], left, top))
    assert list(square.shape) == [*case["out_size"], 3] and case["content_matches_bicubic_resize"]
    inner = np.asarray(content)
    bottom, right = top + size[1], left + size[0]
    assert (square[top:bottom, left:right] == inner).all() and case["rows_edge_replicated"]
    assert (square[:top, left:right] == inner[:1]).all() and (square[bottom:, left:right] == inner[-1:]).all()
    assert (square[top:bottom, :left] == inner[:, :1]).all() and (square[top:bottom, right:] == inner[:, -1:]).all()


@pytest.mark.parity
def test_a_document_is_cut_and_stacked_as_officially(tmp_path, codec):
    case = GOLDEN["document"]
    image = picture(*case["in"])
    stack = np.asarray(stacked(image))
    assert list(stack.shape[:2]) == case["stacked_hw"] and case["chunks"] == 4
    line = np.asarray(image.resize(tuple(reversed(case["resized_hw"])), Image.Resampling.BICUBIC))
    for number in range(4):
        assert (stack[64 * number : 64 * (number + 1)] == line[:, 480 * number : 480 * (number + 1)]).all()
    made = builder(
        tmp_path, codec, ["1", synthetic_image(*case["in"]), "a"], False, patch_image_size=480, is_document=True
    )
    seen = only(made).image.permute(1, 2, 0).numpy()
    assert (seen[112 : 112 + 256] == stack).all() and (seen[:112] == stack[0]).all()  # the middle of 480
    assert 0 <= case["top"] <= 480 - 256  # where official drew it


@pytest.mark.parity
def test_a_row_matches_the_official_dataset(shared, released, tmp_path):
    codec, case = released(shared("bpe/gpt2")), GOLDEN["gpt2_case"]
    row = [case["row"][0], synthetic_image(40, 30), case["row"][2]]
    example = only(builder(tmp_path, codec, row, max_tgt_length=case["max_tgt_length"]))
    expected = case["example"]
    assert example.uniq_id == expected["id"] and example.source.tolist() == expected["source"]
    assert example.target.tolist() == expected["target"]
    assert [codec.bos, *example.target.tolist()[:-1]] == expected["prev_output_tokens"]
    assert example.reference == "繁体字 abc hello world"


@pytest.mark.parity
def test_the_chinese_vocabulary_asks_in_chinese_and_cuts_characters(shared, tmp_path):
    codec = Codec.build("bert", str(shared("bpe/bert_cn")), 1000, 8192)
    row = ["1", synthetic_image(40, 30), "繁體字 ＡＢＣ１２"]
    example = only(builder(tmp_path, codec, row, max_tgt_length=6))
    assert codec.decode(example.source).replace(" ", "") == CHINESE_INSTRUCTION
    assert codec.decode(example.target).replace(" ", "") == "繁体字ab"  # the space is a character
    assert codec.unk not in example.source and example.reference == "繁体字 abc12"


def test_a_small_chinese_vocabulary_asks_in_chinese_too(tmp_path):
    codec = Codec.build("bert", str(write_wordpiece(tmp_path / "bpe", "图片上的文字是什么汉语")), 10, 8)
    example = only(builder(tmp_path, codec, ["1", synthetic_image(40, 30), "漢語"]))
    assert codec.decode(example.source).replace(" ", "") == CHINESE_INSTRUCTION
    assert codec.decode(example.target).split() == ["汉", "语"] and example.reference == "汉语"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Eine  Zeile Text ", "eine zeile text"),
        ("Deinige ſich jeder Bethä⸗", "deinige sich jeder bethä⸗"),
        ("ﬁnden ½ ①", "finden 1⁄2 1"),
        ("㎏　ｶﾀｶﾅ", "kg カタカナ"),
        ("漢語 后 後 臺灣", "汉语 后 后 台湾"),
        ("", None),
        ("　 ", None),
    ],
)
def test_texts_are_made_plain(tmp_path, codec, text, expected):
    made = builder(tmp_path, codec, ["1", synthetic_image(8, 8), text], training=False)
    assert made.reference(made.store[0]) == expected


def test_simplified_text_stays():
    text = "简体字 abc, ÄÖ ① カナ 한국"
    assert simplify(text) == text and simplify("繁體字") == "繁体字"


def test_words_are_cut_in_training_and_judged_whole(tmp_path, codec):
    row = ["1", synthetic_image(40, 30), "a red circle and a blue square"]
    example = only(builder(tmp_path, codec, row, max_tgt_length=3))
    assert codec.decode(example.target).strip() == "a red circle"
    assert example.reference == row[2] and codec.decode(example.reference_tokens).strip() == row[2]


def places(made, count=300):
    """The top of the picture's content in the square, for so many draws."""
    tops = []
    for seed in range(count):
        image = only(made, seed).image
        changes = (image[:, 1:] != image[:, :-1]).flatten(2).any(0).any(1).nonzero().flatten()
        tops.append(int(changes.min()))
    return tops


def test_the_place_is_drawn_in_training_and_the_middle_in_evaluation(tmp_path, codec):
    row = ["1", synthetic_image(128, 64), "a"]
    tops = places(builder(tmp_path, codec, row, patch_image_size=128))
    assert 0 <= min(tops) < 5 and 59 < max(tops) <= 64
    assert np.mean(tops) == pytest.approx(32, abs=4)
    evaluated = places(builder(tmp_path, codec, row, False, patch_image_size=128), 5)
    assert set(evaluated) == {32}


def test_a_draw_is_a_place(tmp_path, codec):
    made = builder(tmp_path, codec, ["1", synthetic_image(100, 30), "a"], patch_image_size=96)
    assert only(made, 3).image.equal(only(made, 3).image)
    assert len({tuple(only(made, seed).image.flatten().tolist()) for seed in range(8)}) > 1


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (63, 65)])
@pytest.mark.parametrize("side", [64, 65, 100])
def test_every_picture_fits(tmp_path, codec, size, side):
    image = only(builder(tmp_path, codec, ["1", synthetic_image(*size), "a"], patch_image_size=side)).image
    assert image.shape == (3, side, side) and image.dtype == torch.uint8


def test_a_row_without_text_cannot_be_learned_and_is_not_scored(tmp_path, codec):
    row = ["7", synthetic_image(8, 8), " "]
    with pytest.raises(BadRow) as caught:
        only(builder(tmp_path, codec, row))
    assert str(caught.value).startswith(f"{tmp_path}/rows.tsv:1: text: it is empty: write what the picture says")
    example = only(builder(tmp_path, codec, row, training=False))
    assert example.reference is None and example.target.tolist() == [codec.pad]


def test_a_broken_picture_is_named_with_its_line(tmp_path, codec):
    with pytest.raises(BadRow, match=r"rows.tsv:1: image: neither base64 nor a path"):
        only(builder(tmp_path, codec, ["7", "§", "a"]))
