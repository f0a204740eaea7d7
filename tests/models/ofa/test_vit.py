"""The vision transformer in the ResNet's place, beyond the recorded numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ofa_plugin.errors import UserError
from ofa_plugin.models.ofa import vit
from ofa_plugin.models.ofa.checkpoint import upgrade
from ofa_plugin.models.ofa.vit import SelfAttention, ViT
from tests.helpers.small_model import build_small


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """A ViT of two narrow layers, by its name."""
    monkeypatch.setitem(vit.VITS, "ViT-B/16", (32, 2, 4))
    return "ViT-B/16"


def model_with(kind: str, **flags) -> nn.Module:
    return build_small(recipe=None, resnet_type=kind, **flags)[0]


def source(*size: int) -> dict[str, torch.Tensor]:
    images = torch.randn(2, 3, *size)
    return {"src_tokens": torch.tensor([[0, 5, 2]] * 2), "patch_images": images, "patch_masks": torch.ones(2).bool()}


def test_fused_attention_is_torchs_multi_head_attention():
    ours, theirs = SelfAttention(24, 4), nn.MultiheadAttention(24, 4, batch_first=True)
    ours.in_proj_bias.data.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (256, 192), (224, 160), (64, 224)])
def test_positions_follow_the_pictures_grid(small: str, size: tuple[int, int]):
    """Official resizes by height alone, and crashes at 224 x 160."""
    backbone = ViT(small).eval()
    backbone.transformer.resblocks = nn.Identity()
    backbone.conv1.weight.zero_()
    grid = backbone.positional_embedding[1:].view(14, 14, 32).permute(2, 0, 1)
    height, width = size[0] // 16, size[1] // 16
    resized = F.interpolate(grid[None], (height, width), mode="bilinear")
    expected = F.layer_norm(resized.permute(0, 2, 3, 1), (32,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone(torch.randn(1, 3, *size)), expected)


@torch.no_grad()
def test_a_patch_becomes_a_feature_in_its_place(small: str):
    backbone = ViT(small).eval()
    backbone.transformer.resblocks = nn.Identity()
    images = torch.randn(1, 3, 64, 48)
    changed = images.clone()
    changed[:, :, 32:48, 16:32] += 1  # row 2, column 1
    moved = (backbone(changed) != backbone(images)).any(1)[0]
    assert moved.nonzero().tolist() == [[2, 1]]


def test_gradients_reach_every_weight_but_the_unused_position(small: str):
    model = model_with(small).train()
    logits, _ = model(**source(64, 80), prev_output_tokens=torch.tensor([[0, 7], [0, 8]]))
    logits.square().sum().backward()
    for name, parameter in model.encoder.embed_images.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert model.encoder.embed_images.positional_embedding.grad[0].abs().max() == 0
    assert model.encoder.image_proj.in_features == 32


def test_start_is_the_official_one():
    with torch.device("meta"):
        assert len(ViT("ViT-B/16").transformer.resblocks) == 9
    model, _ = build_small(recipe=None, resnet_type="ViT-B/16")
    backbone = model.encoder.embed_images
    block = backbone.transformer.resblocks[8]
    assert backbone.positional_embedding.std().item() == pytest.approx(768**-0.5, rel=0.02)
    assert block.attn.in_proj_weight.std().item() == pytest.approx((2 / (4 * 768)) ** 0.5, rel=0.02)  # Xavier
    for layer in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert layer.bias.abs().max() == 0
    assert block.attn.in_proj_bias.abs().max() == 0


def test_its_fused_projection_is_not_split_as_old_decoders_are(small: str):
    model = model_with(small)
    state = dict(model.state_dict())
    upgrade(model, state)
    assert list(state) == list(model.state_dict())
    assert sum("in_proj" in name for name in state) == 4


def test_weights_of_another_backbone_name_the_flag(small: str):
    with pytest.raises(UserError, match="--resnet-type"):
        model_with(small).load_state_dict(model_with("resnet_nano").state_dict())


@pytest.mark.parametrize("size", [(250, 256), (256, 250)])
def test_a_side_that_does_not_divide_into_patches_is_refused(small: str, size: tuple[int, int]):
    picture = f"{size[1]}x{size[0]} pixels does not divide into patches of 16"
    with pytest.raises(UserError, match=f"{picture}: --resnet-type ViT-B/16 needs a --patch-image-size that is"):
        model_with(small).encoder(**source(*size))


def test_a_grid_beyond_the_buckets_is_refused(small: str):
    with pytest.raises(UserError, match="pixels makes 10x4 patches, more than the model's 8 a side"):
        model_with(small, image_bucket_size=8, code_image_size=64).encoder(**source(64, 160))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"freeze_resnet": True}, "leave out --freeze-resnet$"),
        ({"sync_bn": True, "resnet_drop_path_rate": 0.1}, "leave out --resnet-drop-path-rate and --sync-bn$"),
    ],
)
def test_flags_that_only_a_resnet_can_follow_are_refused(small: str, flags: dict, named: str):
    with pytest.raises(UserError, match=named):
        model_with(small, **flags)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(small: str, dtype: torch.dtype):
    model, batch = model_with(small), source(64, 80)
    expected = model.encoder(**batch)["encoder_out"][0]
    found = model.to(dtype).encoder(**batch)["encoder_out"][0]
    assert found.dtype == dtype
    assert (found.float() - expected).abs().mean() < 0.05
