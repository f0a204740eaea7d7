"""CIDEr-D."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from ofa_plugin.tasks.metrics import CIDErD, document_frequencies

FIXTURE = json.loads((Path(__file__).parents[2] / "fixtures" / "text" / "cider_d.json").read_text())
REFERENCES = FIXTURE["references"]
REPORTED = json.loads((Path(__file__).parents[2] / "fixtures" / "text" / "metrics.json").read_text())["cases"]


def metric(mode: str) -> CIDErD:
    if mode == "corpus":
        cider = CIDErD()
        cider.prepare(REFERENCES.values())
        return cider
    table, scaled = FIXTURE["cached_df"], FIXTURE["cached_df_scaled"]
    factor, images = (scaled["df_multiplier"], scaled["ref_len"]) if mode == "cached_scaled" else (1, table["ref_len"])
    return CIDErD({tuple(ngram): count * factor for ngram, count in table["document_frequency"]}, images)


@pytest.mark.parity
@pytest.mark.parametrize("case", FIXTURE["cases"], ids=lambda case: f"{case['name']}-{case['df_mode']}")
def test_scores_as_official(case):
    cider = metric(case["df_mode"])
    scores = [cider.score(case["hyps"][image], REFERENCES[image]) for image in REFERENCES]
    assert scores == pytest.approx(case["result"]["scores"], abs=1e-9)
    assert sum(scores) / len(scores) == pytest.approx(case["result"]["mean"], abs=1e-9)
    assert cider.value(sum(scores), len(scores)) == round(case["result"]["mean"], 3)


@pytest.mark.parity
def test_document_frequencies_as_official():
    frequencies, images = document_frequencies(REFERENCES.values())
    expected = {tuple(ngram): count for ngram, count in FIXTURE["cached_df"]["document_frequency"]}
    assert dict(frequencies) == expected
    assert images == FIXTURE["cached_df"]["ref_len"]


@pytest.mark.parity
def test_value_rounds_as_official():
    (case,) = (case for case in REPORTED if case["name"] == "caption_cider")
    total, count = (sum(log[key] for log in case["logs"]) for key in ("_cider_score_sum", "_cider_cnt"))
    assert CIDErD().value(total, count) == case["metrics"]["cider"]


def test_human_captions_of_coco_score_as_published(shared):
    """Each image's first caption against its others, document frequencies from those; coco-caption gives 0.8865."""
    lines = shared("data/coco/captions_val2017.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line)["captions"] for line in lines if line]
    cider = CIDErD()
    cider.prepare(captions[1:] for captions in rows)
    mean = sum(cider.score(captions[0], captions[1:]) for captions in rows) / len(rows)
    assert mean == pytest.approx(0.8865, rel=0.005)


def test_one_image_is_zero_and_says_why(caplog):
    caption = "the cat in the hat came to town"
    cider = CIDErD()
    with caplog.at_level(logging.WARNING):
        cider.prepare([[caption]])
    assert cider.score(caption, [caption]) == 0
    assert [record.getMessage() for record in caplog.records] == [
        "one image: every document frequency is 1, CIDEr is 0 by definition; give more images"
    ]


def test_a_perfect_caption_scores_ten():
    cider = CIDErD()
    cider.prepare([["a red bus on the street"], ["two men play tennis"]])
    assert cider.score("Two men play tennis.", ["two men play tennis"]) == pytest.approx(10)


def test_scoring_needs_frequencies_and_references():
    with pytest.raises(ValueError, match="prepare"):
        CIDErD().score("a dog", ["a dog"])
    with pytest.raises(ValueError, match="at least one reference"):
        metric("corpus").score("a dog", [])
