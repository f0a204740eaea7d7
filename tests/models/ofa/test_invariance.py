"""What must not change what a row gets: padding, the other rows, a masked picture, decoding step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.small_model import load_case, net_input, small_model

PAD = 1
CLOSE = 1e-5  # float32 sums in another order
INCREMENTAL = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Three rows, padded, the second without a picture."""
    return net_input(load_case("c5_padding_patchmask"))


@torch.no_grad()
def test_more_padding_changes_nothing(batch: dict[str, Tensor]):
    logits, _ = small_model()(**batch)
    for name in ("src_tokens", "prev_output_tokens"):
        batch[name] = torch.nn.functional.pad(batch[name], (0, 5), value=PAD)
    padded, _ = small_model()(**batch)
    torch.testing.assert_close(padded[:, :-5], logits, rtol=CLOSE, atol=10 * CLOSE)


@torch.no_grad()
def test_rows_do_not_see_each_other(batch: dict[str, Tensor]):
    logits, _ = small_model()(**batch)
    order = torch.tensor([2, 0, 1])
    shuffled, _ = small_model()(**{name: value[order] for name, value in batch.items()})
    torch.testing.assert_close(shuffled, logits[order], rtol=CLOSE, atol=10 * CLOSE)
    alone, _ = small_model()(**{name: value[1:2] for name, value in batch.items()})
    torch.testing.assert_close(alone, logits[1:2], rtol=CLOSE, atol=10 * CLOSE)


@torch.no_grad()
def test_a_masked_picture_is_not_seen(batch: dict[str, Tensor]):
    hidden = ~batch["patch_masks"]
    assert hidden.any()
    logits, _ = small_model()(**batch)
    batch["patch_images"] = batch["patch_images"].clone()
    batch["patch_images"][hidden] = torch.randn_like(batch["patch_images"][hidden])
    assert torch.equal(small_model()(**batch)[0], logits)

    text = {name: batch[name][hidden] for name in ("src_tokens", "prev_output_tokens")}
    torch.testing.assert_close(small_model()(**text)[0], logits[hidden], rtol=CLOSE, atol=10 * CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("case", ["c1_image_text", "c5_padding_patchmask", "c3b_mixed_code_masks"])
@pytest.mark.parametrize("first", [1, 3])
def test_incremental_decoding_is_full_decoding(case: str, first: int):
    """`first` tokens are given at once, the others one by one."""
    arguments = net_input(load_case(case))
    tokens, codes = arguments.pop("prev_output_tokens"), arguments.pop("code_masks", None)
    model = small_model()
    encoded = model.encoder(**arguments)
    full, _ = model.decoder(tokens, codes, encoded)
    state: dict[str, dict[str, Tensor]] = {}
    steps = [model.decoder(tokens[:, :first], codes, encoded, state)[0]]
    for length in range(first + 1, tokens.shape[1] + 1):
        steps.append(model.decoder(tokens[:, :length], codes, encoded, state)[0])
    torch.testing.assert_close(torch.cat(steps, 1), full, **INCREMENTAL)


@torch.no_grad()
def test_beams_move_within_their_sentence():
    model = small_model()
    arguments = net_input(load_case("c1_image_text"))
    tokens = arguments.pop("prev_output_tokens").repeat_interleave(2, 0)
    tokens[1::2, 1:] = tokens[1::2, 1:].flip(1)
    beams = torch.tensor([0, 0, 1, 1])
    encoded = model.encoder.reorder_encoder_out(model.encoder(**arguments), beams)
    state: dict[str, dict[str, Tensor]] = {}
    model.decoder(tokens[:, :3], encoder_out=encoded, incremental_state=state)
    order = torch.tensor([1, 1, 3, 2])
    model.decoder.reorder_incremental_state_scripting(state, order)
    moved = tokens[order]
    step, _ = model.decoder(moved[:, :4], encoder_out=encoded, incremental_state=state)
    full, _ = model.decoder(moved[:, :4], encoder_out=encoded)
    torch.testing.assert_close(step, full[:, -1:], **INCREMENTAL)


@torch.no_grad()
def test_positions_of_the_source_are_computed_for_one_row():
    model = small_model()
    arguments = net_input(load_case("c1_image_text"))
    tokens = arguments.pop("prev_output_tokens")
    encoded = model.encoder.reorder_encoder_out(model.encoder(**arguments), torch.tensor([0, 0, 0, 1, 1, 1]))
    state: dict[str, dict[str, Tensor]] = {}
    model.decoder(tokens[[0, 0, 0, 1, 1, 1], :1], encoder_out=encoded, incremental_state=state)
    assert encoded["position_embeddings"][0].shape[0] == 6
    assert state["ofa"]["cross.position"].shape[0] == 1


def test_a_used_up_incremental_state_is_refused():
    model = small_model()
    encoded = model.encoder(torch.tensor([[0, 5, 2]]))
    state: dict[str, dict[str, Tensor]] = {}
    tokens = torch.tensor([[0, 7]])
    model.decoder(tokens, encoder_out=encoded, incremental_state=state)
    with pytest.raises(ValueError, match="holds 2 positions already, and 2 tokens"):
        model.decoder(tokens, encoder_out=encoded, incremental_state=state)
