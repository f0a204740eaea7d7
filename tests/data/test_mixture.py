"""What is in the batches of several files: their proportion, their order from epoch to epoch, any number of workers."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ofa_plugin.data.builder import Builder
from ofa_plugin.data.codec import Codec
from ofa_plugin.data.dataset import OFADataset, raise_bad_rows
from ofa_plugin.data.mixture import ByKind, Mixture, Part
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.errors import BadRow, UserError

OFFICIAL = {"vision_language": 8, "text": 2, "image": 1, "detection": 1}
ROWS = {"vision_language": 53, "text": 7, "image": 5, "detection": 11}


class Drawing(Builder):
    """Its target is drawn; a row that says "bad" is one."""

    columns = ("text",)

    def examples(self, index, row, draw):
        if row.text == "bad":
            raise self.bad(index, "text", "it says so", "say something else")
        drawn = torch.tensor([*draw.integers(4, 20, size=6), self.codec.eos])
        yield self.example(index, row.text, source=self.source(f" {row.text}"), target=drawn)


@pytest.fixture
def dataset(world, tmp_path):
    codec = Codec.build("sentencepiece", str(world.root / "bpe"), 10, 8)

    def make(name, lines, shuffle=True, **options):
        texts = [f"{name} {number}" for number in range(lines)] if isinstance(lines, int) else lines
        (tmp_path / f"{name}.tsv").write_text("".join(f"{text}\n" for text in texts))
        builder = Drawing(TSVStore(str(tmp_path / f"{name}.tsv"), Drawing.columns), codec, None, shuffle)
        return OFADataset(builder, "train", seed=5, shuffle=shuffle, image_tokens=0, text_tokens=20, **options)

    return make


@pytest.fixture
def mixture(dataset):
    def make(rows=ROWS, proportion=OFFICIAL, leading=None, **options):
        """`leading`: the rows of the leading file in each epoch, where they differ from `rows`."""
        parts = {name: Part(dataset(name, rows[name], **options), proportion[name]) for name in rows}
        lengths = leading or [len(next(iter(parts.values())).dataset)]
        return Mixture(parts, lambda epoch: lengths[(epoch - 1) % len(lengths)])

    return make


def batches_of(mixed, epoch, limit=8, shards=1):
    mixed.num_shards = shards
    mixed.set_epoch(epoch)
    return mixed.batch_by_size(mixed.ordered_indices(), max_sentences=limit)


def read(mixed, indices):
    """(part, number of its row) of each index, as the rows' own words tell it."""
    items = [mixed[index] for index in indices]
    assert all(name == item.examples[0].uniq_id.split()[0] for name, item in items)
    return [(name, int(item.examples[0].uniq_id.split()[1])) for name, item in items]


def in_order(mixed, epochs, limit=8, shards=1):
    """Part to the numbers of its rows, in the order in which the batches of these epochs name them."""
    found = {name: [] for name in mixed.names}
    for epoch in epochs:
        for batch in batches_of(mixed, epoch, limit, shards):
            for name, number in read(mixed, batch):
                found[name].append(number)
    return found


@pytest.mark.parametrize(
    ("proportion", "limit", "expected"),
    [
        (OFFICIAL, 8, (8, 2, 1, 1)),
        (OFFICIAL, 24, (24, 6, 3, 3)),
        ({"vision_language": 1, "text": 3, "image": 2, "detection": 1}, 2, (2, 6, 4, 2)),
        ({"vision_language": 4, "text": 6, "image": 2, "detection": 2}, 2, (2, 3, 1, 1)),
    ],
)
def test_a_full_batch_holds_every_part_in_proportion(mixture, proportion, limit, expected):
    mixed = mixture(proportion=proportion)
    *full, last = batches_of(mixed, 1, limit)
    for batch in full:
        counts = Counter(name for name, _ in read(mixed, batch))
        assert tuple(counts[name] for name in mixed.names) == expected
    assert set(Counter(name for name, _ in read(mixed, last))) == set(mixed.names)


@pytest.mark.parametrize("absent", ["vision_language", "text", "image", "detection"])
def test_a_part_may_be_absent(mixture, absent):
    mixed = mixture({name: rows for name, rows in ROWS.items() if name != absent})
    limit = 2 if absent == "vision_language" else 8  # then the texts lead, and are counted
    counts = Counter(name for name, _ in read(mixed, batches_of(mixed, 1, limit)[0]))
    left = {name: number for name, number in OFFICIAL.items() if name != absent}
    assert counts == left


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 16, 53])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_an_epoch_is_each_leading_row_once_and_no_batch_is_without_a_part(mixture, rows, shards):
    mixed = mixture({**ROWS, "vision_language": rows})
    for epoch in (1, 2):
        batches = batches_of(mixed, epoch, shards=shards)
        assert len(batches) % shards == 0 or rows < shards  # a batch of one row cannot be halved
        found = [read(mixed, batch) for batch in batches]
        leading = [number for batch in found for name, number in batch if name == "vision_language"]
        assert sorted(leading) == list(range(rows))
        assert all({name for name, _ in batch} == set(ROWS) for batch in found)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_every_other_part_is_read_through_again_and_again_reshuffled_each_time(mixture, shards):
    mixed = mixture()
    found = in_order(mixed, range(1, 6), shards=shards)
    for name in ("text", "image", "detection"):
        size = ROWS[name]
        passes = [found[name][start : start + size] for start in range(0, len(found[name]) - size + 1, size)]
        assert len(passes) >= 3  # over epoch boundaries, and within an epoch: 7 batches take 14 of the 7 texts
        assert all(sorted(one) == list(range(size)) for one in passes)
        assert all(one != following for one, following in pairwise(passes))


