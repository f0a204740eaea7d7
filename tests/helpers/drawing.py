"""A builder whose examples are random draws: shows what randomness depends on. Spawned workers import it from here."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ofa_plugin.data.builder import Builder, Row
from ofa_plugin.data.example import Example


class DrawingBuilder(Builder):
    """Yields a source of six random ids between bos and eos."""

    columns = ("image", "label")

    def examples(self, index: int, row: Row, draw: np.random.Generator) -> Iterator[Example]:
        """Yields the one example of a row."""
        drawn = torch.from_numpy(draw.integers(10, 1_000_000, size=6))
        yield self.example(index, str(index), source=drawn, target=self.target(" a"))
