"""The loss OFA trains with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from torch import nn

from ofa_plugin import criterions
from ofa_plugin.criterions.label_smoothed_cross_entropy import AdjustLabelSmoothedCrossEntropy, doubled
from ofa_plugin.errors import UserError

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "text" / "criterion.json").read_text())
GOLDEN = FIXTURE["criterion"]
CASES = {case["name"]: case for case in GOLDEN["cases"]}
PAD, EOS, V = GOLDEN["pad"], GOLDEN["eos"], FIXTURE["vocab"]
TARGETS = {  # two cases were recorded on other targets than the rest
    "ignore_eos": [[4, 5, 6, 2], [7, 8, 9, 2]],
    "constraint_range": [[6, 7, 8, 2], [9, 2, 1, 1]],
}
NAMES = (
    "plain sentence_avg conf ignore_prefix_1 ignore_eos ignore_eos_with_padding constraint_masks_list_output "
    "constraint_range rdrop_same_logits_repeat two_batches_list two_batches_sample_patch_num_0"
)
TOKEN_CASES = FIXTURE["function_cases"]["cases"]


class Given(nn.Module):
    """A model that returns the logits it was made with, in a tuple as ours does, and notes what it was asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))
        self.asked = []

    def forward(self, parts=None, rows=None, **net_input):
        if parts is not None:
            return {name: self(**inputs) for name, inputs in parts.items()}
        self.asked.append(net_input)
        times = 1 if rows is None else len(rows) // len(self.logits)
        return self.logits.repeat(times, 1, 1), {"attn": None}


class Choosing(Given):
    """The same, of the positions that it is asked for only."""

    takes_logits_at = True

    def forward(self, parts=None, logits_at=None, **rest):
        if parts is not None:
            return super().forward(parts=parts)
        logits, extra = super().forward(**rest)
        return logits.flatten(0, 1)[logits_at], extra


def build(kind: str = "AdjustLabelSmoothedCrossEntropy", **options) -> AdjustLabelSmoothedCrossEntropy:
    dictionary = type("D", (), {"pad": lambda s: PAD, "eos": lambda s: EOS, "__len__": lambda s: V})()
    cfg = getattr(criterions, f"{kind}Config")(sentence_avg=False)
    for name, value in {"label_smoothing": 0.1, **options}.items():
        setattr(cfg, name, value)
    return getattr(criterions, kind)(cfg, SimpleNamespace(target_dictionary=dictionary))


def batch(target=None, **extra) -> dict:
    target = torch.tensor(GOLDEN["target"] if target is None else target)
    return {"net_input": {}, "target": target, "ntokens": int(target.ne(PAD).sum()), **extra}


def mask_of(allowed) -> torch.Tensor:
    mask = torch.zeros(len(allowed), len(allowed[0]), V, dtype=torch.bool)
    for row, positions in enumerate(allowed):
        for step, tokens in enumerate(positions):
            mask[row, step, tokens] = True
    return mask


def flat(allowed) -> dict:
    """`allowed[row][step]` as the batch carries it."""
    return {
        "allowed_tokens": torch.tensor([token for row in allowed for step in row for token in step]),
        "allowed_counts": torch.tensor([[len(step) for step in row] for row in allowed]),
    }


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES.split())
def test_batch_loss_as_official(name):
    case, extra = CASES[name], {}
    if name == "conf":
        extra["conf"] = torch.tensor(GOLDEN["conf_case"])
    if name.startswith("constraint_masks"):
        extra["constraint_masks"] = mask_of(GOLDEN["constraint_allowed"])
    sample = batch(TARGETS.get(name), **extra)
    if "rdrop" in name:
        sample["net_input"]["rows"] = torch.zeros(2)
    if name.startswith("two_batches"):
        second = batch(GOLDEN["two_batch_second_target"], conf=torch.tensor(GOLDEN["two_batch_second_conf"]))
        sample["net_input"]["patch_images"] = torch.zeros(2, 3, 32, 32)
        sample = [sample, second]
    model = Given(GOLDEN["logits"])
    loss, size, log = build(**case["criterion_args"])(model, sample)
    sampled = [{key: asked[key] for key in asked if key == "sample_patch_num"} for asked in model.asked]
    assert sampled == case["model_calls"]
    assert float(loss) == pytest.approx(case["loss"], abs=2e-5)  # five decimals
    assert size == case["sample_size"]
    assert set(case["logging"]) <= set(log)
    for key, value in case["logging"].items():
        assert float(log[key]) == pytest.approx(value, abs=2e-5), key


