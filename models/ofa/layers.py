"""Encoder and decoder layer: pre-norm, with NormFormer's extra norms and factors, and drop path."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fairseq.utils import get_activation_fn
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention
from .cache import DecoderCache
from .config import OFAConfig
from .tuning import Adapter, Prefix


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zeroes samples (dim 0) with probability `rate` and divides the others by what is left (Huang et al. 2016)."""
    if rate == 0.0 or not training:
        return x
    keep = x.new_empty(x.shape[0], *(1 for _ in x.shape[1:])).bernoulli_(1.0 - rate)
    return x * keep.div_(1.0 - rate)


def touch(x: Tensor, modules: Iterable[nn.Module]) -> Tensor:
    """`x` unchanged, but every trained parameter of `modules` has a gradient from it: zero."""
    first = [p.flatten()[0] for module in modules for p in module.parameters() if p.requires_grad]
    return x + 0 * torch.stack(first).sum().to(x.dtype) if first else x


class Layer(nn.Module):
    """What both kinds of layer share: the configuration, the residuals and the feed-forward block."""

    def __init__(self, cfg: OFAConfig, drop_path_rate: float):
        super().__init__()
        self.dropout = cfg.dropout
        self.activation_dropout = cfg.activation_dropout
        self.activation = get_activation_fn(cfg.activation_fn) if cfg.activation_fn != "gelu" else F.gelu
        self.drop_path_rate = drop_path_rate
        self.w_resid = nn.Parameter(torch.ones(cfg.encoder_embed_dim)) if cfg.scale_resids else None
        self.adapter = Adapter(cfg.encoder_embed_dim, cfg.adapter_dim) if cfg.adapter else None

    def add(self, residual: Tensor, branch: Tensor, adapter: Adapter | None = None) -> Tensor:
        """The residual plus what dropout, an adapter and drop path make of the branch."""
        branch = F.dropout(branch, self.dropout, self.training)
        if adapter is not None:
            branch = adapter(branch)
        return residual + drop_path(branch, self.drop_path_rate, self.training)

    def feed_forward(self, x: Tensor) -> Tensor:
        """float[B, T, D] to the same shape, residual included."""
        hidden = self.activation(self.fc1(self.final_layer_norm(x)))
        hidden = F.dropout(hidden, self.activation_dropout, self.training)
        if self.ffn_layernorm is not None:
            hidden = self.ffn_layernorm(hidden)
        residual = x if self.w_resid is None else self.w_resid * x
        return self.add(residual, self.fc2(hidden), self.adapter)


class EncoderLayer(Layer):
    """Self-attention and feed-forward block."""

    def __init__(self, cfg: OFAConfig, drop_path_rate: float):
        super().__init__(cfg, drop_path_rate)
        width, inner = cfg.encoder_embed_dim, cfg.encoder_ffn_embed_dim
        self.self_attn = _attention(cfg, cfg.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.attn_ln = nn.LayerNorm(width) if cfg.scale_attn else None
        self.ffn_layernorm = nn.LayerNorm(inner) if cfg.scale_fc else None
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor | None = None, prefix: Prefix | None = None) -> Tensor:
        """One layer.

        Args:
            x: float[B, S, D].
            bias: float[1 or B, H, S, S].
            padding: float[B, 1, 1, S], 0 or -inf, or None.
            prefix: of this layer, or None.

        Returns:
            float[B, S, D].
        """
        normed = self.self_attn_layer_norm(x)
        attended, _ = self.self_attn(*self.self_attn.project(normed), bias, padding, prefix=prefix)
        if self.attn_ln is not None:
            attended = self.attn_ln(attended)
        return self.feed_forward(self.add(x, attended))


class DecoderLayer(Layer):
    """Self-attention, attention to the encoder, feed-forward block."""

    def __init__(self, cfg: OFAConfig, drop_path_rate: float):
        super().__init__(cfg, drop_path_rate)
        width, inner = cfg.decoder_embed_dim, cfg.decoder_ffn_embed_dim
        self.self_attn = _attention(cfg, cfg.decoder_attention_heads)
        self.self_attn_ln = nn.LayerNorm(width) if cfg.scale_attn else None
        self.cross_attn_ln = nn.LayerNorm(width) if cfg.scale_attn else None
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = _attention(cfg, cfg.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.ffn_layernorm = nn.LayerNorm(inner) if cfg.scale_fc else None
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        self_bias: Tensor,
        cross_bias: Tensor,
        self_padding: Tensor | None = None,
        cross_padding: Tensor | None = None,
        cache: DecoderCache | None = None,
        number: int = 0,
        need_weights: bool = False,
        prefix: Prefix | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer.

        Args:
            x: float[R, T, D]; with a cache, the new positions only.
            source: float[B, S, D], the encoder's output; K = R / B rows share each of them.
            self_bias: float[1 or R, H, T, all positions], causal mask included.
            cross_bias: float[1 or B, H, T, S].
            self_padding, cross_padding: float[R or B, 1, 1, all positions or S], 0 or -inf, or None.
            cache: keys and values of earlier positions and of the source, read and extended.
            number: this layer's, in the cache.
            need_weights: also return the attention to the source.
            prefix: of this layer's self-attention, or None.

        Returns:
            float[R, T, D], and float[R, H, T, S] or None.
        """
        normed = self.self_attn_layer_norm(x)
        queries, keys, values = self.self_attn.project(normed)
        written = None
        if cache is not None:
            keys, values = cache.extend(number, keys, values)
            written = cache.mask
        attended, _ = self.self_attn(queries, keys, values, self_bias, self_padding, written=written, prefix=prefix)
        if self.self_attn_ln is not None:
            attended = self.self_attn_ln(attended)
        x = self.add(x, attended)

        if cache is not None and number in cache.source:
            keys, values = cache.source[number]
        else:
            keys, values = self.encoder_attn.keys_and_values(source)
            if cache is not None:
                cache.source[number] = keys, values
        queries = self.encoder_attn.queries(self.encoder_attn_layer_norm(x))
        attended, weights = self.encoder_attn(queries, keys, values, cross_bias, cross_padding, need_weights)
        if self.cross_attn_ln is not None:
            attended = self.cross_attn_ln(attended)
        return self.feed_forward(self.add(x, attended)), weights


def _attention(cfg: OFAConfig, heads: int) -> Attention:
    return Attention(cfg.encoder_embed_dim, heads, cfg.attn_scale_factor, cfg.scale_heads, cfg.attention_dropout)
