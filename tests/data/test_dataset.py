"""Batching, order and randomness of OFADataset, with a builder that draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ofa_plugin.data.builder import Builder
from ofa_plugin.data.codec import Codec
from ofa_plugin.data.dataset import OFADataset, raise_bad_rows
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow


class Drawing(Builder):
    """Its target is drawn; a row that says "bad" is one."""

    columns = ("text",)

    def examples(self, index, row, draw):
        if row.text == "bad":
            raise self.bad(index, "text", "it says so", "say something else")
        drawn = torch.tensor([*draw.integers(4, 20, size=6), self.codec.eos])
        yield self.example(index, str(index), source=self.source(f" {row.text}"), target=drawn)


@pytest.fixture
def make(world, tmp_path):
    codec = Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)

    def dataset(rows, shuffle=True):
        (tmp_path / "rows.tsv").write_text("".join(f"{row}\n" for row in rows))
        builder = Drawing(TSVStore(str(tmp_path / "rows.tsv"), Drawing.columns), codec, None, True)
        return OFADataset(builder, "train", seed=5, shuffle=shuffle, image_tokens=16, text_tokens=20)

    return dataset


def targets(dataset, workers=0, context=None):
    loader = DataLoader(
        dataset, batch_size=4, collate_fn=dataset.collater, num_workers=workers, multiprocessing_context=context
    )
    return torch.cat([batch["target"] for batch in loader])


def test_equal_rows_differ_within_an_epoch_and_between_epochs_and_repeat_with_the_seed(make):
    dataset = make(["same"] * 8)
    first = targets(dataset)
    assert len({tuple(row) for row in first.tolist()}) == 8
    dataset.set_epoch(2)
    second = targets(dataset)
    assert not torch.equal(first, second)
    dataset.set_epoch(1)
    assert torch.equal(targets(dataset), first)


@pytest.mark.parametrize(("workers", "context"), [(2, "fork"), (4, "fork"), (2, "spawn")])
def test_any_number_of_workers_gives_the_same_batches(make, workers, context):
    dataset = make(["same"] * 8)
    dataset.set_epoch(3)
    assert torch.equal(targets(dataset, workers, context), targets(dataset))


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_is_in_exactly_one_batch(make, rows, shuffle):
    dataset = make([f"row {number}" for number in range(rows)], shuffle)
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_sentences=8, required_batch_size_multiple=8)
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert max(map(len, batches)) <= 8


def test_max_tokens_bounds_the_padded_batch(make):
    dataset = make(["x" * (3 * number % 60) for number in range(50)])
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=200)
    assert sorted(np.concatenate(batches).tolist()) == list(range(50))
    for batch in batches:
        assert len(batch) * max(map(dataset.num_tokens, batch)) <= 200


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_get_equally_many_batches(make, ranks):
    dataset = make([f"row {number}" for number in range(50)])
    dataset.num_shards = ranks
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_sentences=8)
    assert len(batches) % ranks == 0 and sorted(np.concatenate(batches).tolist()) == list(range(50))


def test_order_depends_on_the_epoch_and_nothing_else(make):
    dataset = make([f"row {number}" for number in range(50)])
    first = dataset.ordered_indices()
    np.random.seed(123)
    assert np.array_equal(dataset.ordered_indices(), first)
    dataset.set_epoch(2)
    assert not np.array_equal(dataset.ordered_indices(), first)


def test_a_bad_row_travels_as_a_value_and_is_raised_by_name(make):
    dataset = make(["good", "bad", "bad", "good"])
    batch = dataset.collater([dataset[index] for index in range(4)])
    with pytest.raises(BadRow, match=r"rows.tsv:2: text: it says so: say something else \(1 more bad rows"):
        raise_bad_rows(batch)
