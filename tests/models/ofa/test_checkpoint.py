"""Loading what other people saved."""

from __future__ import annotations

import copy
import logging
import re

import pytest
import torch
from torch import Tensor

from ofa_plugin.errors import UserError
from tests.helpers.small_model import build_small, small_copy, small_model

TOKENS = "encoder.embed_tokens.weight"
TIED = (TOKENS, "decoder.embed_tokens.weight", "decoder.output_projection.weight")


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {key: value.clone() for key, value in small_model().state_dict().items()}


def fresh(**flags):
    return build_small(recipe=None, **flags)[0]


def assert_is_small(model) -> None:
    theirs = small_model().state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def test_upgrading_its_own_weights_changes_nothing(state: dict[str, Tensor]):
    before, random_state = copy.copy(state), torch.get_rng_state()
    small_model().upgrade_state_dict(state)
    assert list(state) == list(before)
    assert all(torch.equal(state[key], before[key]) for key in state)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_loading_leaves_the_given_dict_alone(state: dict[str, Tensor]):
    old = {f"module.{key}": value for key, value in state.items()}
    before = copy.copy(old)
    model = small_copy()
    model.load_state_dict(old)
    assert list(old) == list(before)


def test_half_precision_weights_are_cast(state: dict[str, Tensor]):
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    model = fresh()
    model.load_state_dict(half)
    loaded = model.state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32, torch.int64}
    assert torch.equal(loaded[TOKENS], state[TOKENS].half().float())


def test_module_prefix_is_taken_off(state: dict[str, Tensor]):
    model = fresh()
    model.load_state_dict({f"module.{key}": value for key, value in state.items()})
    assert_is_small(model)


