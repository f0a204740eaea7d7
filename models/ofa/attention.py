"""Multi-head attention with an additive position bias, a factor for each head, and the decoder's key cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .position import split_heads

CACHED = 2**19
"""Attention weights that are computed together in the backward pass: 2 MB in float32."""


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

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of self-attention: float[B, S, D] to three float[B, H, S, D / H]."""
        return self._projected(x, self.q_proj, self.k_proj, self.v_proj)

    def queries(self, x: Tensor) -> Tensor:
        """float[R, T, D] to float[R, H, T, D / H]."""
        return split_heads(self.q_proj(x), self.heads)

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """float[B, S, D] to two float[B, H, S, D / H]."""
        return self._projected(source, self.k_proj, self.v_proj)

    def _projected(self, x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
        """What each layer makes of float[B, S, D], split into heads.

        In training as one product: its matrix is put together each time, which costs less than the calls it saves.
        Layers that do more than multiply, such as LoRA's, are asked one by one.
        """
        if torch.is_grad_enabled() and all(type(layer) is nn.Linear for layer in layers):
            weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
            parts = F.linear(x, weight, bias).chunk(len(layers), -1)
        else:
            parts = [layer(x) for layer in layers]
        return tuple(split_heads(part, self.heads) for part in parts)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
        padding: Tensor | None = None,
        need_weights: bool = False,
        written: Tensor | None = None,
        prefix: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends.

        Args:
            queries: float[R, H, T, D / H], from `project` or `queries`. Rows that share a source, K for each of B, are
                taken as K * T queries of it.
            keys, values: float[B, H, S, D / H], from `project` or `keys_and_values`.
            bias: float[1 or R, H, T, S], added to the logits; -inf where a query may not look.
            padding: float[B, 1, 1, S], 0 or -inf, or None.
            need_weights: also return the weights, at the price of the fused kernels.
            written: bool[N, K, K, S], whose past is whose among the rows of N sentences (`DecoderCache.mask`), or None
                where each row of `keys` is the past of that row.
            prefix: float[1 or B, H, P, D / H], keys and values that every query sees in front of the others.

        Returns:
            float[R, T, D], and float[R, H, T, S] (before dropout) or None.
        """
        rows, _, length, _ = queries.shape
        if prefix is not None:
            keys, values, bias, padding, written = _behind(prefix, keys, values, bias, padding, written)
        if rows > len(keys):
            queries = queries.unflatten(0, (len(keys), -1)).transpose(1, 2).flatten(2, 3)  # [B, H, K * T, D / H]
            bias = _folded(bias, rows // len(keys), len(keys))
        bias = bias.to(queries.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if written is not None:
            out = _among_beams(queries * self.scale, keys, values, _masked(bias, padding), written)
        elif need_weights:
            logits = self._logits(queries, keys, bias, padding)
            weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(logits.dtype)
            out = F.dropout(weights, dropout) @ values
        elif dropout == 0 and FlashWithBias.serves(queries, bias):
            out = FlashWithBias.apply(queries, keys, values, bias, padding, self.scale)
        elif dropout == 0 and bias.requires_grad and torch.is_grad_enabled() and queries.device.type == "cpu":
            # In 16 bits: what torch does for a bias that learns, less its search for rows in which nothing may come
            out = self._logits(queries, keys, bias, padding).softmax(-1) @ values
        else:
            mask = _masked(bias, padding)
            out = F.scaled_dot_product_attention(queries, keys, values, mask, dropout, scale=self.scale)
        if self.c_attn is not None:
            out = out * self.c_attn.view(1, -1, 1, 1)
        out = self.out_proj(out.transpose(1, 2).flatten(2)).view(rows, length, -1)
        if weights is not None and rows > len(keys):
            weights = weights.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)  # [B, H, K * T, S] by row
        return out, weights

    def _logits(self, queries: Tensor, keys: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """float[B, H, T, S], from queries and keys split into heads."""
        return queries * self.scale @ keys.transpose(-1, -2) + _masked(bias, padding)


class FlashWithBias(torch.autograd.Function):
    """Fused attention on the CPU for a bias that learns.

    torch's own goes back to plain matrices as soon as the bias needs a gradient, and keeps several of them of the size
    [B, H, T, S] for the backward pass. This keeps the inputs, the output and the log-sum of each query, and computes
    the weights again, a few samples at a time, so that they stay in the processor's cache.
    """

    @staticmethod
    def serves(queries: Tensor, bias: Tensor) -> bool:
        """Whether it is of use, and this torch has the operator below, which is not part of its public interface."""
        return (
            bias.requires_grad
            and torch.is_grad_enabled()
            and queries.device.type == "cpu"
            and queries.dtype in (torch.float32, torch.float64)  # 16 bits are too few to recompute the weights
            and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
        )

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, padding: Tensor | None, scale: float
    ) -> Tensor:
        """The arguments of `Attention.forward`, queries split into heads; float[B, H, T, D / H]."""
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, attn_mask=_masked(bias, padding), scale=scale
        )
        ctx.save_for_backward(queries, keys, values, bias, padding, out, log_sum)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys, values and bias."""
        queries, keys, values, bias, padding, out, log_sum = ctx.saved_tensors
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (queries, keys, values)]
        grad_bias = torch.zeros_like(bias)
        log_sum = log_sum.unsqueeze(-1).to(queries.dtype)
        inner = (grad_out * out).sum(-1, keepdim=True)
        batch, heads, rows, _ = queries.shape
        step = max(1, CACHED // (heads * rows * keys.shape[2]))
        for start in range(0, batch, step):
            part = slice(start, start + step)
            of_bias = slice(None) if len(bias) == 1 else part
            offset = bias[of_bias] - log_sum[part]
            if padding is not None:
                offset = offset + padding[part]
            q, k, v, g = (x[part].flatten(0, 1) for x in (queries, keys, values, grad_out))
            weights = torch.baddbmm(offset.flatten(0, 1), q, k.transpose(1, 2), alpha=ctx.scale).exp_()  # [N * H, T, S]
            slope = torch.baddbmm(inner[part].flatten(0, 1), g, v.transpose(1, 2), beta=-1).mul_(weights)
            torch.bmm(slope, k, out=grads[0][part].flatten(0, 1)).mul_(ctx.scale)
            torch.bmm(slope.transpose(1, 2), q, out=grads[1][part].flatten(0, 1)).mul_(ctx.scale)
            torch.bmm(weights.transpose(1, 2), g, out=grads[2][part].flatten(0, 1))
            slope = slope.unflatten(0, (-1, heads))
            grad_bias[of_bias] += slope.sum(0, keepdim=True) if len(bias) == 1 < len(slope) else slope
        return *grads, grad_bias, None, None


def _behind(
    prefix: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    padding: Tensor | None,
    written: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The arguments of `Attention.forward` with P columns in front that have no bias and are never hidden."""
    count = prefix[0].shape[2]
    keys, values = (
        torch.cat([part.to(own.dtype).expand(len(own), -1, -1, -1), own], 2)
        for part, own in zip(prefix, (keys, values), strict=True)
    )
    if written is not None:  # each row sees the copy in its own keys
        own = torch.eye(written.shape[1], dtype=torch.bool, device=written.device)[None, :, :, None]
        written = torch.cat([own.expand(len(written), -1, -1, count), written], 3)
    padding = padding if padding is None else F.pad(padding, (count, 0))
    return keys, values, F.pad(bias, (count, 0)), padding, written


def _folded(bias: Tensor, beams: int, sources: int) -> Tensor:
    """The bias of rows for the queries of their sources: float[1, B or R, H, T, S] to float[1 or B, H, K * T, S]."""
    if len(bias) == sources * beams:
        return bias.unflatten(0, (sources, beams)).transpose(1, 2).flatten(2, 3)
    return bias.repeat(1, 1, beams, 1)


def _among_beams(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, written: Tensor) -> Tensor:
    """Attention of rows whose past the rows of their sentence have written by turns; no key is moved.

    Every row looks at the keys of all K rows of its sentence and keeps, of each position, the one that is its own past.

    Args:
        queries: float[R, H, T, d], scaled.
        keys, values: float[R, H, S, d].
        bias: float[1 or R, H, T, S].
        written: bool[N, K, K, S].

    Returns:
        float[R, H, T, d].
    """
    sentences, beams = written.shape[:2]
    rows, heads, length, _ = queries.shape
    asked = queries.unflatten(0, (sentences, beams)).transpose(1, 2).flatten(2, 3).unsqueeze(1)  # [N, 1, H, K * T, d]
    keys, values = (part.unflatten(0, (sentences, beams)) for part in (keys, values))  # [N, K, H, S, d]
    logits = (asked @ keys.transpose(-1, -2)).unflatten(3, (beams, length))  # [N, writer, H, K, T, S]
    by_row = len(bias) == rows
    bias = bias.unflatten(0, (-1, beams)).transpose(1, 2) if by_row else bias.unsqueeze(2)  # [., H, K or 1, T, S]
    logits = logits + bias.unsqueeze(1)
    logits = logits.masked_fill(~written[:, :, None, :, None], -torch.inf)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = (wide - wide.amax((1, 5), keepdim=True)).exp()
    weights = (weights / weights.sum((1, 5), keepdim=True)).to(logits.dtype)
    out = (weights.flatten(3, 4) @ values).sum(1)  # [N, H, K * T, d]
    return out.unflatten(2, (beams, length)).transpose(1, 2).flatten(0, 1)


def _masked(bias: Tensor, padding: Tensor | None) -> Tensor:
    return bias if padding is None else bias + padding.to(bias.dtype)
