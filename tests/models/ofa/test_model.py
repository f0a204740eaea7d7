"""The model's behaviour beyond its numbers: freezing, checkpointing, limits, half precision, attention on request."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ofa_plugin.errors import UserError
from ofa_plugin.models.ofa.layers import drop_path
from ofa_plugin.models.ofa.position import grid_sines
from tests.helpers.small_model import build_small, load_case, net_input, small_copy, small_model


def tiny(**flags):
    """S with the smallest backbone, at a random start."""
    return build_small(recipe=None, resnet_type="resnet_nano", **flags)[0]


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return net_input(load_case("v_base"))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("flag", ["freeze_encoder_embedding", "freeze_decoder_embedding"])
def test_freezing_either_embedding_freezes_the_one_matrix(flag: str):
    assert trained(tiny()) - trained(tiny(**{flag: True})) == {"encoder.embed_tokens.weight"}


def test_frozen_resnet_keeps_training_its_convolutions():
    model = tiny(freeze_resnet=True)
    images = [name for name in trained(model) if "embed_images" in name]
    assert images and all("conv" in name or "downsample.0" in name for name in images)
    assert "encoder.embed_images.bn1.weight" in model.state_dict()


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_frozen_stack_does_not_move(stack: str, batch: dict[str, Tensor]):
    model = tiny(**{f"freeze_{stack}": True}, dropout=0.5).train()
    frozen = getattr(model, stack)
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    assert trained(model) and not [p for p in frozen.parameters() if p.requires_grad]
    model(**batch)[0].sum().backward()
    assert not frozen.training
    assert all(torch.equal(before[key], value) for key, value in frozen.state_dict().items())


def test_checkpointed_layers_give_the_same_gradients(batch: dict[str, Tensor]):
    plain, saving = tiny(), tiny(checkpoint_activations=True)
    saving.load_state_dict(plain.state_dict())
    gradients = []
    for model in (plain.train(), saving.train()):
        model(**batch)[0].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_pad_row_starts_at_random_and_biases_at_zero():
    model = tiny()
    assert model.encoder.embed_tokens.weight[1].norm() > 0
    assert model.encoder.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.encoder.token_rel_pos_table_list[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.encoder.image_proj.bias.abs().max() == 0


def test_positions_of_patches_start_as_sines_where_asked():
    model, _ = build_small(recipe=None, image_position_init="sines", entangle_position_embedding=True)
    started = model.encoder.embed_image_positions.weight
    assert torch.equal(started, grid_sines(model.encoder.image_bucket_size, started.shape[1]))
    assert 0.015 < build_small(recipe=None)[0].encoder.embed_image_positions.weight.std() < 0.025


def test_attention_is_returned_on_request_only(batch: dict[str, Tensor]):
    model = small_copy()
    assert model(**batch)[1]["attn"] == [None]
    (last,) = model(**batch, alignment_layer=2)[1]["attn"]
    assert last.shape == (2, 7, 64 + 9)
    torch.testing.assert_close(last.sum(-1), torch.ones(2, 7))
    (head,) = model(**batch, alignment_layer=-1, alignment_heads=1)[1]["attn"]
    assert not torch.allclose(head, last)
    model.make_generation_fast_(need_attn=True)  # fairseq-generate --print-alignment
    torch.testing.assert_close(model(**batch)[1]["attn"][0], last, rtol=0, atol=1e-5)  # and convolutions are folded


def test_asking_for_attention_changes_no_logits(batch: dict[str, Tensor]):
    model = small_model()
    torch.testing.assert_close(model(**batch, alignment_layer=0)[0], model(**batch)[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_float_pictures(dtype: torch.dtype, batch: dict[str, Tensor]):
    model = small_copy()
    expected = model(**batch)[0].log_softmax(-1)
    logits, extra = model.to(dtype)(**batch)
    assert logits.dtype == dtype
    found = model.get_normalized_probs((logits, extra), log_probs=True)
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < (0.05 if dtype == torch.float16 else 0.5)


def test_too_long_source_names_its_flags():
    with pytest.raises(UserError, match="source of 1025 tokens .*1024 positions.*--max-src-length.*--max-source-pos"):
        small_model().encoder(torch.zeros(1, 1025, dtype=torch.long))


def test_too_long_target_names_its_flags():
    encoded = small_model().encoder(torch.tensor([[0, 5, 2]]))
    with pytest.raises(UserError, match="target of 1025 tokens .*1024 positions.*--max-tgt-length.*--max-target-pos"):
        small_model().decoder(torch.zeros(1, 1025, dtype=torch.long), encoder_out=encoded)


def test_too_large_picture_names_its_flags():
    arguments = {"patch_images": torch.zeros(1, 3, 256, 288), "patch_masks": torch.tensor([True])}
    named = "288x256 pixels makes 18x16 patches.*16 a side.*--patch-image-size to at most 256.*--image-bucket-size"
    with pytest.raises(UserError, match=named):
        tiny(image_bucket_size=16).encoder(torch.tensor([[0, 2]]), **arguments)


def test_pictures_need_their_masks():
    with pytest.raises(ValueError, match="patch_masks"):
        small_model().encoder(torch.tensor([[0, 2]]), patch_images=torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="patch_images_2"):
        small_model().encoder(torch.tensor([[0, 2]]), patch_images_2=torch.zeros(1, 3, 32, 32))


def test_sampled_patches_are_distinct_and_follow_torchs_seed(batch: dict[str, Tensor]):
    encoder = small_model().encoder
    drawn = encoder.draw_patches(5, 64, 20)
    assert drawn.shape == (5, 20)
    assert all(len(set(row)) == 20 for row in drawn.tolist())
    torch.manual_seed(0)  # as it was before the test
    assert torch.equal(encoder.draw_patches(5, 64, 20), drawn)
    del batch["prev_output_tokens"]
    assert encoder(**batch, sample_patch_num=20)["encoder_out"][0].shape == (20 + 9, 2, 64)


@torch.no_grad()
@pytest.mark.parametrize("keep", [64, 196])
def test_patches_that_all_stay_are_not_drawn(keep: int, batch: dict[str, Tensor]):
    """Another order, from a generator that differs between ranks, would round differently, and cost a bias a row."""
    encoder = small_model().encoder
    del batch["prev_output_tokens"]
    state = torch.get_rng_state()
    kept, whole = encoder(**batch, sample_patch_num=keep), encoder(**batch)
    assert torch.equal(kept["encoder_out"][0], whole["encoder_out"][0])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_row_keeps_the_same_patches_in_whatever_batch():
    encoder = tiny().encoder
    seeds = torch.tensor([5, 7, 5])
    drawn = encoder.draw_patches(3, 64, 20, seeds)
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    torch.manual_seed(1)
    assert torch.equal(encoder.draw_patches(1, 64, 20, seeds[1:2])[0], drawn[1])
    assert all(len(set(row)) == 20 and set(row) <= set(range(64)) for row in drawn.tolist())


@torch.no_grad()
def test_rows_that_share_a_picture_are_encoded_as_if_each_had_its_own(batch: dict[str, Tensor]):
    encoder = tiny().encoder
    del batch["prev_output_tokens"]
    rows = torch.tensor([1, 1])
    own = encoder(**{**batch, "patch_images": batch["patch_images"][rows]})
    shared = encoder(**{**batch, "patch_images": batch["patch_images"][1:]}, image_rows=rows - 1)
    torch.testing.assert_close(shared["encoder_out"][0], own["encoder_out"][0])


@torch.no_grad()
@pytest.mark.parametrize("keep", [20, 40])
def test_sampled_patches_keep_their_place_in_a_stretched_grid(
    keep: int, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
):
    """Official crashes above as many patches as the pretrained grid has; up to them it takes the plain table."""
    encoder = tiny(interpolate_position=True, orig_patch_image_size=80).encoder  # 25 of 64 patches
    del batch["prev_output_tokens"]
    whole = encoder(**batch)["position_embeddings"][0][:, :64]
    chosen = encoder.draw_patches(2, 64, keep)
    monkeypatch.setattr(encoder, "draw_patches", lambda rows, patches, count, seeds: chosen)
    sampled = encoder(**batch, sample_patch_num=keep)["position_embeddings"][0][:, :keep]
    encoder.pretrained_side = None
    plain = encoder(**batch)["position_embeddings"][0][:, :64]
    assert not torch.allclose(plain, whole, atol=1e-3)
    expected = whole if keep > 25 else plain
    torch.testing.assert_close(sampled, torch.stack([expected[row, chosen[row]] for row in range(2)]))


def test_drop_path_drops_rows_and_keeps_the_mean():
    x = torch.ones(4000, 3, 2)
    dropped = drop_path(x, 0.25, training=True)
    assert all(len(row.unique()) == 1 for row in dropped)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    assert drop_path(x, 0.25, training=False) is x


def test_regularised_training_step_runs(batch: dict[str, Tensor]):
    rates = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "resnet_drop_path_rate": 0.1}
    rates |= {"encoder_drop_path_rate": 0.2, "decoder_drop_path_rate": 0.2}
    rates |= {"encoder_layerdrop": 0.3, "decoder_layerdrop": 0.3}
    model = tiny(**rates).train()
    logits, _ = model(**batch)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["pictures and text", "text", "codes", "pictures and codes"])
def test_in_training_every_parameter_gets_a_gradient(kind: str, batch: dict[str, Tensor]):
    """Else data-parallel ranks with other kinds of batches would wait for each other for ever."""
    if "pictures" not in kind:
        batch = {name: value for name, value in batch.items() if not name.startswith("patch")}
    if "codes" in kind:
        batch["code_masks"] = torch.ones(2, dtype=torch.bool)
    model = tiny().train()
    model.register_classification_head("unused", 3)
    model(**batch)[0].square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without
    idle = {"text": "encoder.image_proj.weight", "codes": "decoder.embed_positions.weight"}.get(kind)
    if idle:
        assert not dict(model.named_parameters())[idle].grad.any()


def test_skipped_layers_get_a_gradient_of_zero(batch: dict[str, Tensor]):
    model = tiny(encoder_layerdrop=1.0, decoder_layerdrop=1.0).train()
    model(**batch)[0].square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if ".layers." in name or "_table_list" in name}
    assert grads and all(grad is not None and not grad.any() for grad in grads.values())


def test_frozen_parameters_stay_untouched(batch: dict[str, Tensor]):
    model = tiny(freeze_encoder=True).train()
    text = {name: value for name, value in batch.items() if not name.startswith("patch")}
    model(**text)[0].square().mean().backward()
    assert all(p.grad is None for p in model.encoder.parameters())


def test_logits_of_some_positions_are_those_of_all(batch: dict[str, Tensor]):
    model = small_copy().train()
    projected = []
    model.decoder.output_projection.register_forward_hook(lambda module, inputs, out: projected.append(len(inputs[0])))
    every = model(**batch)[0]
    length = every.shape[1]
    some = model(**batch, logits_at=torch.tensor([1, length, length + 2]))[0]
    torch.testing.assert_close(some, torch.stack([every[0, 1], every[1, 0], every[1, 2]]))
    assert projected == [len(every), 3]
    model(**batch, logits_at=torch.zeros(0, dtype=torch.long))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_mixture_is_each_of_its_parts(batch: dict[str, Tensor]):
    text = {name: value for name, value in batch.items() if not name.startswith("patch")}
    model = small_copy()
    with torch.no_grad():
        outputs = model(parts={"pictures": batch, "text": text})
        assert list(outputs) == ["pictures", "text"]
        assert torch.equal(outputs["pictures"][0], model(**batch)[0])
        assert torch.equal(outputs["text"][0], model(**text)[0])
