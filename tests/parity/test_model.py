"""The model against numbers of the official classes: tests/fixtures/model/README.md says how they were made."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.small_model import FIXTURES, build_small, load_case, net_input, recipe_state, small_copy, small_model

pytestmark = pytest.mark.parity

STATES = 1e-4  # the README's tolerances; measured: 7e-6 on states, 1.2e-5 on logits
LOGITS = 2e-4

CASES = [  # name, every nth encoder position, every nth decoder position recorded
    ("c1_image_text", 1, 1),
    ("c2_text_only_padded", 1, 1),
    ("c2b_text_only", 1, 1),
    ("c3_code", 1, 1),
    ("c3b_mixed_code_masks", 1, 1),
    ("c4_image384", 3, 1),
    ("c4r_image192x288", 1, 1),
    ("c4o_image250x234", 1, 1),
    ("c5_padding_patchmask", 1, 1),
    ("c5b_all_patchmask_false", 1, 1),
    ("c7_long_text", 7, 11),
]

NOTHING_ON = {"scale_attn": False, "scale_fc": False, "scale_heads": False, "disable_entangle": False}
PROMPTS = {
    f"{side}_prompt{name}": value
    for side, length in (("encoder", 5), ("decoder", 7))
    for name, value in (("", True), ("_length", length))
}
PROJECTED = {
    f"{side}_prompt_{name}": value
    for side, inner in (("encoder", 24), ("decoder", 20))
    for name, value in (("projection", True), ("dim", inner))
}
VARIANTS: list[tuple[str, dict[str, Any], int]] = [  # name, flags, every nth encoder position recorded
    ("base", {}, 1),
    ("noflags", NOTHING_ON, 1),
    ("entangle", {"entangle_position_embedding": True, "disable_entangle": False}, 1),
    ("entangle_enc_only", {"entangle_position_embedding": True}, 1),
    ("scale_resids", {"scale_resids": True}, 1),
    ("resnet34", {"resnet_type": "resnet34"}, 1),
    ("resnet101", {"resnet_type": "resnet101"}, 1),
    ("freeze_resnet", {"freeze_resnet": True}, 1),
    ("sync_bn", {"sync_bn": True}, 1),
    ("heads", {"encoder_attention_heads": 8, "decoder_attention_heads": 2}, 1),
    ("buckets", {"token_bucket_size": 8, "image_bucket_size": 34, "attn_scale_factor": 3}, 1),
    ("interpolate384", {"interpolate_position": True}, 4),
    ("interpolate320x416_orig192", {"interpolate_position": True, "orig_patch_image_size": 192}, 4),
    ("interpolate256", {"interpolate_position": True}, 1),
    ("code32", {"code_image_size": 32}, 1),
    ("untied_ffn", {"decoder_ffn_embed_dim": 96}, 1),
    ("no_token_pos", {}, 1),  # the official flag changes nothing, there as here
    ("relu", {"activation_fn": "relu"}, 1),
    ("adapter", {"adapter": True, "adapter_dim": 16}, 1),
    ("prompt", PROMPTS, 1),
    ("prompt_adapter", {**PROMPTS, "adapter": True, "adapter_dim": 16}, 1),
    ("prompt_proj", {**PROMPTS, **PROJECTED}, 1),
    ("vit224", {"resnet_type": "ViT-B/16"}, 1),
    ("vit256x192", {"resnet_type": "ViT-B/16"}, 1),
]


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@torch.no_grad()
def check(model: nn.Module, case: dict[str, Tensor], encoder_step: int = 1, decoder_step: int = 1) -> None:
    arguments = net_input(case)
    encoded = model.encoder.forward_torchscript(arguments)
    previous, codes = case["in_prev_output_tokens"], case.get("in_code_masks")
    logits, _ = model.decoder(previous, code_masks=codes, encoder_out=encoded)
    close(encoded["encoder_out"][0][::encoder_step], case["out_encoder_out"], STATES)
    assert torch.equal(encoded["encoder_padding_mask"][0], case["out_encoder_padding_mask"])
    if "out_position_embeddings" in case:
        close(encoded["position_embeddings"][0], case["out_position_embeddings"], STATES)
    close(logits[:, ::decoder_step], case["out_logits"], LOGITS)


def test_recipe_gives_the_recorded_weights():
    recorded = json.loads((FIXTURES / "weights_small_check.json").read_text())
    state = small_model().state_dict()
    assert list(state) == list(recorded)
    for key, (shape, dtype, mean, norm, first, last) in recorded.items():
        values = state[key].double().flatten()
        assert (list(state[key].shape), str(state[key].dtype).removeprefix("torch.")) == (shape, dtype), key
        found = [values.mean().item(), values.norm().item(), values[0].item(), values[-1].item()]
        np.testing.assert_allclose(found, [mean, norm, first, last], rtol=1e-6, atol=1e-9, err_msg=key)


def test_index_buffers_are_the_official_ones():
    recorded = json.loads((FIXTURES / "buffers.json").read_text())
    model = small_model()
    for stack in (model.encoder, model.decoder):
        for name in ("token_rp_bucket", "image_rp_bucket"):
            digest = hashlib.sha256(getattr(stack, name).numpy().tobytes()).hexdigest()
            assert digest == recorded[name]["sha256"], name
    digest = hashlib.sha256(model.decoder.image_position_idx.numpy().tobytes()).hexdigest()
    assert digest == recorded["image_position_idx"]["sha256"]


@pytest.mark.parametrize(("name", "encoder_step", "decoder_step"), CASES)
def test_forward(name: str, encoder_step: int, decoder_step: int):
    case = load_case(name)
    if name == "c5b_all_patchmask_false":
        case["in_patch_images"] = load_case("c5_padding_patchmask")["in_patch_images"]
    check(small_model(), case, encoder_step, decoder_step)


@torch.no_grad()
def test_everything_inside_case_c1():
    case, model = load_case("c1_image_text"), small_model()
    arguments = net_input(case)
    features = model.encoder.embed_images(case["in_patch_images"])
    close(features[:, :16], case["out_resnet_features_ch0_15"], STATES)
    close(features.mean((2, 3)), case["out_resnet_features_mean_hw"], STATES)

    logits, extra = model(**arguments, alignment_layer=2)
    close(extra["attn"][0], case["out_attn"], STATES)
    for number, state in enumerate(extra["inner_states"]):
        close(state, case[f"out_decoder_inner_state_{number}"], STATES)
    close(model.get_normalized_probs((logits, extra), log_probs=True), case["out_log_probs"], LOGITS)
    close(model(**arguments, features_only=True)[0], case["out_features_only"], STATES)

    images = {key: arguments[key] for key in ("patch_images", "patch_masks")}
    encoded = model.encoder(arguments["src_tokens"], **images, return_all_hiddens=True)
    for number, state in enumerate(encoded["encoder_states"]):
        close(state[::5], case[f"out_encoder_state_{number}"], STATES)
    logits, _ = model.decoder(case["in_prev_output_tokens"], encoder_out=encoded, full_context_alignment=True)
    close(logits, case["out_logits_full_context"], LOGITS)


@torch.no_grad()
def test_token_embeddings_case_c1b():
    case, model = load_case("c1b_token_embeddings"), small_model()
    images = load_case("c1_image_text")["in_patch_images"]
    encoded = model.encoder(
        case["in_src_tokens"],
        patch_images=images,
        patch_masks=case["in_patch_masks"],
        token_embeddings=case["in_token_embeddings"],
    )
    close(encoded["encoder_out"][0][-12:], case["out_encoder_out"], STATES)
    close(model.decoder(case["in_prev_output_tokens"], encoder_out=encoded)[0], case["out_logits"], LOGITS)


@torch.no_grad()
def test_sampled_patches_case_c6(monkeypatch: pytest.MonkeyPatch):
    case, model = load_case("c6_sample_patch_num"), small_model()
    monkeypatch.setattr(model.encoder, "draw_patches", lambda rows, patches, count, seeds: case["in_patch_orders"])
    count = int(case["in_sample_patch_num"])
    arguments = net_input(case)
    previous = arguments.pop("prev_output_tokens")
    encoded = model.encoder(**arguments, sample_patch_num=count)
    close(encoded["encoder_out"][0], case["out_encoder_out"], STATES)
    close(encoded["position_embeddings"][0], case["out_position_embeddings"], STATES)
    close(model.decoder(previous, encoder_out=encoded)[0], case["out_logits"], LOGITS)


@torch.no_grad()
def test_incremental_decoding_with_reorders_case_c8():
    case, model = load_case("c8_incremental"), small_model()
    tokens = case["in_prev_output_tokens"]
    arguments = net_input(case)
    arguments.pop("prev_output_tokens")
    rows = case["in_encoder_row_of_decoder_row"]
    encoded = model.encoder.reorder_encoder_out(model.encoder(**arguments), rows)
    close(model.decoder(tokens, encoder_out=encoded)[0], case["out_full_logits"], LOGITS)

    state: dict[str, dict[str, Tensor]] = {}
    steps = []
    for step in range(tokens.shape[1]):
        if step in (4, 6):
            order = case[f"in_new_order_before_step{step}"]
            model.decoder.reorder_incremental_state_scripting(state, order)
            encoded = model.encoder.reorder_encoder_out(encoded, order)
            tokens = tokens.index_select(0, order)
        steps.append(model.decoder(tokens[:, : step + 1], encoder_out=encoded, incremental_state=state)[0])
    for first, last in ((0, 3), (4, 5), (6, 7)):
        close(torch.cat(steps[first : last + 1], 1), case[f"out_step_logits_{first}_{last}"], LOGITS)


@torch.no_grad()
def test_incremental_code_decoding_case_c8b():
    case, model = load_case("c8b_incremental_code"), small_model()
    tokens, codes = case["in_prev_output_tokens"], case["in_code_masks"]
    encoded = model.encoder(case["in_src_tokens"])
    close(model.decoder(tokens, code_masks=codes, encoder_out=encoded)[0], case["out_full_logits"], LOGITS)
    state: dict[str, dict[str, Tensor]] = {}
    for step in range(tokens.shape[1]):
        logits, _ = model.decoder(tokens[:, : step + 1], codes, encoder_out=encoded, incremental_state=state)
        close(logits[:, -1], case["out_step_logits"][:, step], LOGITS)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "classes"), [("mlp", 3), ("linear", 4)])
def test_classification_heads_case_c9(kind: str, classes: int):
    case, model = load_case("c9_classification_heads"), small_copy()
    model.cfg.pooler_classifier = kind
    name = {"mlp": "mlph", "linear": "linh"}[kind]
    model.register_classification_head(name, classes)
    model.load_state_dict(recipe_state(model))
    scores, _ = model.eval()(**net_input(case), classification_head_name=name)
    close(scores, case[f"out_{kind}"], STATES)


@pytest.mark.parametrize(("name", "flags", "encoder_step"), VARIANTS, ids=[name for name, *_ in VARIANTS])
def test_variant(name: str, flags: dict[str, Any], encoder_step: int):
    model, _ = build_small(**{"resnet_type": "resnet18", **flags})
    recorded = json.loads((FIXTURES / "variants.json").read_text())[name]
    assert sum(p.numel() for p in model.parameters()) == recorded["num_parameters"]
    state, base = model.state_dict(), base_names()
    assert len(state) == recorded["num_keys"]
    new = [key for key in recorded["keys_not_in_base"] if not key.endswith("in all")]  # how a long list is cut off
    assert [key for key in state if key not in base][: len(new)] == new
    assert [key for key in base if key not in state] == recorded["keys_missing_vs_base"]
    for key, shape in recorded["shapes_of_new_or_changed"].items():
        assert list(state[key].shape) == shape, key
    check(model, load_case(f"v_{name}"), encoder_step)


@lru_cache(maxsize=1)
def base_names() -> list[str]:
    """The names of the state dict that `variants.json` compares with."""
    return list(build_small(recipe=None, resnet_type="resnet18")[0].state_dict())


def test_every_recorded_variant_is_compared():
    recorded = {path.stem.removeprefix("v_") for path in FIXTURES.glob("v_*.npz")}
    assert recorded == {name for name, *_ in VARIANTS}


@torch.no_grad()
def test_load_save_load_leaves_logits_bit_equal(tmp_path):
    case = load_case("c5_padding_patchmask")
    before, _ = small_model()(**net_input(case))
    torch.save(small_model().state_dict(), tmp_path / "model.pt")
    model, _ = build_small(recipe=None)
    model.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(model(**net_input(case))[0], before)
