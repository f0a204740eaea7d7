"""The table-driven decoder of fixtures/text/generator_toy.json, and random ones like it, as fairseq models."""

from __future__ import annotations

import torch
from fairseq.data import Dictionary
from torch import Tensor, nn


class ToyEncoder(nn.Module):
    """Hands the first source token on."""

    def forward_torchscript(self, net_input):
        return {"first": [net_input["src_tokens"][:, 0]]}

    def reorder_encoder_out(self, encoder_out, new_order):
        return {"first": [encoder_out["first"][0].index_select(0, new_order)]}


class ToyDecoder(nn.Module):
    """`logits[b, t] = W[previous[b, t]] + B[t % len(B)] + S[first source token % len(S)]`."""

    def __init__(self, w: Tensor, b: Tensor, s: Tensor):
        super().__init__()
        self.w, self.b, self.s = w, b, s

    def forward(self, tokens, encoder_out=None):
        positions = torch.arange(tokens.size(1)) % len(self.b)
        return self.w[tokens] + self.b[positions] + self.s[encoder_out["first"][0] % len(self.s)].unsqueeze(1), None


class ToyModel(nn.Module):
    """An encoder-decoder whose numbers come from three tables, float[V, V], float[., V] and float[., V]."""

    def __init__(self, w: Tensor, b: Tensor, s: Tensor):
        super().__init__()
        self.encoder, self.decoder = ToyEncoder(), ToyDecoder(w, b, s)

    @classmethod
    def random(cls, vocabulary: int, seed: int, scale: float = 2.0) -> ToyModel:
        draw = torch.Generator().manual_seed(seed)
        tables = (torch.randn(rows, vocabulary, generator=draw) * scale for rows in (vocabulary, 12, 4))
        return cls(*tables)

    def max_decoder_positions(self):
        return 1024

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return torch.log_softmax(net_output[0].float(), dim=-1)


def toy_dictionary(size: int) -> Dictionary:
    """A dictionary of `size` symbols, the four specials included."""
    dictionary = Dictionary()
    for index in range(size - len(dictionary)):
        dictionary.add_symbol(f"t{index}")
    return dictionary
