"""The state dict of every published size is the official one: names, order, shapes, types, sharing and totals."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch

from tests.helpers.small_model import FIXTURES


class PublishedDictionary:
    """As much of the English dictionary as a model asks for."""

    def __len__(self) -> int:
        return 59457

    def pad(self) -> int:
        return 1

    def eos(self) -> int:
        return 2


def build_meta(arch: str):
    """A published model without memory for its weights."""
    from ofa_plugin.models.ofa.config import resolve
    from ofa_plugin.models.ofa.model import OFAModel

    with torch.device("meta"):
        return OFAModel(resolve(Namespace(_name=arch)), PublishedDictionary())


@pytest.mark.parity
@pytest.mark.parametrize("size", ["tiny", "medium", "base", "large", "huge"])
def test_published_size_has_the_official_state_dict(size: str):
    recorded = json.loads((FIXTURES / f"state_dict_{size}.json").read_text())
    model = build_meta(f"ofa_{size}")
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = {
        name: {
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "kind": "parameter" if name in parameters else "buffer",
        }
        for name, value in model.state_dict().items()
    }
    official = {
        name: {key: entry[key] for key in ("shape", "dtype", "kind")} for name, entry in recorded["state_dict"].items()
    }
    assert list(state) == list(official)
    assert state == official
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == recorded["num_parameters"]
    buffers = sum(buffer.numel() for buffer in model.buffers())
    assert buffers == recorded["num_buffer_elements"]
    assert model.decoder.output_projection.weight is model.encoder.embed_tokens.weight
    assert model.decoder.embed_tokens.weight is model.encoder.embed_tokens.weight


def test_nano_is_a_small_row_of_the_same_table():
    model = build_meta("ofa_nano")
    without_tokens = sum(p.numel() for p in model.parameters()) - model.encoder.embed_tokens.weight.numel()
    assert without_tokens < 3_000_000
    assert sum(buffer.numel() for buffer in model.buffers()) < 300_000
    assert model.max_positions() == (256, 256)
    assert model.encoder.image_bucket_size == 16