@pytest.mark.parity
@pytest.mark.parametrize("case", TOKEN_CASES, ids=lambda case: case["name"])
def test_token_losses_as_official(case):
    """The fixture's log-probabilities serve as logits: a softmax leaves them as they are."""
    kwargs = case.get("kwargs", {})
    base = FIXTURE["function_cases"]["base"]
    options, extra = {"use_rdrop": "rdrop" in case["name"]}, {}
    options |= {name: value for name, value in kwargs.items() if name != "constraint_masks"}
    if "constraint_masks" in kwargs:
        extra["constraint_masks"] = torch.tensor([kwargs["constraint_masks"]])
    if "range" in case["name"]:
        options["constraint_range"] = "6,10"
    sample = batch([case.get("target", base["target"])], **extra)
    criterion = build(label_smoothing=case["epsilon"], **options)
    losses, log = criterion.token_losses(torch.tensor([base["lprobs"]]), sample, case.get("update_num") or 0)
    assert float(losses.sum()) == pytest.approx(case["loss"], abs=1e-4)  # the fixture's six-decimal inputs
    assert float(log["nll_loss"]) == pytest.approx(case["nll"], abs=1e-4)
    assert log["sample_size"] == case["ntokens"]


@pytest.mark.parametrize("conf", [None, [0.6, 0.0]])
def test_flat_lists_and_masks_give_the_same_loss_and_gradient(conf):
    allowed = GOLDEN["constraint_allowed"]
    extra = {} if conf is None else {"conf": torch.tensor(conf)}
    masked, listed = Given(GOLDEN["logits"]), Given(GOLDEN["logits"])
    by_mask = build()(masked, batch(constraint_masks=mask_of(allowed), **extra))[0]
    by_list = build()(listed, batch(**flat(allowed), **extra))[0]
    by_mask.backward()
    by_list.backward()
    assert torch.isfinite(by_mask) and torch.equal(by_mask, by_list)
    assert torch.equal(masked.logits.grad, listed.logits.grad)
    assert torch.isfinite(masked.logits.grad).all()


def test_loss_and_gradient_are_those_of_a_masked_softmax():
    epsilon, mask = 0.1, mask_of(GOLDEN["constraint_allowed"])[:, :2].flatten(0, 1)
    model = Given([row[:2] for row in GOLDEN["logits"]]).double()
    target = [row[:2] for row in GOLDEN["target"]]
    loss = build(label_smoothing=epsilon)(model, batch(target, **flat([r[:2] for r in GOLDEN["constraint_allowed"]])))[
        0
    ]
    dense = model.logits.detach().clone().flatten(0, 1).requires_grad_()
    log_probs = dense.masked_fill(~mask, -math.inf).log_softmax(-1)
    nll = -log_probs.gather(1, torch.tensor(target).flatten().unsqueeze(1)).squeeze(1)
    share = epsilon / (mask.sum(1) - 1 + 1e-6)
    expected = ((1 - epsilon - share) * nll - share * log_probs.masked_fill(~mask, 0).sum(1)).sum()
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.logits.grad.flatten(0, 1), dense.grad)


def test_a_position_without_a_list_is_free():
    allowed = [[[], [5, 6], [], [2]], [[7, 8], [], [], []]]
    reference = mask_of([[step or range(V) for step in row] for row in allowed])
    loss = build(label_smoothing=0.0)(Given(GOLDEN["logits"]), batch(**flat(allowed)))[0]
    expected = build(label_smoothing=0.0)(Given(GOLDEN["logits"]), batch(constraint_masks=reference))[0]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    nowhere = {"allowed_tokens": torch.zeros(0, dtype=torch.int64), "allowed_counts": torch.zeros(2, 4).long()}
    assert float(build()(Given(GOLDEN["logits"]), batch(**nowhere))[0]) == pytest.approx(
        CASES["plain"]["loss"], abs=2e-5
    )


