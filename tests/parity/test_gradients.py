"""Gradients of the label-smoothed loss on case c1, against the official classes.

Ours are computed in float64, so that what differs is the float32 rounding of the recorded ones alone.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.small_model import FIXTURES, build_small, load_case, net_input

pytestmark = pytest.mark.parity

ZERO_IN_THEORY = ("k_proj.bias", "k_linear.bias")  # softmax ignores what all keys share; what is recorded is noise
EPSILON = 0.1


def smoothed_loss(logits: Tensor, target: Tensor, pad: int) -> Tensor:
    """Summed over the tokens of `target` that are no padding; the wrong V - 1 tokens share EPSILON."""
    log_probabilities = logits.log_softmax(-1)[target.ne(pad)]
    nll = -log_probabilities.gather(1, target[target.ne(pad)][:, None]).sum()
    share = EPSILON / (logits.shape[-1] - 1)
    return (1 - EPSILON - share) * nll - share * log_probabilities.sum()


@pytest.mark.parametrize(
    ("mode", "norms", "resnet_norms"),
    [("eval", 1e-4, 2e-3), ("train", 1e-3, 1e-2)],  # the README's tolerances, relative
)
def test_gradients_of_case_c1(mode: str, norms: float, resnet_norms: float):
    recorded = json.loads((FIXTURES / "losses.json").read_text())[f"grad_{mode}_c1"]
    arrays = np.load(FIXTURES / "losses.npz", allow_pickle=False)
    case = load_case("c1_image_text")
    model, dictionary = build_small(dtype=torch.float64)
    model.train(mode == "train")
    logits, _ = model(**{**net_input(case), "patch_images": case["in_patch_images"].double()})
    loss = smoothed_loss(logits, case["in_target"], dictionary.pad())
    loss.backward()

    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(gradients) == set(recorded["grads [l2 norm, first element, sum]"])
    for name, expected in recorded["grads [l2 norm, first element, sum]"].items():
        if name.endswith(ZERO_IN_THEORY):
            continue
        if expected is None:  # no part of the graph officially; ours touches it, for data-parallel training
            assert not (mode == "train" and gradients[name] is None), name
            assert gradients[name] is None or not gradients[name].any(), name
            continue
        tolerance = resnet_norms if "embed_images" in name else norms
        assert gradients[name].norm().item() == pytest.approx(expected[0], rel=tolerance), name

    for key in arrays.files:
        if key.startswith(f"grad_{mode}_"):
            whole = gradients[key.removeprefix(f"grad_{mode}_")]
            expected = torch.from_numpy(arrays[key]).double()
            if expected.dim() == 1 and whole.dim() > 1:
                whole = whole.flatten()[:: whole.numel() // expected.numel()]  # every nth entry is recorded
            atol = norms * expected.abs().max().item()
            torch.testing.assert_close(whole, expected, rtol=0, atol=atol, msg=lambda text, key=key: f"{key}: {text}")
    if mode == "train":
        check_statistics(model.encoder.embed_images, arrays)


def check_statistics(resnet: nn.Module, arrays: np.lib.npyio.NpzFile) -> None:
    """Running statistics after the one training step."""
    state = resnet.state_dict()
    names = [key for key in arrays.files if key.startswith("train_after_")]
    assert names
    for key in names:
        module, _, kind = key.removeprefix("train_after_").partition("_running_")
        found = state[f"{module}.running_{kind}"]
        torch.testing.assert_close(found, torch.from_numpy(arrays[key]).double(), rtol=1e-4, atol=1e-5)
