"""The reward and its loss against the official ones: cider_scst.json and scst.npz (described there), scst.json."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ofa_plugin.criterions.scst import leave_one_out
from ofa_plugin.tasks.caption import references_of
from ofa_plugin.tasks.metrics import CIDErD, document_frequencies
from tests.helpers.golden import golden
from tests.helpers.rewarded import GOLDEN, criterion_of, golden_batch, rewarded_task
from tests.helpers.small_model import FIXTURES, small_copy

pytestmark = pytest.mark.parity

TABLE = json.loads((FIXTURES / "cider_df.json").read_text())
TABLES = {"plain": "document_frequency_plain", "eos": "document_frequency_with_eos"}


def reward_of(table: str, end: bool = True) -> CIDErD:
    counts = {tuple(ngram.split(" ")): count for ngram, count in TABLE[TABLES[table]]}
    return CIDErD(counts, TABLE["ref_len"], end)


def loss_of(rewards: list[float], logits: torch.Tensor, target: list[list[int]]) -> tuple[float, int]:
    """The summed loss, and of how many tokens."""
    criterion = criterion_of(rewarded_task(beam=2))
    target, rewards = torch.tensor(target), torch.tensor(rewards, dtype=torch.float64)
    positions = criterion.counted(target)
    losses = criterion.policy_losses(logits.flatten(0, 1)[positions], target, positions, rewards)
    return float(losses.sum()), losses.numel()


@pytest.mark.parametrize(("name", "table"), [("plain", "plain"), ("eos", "eos")])
@pytest.mark.parametrize("captions", ["hyps1", "hyps2"])
def test_scores_under_both_tables(captions, name, table):
    case = GOLDEN[f"ciderD_{captions}_{name}"]
    cider = reward_of(table, end=bool(case["suffix"]))
    pairs = zip(case["hypotheses"], TABLE["references"], case["scores"], strict=True)
    pairs = [pair for pair in pairs if "," not in pair[0]]  # officially "umbrella," is another word than "umbrella"
    assert len(pairs) == {"hyps1": 6, "hyps2": 5}[captions]
    assert [cider.score(ours, theirs) for ours, theirs, _ in pairs] == pytest.approx([p[2] for p in pairs], abs=1e-9)


def test_frequencies_with_and_without_ends():
    for end, table in ((True, "eos"), (False, "plain")):
        counts, images = document_frequencies(TABLE["references"], end)
        assert counts == reward_of(table).frequencies and images == TABLE["ref_len"]


@pytest.mark.parametrize("case", ["scst_reward", "scst.json"])
def test_scores_and_leave_one_out_rewards(case):
    if case == "scst.json":
        given, table = golden(case), golden("cider_d.json")["cached_df"]
        cider = CIDErD({tuple(n): count for n, count in table["document_frequency"]}, table["ref_len"], end=True)
        captions, references, rewards = given["gen"], given["refs"], given["rewards"]
    else:
        given, cider = GOLDEN[case], reward_of("eos")
        captions, references, rewards = given["gen_res"], given["gt_res"], given["reward"]
    task = rewarded_task(beam=3)
    task.reward, task.answer = cider, lambda caption: references_of(caption)[0]
    sample = {"references": [references_of("&&".join(group)) for group in references]}
    scores = task.rewards(sample, [captions[:3], captions[3:]])
    assert scores.flatten().tolist() == pytest.approx(given["scores"], abs=1e-9)
    assert leave_one_out(scores).flatten().tolist() == pytest.approx(rewards, abs=1e-9)


def test_loss_of_given_log_probabilities():
    with np.load(FIXTURES / "scst.npz", allow_pickle=False) as stored:
        log_probs = torch.from_numpy(stored["fn_lprobs"])
    case = GOLDEN["scst_loss_fn"]
    loss, tokens = loss_of(case["reward"], log_probs, case["target"])
    assert loss == pytest.approx(case["loss"], rel=1e-6) and tokens == case["ntokens"]


def test_loss_of_given_token_losses():
    case = golden("scst.json")
    target = torch.tensor(case["target"])
    nll = torch.tensor(case["token_nll"], dtype=torch.float64)
    logits = torch.zeros(*target.shape, 10, dtype=torch.float64)
    odds = nll.neg().exp() / (1 - nll.neg().exp())
    logits.scatter_(2, target.unsqueeze(2), (9 * odds).log().unsqueeze(2))  # nine others share the rest
    loss, tokens = loss_of(case["rewards"], logits, case["target"])
    assert loss == pytest.approx(case["loss_sum"], rel=1e-6) and tokens == case["ntokens"]


@pytest.mark.parametrize("name", ["scst_criterion_beam3", "scst_criterion_beam2_len5"])
def test_the_whole_criterion_on_model_s(name):
    """Officially the pictures go through the encoder once for each caption; batch statistics are the same."""
    case = GOLDEN[name]
    options = dict(case["generator"])
    task = rewarded_task(beam=options.pop("beam_size"), **{"no_repeat_ngram_size": 0, **options})
    criterion, model = criterion_of(task), small_copy().train()
    sample = golden_batch([references_of("&&".join(group)) for group in case["gt_res"]])
    captions = task.sampled(model, sample)
    assert [tokens.tolist() for group in captions for tokens in group] == case["gen_tokens"]
    assert [task.answer(tokens) for group in captions for tokens in group] == case["gen_res"]
    scores = task.rewards(sample, captions)
    assert scores.flatten().tolist() == pytest.approx(case["scores"], abs=1e-9)
    assert leave_one_out(scores).flatten().tolist() == pytest.approx(case["reward"], abs=1e-9)
    loss, size, log = criterion(model, sample)
    assert loss.item() == pytest.approx(case["loss_full_call"], rel=1e-4)
    assert size == case["sample_size"]
    for key, value in case["logging_output"].items():
        assert float(log[key]) == pytest.approx(value, rel=1e-4), key