def test_losses_of_mixed_positions_keep_the_order_of_the_targets():
    allowed = [[[], [5, 6], [], [2]], [[7, 8], [], [], []]]
    model = Given(GOLDEN["logits"])
    losses = build(label_smoothing=0.0)(model, batch(**flat(allowed)), reduce=False)[0].detach()
    free = build(label_smoothing=0.0)(model, batch(), reduce=False)[0].detach()
    assert torch.equal(losses[[0, 2, 5]], free[[0, 2, 5]])
    assert losses[3] == 0


def test_one_allowed_token_costs_exactly_nothing():
    model = Given(GOLDEN["logits"])
    loss = build()(model, batch(**flat([[[4], [5], [6], [2]], [[7], [2], [], []]])))[0]
    loss.backward()
    assert loss == 0 and not model.logits.grad.any()


def test_an_answer_outside_the_set_is_an_error_that_names_it():
    allowed = [[[4, 5], [5, 6], [6], [2]], [[7, 8], [9], [], []]]
    with pytest.raises(UserError, match="token 2 at position 1 of batch row 1"):
        build()(Given(GOLDEN["logits"]), batch(**flat(allowed)))
    with pytest.raises(UserError, match="token 4 is outside --constraint-range 6,10"):
        build(constraint_range="6,10")(Given(GOLDEN["logits"]), batch([[6, 4, 2, 1], [7, 2, 1, 1]]))


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({}, {}),
        ({"ignore_prefix_size": 1, "ignore_eos": True}, {}),
        ({"constraint_range": "4,10"}, {}),
        ({}, flat(GOLDEN["constraint_allowed"])),
        ({}, flat([[[], [5, 6], [], [2]], [[7, 8], [], [], []]])),
        ({"use_rdrop": True}, {}),
    ],
)
def test_a_model_that_leaves_padding_out_has_the_same_loss_and_gradient(options, extra):
    every, some = Given(GOLDEN["logits"]), Choosing(GOLDEN["logits"])
    sample = batch(**extra, conf=torch.tensor([0.5, 1.0]))
    if "use_rdrop" in options:
        sample["net_input"] = {"rows": torch.arange(2)}
    for form in (sample, {"parts": {"one": sample, "two": sample}, "shares": {"two": 0.5}}):
        losses = []
        for model in (every, some):
            model.zero_grad()
            losses.append(build(**options)(model, form)[0])
            losses[-1].backward()
        assert torch.equal(*losses) and losses[0] > 0
        assert torch.equal(every.logits.grad, some.logits.grad)


@pytest.mark.parametrize("options", [{}, {"constraint_range": "5,10"}, {"drop_worst_ratio": 0.5}])
def test_logits_are_left_alone(options):
    model = Given(GOLDEN["logits"])
    before = model.logits.detach().clone()
    build(**options)(model, batch([[5, 6, 7, 2], [8, 2, 1, 1]]), update_num=1)[0].backward()
    assert torch.equal(model.logits, before)


def test_a_batch_without_targets_has_a_zero_loss_with_a_gradient():
    model = Given(GOLDEN["logits"])
    loss, size, log = build()(model, batch([[1, 1, 1, 1], [1, 1, 1, 1]]))
    loss.backward()
    assert (float(loss), size) == (0, 0) and not model.logits.grad.any()
    build()(model, batch([[1, 1, 1, 1], [1, 1, 1, 1]], **flat([[[]] * 4] * 2)))[0].backward()


def test_logs_have_the_same_keys_order_and_kind_whatever_the_batch():
    criterion = build(drop_worst_ratio=0.5, drop_worst_after=3)
    model = Given(GOLDEN["logits"])
    kinds = {
        tuple((key, type(value)) for key, value in criterion(model, sample, update_num=step)[2].items())
        for step in (0, 9)
        for sample in (
            batch(),
            batch(conf=torch.tensor([1.0, 0.5])),
            batch(**flat(GOLDEN["constraint_allowed"])),
            batch([[1] * 4] * 2),
            {**batch(), "ntokens": torch.tensor(6)},
        )
    }
    assert len(kinds) == 1