def test_names_of_barts_youth_are_known(state: dict[str, Tensor]):
    for key in list(state):
        new = re.sub(r"(encoder\.layers\.\d\.)final_layer_norm", r"\1layer_norms.1", key)
        new = re.sub(r"(decoder\.layers\.\d\.)encoder_attn_layer_norm", r"\1layer_norms.1", new)
        new = re.sub(r"(decoder\.layers\.\d\.)final_layer_norm", r"\1layer_norms.2", new)
        new = re.sub(r"(layers\.\d\.)self_attn_layer_norm", r"\1layer_norms.0", new)
        state[new] = state.pop(key)
    for key in [key for key in state if "q_proj" in key]:
        parts = [state.pop(key.replace("q_proj", f"{name}_proj")) for name in "qkv"]
        state[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    assert "encoder.layers.0.self_attn.in_proj_weight" in state and "decoder.layers.2.layer_norms.2.bias" in state
    model = fresh()
    model.load_state_dict(state)
    assert_is_small(model)


@pytest.mark.parametrize("kept", TIED)
def test_one_of_the_tied_names_is_enough(kept: str, state: dict[str, Tensor]):
    for name in TIED:
        if name != kept:
            del state[name]
    model = fresh()
    model.load_state_dict(state)
    assert_is_small(model)


def test_index_buffers_are_the_models_own(state: dict[str, Tensor]):
    state["decoder.image_position_idx"] = torch.arange(1794)  # of --code-image-size 256
    del state["encoder.image_rp_bucket"], state["decoder.version"]
    model = fresh()
    model.load_state_dict(state)
    assert_is_small(model)


@pytest.mark.parametrize("frozen", [True, False])
def test_moving_and_frozen_normalisation_load_each_other(frozen: bool):
    theirs, _ = build_small(freeze_resnet=not frozen)
    ours = fresh(freeze_resnet=frozen)
    ours.load_state_dict(theirs.state_dict())
    key = "encoder.embed_images.layer2.0.bn2.running_var"
    assert torch.equal(ours.state_dict()[key], theirs.state_dict()[key])


def test_a_smaller_vocabulary_grows_the_same_way_every_time(state: dict[str, Tensor], caplog):
    for name in TIED:
        state[name] = state[TOKENS][:400]
    models = [fresh(), fresh()]
    random_state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        for model in models:
            model.load_state_dict(state)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert "vocabulary grown from 400 to 469 tokens" in caplog.text
    first, second = (model.encoder.embed_tokens.weight for model in models)
    assert torch.equal(first, second)
    assert torch.equal(first[:400], state[TOKENS])
    assert first[400:].std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert models[0].decoder.output_projection.weight is models[0].encoder.embed_tokens.weight


def test_missing_image_positions_are_appended(state: dict[str, Tensor]):
    key = "decoder.embed_image_positions.weight"
    state[key] = state[key][:1000]
    model = fresh()
    model.load_state_dict(state)
    assert torch.equal(model.state_dict()[key][:1000], state[key])
    assert model.state_dict()[key][1000:].std().item() == pytest.approx(64**-0.5, rel=0.05)


def test_a_larger_vocabulary_is_refused(state: dict[str, Tensor]):
    state[TOKENS] = torch.zeros(500, 64)
    with pytest.raises(UserError, match="knows 500 tokens, the dictionary has 469.*--bpe-dir.*--num-bins.*--code-dict"):
        fresh().load_state_dict(state)


def test_weights_under_a_foreign_prefix_are_refused(state: dict[str, Tensor]):
    total = len(state)
    foreign = {f"foo.{key}": value for key, value in state.items()}
    with pytest.raises(UserError, match=rf"0 of {total} weights matched: .*encoder.version.*found foo.encoder.version"):
        fresh().load_state_dict(foreign)
    with pytest.raises(UserError, match="0 of .* found nothing"):
        fresh().load_state_dict({})


def test_another_arch_is_refused_with_both_shapes(state: dict[str, Tensor]):
    model = fresh(encoder_ffn_embed_dim=96)
    with pytest.raises(UserError, match=r"layers\.0\.fc1\.weight is \[128, 64\] there, \[96, 64\] here.*--arch"):
        model.load_state_dict(state)
    with pytest.raises(UserError, match=r"image_rp_bucket is \[1765, 1765\] there.*--image-bucket-size"):
        fresh(image_bucket_size=34).load_state_dict(state)


def test_missing_weights_are_refused_unless_allowed(state: dict[str, Tensor], caplog):
    del state["encoder.layers.1.fc1.weight"], state["encoder.layer_norm.bias"]
    text = rf"2 of {len(state) + 2} weights are missing in the checkpoint: encoder.layers.1.fc1.weight, encoder.layer"
    with pytest.raises(UserError, match=f"{text}.*--arch.*--allow-missing-weights"):
        fresh().load_state_dict(state)
    model = fresh(allow_missing_weights=True)
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(state)
    assert re.search(text, caplog.text)
    assert torch.equal(model.state_dict()["encoder.layer_norm.weight"], state["encoder.layer_norm.weight"])


def test_unexpected_weights_are_refused(state: dict[str, Tensor]):
    for number in range(5):
        state[f"encoder.extra.{number}"] = torch.zeros(1)
    text = (
        "5 weights of the checkpoint have no place in the model: .*extra.0, encoder.extra.1, encoder.extra.2 and 2 more"
    )
    with pytest.raises(UserError, match=text):
        fresh(allow_missing_weights=True).load_state_dict(state)
    model = fresh()
    model.load_state_dict(state, strict=False)
    assert_is_small(model)


def test_unknown_classification_heads_are_left_out_and_own_ones_kept(state: dict[str, Tensor], caplog):
    state["classification_heads.theirs.out_proj.weight"] = torch.zeros(3, 64)
    model = fresh()
    model.register_classification_head("ours", 4)
    weight = model.classification_heads["ours"].dense.weight.clone()
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(state)
    assert "classification_heads.theirs.out_proj.weight: the model has no such classification head" in caplog.text
    assert torch.equal(model.classification_heads["ours"].dense.weight, weight)
