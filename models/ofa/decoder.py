"""The decoder: encoder states and previous tokens to logits, at once or token by token."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...errors import UserError
from .cache import DecoderCache
from .config import OFAConfig
from .encoder import is_shared
from .layers import DecoderLayer
from .position import RelativeTables, code_positions, image_bucket_count, image_buckets, split_heads, token_buckets
from .tuning import Prefix, prompt_encoder

CACHE = "ofa"  # the decoder's one entry in fairseq's incremental state


class Mode(NamedTuple):
    """Position information of the rows that write text, or of those that write image codes. t new of T positions."""

    positions: Tensor  # float[1, t, D], as they stand in the table
    absolute: Tensor  # float[1, H, t, T], the part of the self-attention bias that layers share, causal mask included
    cross: Tensor  # float[1 or B, H, t, S], the cross-attention bias, the same in all layers
    tables: RelativeTables
    buckets: Tensor  # int64[t, T]
    norm: nn.LayerNorm


class Decoder(FairseqIncrementalDecoder):
    """Writes text (boxes included) or image codes; the mode belongs to the row, and a batch may mix both.

    Args:
        cfg: a complete configuration (`config.resolve`).
        dictionary: fairseq Dictionary of the target.
        embed_tokens: the token matrix, shared with the encoder and the output.
    """

    shares_sources = True  # several rows may share what the encoder returned, see `forward`

    def __init__(self, cfg: OFAConfig, dictionary: Any, embed_tokens: nn.Embedding):
        super().__init__(dictionary)
        width, heads, side = cfg.decoder_embed_dim, cfg.decoder_attention_heads, cfg.image_bucket_size
        self.padding_idx = embed_tokens.padding_idx
        self.max_target_positions = cfg.max_target_positions
        self.heads = heads
        self.position_scale = (width / heads * cfg.attn_scale_factor) ** -0.5
        self.dropout = cfg.dropout
        self.layerdrop = cfg.decoder_layerdrop
        self.entangle = not cfg.disable_entangle
        self.checkpoint_activations = cfg.checkpoint_activations
        self.need_attn = False

        self.register_buffer("version", torch.tensor([3.0]))
        self.register_buffer("token_rp_bucket", token_buckets(cfg.token_bucket_size, cfg.max_target_positions))
        self.register_buffer("image_rp_bucket", image_buckets(side))
        self.register_buffer("image_position_idx", code_positions(cfg.code_image_size, side))
        self.decoder_prompt_encoder = prompt_encoder(cfg, "decoder")
        self.embed_tokens = embed_tokens
        self.layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(cfg.max_target_positions + 2, width)
        self.embed_image_positions = nn.Embedding(side * side + 1, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.self_pos_q_linear = nn.Linear(width, width)
        self.self_pos_k_linear = nn.Linear(width, width)
        self.cross_pos_q_linear = nn.Linear(width, width)
        self.cross_pos_k_linear = nn.Linear(width, width)
        self.code_layernorm_embedding = nn.LayerNorm(width)
        rates = torch.linspace(0, cfg.decoder_drop_path_rate, cfg.decoder_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(DecoderLayer(cfg, rate) for rate in rates)
        self.layer_norm = nn.LayerNorm(width)
        self.output_projection = nn.Linear(width, embed_tokens.num_embeddings, bias=False)
        self.output_projection.weight = embed_tokens.weight
        self.token_rel_pos_table_list = RelativeTables(cfg.decoder_layers, 2 * cfg.token_bucket_size - 1, heads)
        self.image_rel_pos_table_list = RelativeTables(cfg.decoder_layers, image_bucket_count(side), heads)

    def forward(
        self,
        prev_output_tokens: Tensor,
        code_masks: Tensor | None = None,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: dict[str, Any] | None = None,
        features_only: bool = False,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """Scores what may follow each previous token.

        Args:
            prev_output_tokens: int64[R, T], begins with bos, padded on the right; also with `incremental_state`, where
                only the positions that the state has not seen are computed.
            code_masks: bool[R], True where a row writes image codes; None: all write text.
            encoder_out: what the encoder returned for B sources. K = R / B rows after one another share each, such as
                the beams of a search, and then all of them write text, or all image codes.
            incremental_state: filled here and handed back at the next step.
            features_only: return the states in front of the output matrix.
            full_context_alignment: no causal mask.
            alignment_layer: return the cross-attention of this layer, -1 the last. Not asked for, it is not computed.
            alignment_heads: average only so many heads of it, the first ones.
            src_lengths, return_all_hiddens: taken for fairseq's sake; not read.

        Returns:
            float[R, t, V] (or float[R, t, D]) for the t positions computed, and
            {"attn": [float[R, t, S] or None], "inner_states": [float[t, R, D], the first layer's input, all outputs]}.

        Raises:
            UserError: more positions than the model has.
        """
        x, extra = self.extract_features(
            prev_output_tokens,
            code_masks,
            encoder_out,
            incremental_state,
            full_context_alignment,
            alignment_layer,
            alignment_heads,
        )
        return (x if features_only else self.output_layer(x)), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        code_masks: Tensor | None,
        encoder_out: dict[str, list[Tensor]],
        incremental_state: dict[str, Any] | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, list[Tensor | None]]]:
        """As `forward` with features_only."""
        source = encoder_out["encoder_out"][0].transpose(0, 1)  # [B, S, D]
        cache, start = None, 0
        if incremental_state is not None:
            if CACHE not in incremental_state:
                incremental_state[CACHE] = DecoderCache(prev_output_tokens, len(source))
            cache = incremental_state[CACHE]
            start = cache.length
        if alignment_layer is None and self.need_attn:
            alignment_layer = -1
        if alignment_layer is not None:
            alignment_layer %= len(self.layers)

        modes = self._modes(prev_output_tokens, code_masks, encoder_out, cache, start, full_context_alignment)
        if cache is not None:
            cache.grow(prev_output_tokens.shape[1] - start)
        x = self._embed(prev_output_tokens[:, start:], modes, code_masks)
        padding = _mask(prev_output_tokens.eq(self.padding_idx), x)
        cross_bias = _by_row([mode.cross for mode in modes], code_masks)
        source_padding = _mask(encoder_out["encoder_padding_mask"][0], x)
        prefixes = self._prefixes(len(x), cache)
        inner_states, attention = [x], None
        for number in range(len(self.layers)):
            if self.training and self.layerdrop > 0 and torch.rand(()).item() < self.layerdrop:
                continue
            rest = (cross_bias, padding, source_padding, cache, number, number == alignment_layer, prefixes[number])
            if self.checkpoint_activations and self.training:
                x, weights = checkpoint(self._layer, number, x, source, modes, code_masks, *rest, use_reentrant=False)
            else:
                x, weights = self._layer(number, x, source, modes, code_masks, *rest)
            if weights is not None:
                attention = weights[:, :alignment_heads].mean(1)
            inner_states.append(x)
        return self.layer_norm(x), {
            "attn": [attention],
            "inner_states": [state.transpose(0, 1) for state in inner_states],
        }

    def _embed(self, tokens: Tensor, modes: list[Mode], code_masks: Tensor | None) -> Tensor:
        """float[B, T, D], the first layer's input."""
        x = self.embed_tokens(tokens)
        if self.entangle:
            x = x + _by_row([mode.positions for mode in modes], code_masks)
        x = _by_row([mode.norm(x) for mode in modes], code_masks)
        return F.dropout(x, self.dropout, self.training)

    def tree(self, tokens: Tensor, places: Tensor, sees: Tensor, encoder_out: dict[str, list[Tensor]]) -> Tensor:
        """The states of tokens that continue one another as a tree does, all of them text.

        Args:
            tokens: int64[B, T].
            places: int64[T], the position in its target at which each of them stands, from 0.
            sees: bool[T, T], which tokens (columns) each of them follows; itself always.
            encoder_out: of B sentences.

        Returns:
            float[B, T, D], in front of the output matrix.

        Raises:
            UserError: more positions than the model has.
        """
        [mode] = self._modes(tokens.new_zeros(1, int(places.max()) + 1), None, encoder_out, None, 0, True)
        absolute = mode.absolute[:, :, places[:, None], places].masked_fill(~sees, -torch.inf)  # [1, H, T, T]
        mode = mode._replace(
            positions=mode.positions[:, places],
            absolute=absolute,
            cross=mode.cross[:, :, places],
            buckets=mode.buckets[places[:, None], places],
        )
        x = self._embed(tokens, [mode], None)
        source = encoder_out["encoder_out"][0].transpose(0, 1)
        rest = (mode.cross, None, _mask(encoder_out["encoder_padding_mask"][0], x), None)
        for number, prefix in enumerate(self._prefixes(len(x), None)):
            x, _ = self._layer(number, x, source, [mode], None, *rest, number, False, prefix)
        return self.layer_norm(x)

    def _prefixes(self, rows: int, cache: DecoderCache | None) -> list[Prefix | None]:
        """What every layer's self-attention sees in front of the target; a search computes it once."""
        if self.decoder_prompt_encoder is None:
            return [None] * len(self.layers)
        if cache is None:
            return self.decoder_prompt_encoder(rows)
        if cache.prefixes is None:
            cache.prefixes = self.decoder_prompt_encoder(rows)
        return cache.prefixes

    def output_layer(self, features: Tensor) -> Tensor:
        """float[..., D] to logits float[..., V]."""
        return self.output_projection(features)

    def _modes(
        self,
        previous: Tensor,
        code_masks: Tensor | None,
        encoder_out: dict[str, list[Tensor]],
        cache: DecoderCache | None,
        start: int,
        full_context: bool,
    ) -> list[Mode]:
        """The modes of this batch: one, or text and codes in this order."""
        length = previous.shape[1]
        if start >= length:
            raise ValueError(f"the incremental state holds {start} positions already, and {length} tokens were given")
        codes = code_masks is not None and bool(code_masks.any())
        text = not codes or not bool(code_masks.all())
        if codes and text and len(previous) > len(encoder_out["encoder_padding_mask"][0]):
            raise ValueError("rows that share a source write text, or image codes, all of them")
        limit = self.max_target_positions if text else len(self.image_position_idx)
        if length > limit:
            raise UserError(
                f"a target of {length} tokens is longer than the model's {limit} positions: shorten it with "
                "--max-tgt-length (generation: --max-len-b), or train a model with a larger --max-target-positions"
            )

        source_keys = None if cache is None else cache.positions.get("source")
        if source_keys is None:
            positions = encoder_out["position_embeddings"][0]
            positions = positions[:1] if is_shared(positions) else positions
            source_keys = split_heads(self.cross_pos_k_linear(positions), self.heads)
            if cache is not None:
                cache.positions["source"] = source_keys
        causal = None
        if not full_context and length - start > 1:
            ahead = torch.ones(length - start, length, dtype=torch.bool, device=previous.device).triu(start + 1)
            causal = torch.zeros_like(ahead, dtype=source_keys.dtype).masked_fill_(ahead, -torch.inf)

        def mode(name: str, positions: Tensor, norm: nn.LayerNorm, *rest: Any) -> Mode:
            normed = norm(positions)
            keys = split_heads(self.self_pos_k_linear(normed), self.heads)
            if cache is not None:
                if name in cache.positions:
                    keys = torch.cat([cache.positions[name], keys], 2)
                cache.positions[name] = keys
            queries = split_heads(self.self_pos_q_linear(normed), self.heads) * self.position_scale
            absolute = queries @ keys.transpose(-1, -2)
            cross = split_heads(self.cross_pos_q_linear(normed), self.heads) * self.position_scale
            cross = cross @ source_keys.transpose(-1, -2)
            return Mode(positions, absolute if causal is None else absolute + causal, cross, *rest)

        modes = []
        if text:
            positions = self.embed_positions.weight[start:length].unsqueeze(0)
            buckets = self.token_rp_bucket[start:length, :length]
            tables = self.token_rel_pos_table_list
            modes.append(mode("text", positions, self.pos_ln, tables, buckets, self.layernorm_embedding))
        if codes:
            ids = self.image_position_idx[:length]
            positions = self.embed_image_positions(ids[start:]).unsqueeze(0)
            buckets = self.image_rp_bucket[ids[start:, None], ids]
            tables, norm = self.image_rel_pos_table_list, self.code_layernorm_embedding
            modes.append(mode("codes", positions, self.image_pos_ln, tables, buckets, norm))
        return modes

    def _layer(
        self, number: int, x: Tensor, source: Tensor, modes: list[Mode], code_masks: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Runs a layer under its self-attention bias; `rest` are the arguments of `DecoderLayer.forward` after it."""
        bias = _by_row([mode.absolute + mode.tables(number, mode.buckets) for mode in modes], code_masks)
        return self.layers[number](x, source, bias, *rest)

    def for_codes(self) -> list[nn.Module]:
        """What a batch that writes no image codes does not use."""
        tables = self.image_rel_pos_table_list
        return [self.code_layernorm_embedding, self.embed_image_positions, self.image_pos_ln, tables]

    def for_text(self) -> list[nn.Module]:
        """What a batch that writes image codes only does not use."""
        return [self.layernorm_embedding, self.embed_positions, self.pos_ln, self.token_rel_pos_table_list]

    def reorder_incremental_state(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        """Follows the beams: the rows become `new_order` (int64[N]), see `DecoderCache.reorder`."""
        if CACHE in incremental_state:
            incremental_state[CACHE].reorder(new_order)

    def make_generation_fast_(self, need_attn: bool = False, **kwargs: Any) -> None:
        """fairseq's hook before generation: `--print-alignment` needs the last layer's cross-attention."""
        self.need_attn = need_attn

    def max_positions(self) -> int:
        """Most target tokens."""
        return self.max_target_positions


def _by_row(of_modes: list[Tensor], code_masks: Tensor | None) -> Tensor:
    """One mode's value, or row by row that of the row's mode: float[1 or B, ...]."""
    if len(of_modes) == 1:
        return of_modes[0]
    text, codes = of_modes
    return torch.where(code_masks.view(-1, *(1 for _ in text.shape[1:])), codes, text)


def _mask(padding: Tensor, like: Tensor) -> Tensor | None:
    """bool[B, S] to an additive float[B, 1, 1, S] of the type of `like`; None where nothing is padded."""
    if not padding.any():
        return None
    return like.new_zeros(padding.shape).masked_fill_(padding, -torch.inf)[:, None, None, :]
