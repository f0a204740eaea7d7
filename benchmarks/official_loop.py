"""A search step as official OFA computes it, spelled out over a model of ours: the baseline of `bench_generation.py`.

The weights are the same and so are the results. What it does as official unify_transformer.py does: every beam has its
own copy of the encoder's output and of its positions, moved at every step; keys of the source's positions are projected
for every beam at every step; the position bias of the whole prefix is computed and its last row kept; keys and values
of the target are moved with the beams; the attention weights are written out.
"""

from __future__ import annotations

from typing import Any

import torch
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from ofa_plugin.models.ofa.model import OFAModel
from ofa_plugin.models.ofa.position import split_heads


class OfficialEncoder(nn.Module):
    """Our encoder, whose positions are a matrix of their own for each row."""

    def __init__(self, model: OFAModel):
        super().__init__()
        self._model = (model,)  # in a tuple it is no submodule

    def forward_torchscript(self, net_input: dict[str, Any]) -> dict[str, list[Tensor]]:
        """Stock's entry."""
        out = self._model[0].encoder.forward_torchscript(net_input)
        return {**out, "position_embeddings": [x.contiguous() for x in out["position_embeddings"]]}

    def reorder_encoder_out(self, out: dict[str, list[Tensor]], order: Tensor) -> dict[str, list[Tensor]]:
        """Moves everything."""
        return {
            **out,
            "encoder_out": [x.index_select(1, order) for x in out["encoder_out"]],
            "encoder_padding_mask": [x.index_select(0, order) for x in out["encoder_padding_mask"]],
            "position_embeddings": [x.index_select(0, order) for x in out["position_embeddings"]],
        }


class OfficialDecoder(FairseqIncrementalDecoder):
    """Our decoder's layers, text only, a step at a time."""

    def __init__(self, model: OFAModel):
        super().__init__(model.decoder.dictionary)
        self._own = (model.decoder,)

    def forward(
        self, tokens: Tensor, encoder_out: dict[str, list[Tensor]], incremental_state: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """float[R, 1, V], the logits behind tokens int64[R, T]."""
        own, length = self._own[0], tokens.shape[1]
        rows = len(tokens)
        state = incremental_state.setdefault("official", {})
        source = encoder_out["encoder_out"][0].transpose(0, 1)  # [R, S, D]
        hidden = torch.zeros_like(encoder_out["encoder_padding_mask"][0], dtype=source.dtype)
        hidden = hidden.masked_fill(encoder_out["encoder_padding_mask"][0], -torch.inf)[:, None, None]
        places = own.pos_ln(own.embed_positions.weight[:length].expand(rows, -1, -1))
        scale = own.position_scale
        queries = split_heads(own.self_pos_q_linear(places), own.heads) * scale
        absolute = queries @ split_heads(own.self_pos_k_linear(places), own.heads).transpose(-1, -2)  # [R, H, T, T]
        queries = split_heads(own.cross_pos_q_linear(places), own.heads) * scale
        keys = split_heads(own.cross_pos_k_linear(encoder_out["position_embeddings"][0]), own.heads)
        cross = (queries @ keys.transpose(-1, -2))[:, :, -1:]  # [R, H, 1, S]
        x = own.layernorm_embedding(own.embed_tokens(tokens[:, -1:]))
        buckets = own.token_rp_bucket[:length, :length]
        for number, layer in enumerate(own.layers):
            relative = own.token_rel_pos_table_list[number](buckets).permute(2, 0, 1)  # [H, T, T]
            bias = (absolute + relative)[:, :, -1:]
            normed = layer.self_attn_layer_norm(x)
            pair = layer.self_attn.keys_and_values(normed)
            if number in state:
                pair = tuple(torch.cat([old, new], 2) for old, new in zip(state[number][:2], pair, strict=True))
                of_source = state[number][2:]
            else:
                of_source = layer.encoder_attn.keys_and_values(source)
            state[number] = *pair, *of_source
            attended = _attend(layer.self_attn, normed, *pair, bias)
            x = x + (attended if layer.self_attn_ln is None else layer.self_attn_ln(attended))
            attended = _attend(layer.encoder_attn, layer.encoder_attn_layer_norm(x), *of_source, cross + hidden)
            x = x + (attended if layer.cross_attn_ln is None else layer.cross_attn_ln(attended))
            x = layer.feed_forward(x)
        return own.output_projection(own.layer_norm(x)), {"attn": [None]}

    def reorder_incremental_state_scripting(self, incremental_state: dict[str, Any], order: Tensor) -> None:
        """Moves what the target's positions left; what the sources left is the same for all beams of a sentence."""
        state = incremental_state.get("official", {})
        for number, (keys, values, *of_source) in state.items():
            if len(of_source[0]) != len(order):
                of_source = [part.index_select(0, order) for part in of_source]
            state[number] = keys.index_select(0, order), values.index_select(0, order), *of_source

    def max_positions(self) -> int:
        """Most target tokens."""
        return self._own[0].max_positions()


class OfficialModel(nn.Module):
    """What stock's generator takes for a model."""

    def __init__(self, model: OFAModel):
        super().__init__()
        self.encoder, self.decoder = OfficialEncoder(model), OfficialDecoder(model)

    def max_decoder_positions(self) -> int:
        """Most target tokens."""
        return self.decoder.max_positions()

    def get_normalized_probs(self, net_output: tuple[Tensor, Any], log_probs: bool, sample: Any = None) -> Tensor:
        """Of all tokens."""
        return net_output[0].log_softmax(-1) if log_probs else net_output[0].softmax(-1)


def _attend(attention: Any, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """float[R, 1, D] of query float[R, 1, D]."""
    queries = split_heads(attention.q_proj(query), attention.heads) * attention.scale
    weights = (queries @ keys.transpose(-1, -2) + bias).float().softmax(-1).to(queries.dtype)
    out = weights @ values
    if attention.c_attn is not None:
        out = out * attention.c_attn.view(1, -1, 1, 1)
    return attention.out_proj(out.transpose(1, 2).flatten(2))
