"""The vision transformer that may stand in the ResNet's place: CLIP's, without class token and output projection."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import UserError
from .position import split_heads

PATCH = 16  # pixels
SIDE = 14  # patches of the position grid's side: pictures of 224 pixels
VITS: dict[str, tuple[int, int, int]] = {"ViT-B/16": (768, 9, 12)}
"""Width, layers and heads. Official models/ofa/unify_transformer.py gives ViT-B/16 nine of CLIP's twelve layers."""


class ViT(nn.Module):
    """Patches of 16 pixels, learned positions, pre-norm transformer blocks (Dosovitskiy et al. 2021, as in CLIP).

    Linear layers start as everywhere in OFA (`--linear-init`), positions from N(0, 1 / sqrt(C)), the fused projection
    from Xavier's uniform distribution, the patch convolution from torch's default (official models/ofa/vit.py).

    Args:
        kind: a name in `VITS` (`--resnet-type`).
        drop_path_rate, frozen, synchronised: the ResNet's; there is nothing here that they could mean.

    Raises:
        UserError: one of the ResNet's flags is given.
    """

    def __init__(self, kind: str, drop_path_rate: float = 0.0, frozen: bool = False, synchronised: bool = False):
        super().__init__()
        flags = {"--resnet-drop-path-rate": drop_path_rate, "--freeze-resnet": frozen, "--sync-bn": synchronised}
        if given := " and ".join(flag for flag, value in flags.items() if value):
            raise UserError(f"--resnet-type {kind} has neither drop path nor batch normalisation: leave out {given}")
        self.kind = kind
        width, layers, heads = VITS[kind]
        # the first row is the position of CLIP's class token: in the weights, but nobody reads it
        self.positional_embedding = nn.Parameter(torch.randn(SIDE * SIDE + 1, width) * width**-0.5)
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.out_channels = width

    def forward(self, images: Tensor) -> Tensor:
        """Normalised pixels to patch features.

        Args:
            images: float[B, 3, h, w].

        Returns:
            float[B, out_channels, h / 16, w / 16].

        Raises:
            UserError: a side is not a multiple of 16.
        """
        height, width = images.shape[2:]
        if height % PATCH or width % PATCH:
            raise UserError(
                f"a picture of {width}x{height} pixels does not divide into patches of {PATCH}: --resnet-type "
                f"{self.kind} needs a --patch-image-size that is a multiple of {PATCH}"
            )
        x = self.conv1(images).flatten(2).transpose(1, 2)  # [B, P, C]
        x = self.ln_pre(x + self._positions(height // PATCH, width // PATCH))
        x = self.transformer.resblocks(x)
        return x.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))

    def _positions(self, height: int, width: int) -> Tensor:
        """The learned grid, bilinearly resized to `height` x `width` patches: [P, C]."""
        grid = self.positional_embedding[1:]
        if (height, width) == (SIDE, SIDE):
            return grid
        grid = grid.t().view(1, -1, SIDE, SIDE)
        return F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)[0].flatten(1).t()


class Block(nn.Module):
    """Self-attention and a feed-forward block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        layers = (("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGELU()), ("c_proj", nn.Linear(4 * width, width)))
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, P, C] to the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SelfAttention(nn.Module):
    """The weights of `nn.MultiheadAttention` under its names, and always torch's fused attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, P, C] to the same shape."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        out = F.scaled_dot_product_attention(*(split_heads(part, self.heads) for part in projected.chunk(3, -1)))
        return self.out_proj(out.transpose(1, 2).flatten(2))


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, CLIP's stand-in for the GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x * torch.sigmoid(1.702 * x)