def test_files_of_the_same_length_are_not_read_in_the_same_order(mixture):
    mixed = mixture(dict.fromkeys(ROWS, 40))
    found = in_order(mixed, range(1, 11))
    assert len({tuple(found[name][:40]) for name in mixed.names}) == 4


def test_a_row_is_drawn_anew_each_time_through(mixture):
    mixed = mixture()
    drawn = {}
    for epoch in (1, 2, 3):
        for index in np.concatenate(batches_of(mixed, epoch)):
            [example] = mixed[index][1].examples
            drawn.setdefault(example.uniq_id, []).append(tuple(example.target.tolist()))
    assert all(len(set(targets)) == len(targets) for targets in drawn.values())
    assert min(len(targets) for name, targets in drawn.items() if name.startswith("text")) >= 3


def test_where_a_part_stands_follows_from_the_epoch_alone(mixture):
    """So a resumed run, which starts in the middle, composes the batches of one that went through."""
    through, resumed = mixture(), mixture()
    for epoch in (1, 2, 3):
        wanted = batches_of(through, epoch)
    for one, other in zip(wanted, batches_of(resumed, 3), strict=True):
        assert np.array_equal(one, other)
        for (_, first), (_, second) in zip(map(through.__getitem__, one), map(resumed.__getitem__, other), strict=True):
            assert torch.equal(first.examples[0].target, second.examples[0].target)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_files_of_different_length_in_turn_leave_no_gap(mixture, dataset, shards):
    """As `a.tsv,b.tsv` does: of 53 rows, then of 20, each opened for its own epoch."""
    found = {name: [] for name in ROWS}
    for epoch, rows in enumerate([53, 20] * 3, 1):
        mixed = mixture({**ROWS, "vision_language": rows}, leading=[53, 20])
        for name, numbers in in_order(mixed, [epoch], shards=shards).items():
            found[name] += numbers
    for name in ("text", "image", "detection"):
        size = ROWS[name]
        passes = [found[name][start : start + size] for start in range(0, len(found[name]) - size + 1, size)]
        assert len(passes) >= 2 and all(sorted(one) == list(range(size)) for one in passes)


@pytest.mark.parametrize(
    ("proportion", "limit", "words"),
    [
        (OFFICIAL, 4, "--batch-size 4 cannot hold vision_language, text, image, detection as 8:2:1:1; .* is 8"),
        (OFFICIAL, 17, "--batch-size 17 .* is 24"),
        ({**OFFICIAL, "vision_language": 12, "text": 6, "image": 3, "detection": 3}, 5, "as 12:6:3:3; .* is 8"),
    ],
)
def test_a_batch_that_cannot_hold_every_part_is_refused_with_the_next_size_that_can(mixture, proportion, limit, words):
    mixed = mixture(proportion=proportion)
    with pytest.raises(UserError, match=words) as refused:
        batches_of(mixed, 1, limit)
    batches_of(mixed, 1, int(str(refused.value).split()[-1]))


@pytest.mark.parametrize("limits", [{"max_tokens": 100}, {"max_tokens": 100, "max_sentences": 8}, {}])
def test_a_size_in_tokens_is_refused(mixture, limits):
    mixed = mixture()
    with pytest.raises(UserError, match=r"--batch-size is needed, and no --max-tokens: it counts .* vision_language"):
        mixed.batch_by_size(mixed.ordered_indices(), **limits)


@pytest.mark.parametrize(("workers", "context"), [(2, "fork"), (2, "spawn")])
def test_any_number_of_workers_gives_the_same_batches(mixture, workers, context):
    mixed = mixture()
    batches = batches_of(mixed, 2)[:4]

    def targets(workers=0, context=None):
        loader = DataLoader(
            mixed,
            batch_sampler=batches,
            collate_fn=mixed.collater,
            num_workers=workers,
            multiprocessing_context=context,
        )
        return [(name, part["target"]) for batch in loader for name, part in batch["parts"].items()]

    alone, shared = targets(), targets(workers, context)
    assert len(alone) == len(shared) == 16
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(alone, shared, strict=True))


