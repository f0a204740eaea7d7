"""Linear layers by oneDNN, their weights laid out once as its kernels read them: `--packed-linears`.

torch multiplies 32-bit matrices by MKL, which on AMD processors takes up to three times as long where the rows are few,
as in every step of a search. The layout is a second copy of the weights, and holds only while they do not change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...errors import UserError
from .tuning import LoRALinear

logger = logging.getLogger(__name__)

CHOICES = ("off", "on", "auto")
ROWS = 40  # of the trial: eight sentences with five beams
TRIAL = 0.05  # seconds
WORTH = 1.1  # so many times as fast must it be
CLOSE = 1e-3  # largest difference of a result from torch's that is rounding


def pack_linears(models: Iterable[nn.Module], choice: str) -> bool:
    """Lays out the linear layers of models for generation.

    Args:
        models: in eval mode, whose weights do not change any more.
        choice: of `CHOICES`; "auto" tries the largest layer out.

    Returns:
        Whether it was done.

    Raises:
        UserError: it cannot be done, and the choice is "on".
    """
    layers = [m for model in models for m in model.modules() if type(m) in (nn.Linear, LoRALinear)]
    if choice == "off" or not layers:
        return False
    hindrance = _hindrance(layers)
    if hindrance and choice == "on":
        raise UserError(f"--packed-linears on: {hindrance}; take auto, or leave it out")
    hindrance = hindrance or (_trial(max(layers, key=lambda one: one.weight.numel())) if choice == "auto" else "")
    if hindrance:
        logger.info("linear layers stay as they are: %s", hindrance)
        return False
    for layer in layers:
        layer.forward = _packed(layer)
    logger.info("%d linear layers packed for oneDNN", len(layers))
    return True


def _hindrance(layers: list[nn.Linear]) -> str:
    """Why layers cannot be packed, or nothing."""
    if any(layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32 for layer in layers):
        return "only those of 32 bits on the CPU can be packed"
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return f"torch {torch.__version__} has no oneDNN"
    return ""


def _packed(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The layer's `forward` on a weight laid out for about `ROWS` rows; any number will do."""
    with torch.no_grad():
        matrix = layer.whole() if isinstance(layer, LoRALinear) else layer.weight.detach()
        weight = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), ROWS)
        bias = None if layer.bias is None else layer.bias.detach()

    def forward(x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or torch.is_grad_enabled():
            return type(layer).forward(layer, x)
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")

    return forward


@torch.no_grad()
def _trial(layer: nn.Linear) -> str:
    """Why a layer is not worth being packed, or nothing: the fastest of as many rounds as `TRIAL` allows counts."""
    packed = _packed(layer)
    x = torch.randn(ROWS, layer.in_features, generator=torch.Generator().manual_seed(1))
    difference = float((packed(x) - type(layer).forward(layer, x)).abs().max())
    if not difference < CLOSE * max(1.0, float(layer.weight.abs().max())):
        return f"packed, a result differs by {difference:.2g}"
    fastest = [float("inf")] * 2
    end = time.perf_counter() + TRIAL
    while time.perf_counter() < end:
        for number, forward in enumerate((packed, layer.forward)):
            start = time.perf_counter()
            forward(x)
            fastest[number] = min(fastest[number], time.perf_counter() - start)
    gain = fastest[1] / fastest[0]
    return "" if gain >= WORTH else f"packed, they are {gain:.2f} times as fast"
