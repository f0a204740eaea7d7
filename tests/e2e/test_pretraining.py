"""The eight pretraining tasks through the stock entry points: what is logged, validated, generated, left out."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

from tests.helpers.cases import left_in
from tests.helpers.stock import USER_DIR, Finished, error_of, ok, run

METRICS = {
    "caption": "cider",
    "vqa": "vqa_score",
    "matching": "matching_acc",
    "grounding": "grounding_acc",
    "region_caption": "region_caption_exact",
    "text_infilling": "infilled_acc",
    "image_infilling": "code_acc",
    "detection": "detection_ap50",
}
VALID_ROWS = 4 + 4 + 8 + 4 + 4 + 3 * 8  # captions, questions, statements on both, regions both ways; three files of 8


def logged(output: str, kind: str) -> list[dict[str, float]]:
    """The records that a run logged under `train_inner`, `train` or `valid`."""
    return [
        {key: value if value is None else float(value) for key, value in json.loads(found).items()}
        for found in re.findall(rf"\| {kind} \| (\{{.*\}})$", output, re.M)
    ]


def evaluated(entry: str, data: Path, checkpoint: Path, log: Path, *flags: object) -> Finished:
    """Runs `fairseq-validate` or `fairseq-generate` with everything but DATA from the checkpoint."""
    return run(
        *(entry, data, "--user-dir", USER_DIR, "--task", "unify_task", "--cpu", "--path", checkpoint),
        *("--batch-size", 5, "--num-workers", 0, "--log-format", "json", *flags),
        log=log,
    )


def generated(data: Path, checkpoint: Path, out: Path, *flags: object, subset: str = "valid") -> Finished:
    log = out.with_name(f"{out.name}.log")
    return evaluated("generate", data, checkpoint, log, "--gen-subset", subset, "--results-path", out, *flags)


def results(out: Path, subset: str = "valid") -> tuple[list[dict], dict[str, float]]:
    """The entries of the result file, and the scores."""
    return tuple(json.loads((out / f"{subset}_{name}.json").read_text()) for name in ("predict", "scores"))


# ---- what is logged --------------------------------------------------------------------------------------------------


def test_the_log_shows_loss_accuracy_share_and_pace_of_each_kind_and_the_time_left(pretrained):
    _, finished = pretrained
    updates, epochs = logged(finished.output, "train_inner"), logged(finished.output, "train")
    assert len(updates) == 12 and len(epochs) == 2
    for record in updates:
        assert sum(record[f"share_{kind}"] for kind in METRICS) == pytest.approx(1, abs=5e-3)
        for kind in METRICS:
            measured = [record.get(f"{what}_{kind}") for what in ("loss", "accuracy")]
            assert (None not in measured) if record[f"share_{kind}"] else measured == [None, None]
            assert f"per_second_{kind}" in record
        for kind in ("text_infilling", "image_infilling", "detection"):  # a file of its own: in every batch
            assert record[f"share_{kind}"] in (0.1, 0.05) and record[f"loss_{kind}"] > 0
        assert record["sample_size"] == 1 and record["bsz"] == 8 * 2 + 4
    for record in epochs:
        for kind, share in {"caption": 2, "vqa": 2, "matching": 4, "grounding": 2, "region_caption": 2}.items():
            assert record[f"train_share_{kind}"] == pytest.approx(share / 15, abs=5e-4)
            assert record[f"train_loss_{kind}"] > 0 and record[f"train_per_second_{kind}"] > 0
    left = [record["eta_min"] for record in updates if "eta_min" in record]
    assert len(left) >= 10 and left[-1] == 0 and all(0 <= minutes < 10 for minutes in left)


def test_the_loss_goes_down_in_every_kind(pretrained):
    first, second = logged(pretrained[1].output, "train")
    for kind in METRICS:
        assert second[f"train_loss_{kind}"] < first[f"train_loss_{kind}"], kind


def test_validation_answers_every_kind_and_any_of_their_metrics_chooses_the_best(pretrained):
    save, finished = pretrained
    for record in logged(finished.output, "valid"):
        for kind, metric in METRICS.items():
            assert 0 <= record[f"valid_{metric}"] <= 10 and math.isfinite(record[f"valid_loss_{kind}"])
        assert record["valid_matching_acc"] > 0  # two answers only
    assert "valid_best_vqa_score" in logged(finished.output, "valid")[-1]
    assert "checkpoint_best.pt (epoch 1 @ 6 updates, score " in finished.output
    assert {"checkpoint_best.pt", "checkpoint_last.pt"} == set(left_in(save))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is absent: pip install tensorboard"
)
def test_tensorboard_gets_a_curve_of_each_kind(pretrained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    save, finished = pretrained
    curves = {}
    for part in ("train_inner", "train", "valid"):
        events = EventAccumulator(str(save.parent / "curves" / part))
        events.Reload()
        curves[part] = {name: [one.value for one in events.Scalars(name)] for name in events.Tags()["scalars"]}
    updates = logged(finished.output, "train_inner")
    for kind, metric in METRICS.items():
        for name in ("loss", "accuracy", "share"):
            drawn = curves["train_inner"][f"{name}_{kind}"]
            shown = [record.get(f"{name}_{kind}") for record in updates]
            assert drawn == pytest.approx([value for value in shown if value is not None], abs=5e-3)
        assert len(curves["train"][f"loss_{kind}"]) == len(curves["valid"][metric]) == 2
    assert len(curves["train_inner"]["eta_min"]) >= 10


# ---- the same numbers everywhere -------------------------------------------------------------------------------------


def test_one_number_from_training_validate_and_generate(shapes, pretrained, tmp_path):
    save, finished = pretrained
    checkpoint = save / "checkpoint_last.pt"
    in_training = logged(finished.output, "valid")[-1]
    validated = ok(evaluated("validate", shapes.root, checkpoint, tmp_path / "log", "--valid-subset", "valid"))
    [record] = logged(validated.output, "valid")
    printed = ok(generated(shapes.root, checkpoint, tmp_path / "out")).output
    entries, scores = results(tmp_path / "out")
    assert scores["rows"] == scores["scored"] == len(entries) == VALID_ROWS
    for kind, metric in METRICS.items():
        assert record[f"valid_{metric}"] == in_training[f"valid_{metric}"] == scores[metric], metric
        assert record[f"valid_loss_{kind}"] == pytest.approx(in_training[f"valid_loss_{kind}"], abs=2e-3)
    assert sum(scores[metric] > 0 for metric in METRICS.values()) >= 2
    assert f"cider = {scores['cider']} on {VALID_ROWS} rows of valid (vqa_score = {scores['vqa_score']}, " in printed
    kinds = ("caption", "text_infilling")
    ok(generated(shapes.root, checkpoint, tmp_path / "again", "--batch-size", 3, "--kinds", ",".join(kinds)))
    assert results(tmp_path / "again")[0] == [entry for entry in entries if entry["kind"] in kinds]


def test_every_row_has_an_entry_of_its_kind(shapes, pretrained, tmp_path):
    ok(generated(shapes.root, pretrained[0] / "checkpoint_last.pt", tmp_path / "out", subset="test"))
    entries, _ = results(tmp_path / "out", "test")
    by_kind = {kind: [entry for entry in entries if entry["kind"] == kind] for kind in METRICS}
    ids = {
        source: [line.split("\t")[:: len(line.split("\t")) - 1] for line in lines(shapes.root, "test", source)]
        for source in ("vision_language", "text", "image", "detection")
    }

    def of_type(*types):
        return [int(number) for number, kind in ids["vision_language"] if kind in types]

    assert {kind: [entry["uniq_id"] for entry in found] for kind, found in by_kind.items()} == {
        "caption": of_type("caption"),
        "vqa": of_type("qa"),
        "matching": of_type("caption", "qa"),
        "grounding": of_type("visual_grounding"),
        "region_caption": of_type("visual_grounding"),
        **{f"{name}_infilling": [int(row[0]) for row in ids[name]] for name in ("text", "image")},
        "detection": [int(row[0]) for row in ids["detection"]],
    }
    assert {entry["answer"] for entry in by_kind["matching"]} <= {"yes", "no"}
    for entry in by_kind["grounding"]:
        assert all(0 <= corner <= 64 for corner in entry["box"])
    for entry in by_kind["image_infilling"]:
        assert len(entry["codes"]) == 16 and all(0 <= code < 256 for code in entry["codes"])
    assert all(isinstance(entry["tokens"], list) for entry in by_kind["text_infilling"])
    assert all(isinstance(entry["objects"], list) for entry in by_kind["detection"])


def lines(root: Path, subset: str, source: str) -> list[str]:
    return (root / subset / f"{source}_examples.tsv").read_text().splitlines()


def test_one_kind_alone_is_evaluated_as_among_the_others(shapes, pretrained, tmp_path):
    checkpoint = pretrained[0] / "checkpoint_last.pt"
    ok(generated(shapes.root, checkpoint, tmp_path / "out", "--kinds", "matching"))
    entries, scores = results(tmp_path / "out")
    assert set(scores) == {"rows", "scored", "matching_acc"} and len(entries) == 8
    assert scores["matching_acc"] == logged(pretrained[1].output, "valid")[-1]["valid_matching_acc"]
    ok(evaluated("validate", shapes.root, checkpoint, tmp_path / "log", "--valid-subset", "valid", "--kinds", "vqa"))
    message = error_of(generated(shapes.root, checkpoint, tmp_path / "none", "--kinds", "vqa,colour"))
    assert "--kinds vqa,colour: 'colour' is none of caption, vqa," in message
