"""16-bit arithmetic: what `--autocast` says, and what a device can do."""

from __future__ import annotations

import functools
import logging

import torch

logger = logging.getLogger(__name__)

AUTOCAST = {"none": None, "auto": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Values of `--autocast`; `auto` is bf16 where `computes_bf16`, else none."""


def computes_bf16(device: str) -> bool:
    """Whether a kind of device ("cpu", "cuda") multiplies in bfloat16.

    A processor without AVX-512 emulates it, some fifty times slower than 32 bits.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not part of torch's public interface
    return device == "cpu" and known is not None and bool(known())


@functools.cache
def autocast_type(name: str, device: str) -> torch.dtype | None:
    """The type that `--autocast NAME` computes in on a kind of device, None for 32 bits; says once what is slow."""
    if name == "auto":
        dtype = torch.bfloat16 if computes_bf16(device) else None
        logger.info("--autocast auto: %s", "bf16" if dtype else f"32 bits, for this {device} has no fast bf16")
        return dtype
    if name == "bf16" and not computes_bf16(device):
        logger.warning(
            "--autocast bf16: this %s only emulates bf16, many times slower than 32 bits; --autocast auto takes it "
            "where it helps",
            device,
        )
    return AUTOCAST[name]
