"""Which weights each way of tuning trains, how it starts, and that generation sees what training does."""

from __future__ import annotations

import pytest
import torch

from ofa_plugin.errors import UserError
from ofa_plugin.models.ofa import tuning
from ofa_plugin.models.ofa.config import check
from ofa_plugin.models.ofa.packed import pack_linears
from tests.helpers.small_model import build_small, small_config

ENCODER = {"encoder_prompt": True, "encoder_prompt_length": 3}
PROMPTS = {**ENCODER, "decoder_prompt": True, "decoder_prompt_length": 4}
PROJECTED = {**PROMPTS, "encoder_prompt_projection": True, "decoder_prompt_projection": True, "decoder_prompt_dim": 9}
LORA = {"lora": 4}


def small(**flags):
    return build_small(**{"resnet_type": "resnet_nano", **flags})[0]


def batch(rows: int = 2) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "src_tokens": torch.randint(4, 300, (rows, 6), generator=generator),
        "patch_images": torch.randn(rows, 3, 32, 32, generator=generator),
        "patch_masks": torch.ones(rows, dtype=torch.bool),
        "prev_output_tokens": torch.randint(4, 300, (rows, 5), generator=generator),
    }


def moved_by_a_step(**flags) -> set[str]:
    """The names in the state dict that one step of training changes."""
    model = small(**flags).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**batch())[0].logsumexp(-1).sum().backward()
    optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("flags", "moves"),
    [
        ({"adapter": True, "adapter_dim": 8}, lambda name: ".adapter." in name),
        (PROMPTS, lambda name: "_prompt_encoder." in name),
        (ENCODER, lambda name: "encoder_prompt_encoder." in name),
        ({**PROMPTS, "adapter": True}, lambda name: ".adapter." in name or "_prompt_encoder." in name),
        (LORA, lambda name: ".lora_" in name),
        ({**LORA, "freeze_encoder": True}, lambda name: name.startswith("decoder.") and ".lora_" in name),
    ],
    ids=["adapters", "prompts", "encoder prompt", "prompts and adapters", "LoRA", "LoRA, frozen encoder"],
)
def test_exactly_the_added_weights_move(flags, moves):
    moved = moved_by_a_step(**flags)
    assert moved and moved == {name for name in small(**flags).state_dict() if moves(name)}


def test_bitfit_moves_the_biases_of_the_transformer_and_nothing_else():
    moved = moved_by_a_step(bitfit=True)
    assert all(name.endswith("bias") and "embed_images" not in name for name in moved)
    assert {
        "encoder.layers.0.self_attn.q_proj.bias",
        "decoder.layers.2.fc1.bias",
        "decoder.layers.0.cross_attn_ln.bias",
        "encoder.image_proj.bias",
        "encoder.layer_norm.bias",
    } <= moved


def test_a_frozen_backbone_keeps_weights_and_statistics_and_has_no_backward_pass():
    moved = moved_by_a_step(freeze_resnet_weights=True)
    assert moved and not any("embed_images" in name for name in moved)
    model = small(freeze_resnet_weights=True).train()
    assert not model.encoder.embed_images(batch()["patch_images"]).requires_grad
    assert any("embed_images" in name and "running_mean" in name for name in moved_by_a_step())


def test_tuned_names_are_what_moves():
    for flags in ({}, LORA, {"bitfit": True}, {"freeze_decoder": True}, {"freeze_resnet_weights": True}):
        assert moved_by_a_step(**flags) <= set(tuning.tuned_names(small(**flags)))
    assert "decoder.output_projection.weight" in tuning.tuned_names(small())
    assert not any("fc1.weight" in name for name in tuning.tuned_names(small(**LORA)))


@torch.no_grad()
@pytest.mark.parametrize("flags", [LORA, {"adapter": True}, {"lora": 2, "lora_layers": "fc1, fc2"}], ids=str)
def test_the_start_is_the_base_model_exactly(flags):
    base, (model, _) = small(), build_small(recipe=None, resnet_type="resnet_nano", **flags)
    model.load_state_dict(base.state_dict())
    assert torch.equal(model.eval()(**batch())[0], base(**batch())[0])


