"""The loss of self-critical training on model S."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ofa_plugin.criterions import ScstRewardCriterion, ScstRewardCriterionConfig
from ofa_plugin.criterions.scst import leave_one_out
from ofa_plugin.errors import UserError
from tests.helpers.rewarded import GOLDEN, criterion_of, golden_batch, rewarded_task
from tests.helpers.small_model import build_small, small_copy, small_dictionary

REFERENCES = [["w2 w2 w7 w2 w10 w9", "w8 w1 w5 w2 w7"], ["w4 w0 w1 w2", "w8 w3 w8 w6"], ["w2 w6 w6 w4 w0", "w1"]]
SAMPLED = {"beam": 3, "max_len_b": 6, "sampling": True}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("args", [{"beam": 3, "max_len_b": 6}, SAMPLED], ids=["beam", "sampled"])
def test_loss_and_gradient_are_those_of_a_loop_over_the_captions(monkeypatch, args):
    """The loop takes each caption alone through the model, in double precision."""
    task = rewarded_task(**args)
    criterion, sample = criterion_of(task), golden_batch(REFERENCES)
    sample["net_input"]["patch_images"] = sample["net_input"]["patch_images"].double()[..., :64, :64]
    model = build_small(dtype=torch.float64, resnet_type="resnet18")[0]
    captions = task.sampled(model, sample)
    monkeypatch.setattr(task, "sampled", lambda model, sample: captions)
    monkeypatch.setattr(model, "training", True)  # its parts stay in eval mode: single rows have no batch statistics
    loss, size, log = criterion(model, sample)
    loss.backward()
    ours = gradients(model)

    model.zero_grad()
    scores = [[task.reward.score(task.answer(one), REFERENCES[row]) for one in captions[row]] for row in range(3)]
    expected, tokens = 0.0, 0
    for row, group in enumerate(captions):
        inputs = {name: value[row : row + 1] for name, value in sample["net_input"].items()}
        for number, caption in enumerate(group):
            others = [score for other, score in enumerate(scores[row]) if other != number]
            inputs["prev_output_tokens"] = torch.cat([torch.tensor([0]), caption[:-1]]).unsqueeze(0)
            log_probs = model(**inputs)[0].log_softmax(-1)[0]
            reward = scores[row][number] - sum(others) / len(others)
            part = -reward * sum(log_probs[place, token] for place, token in enumerate(caption.tolist()))
            part.backward()
            expected, tokens = expected + part.item(), tokens + len(caption)
    assert len({tuple(map(float, group)) for group in scores}) > 1 and abs(expected) > 0.01
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert size == log["ntokens"] == tokens and log["nsentences"] == 9
    assert log["score"].item() == pytest.approx(sum(map(sum, scores)), rel=1e-6)
    loop = gradients(model)
    for name, gradient in ours.items():
        theirs = loop.get(name)
        assert theirs is not None or not gradient.any(), name
        if theirs is not None:
            torch.testing.assert_close(gradient, theirs, rtol=1e-6, atol=1e-8, msg=name)


def test_a_picture_is_encoded_once_to_generate_and_once_to_learn(monkeypatch):
    task = rewarded_task(beam=5, max_len_b=4)
    criterion, model = criterion_of(task), small_copy().train()
    seen = []
    model.encoder.embed_images.register_forward_hook(
        lambda module, inputs, out: seen.append((len(inputs[0]), module.training))
    )
    for _ in range(2):
        criterion(model, golden_batch(REFERENCES))
    assert seen == 2 * [(3, False), (3, True)]


def test_generation_and_validation_leave_the_statistics_alone():
    task = rewarded_task(beam=2, max_len_b=4)
    criterion, model, sample = criterion_of(task), small_copy(), golden_batch(REFERENCES)
    before = {name: value.clone() for name, value in model.named_buffers()}

    def moved() -> set[str]:
        return {name.rpartition(".")[2] for name, value in model.named_buffers() if not value.equal(before[name])}

    for _ in range(2):  # making the generator puts the model into eval mode, too
        task.sampled(model.train(), sample)
    assert model.training and model.encoder.embed_images.layer1.training and not moved()
    model.eval()
    loss, size, log = criterion(model, sample)
    assert not model.training and not moved()
    assert (size, list(log)) == (8, ["loss", "ntokens", "nsentences", "sample_size"])
    log_probs = model(**sample["net_input"])[0].log_softmax(-1)
    right = log_probs.gather(2, sample["target"].unsqueeze(2)).squeeze(2)[sample["target"].ne(1)]
    assert loss.item() == pytest.approx(-right.sum().item(), rel=1e-5)
    criterion(model.train(), sample)
    assert moved() == {"running_mean", "running_var", "num_batches_tracked"}


def test_a_frozen_part_is_still_at_rest_after_generation():
    task, (model, _) = rewarded_task(beam=2, max_len_b=3), build_small(freeze_encoder=True)
    model.train()
    task.sampled(model, golden_batch(REFERENCES))
    assert model.decoder.training and not model.encoder.training


def test_under_autocast_every_parameter_has_the_gradient_of_32_bits():
    """Generation must leave no 16-bit copies of the weights behind that know of no gradient."""
    found, captions = {}, [[torch.tensor([5, 6, 2]), torch.tensor([7, 8, 9, 2])]] * 3
    for kind in ("none", "bf16"):
        task = rewarded_task(beam=2, max_len_b=4)
        task.cfg.autocast = kind
        criterion, model, sample = criterion_of(task), small_copy().eval(), golden_batch(REFERENCES)
        generate = task.sampled
        task.sampled = lambda model, sample, generate=generate: (generate(model, sample), captions)[1]
        model.train()
        model.encoder.embed_images.eval()
        task.rewards = lambda sample, captions: torch.tensor([[1.0, 0.0], [0.5, 2.0], [3.0, 1.0]], dtype=torch.float64)
        with task.autocast(model):
            loss, *_ = criterion(model, sample)
        assert loss.dtype == torch.float32
        loss.backward()
        found[kind] = gradients(model)
    assert found["none"].keys() == found["bf16"].keys()
    for name in (
        "decoder.layers.0.fc1.weight",
        "encoder.layers.0.fc1.weight",
        "decoder.layers.2.self_attn.q_proj.weight",
    ):
        one, other = found["none"][name].flatten(), found["bf16"][name].flatten()
        assert torch.cosine_similarity(one, other, dim=0) > 0.9, name


def test_one_caption_of_a_picture_is_an_error_that_names_the_flag():
    with pytest.raises(UserError, match=r"--scst-args: beam 1 is one caption of each picture"):
        rewarded_task(beam=1)
    with pytest.raises(UserError, match="give --scst-args a beam of 2 or more"):
        leave_one_out(torch.ones(3, 1))


def test_what_is_not_counted():
    """Prefix and range, which the official code slices from the wrong dimension and writes into the logits."""
    logits = torch.randn(2, 3, len(small_dictionary()))
    target, rewards = torch.tensor([[10, 11, 2], [12, 2, 1]]), torch.tensor([2.0, -1.0])
    task = rewarded_task(beam=2)
    log_probs = logits.log_softmax(-1)
    expected = [-2 * log_probs[0, 1, 11], -2 * log_probs[0, 2, 2], log_probs[1, 1, 2]]

    def losses_of(**options):
        criterion = criterion_of(task, **options)
        positions = criterion.counted(target)
        return criterion.policy_losses(logits.flatten(0, 1)[positions], target, positions, rewards)

    losses = losses_of(ignore_prefix_size=1)
    torch.testing.assert_close(losses, torch.stack(expected))
    inside = torch.cat([logits[..., :4], logits[..., 8:20]], -1).log_softmax(-1)
    losses = losses_of(constraint_range="8,20")
    torch.testing.assert_close(losses[0], -2 * inside[0, 0, 6])


def test_captions_count_instead_of_tokens_under_sentence_avg():
    task = rewarded_task(**{"no_repeat_ngram_size": 0, "beam": 2, "max_len_b": 5})
    sample = golden_batch(REFERENCES)
    _, size, log = criterion_of(task, sentence_avg=True)(small_copy().train(), sample)
    assert size == log["sample_size"] == 6 and log["ntokens"] == GOLDEN["scst_criterion_beam2_len5"]["ntokens"]


def test_a_dummy_batch_without_references_has_no_reward():
    task = rewarded_task(beam=2, max_len_b=3)
    loss, _, log = criterion_of(task)(small_copy().train(), golden_batch([None, None, None]))
    assert loss.item() == 0 and log["score"] == 0


def test_too_few_captions_name_the_row():
    task = rewarded_task(beam=3, max_len_b=3)
    task._generate = lambda generator, models, sample: [[{"tokens": torch.tensor([5, 2])}] * n for n in (3, 2, 3)]
    with pytest.raises(UserError, match=r"rows.tsv:2: the search found 2 captions of the 3"):
        task.sampled(small_copy(), golden_batch(REFERENCES))


def test_another_task_and_a_task_without_scst_are_refused():
    with pytest.raises(UserError, match="goes with --task caption only"):
        ScstRewardCriterion(
            ScstRewardCriterionConfig(sentence_avg=False), SimpleNamespace(target_dictionary=small_dictionary())
        )
    task = rewarded_task(beam=2)
    with pytest.raises(UserError, match="--scst goes with --criterion scst_reward_criterion, not with cross_entropy"):
        task.build_criterion(SimpleNamespace(_name="cross_entropy"))
    task.cfg.scst = False
    with pytest.raises(UserError, match="scst_reward_criterion needs --scst"):
        criterion_of(task)


def test_frequencies_that_would_change_from_epoch_to_epoch_are_refused():
    task = rewarded_task(beam=2)
    task.has_sharded_data = lambda split: True
    with pytest.raises(UserError, match="several training files"):
        task.rewards(golden_batch(REFERENCES), [[torch.tensor([5, 2])] * 2] * 3)
