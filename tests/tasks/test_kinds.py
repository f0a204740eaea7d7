"""What the kinds whose answers are text say, ask for and write."""

from __future__ import annotations

import pytest
import torch

from ofa_plugin.data.codec import Codec
from ofa_plugin.tasks.metrics.infilling import Gapped
from ofa_plugin.tasks.pretrain import KINDS, SOURCES
from tests.helpers.pretraining import configuration


@pytest.fixture
def codec(world):
    return Codec.build("sentencepiece", str(world.root / "bpe"), 100, 8)


def hypothesis(ids):
    return {"tokens": torch.tensor(ids, dtype=torch.int64), "positional_scores": torch.zeros(len(ids))}


def test_every_kind_has_one_builder_and_a_metric_name_of_its_own():
    built = [kind for source in SOURCES.values() for kind in source.builder.kinds]
    assert sorted(built) == sorted(KINDS)
    names = [metric.name for kind in KINDS.values() for metric in kind.metrics]
    assert len(names) == len(set(names)) and all(names)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("caption", "a red circle"),
        ("vqa", "a red circle."),
        ("matching", "a red circle."),
        ("region_caption", "a red circle."),
    ],
)
def test_texts_are_answered_without_spaces_around_them(codec, kind, answer):
    """Captions without punctuation too, as their references are."""
    one = KINDS[kind]
    said = one.answer(codec, configuration(), hypothesis([*codec.encode(" a red circle. ").tolist(), 2]), (1.0, 1.0))
    assert said == answer and one.entry("u", said) == {"uniq_id": "u", "answer": answer}


@pytest.mark.parametrize("kind", list(KINDS))
def test_any_tokens_are_an_answer_that_can_be_scored_and_written(codec, kind):
    """An untrained model says anything; --max-len-b 0 says nothing."""
    one, cfg = KINDS[kind], configuration()
    reference = {
        "caption": ["a dog"],
        "vqa": {"red": 1.0},
        "matching": {"yes": 1.0},
        "grounding": (0.0, 0.0, 4.0, 4.0),
        "region_caption": "a dog",
        "text_infilling": Gapped((9, 8), (True, False)),
        "image_infilling": [0, 1, 2, 7],
        "detection": [],
    }[kind]
    draw = torch.Generator().manual_seed(0)
    metrics = [metric() for metric in one.metrics]
    for metric in metrics:
        metric.prepare([reference])
    for length in (0, 1, 2, 5, 8, 40):
        ids = torch.randint(3, len(codec.dictionary), (length,), generator=draw).tolist()
        for tokens in (ids, [*ids, codec.eos]):
            answer = one.answer(codec, cfg, hypothesis(tokens), (0.5, 2.0))
            entry = one.entry("u", answer)
            assert next(iter(entry.items())) == ("uniq_id", "u") and len(entry) == 2
            for metric in metrics:
                assert len(metric.sums(answer, reference)) == metric.width