def test_added_weights_that_a_base_lacks_start_fresh_and_are_named(caplog):
    caplog.set_level("INFO")
    model, _ = build_small(recipe=None, resnet_type="resnet_nano", **LORA, **PROMPTS)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(small().state_dict())
    assert all(torch.equal(model.state_dict()[name], own[name]) for name in own if ".lora_" in name or "prompt" in name)
    assert "LoRA: 64 weights that the checkpoint lacks" in caplog.text and "prompts: 2 weights" in caplog.text
    partly = {name: value for name, value in model.state_dict().items() if "encoder.layers.0.fc" not in name}
    del partly["encoder.layers.0.self_attn.q_proj.lora_a"]
    with pytest.raises(UserError, match=r"missing in the checkpoint: .*lora_a"):
        model.load_state_dict(partly)


@torch.no_grad()
@pytest.mark.parametrize("flags", [PROMPTS, PROJECTED, LORA], ids=str)
def test_incremental_decoding_with_beams_is_the_full_pass(flags):
    """Two beams of each of two sentences that share their source, reordered among themselves after two steps."""
    model = small(**flags)
    given = batch()
    encoded = model.encoder.forward_torchscript({k: v for k, v in given.items()})
    tokens = torch.randint(4, 300, (4, 5))
    tokens[:, 0] = 0
    state: dict = {}
    order = torch.tensor([1, 1, 3, 2])
    for step in range(5):
        if step == 3:
            tokens = tokens[order]
            tokens[:, 3:] = torch.randint(4, 300, (4, 2))
            model.decoder.reorder_incremental_state_scripting(state, order)
        logits, _ = model.decoder(tokens[:, : step + 1], encoder_out=encoded, incremental_state=state)
        full, _ = model.decoder(tokens[:, : step + 1], encoder_out=encoded)
        torch.testing.assert_close(logits[:, -1], full[:, -1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_tree_sees_the_prompt():
    model = small(**PROMPTS)
    encoded = model.encoder.forward_torchscript(batch())
    tokens = torch.randint(4, 300, (2, 4))
    sees = torch.ones(4, 4, dtype=torch.bool).tril()
    tree = model.decoder.tree(tokens, torch.arange(4), sees, encoded)
    torch.testing.assert_close(tree, model.decoder(tokens, encoder_out=encoded, features_only=True)[0])


@torch.no_grad()
def test_packed_linears_hold_lora():
    model = small(**LORA)
    plain = model(**batch())[0]
    if pack_linears([model], "auto"):
        torch.testing.assert_close(model(**batch())[0], plain, rtol=1e-4, atol=1e-4)
    layer = model.encoder.layers[0].self_attn.q_proj
    x = torch.randn(3, 64)
    torch.testing.assert_close(torch.nn.functional.linear(x, layer.whole(), layer.bias), type(layer).forward(layer, x))


@torch.no_grad()
def test_folded_lora_computes_the_same():
    model = small(**LORA).double()
    plain = build_small(recipe=None, resnet_type="resnet_nano")[0].double()
    plain.load_state_dict(tuning.fold_lora(model.state_dict(), 16 / 4))
    torch.testing.assert_close(plain(**batch())[0], model(**batch())[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("flags", [PROMPTS, LORA, {"adapter": True}, {"bitfit": True}], ids=str)
def test_checkpointed_activations_have_the_same_gradients(flags):
    found = []
    for checkpointed in (False, True):
        model = small(**flags, checkpoint_activations=checkpointed).train()
        torch.manual_seed(5)  # prompts have dropout
        model(**batch())[0].logsumexp(-1).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], msg=name)


def test_the_share_that_is_trained_is_said():
    model = small(**LORA)
    said = tuning.describe(model, model.cfg)
    assert said.startswith("trains ") and said.endswith(": LoRA rank 4 (q, k, v, out)") and " %)" in said
    assert tuning.describe(small(), small().cfg) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"encoder_prompt": True, "encoder_prompt_type": "suffix"}, "--encoder-prompt-type suffix: there is prefix"),
        ({"decoder_prompt_length": 0}, "--decoder-prompt-length 0"),
        ({"adapter_dim": 0}, "--adapter-dim 0"),
        ({"lora": -1}, "--lora -1"),
        ({"lora": 2, "lora_layers": "q,w"}, "--lora-layers q,w"),
        ({"save_tuned_only": True, "allow_missing_weights": True}, "--save-tuned-only does not go with"),
    ],
)
def test_what_cannot_be_is_named(flags, message):
    with pytest.raises(UserError, match=message):
        check(small_config(**flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"save_tuned_only": True}, "every weight is trained"),
        ({"freeze_encoder": True, "freeze_decoder": True}, "nothing to train"),
    ],
)
def test_a_model_that_trains_all_or_nothing_is_named(flags, message):
    with pytest.raises(UserError, match=message):
        small(**flags)
