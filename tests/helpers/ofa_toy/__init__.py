"""A user-dir for the tests of `compat`: copies short sequences; with the cures, less those named in $WITHOUT.

Two models: `toy_flat`, with a dataclass, and `toy_legacy`, whose settings are pickled as an argparse.Namespace.
"""

# no `from __future__ import annotations`: fairseq's parser needs the configuration's types as types, not as text
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset
from fairseq.data.data_utils import collate_tokens
from fairseq.dataclass import FairseqDataclass
from fairseq.models import (
    FairseqDecoder,
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    register_model,
    register_model_architecture,
)
from fairseq.scoring import BaseScorer, register_scorer
from fairseq.tasks import FairseqTask, register_task
from torch import nn

from tests.helpers import without  # noqa: F401


@register_scorer("toy_exact", dataclass=FairseqDataclass)  # stock cannot do without one
class ExactScorer(BaseScorer):
    def score(self):
        return sum(a == b for a, b in zip(self.ref, self.pred, strict=True))

    def result_string(self):
        return f"exact {self.score()} of {len(self.ref)}"


class Rows(FairseqDataset):
    """`count` rows of four random symbols, target equal to source."""

    def __init__(self, count, dictionary):
        draw = np.random.default_rng(count)
        self.rows = torch.from_numpy(draw.integers(dictionary.nspecial, len(dictionary), (count, 4)))
        self.dictionary = dictionary

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"id": index, "tokens": torch.cat([self.rows[index], torch.tensor([self.dictionary.eos()])])}

    def collater(self, samples):
        if not samples:
            return {}
        pad, eos = self.dictionary.pad(), self.dictionary.eos()
        tokens = [sample["tokens"] for sample in samples]
        source = collate_tokens(tokens, pad, eos)
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "ntokens": source.numel(),
            "nsentences": len(samples),
            "target": source,
            "net_input": {
                "src_tokens": source,
                "src_lengths": torch.full((len(samples),), source.size(1)),
                "prev_output_tokens": collate_tokens(tokens, pad, eos, move_eos_to_beginning=True),
            },
        }

    def num_tokens(self, index):
        return 5

    def size(self, index):
        return 5, 5

    def ordered_indices(self):
        return np.arange(len(self))

    def filter_indices_by_size(self, indices, max_sizes):
        return indices, []

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        return [indices[start : start + max_sentences] for start in range(0, len(indices), max_sentences)]


@dataclass
class ToyTaskConfig(FairseqDataclass):
    data: Optional[str] = field(default=None, metadata={"help": "anything"})  # noqa: UP045


@register_task("toy_copy", dataclass=ToyTaskConfig)
class ToyTask(FairseqTask):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.dictionary = Dictionary()
        for letter in "abcdefgh":
            self.dictionary.add_symbol(letter)

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        return cls(cfg)

    @property
    def source_dictionary(self):
        return self.dictionary

    @property
    def target_dictionary(self):
        return self.dictionary

    def load_dataset(self, split, **kwargs):
        self.datasets[split] = Rows(16 if split.startswith("train") else 6, self.dictionary)

    def max_positions(self):
        return 64, 64


class Encoder(FairseqEncoder):
    def __init__(self, dictionary, width):
        super().__init__(dictionary)
        self.embed = nn.Embedding(len(dictionary), width)

    def forward(self, src_tokens, src_lengths=None):
        return {"states": self.embed(src_tokens)}

    def reorder_encoder_out(self, encoder_out, new_order):
        return {"states": encoder_out["states"].index_select(0, new_order)}

    def max_positions(self):
        return 64


class Decoder(FairseqDecoder):
    def __init__(self, dictionary, width):
        super().__init__(dictionary)
        self.embed = nn.Embedding(len(dictionary), width)
        self.project = nn.Linear(width, len(dictionary))

    def forward(self, prev_output_tokens, encoder_out=None, **kwargs):
        states = self.embed(prev_output_tokens) + encoder_out["states"].mean(1, keepdim=True)
        return self.project(states), {"attn": [None]}

    def max_positions(self):
        return 64


@dataclass
class ToyConfig(FairseqDataclass):
    width: int = field(default=8, metadata={"help": "of everything"})


@register_model("toy_flat", dataclass=ToyConfig)
class ToyModel(FairseqEncoderDecoderModel):
    @classmethod
    def build_model(cls, cfg, task):
        return cls(Encoder(task.dictionary, cfg.width), Decoder(task.dictionary, cfg.width))


@register_model("toy_legacy")
class LegacyToyModel(ToyModel):
    @staticmethod
    def add_args(parser):
        parser.add_argument("--width", type=int)


@register_model_architecture("toy_legacy", "toy_legacy_8")
def toy_legacy_8(args):
    args.width = getattr(args, "width", None) or 8
