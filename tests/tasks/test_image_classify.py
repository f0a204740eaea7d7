"""Rows of image classification against the official dataset's, what training draws for them, what a class may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ofa_plugin.data.dataset import OFADataset
from ofa_plugin.data.example import collate
from ofa_plugin.data.image import PictureLoader
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow
from ofa_plugin.models.generation.trie import Trie
from ofa_plugin.tasks.answering import AnswerSet
from ofa_plugin.tasks.image_classify import ImageClassifyBuilder
from tests.helpers.cases import CASES, EXPECTED
from tests.helpers.golden import golden, settings, synthetic_image

[CASE] = golden("dataset_image_classify.json")["cases"]
CLASSES = ("rugby ball", "rug", "tench")


def builder(path, codec, columns=None, training=True, classes=CLASSES):
    cfg = settings(prompt_type="none", patch_image_size=32, imagenet_default_mean_and_std=True)
    trie = Trie.from_answers([codec.encode(f" {name}").tolist() for name in classes], bos=codec.bos, eos=codec.eos)
    answer_set = AnswerSet(frozenset(classes), trie, "classes.txt")
    store = TSVStore(str(path), ImageClassifyBuilder.columns, columns)
    return ImageClassifyBuilder(store, codec, cfg, training, PictureLoader(path.parent, 32), answer_set)


def only(tmp_path, codec, label, training=True):
    path = tmp_path / "rows.tsv"
    path.write_text(f"{synthetic_image(40, 30)}\t{label}\n", encoding="utf-8")
    made = builder(path, codec, training=training)
    [example] = made.examples(0, made.store[0], np.random.default_rng(0))
    return example


@pytest.mark.parity
def test_a_row_matches_the_official_dataset(shared, released, tmp_path):
    codec, expected = released(shared("bpe/gpt2")), CASE["example"]
    example = only(tmp_path, codec, CASE["row"][1], training=False)
    batch = collate([example], codec.bos, codec.pad, imagenet_mean=True)
    assert example.uniq_id == str(expected["id"]) and example.source.tolist() == expected["source"]
    assert batch["target"].tolist() == [expected["target"]]
    assert batch["net_input"]["prev_output_tokens"].tolist() == [expected["prev_output_tokens"]]
    assert batch["net_input"]["patch_masks"].tolist() == expected["patch_mask"]
    assert example.reference == expected["ref_dict"]
    allowed = batch["allowed_tokens"].split(batch["allowed_counts"][0].tolist())
    assert [sorted(ids.tolist()) for ids in allowed] == expected["constraint_mask_allowed"]
    [image] = batch["net_input"]["patch_images"]
    assert list(image.shape) == expected["patch_image"]["shape"]
    assert float(image.mean()) == pytest.approx(expected["patch_image"]["mean"], abs=1e-4)
    assert float(image.std()) == pytest.approx(expected["patch_image"]["std"], abs=1e-4)
    for place, value in expected["patch_image"]["points"]:
        assert float(image[tuple(place)]) == pytest.approx(value, abs=1e-4)


@pytest.mark.parity
def test_target_and_mask_are_the_same_in_training(shared, released, tmp_path):
    codec = released(shared("bpe/gpt2"))
    example, expected = only(tmp_path, codec, CASE["row"][1]), CASE["example"]
    assert example.source.tolist() == expected["source"] and example.target.tolist() == expected["target"]
    assert [sorted(ids) for ids in example.allowed] == expected["constraint_mask_allowed"]
    assert example.image.shape == (3, 32, 32) and example.confidence == 1.0


def dataset(codec, training=True, seed=1):
    path = CASES / "fc44" / "image_classify.tsv"
    label = path.read_text(encoding="utf-8").splitlines()[0].split("\t")[2]
    made = builder(path, codec, [0, 2], training, classes=(label,))
    return OFADataset(made, "train", seed, shuffle=training, image_tokens=4, text_tokens=30, imagenet_mean=True)


def pictures(data, workers=0):
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=workers, collate_fn=data.collater)
    return torch.cat([batch["net_input"]["patch_images"] for batch in loader])


def test_fc44_equal_rows_are_augmented_differently_and_a_seed_the_same(codec):
    """With any number of workers; what is erased is part of it."""
    data = dataset(codec)
    first = pictures(data)
    assert EXPECTED["fc44"]["8_equal_rows_one_epoch"].startswith("8 different augmented tensors")
    assert len(first) == 8 and len({tuple(one.flatten().tolist()) for one in first}) == 8
    for workers in (1, 2):
        assert pictures(data, workers).equal(first)
    assert not pictures(dataset(codec, seed=2)).equal(first)
    data.set_epoch(2)
    second = pictures(data)
    assert not any(one.equal(other) for one in first for other in second)
    plain = pictures(dataset(codec, training=False))
    assert all(one.equal(plain[0]) for one in plain)


def test_what_is_erased_is_noise_in_the_normalised_picture(codec):
    data = dataset(codec)
    data.set_epoch(next(epoch for epoch in range(1, 50) if data.item(0, epoch).examples[0].erased is not None))
    [example] = data[0].examples
    top, left, noise = example.erased
    height, width = noise.shape[1:]
    [image] = data.collater([data[0]])["net_input"]["patch_images"]
    assert image[:, top : top + height, left : left + width].equal(noise)
    example.erased = None
    [whole] = collate([example], codec.bos, codec.pad, imagenet_mean=True)["net_input"]["patch_images"]
    different = (image != whole).any(0).nonzero()
    assert different.amin(0).tolist() == [top, left]
    assert different.amax(0).tolist() == [top + height - 1, left + width - 1]


def test_a_row_without_class_cannot_be_learned_and_is_not_scored(codec, tmp_path):
    with pytest.raises(BadRow) as caught:
        only(tmp_path, codec, " ")
    remedy = "write the name of a class, or leave the row out"
    assert str(caught.value) == f"{tmp_path}/rows.tsv:1: label: it is empty: {remedy}"
    example = only(tmp_path, codec, "", training=False)
    assert example.reference is None and example.target.tolist() == [codec.pad] and example.erased is None


def test_a_class_that_the_set_lacks_is_named_with_its_line(codec, tmp_path):
    with pytest.raises(BadRow) as caught:
        only(tmp_path, codec, "281")
    assert str(caught.value).startswith(f"{tmp_path}/rows.tsv:1: label: no answer of this row is in classes.txt (281)")
    example = only(tmp_path, codec, "281", training=False)  # answered, and scored as wrong
    assert example.reference == {"281": 1.0} and example.allowed is None


def test_a_bad_row_that_is_reported_has_its_number_as_id(codec, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"{cell}\ttench\n" for cell in (synthetic_image(8, 8), "no picture")), encoding="utf-8")
    made = builder(path, codec, training=False)
    with pytest.raises(BadRow, match="rows.tsv:2: image: ") as caught:
        list(made.examples(1, made.store[1], np.random.default_rng(0)))
    assert made.placeholder(1, caught.value).uniq_id == "1"