def test_ignored_positions_need_no_particular_number_of_eos():
    target = [[4, 5, 6, 7], [7, 2, 2, 1]]
    _, size, log = build(ignore_eos=True, ignore_prefix_size=1)(Given(GOLDEN["logits"]), batch(target))
    assert (size, log["nscored"], log["ntokens"]) == (3, 3, 7)


def test_half_precision_logits_are_normalised_in_float32():
    model = Given(GOLDEN["logits"]).bfloat16()
    loss = build()(model, batch())[0]
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(CASES["plain"]["loss"], rel=1e-2)
    assert build()(model.double(), batch(**flat(GOLDEN["constraint_allowed"])))[0].dtype == torch.float64


def test_reported_metrics_are_means_in_nats_and_unknown_keys_are_left_alone():
    criterion = build(report_accuracy=True)
    logs = [criterion(Given(GOLDEN["logits"]), batch())[2] for _ in range(2)]
    with metrics.aggregate() as values:
        criterion.reduce_metrics([{**log, "_cider_sum": 3.0} for log in logs])
    smoothed = values.get_smoothed_values()
    plain = CASES["plain"]["logging"]
    assert smoothed["loss"] == pytest.approx(plain["loss"] / 6, abs=1e-3)
    assert smoothed["nll_loss"] == pytest.approx(plain["nll_loss"] / 6, abs=1e-3)
    assert smoothed["ppl"] == pytest.approx(math.exp(plain["nll_loss"] / 6), rel=1e-2)
    logits, target = torch.tensor(GOLDEN["logits"]), torch.tensor(GOLDEN["target"])
    correct = (logits.argmax(-1) == target)[target != PAD].float().mean()
    assert smoothed["accuracy"] == pytest.approx(100 * float(correct), abs=1e-3)
    assert "_cider_sum" not in smoothed
    with metrics.aggregate():
        criterion.reduce_metrics([{}])  # a worker whose every batch was a dummy


def test_accuracy_under_a_constraint_ranks_admissible_tokens_only():
    logits = torch.zeros(1, 1, V)
    logits[0, 0, 9], logits[0, 0, 5] = 5.0, 1.0
    criterion = build(report_accuracy=True)
    assert int(criterion(Given(logits), batch([[5]]))[2]["n_correct"]) == 0
    assert int(criterion(Given(logits), batch([[5]], **flat([[[4, 5]]])))[2]["n_correct"]) == 1
    assert int(criterion(Given(logits), batch([[4]], **flat([[[4, 5]]])))[2]["n_correct"]) == 0


def test_r_drop_pulls_two_passes_of_a_row_together_by_its_confidence():
    """The divergence of both passes, by hand; officially it is that of log-probabilities scaled by the confidence."""
    first, second = torch.tensor(GOLDEN["logits"]), torch.tensor(GOLDEN["logits"]).flip(1)
    both = torch.cat([first, second])
    conf = torch.tensor([1.0, 0.25])
    criterion = build(label_smoothing=0.0, use_rdrop=True, reg_alpha=2.0)
    sample = {**doubled(batch(conf=conf)), "net_input": {}}
    assert sample["ntokens"] == 12 and torch.equal(sample["conf"], torch.cat([conf, conf]))
    losses, log = criterion.token_losses(both, sample, 0)
    plain = build(label_smoothing=0.0).token_losses(both, sample, 0)[0]
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    divergence = 0.5 * ((p.exp() * (p - q)).sum(-1) + (q.exp() * (q - p)).sum(-1))  # [B, T]
    expected = 2.0 * (divergence * conf.unsqueeze(1))[sample["target"][:2] != PAD].sum()
    assert float((losses - plain).sum()) == pytest.approx(float(expected), rel=1e-5)
    assert log["sample_size"] == 12


