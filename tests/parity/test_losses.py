"""The criterions on model S against the official ones: losses.json, described in tests/fixtures/model/README.md."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ofa_plugin import criterions
from ofa_plugin.criterions.label_smoothed_cross_entropy import AdjustLabelSmoothedCrossEntropy
from tests.helpers.small_model import FIXTURES, load_case, net_input, small_dictionary, small_model

pytestmark = pytest.mark.parity

GOLDEN = json.loads((FIXTURES / "losses.json").read_text())
WRONG = ("el_rdrop_drop_worst", "el_drop_best")  # the README's "known-wrong": ours are in test_encouraging.py
CASES = [
    name
    for name, case in GOLDEN.items()
    if name.startswith(("ce_", "el_")) and "error" not in case and name not in WRONG
]
TOKEN_CASES = list(GOLDEN["_function_level"])
TOLERANCE = {"rel": 2e-5}  # logits agree to 2e-4; a sum of some 16 losses near 10


@pytest.fixture(scope="module")
def arrays() -> dict[str, torch.Tensor]:
    with np.load(FIXTURES / "losses.npz", allow_pickle=False) as stored:
        names = [name for name in stored.files if not name.startswith(("grad_", "train_"))]
        return {name: torch.from_numpy(stored[name]) for name in names}


def build(prefix: str, **options) -> AdjustLabelSmoothedCrossEntropy:
    kind = {"ce": "AdjustLabelSmoothedCrossEntropy", "el": "AdjustLabelSmoothedEncouragingLoss"}[prefix]
    cfg = getattr(criterions, f"{kind}Config")(sentence_avg=False)
    for name, value in options.items():
        assert hasattr(cfg, name), name
        setattr(cfg, name, value)
    return getattr(criterions, kind)(cfg, SimpleNamespace(target_dictionary=small_dictionary()))


def sample_of(name: str, arrays: dict[str, torch.Tensor]) -> dict | list[dict]:
    prefix, _, kind = name.partition("_")
    on_c1 = kind.endswith("_c1") or "_bins" in kind or kind == "tuple_sample_patch"
    case = load_case("c1_image_text" if on_c1 else "c5_padding_patchmask")
    inputs, target = net_input(case), case["in_target"]
    if "_bins" in kind:
        inputs, target = {**inputs, "prev_output_tokens": arrays["bins_prev"]}, arrays["bins_target"]
    sample = {"net_input": inputs, "target": target, "ntokens": int(target.ne(1).sum())}
    if kind == "conf_c5":
        sample["conf"] = torch.tensor([1.0, 0.25, 0.5])
    if kind.startswith("constraint_masks"):
        sample["constraint_masks"] = arrays["constraint_masks_c5"]
    if kind.startswith("tuple"):
        text = {"src_tokens": arrays["src_txt"], "prev_output_tokens": arrays["prev_txt"]}
        return [sample, {"net_input": text, "target": arrays["tgt_txt"], "ntokens": 18}]
    return sample


@pytest.mark.parametrize("name", CASES)
def test_losses_of_model_s(name, arrays, monkeypatch):
    case = GOLDEN[name]
    model, orders = small_model(), arrays["tuple_patch_orders"]
    monkeypatch.setattr(model.encoder, "draw_patches", lambda rows, patches, count, seeds: orders[:rows, :count])
    with torch.no_grad():
        criterion = build(name.partition("_")[0], **case["args"])
        loss, size, log = criterion(model, sample_of(name, arrays), update_num=case["update_num"])
    assert float(loss) == pytest.approx(case["loss"], **TOLERANCE)
    assert size == case["sample_size"]
    for key, value in case["logging_output"].items():
        assert float(log[key]) == pytest.approx(value, **TOLERANCE), key


def test_lists_of_allowed_tokens_give_the_loss_of_the_masks(arrays):
    sample = sample_of("ce_constraint_masks", arrays)
    mask = sample.pop("constraint_masks").clone()
    mask[sample["target"].eq(1)] = False  # the official collater pads with True; nobody looks there
    sample["allowed_tokens"], sample["allowed_counts"] = mask.nonzero()[:, 2], mask.sum(dim=2)
    with torch.no_grad():
        loss = build("ce", label_smoothing=0.1)(small_model(), sample)[0]
    assert float(loss) == pytest.approx(GOLDEN["ce_constraint_masks"]["loss"], **TOLERANCE)


@pytest.mark.parametrize("name", TOKEN_CASES)
def test_losses_of_given_logits(name, arrays):
    case = GOLDEN["_function_level"][name]
    args = dict(case["args"])
    epsilon, update_num = args.pop("epsilon"), args.pop("update_num")
    target = arrays["fn_target"].unsqueeze(0)
    sample = {"net_input": {}, "target": target, "ntokens": target.numel()}
    if args.pop("constraint_masks", None):
        sample["constraint_masks"] = arrays[case["args"]["constraint_masks"]].unsqueeze(0)
    if "constraint_start" in args:
        args["constraint_range"] = f"{args.pop('constraint_start')},{args.pop('constraint_end')}"
    criterion = build("ce", label_smoothing=epsilon, **args)
    losses, log = criterion.token_losses(arrays["fn_logits"].unsqueeze(0), sample, update_num)
    assert float(losses.sum()) == pytest.approx(case["loss"], rel=1e-6)
    assert float(log["nll_loss"]) == pytest.approx(case["nll_loss"], rel=1e-6)
    assert log["sample_size"] == case["ntokens"]
