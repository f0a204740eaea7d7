"""What must not change what a row gets: padding, the other rows, a masked picture, decoding step by step."""

from __future__ import annotations

from typing import Any

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
    assert state["ofa"].positions["source"].shape[0] == 1


SEARCHES = {
    "beams move": [[0, 0, 1, 3, 3, 3], [2, 0, 0, 4, 5, 3], [1, 2, 2, 3, 3, 4]],
    "beams stay": [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]],
    "the first sentence leaves": [[0, 1, 1, 5, 4, 3], [4, 3, 3], [2, 0, 1]],
    "the last leaves, and nothing moves": [[0, 1, 2, 3, 4, 5], [0, 1, 2], [0, 1, 2]],
    "one leaves while all are alike": [[3, 3, 3], [2, 1, 0], [1, 1, 1]],
}


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2])
@pytest.mark.parametrize("codes", [False, True], ids=["text", "codes"])
@pytest.mark.parametrize("orders", SEARCHES.values(), ids=SEARCHES)
def test_beams_that_share_a_source_are_as_rows_with_one_each(orders: list[list[int]], codes: bool, prompt: int):
    model = small_model()
    arguments = net_input(load_case("c1_image_text"))
    arguments.pop("prev_output_tokens")
    encoded = model.encoder(**arguments)
    assert encoded["encoder_padding_mask"][0].shape[0] == 2
    first = 20 if codes else 4
    draw = torch.Generator().manual_seed(sum(map(sum, orders)))
    tokens = torch.tensor([[0, 7][:prompt]] * 6)
    state: dict[str, Any] = {}
    kept = []
    for order in [None, *orders]:
        if order is not None:
            rows = torch.tensor(order)
            if len(rows) < len(tokens):
                encoded = model.encoder.reorder_encoder_out(encoded, rows[::3] // 3)
            model.decoder.reorder_incremental_state_scripting(state, rows)
            new = torch.randint(first, first + 8, (len(rows), 1), generator=draw)
            tokens = torch.cat([tokens[rows], new], 1)
        masks = torch.full((len(tokens),), codes)
        # its last position only, since a search has thrown the earlier ones away
        step, extra = model.decoder(tokens, masks, encoded, state, alignment_layer=-1)
        each = model.encoder.reorder_encoder_out(encoded, torch.arange(len(tokens)) // 3)
        full, whole = model.decoder(tokens, masks, each, alignment_layer=-1)
        torch.testing.assert_close(step[:, -1], full[:, -1], **INCREMENTAL)
        torch.testing.assert_close(extra["attn"][0][:, -1], whole["attn"][0][:, -1], **INCREMENTAL)
        shared, _ = model.decoder(tokens, masks, encoded)
        torch.testing.assert_close(shared, full, **INCREMENTAL)
        kept.append([buffer.data_ptr() for pair in state["ofa"]._target.values() for buffer in pair])
    left = len({len(order) for order in ([0] * 6, *orders)}) - 1
    assert len({tuple(pointers) for pointers in kept}) == 1 + left  # written once; copied when a sentence leaves


@torch.no_grad()
def test_a_long_search_outgrows_its_buffers():
    model = small_model()
    arguments = net_input(load_case("c1_image_text"))
    arguments.pop("prev_output_tokens")
    encoded = model.encoder(**arguments)
    draw = torch.Generator().manual_seed(3)
    tokens, state = torch.zeros(4, 1, dtype=torch.int64), {}
    for _ in range(40):
        step, _ = model.decoder(tokens, encoder_out=encoded, incremental_state=state)
        order = torch.tensor([0, 2]).repeat_interleave(2) + torch.randint(0, 2, (4,), generator=draw)
        model.decoder.reorder_incremental_state_scripting(state, order)
        tokens = torch.cat([tokens[order], torch.randint(4, 12, (4, 1), generator=draw)], 1)
    full, _ = model.decoder(tokens[:, :-1], encoder_out=encoded)
    torch.testing.assert_close(step[order, -1], full[:, -1], **INCREMENTAL)


def test_text_and_codes_do_not_share_a_source():
    model = small_model()
    encoded = model.encoder(torch.tensor([[0, 5, 2]]))
    with pytest.raises(ValueError, match="rows that share a source write text, or image codes, all of them"):
        model.decoder(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([True, False]), encoded)


def test_a_used_up_incremental_state_is_refused():
    model = small_model()
    encoded = model.encoder(torch.tensor([[0, 5, 2]]))
    state: dict[str, dict[str, Tensor]] = {}
    tokens = torch.tensor([[0, 7]])
    model.decoder(tokens, encoder_out=encoded, incremental_state=state)
    with pytest.raises(ValueError, match="holds 2 positions already, and 2 tokens"):
        model.decoder(tokens, encoder_out=encoded, incremental_state=state)