@pytest.mark.parametrize("allowed", [GOLDEN["constraint_allowed"], [[[], [5, 6], [], [2]], [[7, 8], [], [], []]]])
def test_r_drop_along_a_closed_set_is_finite_and_compares_what_is_allowed(allowed):
    """Officially the divergence of two masked distributions is NaN."""
    logits = torch.randn(4, 4, V, requires_grad=True)
    sample = doubled(batch(**flat(allowed)))
    losses, _ = build(label_smoothing=0.0, use_rdrop=True).token_losses(logits, sample, 0)
    plain = build(label_smoothing=0.0).token_losses(logits, sample, 0)[0]
    mask = mask_of([[step or range(V) for step in row] for row in allowed])
    p, q = (half.detach().masked_fill(~mask, -math.inf).log_softmax(-1) for half in logits.chunk(2))
    both = (0.5 * (p.exp() - q.exp()) * (p - q)).nan_to_num(0.0).sum(-1)
    extra = (losses - plain).detach()
    torch.testing.assert_close(extra[: len(extra) // 2], both[torch.tensor(GOLDEN["target"]) != PAD])
    assert not extra[len(extra) // 2 :].any()
    losses.sum().backward()
    assert logits.grad.isfinite().all()


def test_r_drop_in_training_repeats_the_inputs_but_not_the_number_of_sampled_patches():
    sample = batch()
    sample["net_input"] = {"rows": torch.zeros(2), "code_masks": None, "sample_patch_num": 100}
    model = Given(GOLDEN["logits"])
    build(use_rdrop=True)(model, sample)
    assert model.asked == [{"code_masks": None, "sample_patch_num": 100}]


def test_a_mixture_is_the_same_as_dict_list_and_tuple():
    one, two = batch(), batch(GOLDEN["two_batch_second_target"])
    model, criterion = Given(GOLDEN["logits"]), build(report_accuracy=True)
    loss, size, log = criterion(model, {"parts": {"v1": one, "v2": two}})
    for form in ([one, two], (one, two)):
        again, _, logged = criterion(model, form)
        assert torch.equal(loss, again) and list(logged.items()) == list(log.items())
    separate = [criterion(model, part) for part in (one, two)]
    assert float(loss) == pytest.approx(sum(float(part[0]) / part[1] for part in separate))
    with metrics.aggregate() as values:
        criterion.reduce_metrics([log, log])
    smoothed = values.get_smoothed_values()
    assert smoothed["loss"] == pytest.approx(float(loss), abs=1e-3)
    assert smoothed["loss_v2"] == pytest.approx(float(separate[1][0]) / separate[1][1], abs=1e-3)
    correct, ranked = (sum(float(part[2][key]) for part in separate) for key in ("n_correct", "n_ranked"))
    assert smoothed["accuracy"] == pytest.approx(100 * correct / ranked, abs=1e-3)


def test_a_part_without_targets_adds_nothing_to_a_mixture():
    model, criterion = Given(GOLDEN["logits"]), build()
    loss = criterion(model, [batch(), batch([[PAD] * 4] * 2)])[0]
    loss.backward()
    assert float(loss) == pytest.approx(float(criterion(model, batch())[0]) / 6)
    assert model.logits.grad.isfinite().all()


# ---- kinds of example ------------------------------------------------------------------------------------------------

KINDS = ("caption", "vqa", "matching")
SHARES = {"v1": 1.0, "v2": 0.5}


def of_kinds(kinds, target=None, **extra) -> dict:
    """A batch whose rows are of these kinds, by number in `KINDS`."""
    return {
        **batch(target, kinds=torch.tensor(kinds), kind_names=KINDS, **extra),
        "net_input": {"rows": torch.zeros(2)},
    }


def mixed(first=(0, 2), second=(2, 1), **extra) -> dict:
    """Two parts with shares 1 and 0.5."""
    two = of_kinds(list(second), GOLDEN["two_batch_second_target"], conf=torch.tensor([2.0, 0.5]))
    return {"parts": {"v1": of_kinds(list(first), **extra), "v2": two}, "shares": SHARES}


RDROP = {"use_rdrop": True, "reg_alpha": 2.0}
DROPPING = {"drop_worst_ratio": 0.4, "drop_worst_after": 3}
VARIANTS = ({}, RDROP, DROPPING, {**RDROP, **DROPPING}, {"sentence_avg": True}, {"report_accuracy": True})


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_loss_of_a_mixture_is_the_sum_of_share_times_mean(options):
    model, criterion = Given(GOLDEN["logits"]), build(**options)
    loss, size, log = criterion(model, mixed(), update_num=9)
    alone = {name: criterion(model, part, update_num=9) for name, part in mixed()["parts"].items()}
    expected = sum(SHARES[name] * part[0] / part[1] for name, part in alone.items())
    assert size == log["sample_size"] == 1
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(log["loss"], expected.detach())


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_sums_of_the_kinds_add_up_to_the_whole(options):
    model, criterion = Given(GOLDEN["logits"]), build(**{"report_accuracy": True, **options})
    sample = mixed()
    sample["parts"]["v2"].pop("conf")  # the loss of a kind is before weights
    log = criterion(model, sample, update_num=9)[2]
    parts = [criterion(model, part, update_num=9)[2] for part in sample["parts"].values()]
    for key, whole in {"loss": "loss", "sample_size": "nscored", "n_correct": "n_correct"}.items():
        summed = sum(float(log[f"{key}_{kind}"]) for kind in KINDS)
        assert summed == pytest.approx(sum(float(part[whole]) for part in parts), rel=1e-5), key
    assert (
        sum(float(log[f"nsentences_{kind}"]) for kind in KINDS)
        == log["nsentences"]
        == (8 if "use_rdrop" in options else 4)
    )


def test_each_kind_is_told_its_own_rows():
    model, criterion = Given(GOLDEN["logits"]), build(report_accuracy=True)
    log = criterion(model, mixed())[2]
    for part, row, kind in (("v1", 0, "caption"), ("v2", 1, "vqa")):  # each in one row only
        whole = mixed()["parts"][part]
        whole.pop("conf", None)
        target = whole["target"].clone()
        target[1 - row] = PAD
        alone = criterion(model, {**whole, "target": target})[2]
        for key in ("loss", "sample_size", "n_correct"):
            assert float(log[f"{key}_{kind}"]) == pytest.approx(float(alone[key]), abs=1e-5), (kind, key)
        assert float(log[f"nsentences_{kind}"]) == 1
    assert float(log["nsentences_matching"]) == 2


@pytest.mark.parametrize("options", [{}, RDROP, {"report_accuracy": True}], ids=str)
def test_logs_of_kinds_have_the_same_keys_in_the_same_order_whatever_the_batch(options):
    """fairseq adds the ranks' logs up by position: a dummy batch, a validation batch, one without some kind."""
    model, criterion = Given(GOLDEN["logits"]), build(**options)
    samples = (
        *(mixed(), mixed((0, 0), (0, 0)), of_kinds([1, 1]), of_kinds([0, 2], **flat(GOLDEN["constraint_allowed"]))),
        *(of_kinds([0, 1], [[PAD] * 4] * 2), {"parts": {"v1": of_kinds([2, 1])}, "shares": SHARES}),
    )
    keys = {tuple(criterion(model, sample)[2]) for sample in samples}
    assert len(keys) == 1
    assert {f"{key}_{kind}" for key in ("loss", "sample_size", "n_correct", "nsentences") for kind in KINDS} <= set(
        keys.pop()
    )


def test_a_kind_that_is_absent_has_nothing():
    log = build()(Given(GOLDEN["logits"]), of_kinds([1, 1]))[2]
    for key in ("loss", "sample_size", "n_correct", "nsentences"):
        assert float(log[f"{key}_caption"]) == float(log[f"{key}_matching"]) == 0
    assert float(log["loss_vqa"]) == pytest.approx(float(log["loss"]), rel=1e-6)


@pytest.mark.parametrize("options", [{}, RDROP, {"label_smoothing": 0.1}], ids=str)
def test_the_loss_of_a_kind_does_not_show_what_its_rows_weigh(options):
    model, criterion = Given(GOLDEN["logits"]), build(**options)
    plain, weighted = (
        criterion(model, of_kinds([1, 0], **conf))[2] for conf in ({}, {"conf": torch.tensor([4.0, 0.0])})
    )
    assert float(weighted["loss_vqa"]) == pytest.approx(float(plain["loss_vqa"]), rel=1e-6)
    assert float(weighted["loss_caption"]) == 0 and float(weighted["loss"]) != pytest.approx(float(plain["loss"]))


def test_dropped_tokens_count_for_no_kind():
    model, criterion = Given(GOLDEN["logits"]), build(**DROPPING)
    before, after = (criterion(model, mixed(), update_num=step)[2] for step in (3, 4))
    sizes = [sum(float(log[f"sample_size_{kind}"]) for kind in KINDS) for log in (before, after)]
    scored = [int(part["target"].ne(PAD).sum()) for part in mixed()["parts"].values()]
    assert sizes == [sum(scored), sum(int(number * 0.6) for number in scored)]


@pytest.mark.parametrize("options", [{}, RDROP, DROPPING], ids=str)
def test_what_a_row_weighs_does_not_depend_on_the_update_frequency(options):
    """Sample size 1: two micro-batches of very different length count alike, as fairseq divides their sum by two."""
    short = mixed()
    short["parts"]["v1"] = of_kinds([1, 1], [[7, EOS, PAD, PAD], [EOS, PAD, PAD, PAD]])
    criterion, gradients = build(**options), []
    for sample in (mixed(), short):
        model = Given(GOLDEN["logits"])
        criterion(model, sample, update_num=9)[0].backward()
        gradients.append(model.logits.grad)
    together = Given(GOLDEN["logits"])
    size = 0
    for sample in (mixed(), short):
        loss, counted, _ = criterion(together, sample, update_num=9)
        loss.backward()
        size += counted
    assert size == 2
    torch.testing.assert_close(together.logits.grad / size, (gradients[0] + gradients[1]) / 2)


def test_the_log_shows_loss_accuracy_and_share_of_each_kind():
    criterion = build(report_accuracy=True)
    logs = [criterion(Given(GOLDEN["logits"]), mixed())[2] for _ in range(2)]
    with metrics.aggregate() as values:
        criterion.reduce_metrics(logs)
    smoothed = values.get_smoothed_values()
    for kind in KINDS:
        size = float(logs[0][f"sample_size_{kind}"])
        assert smoothed[f"loss_{kind}"] == pytest.approx(float(logs[0][f"loss_{kind}"]) / size, abs=1e-3)
        assert smoothed[f"accuracy_{kind}"] == pytest.approx(100 * float(logs[0][f"n_correct_{kind}"]) / size, abs=1e-2)
    assert [smoothed[f"share_{kind}"] for kind in KINDS] == [0.25, 0.25, 0.5]
    assert smoothed["loss"] == pytest.approx(float(logs[0]["loss"]), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_patch_num": -1}, "--sample-patch-num -1"),
        ({"drop_worst_ratio": 1.0}, "--drop-worst-ratio 1.0"),
        ({"label_smoothing": -0.1}, "--label-smoothing -0.1"),
        ({"constraint_range": "6-10"}, "--constraint-range '6-10': expected START,END"),
        ({"constraint_range": "2,10"}, "--constraint-range 2,10: expected 4 <= START < END <= 12"),
        ({"constraint_range": "6,13"}, "--constraint-range 6,13"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


def test_the_command_line_knows_the_official_names():
    command = (
        "data --arch transformer_tiny --optimizer adam --lr-scheduler fixed --sentence-avg "
        "--criterion adjust_label_smoothed_cross_entropy --label-smoothing 0.1 --drop-worst-ratio 0.2 "
        "--drop-worst-after 2500 --ignore-prefix-size 1 --ignore-eos --report-accuracy --constraint-range 369,469 "
        "--reg-alpha 1.0 --sample-patch-num 196"
    )
    args = options.parse_args_and_arch(options.get_training_parser(), command.split())
    cfg = convert_namespace_to_omegaconf(args).criterion
    assert (cfg.label_smoothing, cfg.drop_worst_ratio, cfg.drop_worst_after) == (0.1, 0.2, 2500)
    assert (cfg.ignore_prefix_size, cfg.constraint_range, cfg.sample_patch_num) == (1, "369,469", 196)
    assert cfg.ignore_eos and cfg.report_accuracy and cfg.sentence_avg and not cfg.use_rdrop
