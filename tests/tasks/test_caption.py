"""Captioning rows against the official dataset's."""

from __future__ import annotations

import numpy as np
import pytest

from ofa_plugin.data.codec import Codec
from ofa_plugin.data.image import PictureLoader, normalise
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow
from ofa_plugin.tasks.caption import CaptionBuilder, RewardedCaptionBuilder
from tests.helpers.chinese import write_wordpiece
from tests.helpers.golden import golden, settings, synthetic_image


def builder(tmp_path, codec, row, training=True, kind=CaptionBuilder, **given):
    (tmp_path / "rows.tsv").write_text("\t".join(row) + "\n", encoding="utf-8")
    store = TSVStore(str(tmp_path / "rows.tsv"), CaptionBuilder.columns)
    return kind(store, codec, settings(**given), training, PictureLoader(tmp_path, 32))


def only(made):
    [example] = made.examples(0, made.store[0], np.random.default_rng(0))
    return example


@pytest.mark.parity
@pytest.mark.parametrize("number", range(len(golden("dataset_caption.json")["cases"])))
def test_rows_match_the_official_dataset(shared, tmp_path, number):
    cases = golden("dataset_caption.json")
    case, size = cases["cases"][number], cases["image"]
    kind = RewardedCaptionBuilder if case["scst"] else CaptionBuilder
    codec = Codec.build("gpt2", str(shared("bpe/gpt2")), 1000, 8192)
    row = [case["row"][0], synthetic_image(size["w"], size["h"]), case["row"][2]]
    training = case["split"] == "train"
    example = only(builder(tmp_path, codec, row, training, kind, max_tgt_length=case["max_tgt_length"]))
    expected = case["example"]
    assert example.uniq_id == expected["id"]
    assert example.source.tolist() == expected["source"]
    shown = example.target if training and not case["scst"] else example.reference_tokens
    assert shown.tolist() == expected["target"]
    pixels = normalise(example.image[None], False)[0]
    for (channel, y, x), value in expected["patch_image"]["points"]:
        assert float(pixels[channel, y, x]) == pytest.approx(value, abs=1e-4)
    assert float(pixels.mean()) == pytest.approx(expected["patch_image"]["mean"], abs=1e-5)
    assert float(pixels.std()) == pytest.approx(expected["patch_image"]["std"], abs=1e-5)


@pytest.mark.parity
def test_chinese_rows_match_the_official_dataset(shared, tmp_path):
    """Words are what stands between spaces, so the limit of two words leaves two runs of characters."""
    case = golden("bert_cn.json")["examples"]["caption"]
    codec = Codec.build("bert", str(shared("bpe/bert_cn")))
    row = ["7", synthetic_image(8, 8), case["row_caption"]]
    example = only(builder(tmp_path, codec, row, max_tgt_length=case["max_tgt_length"]))
    assert example.source.tolist() == case["source"]
    assert example.target.tolist() == case["target"]
    assert codec.decode(example.target) == case["target_text"]


def test_chinese_references_are_kept_as_written_and_asked_for_in_chinese(tmp_path):
    codec = Codec.build("bert", str(write_wordpiece(tmp_path / "bpe")), 10, 8)
    row = ["7", synthetic_image(8, 8), "一面红色的墙, .&&雪，"]
    example = only(builder(tmp_path, codec, row, training=False))
    assert codec.decode(example.source) == "图 片 描 述 了 什 么 内 容?"
    assert example.reference == ["一面红色的墙", "雪，"]
    assert codec.decode(example.target) == "一 面 红 色 的 墙"


def test_evaluation_rows_learn_the_first_reference_and_keep_all(world, tmp_path):
    codec = Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)
    example = only(builder(tmp_path, codec, ["7", synthetic_image(8, 8), "a red circle.&&a  square!"], training=False))
    assert example.reference == ["a red circle", "a square"]
    assert codec.decode(example.target).strip() == "a red circle"
    assert codec.decode(example.reference_tokens).strip() == "a red circle&&a square"


def test_an_evaluated_row_without_caption_has_no_reference_and_no_target(world, tmp_path):
    codec = Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)
    example = only(builder(tmp_path, codec, ["7", synthetic_image(8, 8), ""], training=False))
    assert example.reference is None and example.target.tolist() == [codec.pad]


@pytest.mark.parametrize("kind", [CaptionBuilder, RewardedCaptionBuilder])
def test_a_training_row_without_caption_is_a_bad_row(world, tmp_path, kind):
    codec = Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)
    with pytest.raises(BadRow, match=r"rows.tsv:1: caption: "):
        only(builder(tmp_path, codec, ["7", synthetic_image(8, 8), ""], kind=kind))


def test_rewarded_rows_are_one_for_each_picture_with_all_references(world, tmp_path):
    codec = Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)
    row = ["7", synthetic_image(8, 8), "a red circle.&&a  square!"]
    example = only(builder(tmp_path, codec, row, kind=RewardedCaptionBuilder))
    assert example.reference == ["a red circle", "a square"]
    assert RewardedCaptionBuilder.selected == {"train": "1,4,2", "other": "1,4,2"}
