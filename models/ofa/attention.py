"""Multi-head attention with an additive position bias, a factor for each head, and the decoder's key cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .position import split_heads


class Attention(nn.Module):
    """Attention of OFA: logits are scaled by 1 / sqrt(2 * head width) and biased by position.

    Args:
        width: D.
        heads: H.
        scale_factor: the 2 above (`--attn-scale-factor`).
        scale_heads: a learned factor for the output of each head (NormFormer, Shleifer et al. 2021).
        dropout: on the attention weights.
    """

    def __init__(self, width: int, heads: int, scale_factor: float, scale_heads: bool, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.scale = (width / heads * scale_factor) ** -0.5
        self.dropout = dropout
        self.c_attn = nn.Parameter(torch.ones(heads)) if scale_heads else None
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, S, D] to two float[B, H, S, D / H]."""
        return split_heads(self.k_proj(source), self.heads), split_heads(self.v_proj(source), self.heads)

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends.

        Args:
            query: float[B, T, D].
            keys, values: float[B, H, S, D / H], from `keys_and_values`.
            bias: float[1 or B, H, T, S], added to the logits; -inf where a query may not look.
            need_weights: also return the weights, at the price of the fused kernels.

        Returns:
            float[B, T, D], and float[B, H, T, S] (before dropout) or None.
        """
        queries = split_heads(self.q_proj(query), self.heads)
        bias = bias.to(queries.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = queries * self.scale @ keys.transpose(-1, -2) + bias
            weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype)
            out = F.dropout(weights, dropout) @ values
        else:
            out = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=bias, dropout_p=dropout, scale=self.scale
            )
        if self.c_attn is not None:
            out = out * self.c_attn.view(1, -1, 1, 1)
        return self.out_proj(out.transpose(1, 2).flatten(2)), weights
