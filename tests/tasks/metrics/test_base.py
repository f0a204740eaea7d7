"""Sums of several metrics: whatever the order, the batches and the workers."""

from __future__ import annotations

import pytest
from fairseq.scoring import SCORER_REGISTRY
from hypothesis import given
from hypothesis import strategies as st

from ofa_plugin.tasks.base import OFATask
from ofa_plugin.tasks.caption import CaptionTask
from ofa_plugin.tasks.metrics import BLEU, BLEU1, BLEU2, BLEU3, ROUGEL, CIDErD, Metric, Tally, VQAScore

captions = st.lists(st.sampled_from("a dog cat runs the over red".split()), max_size=9).map(" ".join)
rows = st.lists(st.tuples(captions, st.none() | st.lists(captions, min_size=1, max_size=4)), min_size=1, max_size=12)


def tallied(metrics, rows) -> Tally:
    tally = Tally(metrics)
    for hypothesis, reference in rows:
        tally.add(hypothesis, reference)
    return tally


@given(rows, st.data())
def test_order_and_batches_do_not_matter(rows, data):
    metrics = [metric() for metric in CaptionTask.all_metrics()]
    for metric in metrics:
        metric.prepare([*(reference for _, reference in rows if reference), ["a dog"], ["the cat"]])
    whole = tallied(metrics, rows)
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    logs = [tallied(metrics, part).log() for part in (shuffled[:cut], shuffled[cut:])]
    assert list(logs[0]) == list(logs[1]) == list(whole.log())  # the same keys in the same order, rows or none
    assert all(type(value) is float for log in logs for value in log.values())
    for metric in metrics:
        sums = [logs[0][key] + logs[1][key] for key in metric.log_keys()]
        assert metric.value(*sums) == pytest.approx(whole.values()[metric.name], abs=1.1 * 10**-metric.digits)
    assert whole.rows == sum(reference is not None for _, reference in rows)


def test_keys_are_hidden_from_fairseqs_log_and_those_of_no_other_metric():
    metrics = (*CaptionTask.all_metrics(), VQAScore)
    keys = [key for metric in metrics for key in metric.log_keys()]
    assert len(set(keys)) == len(keys) == sum(metric.width for metric in metrics)
    assert all(key.startswith("_") for key in keys)


def test_no_rows_are_worth_nothing():
    assert Tally([CIDErD(), BLEU(), ROUGEL()]).values() == {"cider": 0.0, "bleu4": 0.0, "rouge_l": 0.0}


def test_the_first_metric_is_the_one_a_task_is_judged_by():
    assert CaptionTask.all_metrics() == (CIDErD, BLEU1, BLEU2, BLEU3, BLEU, ROUGEL)


def test_every_metric_of_a_task_is_a_scoring_and_stocks_stay_stocks():
    stock = {name: SCORER_REGISTRY[name] for name in ("bleu", "sacrebleu", "wer", "chrf")}

    class Correlation(Metric):
        name = "correlation_of_a_test"

    class Other(OFATask):
        metric, more_metrics = Correlation, (BLEU,)

    assert {"ofa", "cider", "bleu4", "rouge_l", "vqa_score", "correlation_of_a_test"} <= set(SCORER_REGISTRY)
    assert all(SCORER_REGISTRY[name] is scorer for name, scorer in stock.items())

    class Sacre(Metric):
        name = "sacrebleu"

    with pytest.raises(ValueError, match="duplicate scoring .sacrebleu."):
        type("Clash", (OFATask,), {"metric": Sacre})


def test_a_metric_must_say_how_it_scores():
    with pytest.raises(NotImplementedError):
        Metric().score("a", "b")
