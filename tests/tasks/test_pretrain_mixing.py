"""The mixture that `--task unify_task` makes of its files."""

from __future__ import annotations

import pickle

import pytest
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from ofa_plugin import compat, optim
from ofa_plugin.errors import UserError


@pytest.fixture
def task(shapes, monkeypatch):
    """Sets the task up as fairseq-train does, for DATA and flags; what it leaves in the process is taken back."""
    monkeypatch.setattr(compat, "checkpoint_checks", dict(compat.checkpoint_checks))
    monkeypatch.setattr(optim, "_epoch_length", None)

    def make(*flags: object, data: object = None):
        words = (*shapes.flags(data), "--batch-size", 8, "--optimizer", "adam", *flags)
        args = options.parse_args_and_arch(options.get_training_parser(), list(map(str, words)))
        return tasks.setup_task(convert_namespace_to_omegaconf(args).task)

    return make


def read(task, epochs, limit=8, **options) -> dict[str, list[str]]:
    """Part to the ids of its rows as stock's iterator would have them read, epoch after epoch."""
    ids: dict[str, list[str]] = {}
    for epoch in epochs:
        task.load_dataset("train", epoch=epoch)
        mixed = task.datasets["train"]
        mixed.set_epoch(epoch)
        for batch in mixed.batch_by_size(mixed.ordered_indices(), max_sentences=limit):
            for name, item in map(mixed.__getitem__, batch):
                ids.setdefault(name, []).append(item.examples[0].uniq_id)
    return ids


def assert_no_gap(ids: list[str], size: int) -> None:
    passes = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    assert len(passes) >= 2 and all(sorted(map(int, one)) == list(range(size)) for one in passes)


@pytest.mark.parametrize("kinds", [None, "text_infilling,image_infilling,detection", "vqa,image_infilling"])
def test_files_in_turn_leave_no_gap_whichever_part_leads(shapes, task, tmp_path, kinds):
    """Of 30 rows, 14 of them questions, and of 18 with 2; texts lead where none of these rows is wanted."""
    rows = (shapes.root / "train" / "vision_language_examples.tsv").read_text().splitlines(keepends=True)
    rows.sort(key=lambda row: row.split("\t")[-1])
    for name, part in {"a": rows[:30], "b": rows[30:]}.items():
        (tmp_path / f"{name}.tsv").write_text("".join(part))
    files = [f"--{name}-data={shapes.root}/train/{name}_examples.tsv" for name in ("text", "image", "detection")]
    flags = (*files, "--neg-sample-dir", shapes.root / "negative_sample", *(("--kinds", kinds) if kinds else ()))
    made = task(*flags, data=f"{tmp_path}/a.tsv,{tmp_path}/b.tsv")
    assert made.has_sharded_data("train")
    ids = read(made, range(1, 13), 2 if kinds and kinds.startswith("text") else 8)
    for name, size in {"text": 12, "image": 8, "detection": 8}.items():
        if name in ids:
            assert_no_gap(ids[name], size)


def test_every_row_type_gives_the_kinds_that_are_wanted(shapes, task):
    made = task("--kinds", "vqa,region_caption")
    ids = read(made, [1])
    types = [
        row.split("\t") for row in (shapes.root / "train" / "vision_language_examples.tsv").read_text().splitlines()
    ]
    assert set(ids) == {"vision_language"}
    assert sorted(ids["vision_language"], key=int) == [row[0] for row in types if row[-1] != "caption"]


def test_a_worker_can_be_spawned_whatever_the_task_holds_by_then(task):
    made = task()
    made.load_dataset("train")
    iterator = made.get_batch_iterator(made.datasets["train"], max_sentences=8)
    next(iterator.next_epoch_itr())
    sent = pickle.dumps(made.datasets["train"])
    assert pickle.loads(sent)[-1][0] in ("text", "image", "detection")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--mixture", "8:2:1"), "--mixture 8:2:1: four whole numbers"),
        (("--mixture", "8:0:1:1"), "--mixture 8:0:1:1: four whole numbers"),
        (("--kind-weights", "vqa"), "--kind-weights vqa: write KIND=NUMBER"),
        (("--max-image-size", "63"), "--max-image-size 63: the bins must span every picture, and 64 pixels"),
    ],
)
def test_flags_that_cannot_be_are_refused(task, flags, words):
    with pytest.raises(UserError, match=words):
        task(*flags)


def test_weights_multiply_confidences(task):
    plain, weighted = task(), task("--kind-weights", "vqa=4,detection=0.5")
    confidence = []
    for made in (plain, weighted):
        made.load_dataset("train")
        mixed = made.datasets["train"]
        [batch] = mixed.batch_by_size(mixed.ordered_indices(), max_sentences=48)
        parts = mixed.collater([mixed[index] for index in batch])["parts"]
        names = parts["text"]["kind_names"]
        confidence.append(
            {
                names[kind]: float(weight)
                for part in parts.values()
                for kind, weight in zip(part["kinds"].tolist(), part["conf"], strict=True)
            }
        )
    assert confidence[0] == {
        **dict.fromkeys(confidence[0], 1.0),
        **{kind: 2.0 for kind in confidence[0] if "infilling" in kind},
        "detection": 2.0,
    }
    assert confidence[1] == {**confidence[0], "vqa": 4.0, "detection": 1.0}