def test_a_spawned_worker_is_sent_the_files_and_not_what_made_them(dataset):
    parts = {name: Part(dataset(name, rows), OFFICIAL[name]) for name, rows in ROWS.items()}
    heavy = [np.zeros(10_000_000), lambda: "no such thing can be pickled"]
    mixed = Mixture(parts, lambda epoch: len(heavy))
    assert len(pickle.dumps(mixed)) < 1_000_000
    assert pickle.loads(pickle.dumps(mixed))[-3][0] == "detection"


def test_a_batch_is_its_parts_and_their_shares(dataset):
    parts = {"vision_language": Part(dataset("vision_language", 9), 2), "text": Part(dataset("text", 3), 1, 0.25)}
    mixed = Mixture(parts, lambda epoch: 9)
    batch = mixed.collater([mixed[index] for index in batches_of(mixed, 1, 4)[0]])
    assert batch["shares"] == {"vision_language": 1.0, "text": 0.25}
    assert [(name, len(part["target"])) for name, part in batch["parts"].items()] == [
        ("vision_language", 4),
        ("text", 2),
    ]
    assert mixed.collater([]) == {}


def test_a_bad_row_of_any_part_is_replaced_by_the_next_good_one_and_told(mixture):
    rows = {**ROWS, "image": ["bad", "bad", *(f"image {number}" for number in range(2, 7))]}
    mixed = mixture(rows, on_bad="replace")
    seen, told = [], []
    for batch in batches_of(mixed, 1):
        collated = mixed.collater([mixed[index] for index in batch])
        raise_bad_rows(collated)
        part = collated["parts"]["image"]
        assert len(part["target"]) == 1
        seen += part["uniq_ids"]
        told += [bad.line for bad in part["bad_rows"]]
    assert seen.count("image 2") == 3 and sorted(told) == [1, 2]


def test_a_bad_row_without_a_stand_in_is_all_that_is_left_of_a_batch(mixture):
    mixed = mixture({**ROWS, "image": ["bad"] * 3}, on_bad="replace")
    batch = mixed.collater([mixed[index] for index in batches_of(mixed, 1)[0]])
    with pytest.raises(BadRow, match=r"image.tsv:\d: text: it says so: say something else"):
        raise_bad_rows(batch)


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_kind(dataset):
    """7 rows of one file give captions or answers, 3 of another texts."""
    captions = dataset("captions", 7, shuffle=False, rows=np.array([0, 2, 5]), kinds=("caption", "vqa", "text"))
    answers = dataset("captions", 7, shuffle=False, rows=np.array([1, 2, 3, 4, 6]), kinds=("caption", "vqa", "text"))
    texts = dataset("texts", 3, shuffle=False, kinds=("caption", "vqa", "text"))
    return ByKind({"caption": captions, "vqa": answers, "text": texts})


@pytest.mark.parametrize("limits", [{"max_sentences": 2}, {"max_tokens": 12}, {"max_sentences": 100}])
def test_every_row_is_once_in_a_batch_of_its_kind(by_kind, limits):
    batches = by_kind.batch_by_size(by_kind.ordered_indices(), **limits)
    assert np.concatenate(batches).tolist() == list(range(11)) and len(by_kind) == 11
    found = {"caption": [], "vqa": [], "text": []}
    for batch in batches:
        collated = by_kind.collater([by_kind[index] for index in batch])
        kind = collated["kind"]
        assert collated["id"].tolist() == batch.tolist()
        assert collated["kinds"].tolist() == [("caption", "vqa", "text").index(kind)] * len(batch)
        found[kind] += collated["uniq_ids"]
    assert found == {
        "caption": ["captions 0", "captions 2", "captions 5"],
        "vqa": [f"captions {number}" for number in (1, 2, 3, 4, 6)],
        "text": ["texts 0", "texts 1", "texts 2"],
    }
    assert by_kind.collater([]) == {}


def test_some_of_the_rows_are_batched_as_they_are_asked_for(by_kind):
    """Lengths are those of the row's own file, wherever its rows begin."""
    batches = by_kind.batch_by_size(np.array([1, 2, 9]), max_sentences=8)
    assert [batch.tolist() for batch in batches] == [[1, 2], [9]]
    assert by_kind.num_tokens(9) == by_kind.datasets["text"].num_tokens(1) == by_kind.size(9)


def test_any_number_of_workers_evaluates_the_same(by_kind):
    batches = by_kind.batch_by_size(by_kind.ordered_indices(), max_sentences=2)

    def targets(workers):
        loader = DataLoader(
            by_kind,
            batch_sampler=batches,
            collate_fn=by_kind.collater,
            num_workers=workers,
        )
        return [(batch["kind"], batch["target"]) for batch in loader]

    alone, shared = targets(0), targets(2)
    assert len(alone) == len(shared) == 7
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(alone, shared, strict=True))
