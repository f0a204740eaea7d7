"""What the result file says beside the answers, and generation that is freer or narrower than the task."""

from __future__ import annotations

import json
import math
import re

import pytest

from tests.helpers.stock import USER_DIR, error_of, ok, run


@pytest.fixture
def answered(world, answerer, tmp_path):
    """Runs `fairseq-generate` on the test questions with these flags: entries, scores and what was printed."""

    def generate(*flags: object, task: str = "vqa", checkpoint=answerer):
        name = {"caption": "caption", "vqa": "vqa_gen"}[task]
        out = tmp_path / "out"
        finished = run(
            *("generate", world.root / task, "--user-dir", USER_DIR, "--task", name, "--cpu", "--path", checkpoint),
            *("--gen-subset", "test", "--batch-size", 5, "--num-workers", 0, "--results-path", out, *flags),
            log=tmp_path / "log",
        )
        if finished.code:
            return finished
        ok(finished)
        entries, scores = (json.loads((out / f"test_{kind}.json").read_text()) for kind in ("predict", "scores"))
        return entries, scores, finished.output + (out / "generate-test.txt").read_text()

    return generate


@pytest.mark.parametrize("how", ["allcand", "beamsearch"])
def test_scores_log_probabilities_and_ranking(answered, how):
    flags = ("--val-inference-type", how, "--beam", 3, "--nbest", 3)
    plain, _, printed = answered(*flags)
    assert all(set(entry) == {"question_id", "answer", "score"} for entry in plain)
    best = dict(re.findall(r"^H-(\d+)\t(\S+)", printed, re.M)[::-1])  # the first of each row; in base 2
    for row, entry in enumerate(plain):
        assert entry["score"] == pytest.approx(float(best[str(row)]) * math.log(2), abs=2e-4)
    entries, _, _ = answered(*flags, "--write-log-probs", "--write-ranking", 3)
    for entry, alone in zip(entries, plain, strict=True):
        assert {name: entry[name] for name in alone} == alone
        symbols, values = zip(*entry["log_probs"], strict=True)
        assert symbols[-1] == "</s>" and sum(values) == pytest.approx(entry["score"], abs=1e-4)
        ranking = entry["ranking"]
        assert ranking[0] == {"answer": entry["answer"], "score": entry["score"]}
        scores = [one["score"] for one in ranking]
        assert len({one["answer"] for one in ranking}) == 3 and scores == sorted(scores, reverse=True)
        assert sum(map(math.exp, scores)) <= 1.0001


def test_an_answer_that_is_not_likely_enough_is_none(answered):
    plain, before, _ = answered()
    chances = sorted(math.exp(entry["score"]) for entry in plain)
    limit = (chances[6] + chances[7]) / 2
    entries, after, _ = answered("--reject-below", limit)
    for entry, alone in zip(entries, plain, strict=True):
        if math.exp(alone["score"]) < limit:
            assert entry == {**alone, "answer": "no answer", "rejected": {"answer": alone["answer"]}}
        else:
            assert entry == alone
    assert after["rejected"] == 7 and "rejected" not in before
    assert after["vqa_score"] <= before["vqa_score"]


@pytest.mark.parametrize("limit", [0, 1.5, -1])
def test_a_threshold_is_a_probability(answered, limit):
    assert f"--reject-below {float(limit)}: a probability" in error_of(answered("--reject-below", limit))


def test_a_ranking_needs_as_wide_a_search(answered, captioner):
    finished = answered("--write-ranking", 7, task="caption", checkpoint=captioner)
    assert "--write-ranking 7 needs --beam 7" in error_of(finished)
    entries, _, _ = answered("--write-ranking", 5, task="caption", checkpoint=captioner)
    assert all(len(entry["ranking"]) == 5 and set(entry["ranking"][0]) == {"caption", "score"} for entry in entries)
    entries, _, _ = answered("--write-ranking", 7)  # all candidates have a rank
    assert all(len(entry["ranking"]) == 7 for entry in entries)


def test_open_ended_says_so_once_and_writes_what_is_no_answer(world, answered):
    answers = set((world.root / "vqa" / "answers.txt").read_text().splitlines())
    entries, _, printed = answered("--open-ended", "--max-len-b", 6, "--min-len", 6)
    assert printed.count("HAS LEARNED TO CHOOSE AMONG") == 1
    assert any(entry["answer"] not in answers for entry in entries)
    finished = answered("--open-ended", "--val-inference-type", "allcand")
    assert "--val-inference-type allcand needs an answer set" in error_of(finished)


def test_scores_among_all_tokens_are_lower_and_the_answers_stay_in_the_set(world, answered):
    answers = set((world.root / "vqa" / "answers.txt").read_text().splitlines())
    usual, *_ = answered("--val-inference-type", "beamsearch")
    entries, *_ = answered("--mask-after-softmax")  # which means a search
    assert {entry["answer"] for entry in entries} <= answers
    assert all(entry["score"] < alone["score"] for entry, alone in zip(entries, usual, strict=True))
    refused = error_of(answered("--mask-after-softmax", "--val-inference-type", "allcand"))
    assert "--mask-after-softmax does not go with --val-inference-type allcand" in refused


def test_a_range_keeps_every_task_inside_it(answered, captioner):
    entries, _, _ = answered("--constraint-range", "4,9", "--write-log-probs", task="caption", checkpoint=captioner)
    from ofa_plugin.tasks.base import saved_task_config  # fairseq must be there first

    assert saved_task_config(str(captioner))["constraint_range"] is None
    symbols = {symbol for entry in entries for symbol, _ in entry["log_probs"]}
    assert len(symbols) <= 9 and "</s>" in symbols
    refused = error_of(answered("--constraint-range", "4,9"))
    assert "--constraint-range does not go with a closed answer set" in refused
    assert "expected 4 <= START < END" in error_of(
        answered("--constraint-range", "9,4", task="caption", checkpoint=captioner)
    )


def test_packed_layers_answer_alike_and_leave_16_bits_alone(answered):
    usual, *_ = answered()
    packed, _, printed = answered("--packed-linears", "on")
    assert "linear layers packed for oneDNN" in printed
    assert [entry["answer"] for entry in packed] == [entry["answer"] for entry in usual]
    assert [one["score"] for one in packed] == pytest.approx([one["score"] for one in usual], abs=2e-4)
    _, _, printed = answered("--packed-linears", "auto", "--autocast", "bf16")
    assert "packed for oneDNN" not in printed and "linear layers stay" not in printed
    message = error_of(answered("--packed-linears", "on", "--autocast", "bf16"))
    assert "--packed-linears on is for 32 bits, and --autocast is bf16, here or in the checkpoint" in message
    assert "--packed-linears most: one of off, on, auto" in error_of(answered("--packed-linears", "most"))
