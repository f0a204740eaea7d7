"""Caption metrics against COCO's own evaluation, where that is installed (`pip install pycocoevalcap`, 100 MB)."""

from __future__ import annotations

import json
import shutil

import pytest

from ofa_plugin.tasks.metrics import BLEU, BLEU1, BLEU2, BLEU3, ROUGEL, CIDErD, Tally, tokenize

pytestmark = pytest.mark.parity
METRICS = (CIDErD, BLEU1, BLEU2, BLEU3, BLEU, ROUGEL)
pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap is not installed")

People = list[list[str]]


@pytest.fixture
def people(shared) -> People:
    """The captions of each of COCO's 5,000 validation images; the first is scored against the others."""
    lines = shared("data/coco/captions_val2017.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["captions"] for line in lines if line]


def ours(people: People) -> dict[str, float]:
    tally = Tally([metric() for metric in METRICS])
    for metric in tally.metrics:
        metric.prepare([captions[1:] for captions in people])
    for captions in people:
        tally.add(captions[0], captions[1:])
    return tally.values()


def theirs(words: People) -> dict[str, float]:
    """The values for captions given as words with single spaces between."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {row: captions[1:] for row, captions in enumerate(words)}
    hypotheses = {row: captions[:1] for row, captions in enumerate(words)}
    bleu = Bleu(4).compute_score(references, hypotheses, verbose=0)[0]
    return {
        "cider": float(Cider().compute_score(references, hypotheses)[0]),
        **dict(zip(("bleu1", "bleu2", "bleu3", "bleu4"), bleu, strict=True)),
        "rouge_l": float(Rouge().compute_score(references, hypotheses)[0]),
    }


def test_the_same_words_have_the_same_scores(people):
    expected = theirs([[" ".join(tokenize(caption)) for caption in captions] for captions in people])
    digits = {metric.name: metric.digits for metric in METRICS}
    assert ours(people) == {name: round(value, digits[name]) for name, value in expected.items()}


def test_the_java_tokenizer_moves_the_scores_little(people):
    """Where the two differ: abbreviations at the end (`blvd.`), brackets that are not closed, no-break spaces."""
    if not shutil.which("java"):
        pytest.skip("the tokenizer of pycocoevalcap needs java")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = {row: [{"caption": caption} for caption in told] for row, told in enumerate(people)}
    words = list(PTBTokenizer().tokenize(captions).values())
    different = sum(
        theirs_says.split() != tokenize(caption)
        for told, tokenized in zip(people, words, strict=True)
        for caption, theirs_says in zip(told, tokenized, strict=True)
    )
    assert different <= 25  # of 25,014
    expected = theirs(words)
    published = {"cider": 0.8865, "bleu4": 0.1955, "rouge_l": 0.4718}
    assert {name: expected[name] for name in published} == pytest.approx(published, abs=5e-5)
    assert ours(people) == pytest.approx(expected, abs=6e-4)
    print(f"\n{different} captions have other words; pycocoevalcap with its own: {expected}")
