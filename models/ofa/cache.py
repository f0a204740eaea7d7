"""What the decoder keeps from one step of a search to the next."""

from __future__ import annotations

import torch
from torch import Tensor

ROOM = 16  # target positions that a buffer starts with; one that is full is doubled


class DecoderCache:
    """Keys and values of a search over K beams of each of B sentences, R = B * K rows, each written once.

    What comes from a sentence is kept once for it. What comes from a target position stays in the row that wrote it: a
    beam that goes on from another one remembers who wrote its past instead of taking it along. For inference only.

    Args:
        tokens: int64[R, T], what the rows begin with.
        sentences: B.

    Attributes:
        length: target positions kept.
        positions: keys that depend on positions only, by name; those of the source under "source".
        source: keys and values of the encoder's output, float[B, H, S, D / H] each, by layer.
        prefixes: what the decoder's prompts made for each layer, the same for all rows; None: nothing yet.
    """

    def __init__(self, tokens: Tensor, sentences: int):
        self.beams = len(tokens) // sentences
        self.length = 0
        self.positions: dict[str, Tensor] = {}
        self.source: dict[int, tuple[Tensor, Tensor]] = {}
        self.prefixes: list[tuple[Tensor, Tensor]] | None = None
        self._target: dict[int, tuple[Tensor, Tensor]] = {}  # float[R, H, room, D / H]
        self._writers: Tensor | None = None  # int64[B, K, T], the beam that wrote each position; None: each its own
        self._mask: Tensor | None = None
        # as long as the beams of a sentence are alike it does not matter whose past is whose
        by_sentence = tokens.view(sentences, self.beams, -1)
        self._alike = bool((by_sentence == by_sentence[:, :1]).all())

    def grow(self, count: int) -> None:
        """Makes room for `count` positions more, which each row writes itself."""
        self._alike = self._alike and not self.length
        self.length += count
        self._mask = None
        if self._writers is not None:
            own = torch.arange(self.beams, device=self._writers.device).view(1, -1, 1)
            self._writers = torch.cat([self._writers, own.expand(len(self._writers), -1, count)], 2)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a layer's newest positions, float[R, H, t, D / H], and returns all of them, float[R, H, T, D / H]."""
        start = self.length - keys.shape[2]
        new = keys, values
        if layer not in self._target:
            self._target[layer] = tuple(_larger(part, 0, ROOM) for part in new)
        kept = self._target[layer]
        if kept[0].shape[2] < self.length:
            room = max(2 * kept[0].shape[2], self.length)
            kept = self._target[layer] = tuple(_larger(part, start, room) for part in kept)
        for buffer, part in zip(kept, new, strict=True):
            buffer[:, :, start : self.length] = part
        return kept[0][:, :, : self.length], kept[1][:, :, : self.length]

    @property
    def mask(self) -> Tensor | None:
        """bool[B, K, K, T]: whether the first beam wrote position t of the second; None where each has its own past."""
        if self._writers is None:
            return None
        if self._mask is None:
            beams = torch.arange(self.beams, device=self._writers.device)
            self._mask = self._writers.unsqueeze(1) == beams.view(1, -1, 1, 1)
        return self._mask

    def reorder(self, order: Tensor) -> None:
        """Follows the search: its rows become `order`, int64[N], the beams of a sentence together and within it.

        Where every row is a sentence of its own, rows may go anywhere; what comes from the source then stays where it
        is while their number does, as in fairseq.
        """
        rows = len(next(iter(self._target.values()))[0])
        if len(order) == rows and torch.equal(order, torch.arange(rows, device=order.device)):
            return
        sentences = order[:: self.beams] // self.beams
        if len(order) != rows:
            self.source = {layer: _rows(pair, sentences) for layer, pair in self.source.items()}
            if "source" in self.positions and len(self.positions["source"]) > 1:
                self.positions["source"] = self.positions["source"][sentences]
        if self.beams == 1:
            self._target = {layer: _rows(pair, order) for layer, pair in self._target.items()}
            return
        own = torch.arange(self.beams, device=order.device)
        stay = (sentences.unsqueeze(1) * self.beams + own).flatten()  # the rows of these sentences, none moved
        if self._writers is not None or not (self._alike or torch.equal(order, stay)):
            if self._writers is None:
                self._writers = own.view(1, -1, 1).expand(rows // self.beams, -1, self.length)
            self._writers = self._writers.flatten(0, 1)[order].unflatten(0, (-1, self.beams))
            self._mask = None
        if len(order) != rows:
            self._target = {layer: _rows(pair, stay) for layer, pair in self._target.items()}


def _larger(part: Tensor, kept: int, room: int) -> Tensor:
    """A buffer for `room` positions, or as many as `part` has, with the first `kept` of it."""
    buffer = part.new_empty(*part.shape[:2], max(room, part.shape[2]), part.shape[3])
    buffer[:, :, :kept] = part[:, :, :kept]
    return buffer


def _rows(pair: tuple[Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    return pair[0][rows], pair[1][rows]
