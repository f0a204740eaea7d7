"""Boxes, and boxes with names, as a grammar: each is one by construction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import UserError
from .grammar import Grammar
from .trie import Trie


class Boxes(Grammar):
    """Boxes of four bins x0 y0 x1 y1 with x0 < x1 and y0 < y1, each with a name behind it if there are names.

    A state counts the boxes so far, says which part of the next one comes, and holds the first corner or the place in
    the name. A box is begun only where it can still be ended.

    Args:
        bin0: id of the first bin.
        num_bins: N bins.
        eos: ends the answer.
        least, most: number of boxes.
        names: what a box may be called: a `Trie` (its eos stands for the end of a name), a bool[V] of the ids that a
            free name of at least one token is made of, or None.
        vocabulary: V, where there are names.

    Raises:
        UserError: there are too few bins.
    """

    NAME, END, PARTS = 4, 5, 6  # parts 0 to 3 are corners

    def __init__(
        self,
        bin0: int,
        num_bins: int,
        eos: int,
        least: int = 1,
        most: float = 1,
        names: Trie | Tensor | None = None,
        vocabulary: int = 0,
    ):
        if num_bins < 2:
            raise UserError(f"--num-bins {num_bins}: a box needs at least two")
        self.bin0, self.num_bins, self.eos, self.least, self.most = bin0, num_bins, eos, least, most
        self.names, self.vocabulary = names, vocabulary
        closed = names is not None and not isinstance(names, Tensor)
        # tokens that a box needs until it may end; a free name may be cut after its first
        self._room = 4 + (int(names.longest) if closed else int(names is not None))
        self._inner = max(num_bins**2, names.lost + 1 if closed else 2)  # numbers that a state holds beside the part
        self._tokens = torch.tensor([[*range(bin0, bin0 + num_bins), eos]])
        self.shortest = least * (4 + (names is not None))
        self.longest = 4 * most if names is None else math.inf  # names end where the room does

    def step(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """See `Grammar.step`."""
        count, part, inner = self._parts(nodes)
        number = tokens - self.bin0
        value = number.clamp(0, self.num_bins - 1)  # a row that has no way on gets some other token
        begins = (part == self.NAME) & (number == value)
        part, inner = torch.where(begins, 0, part), torch.where(begins, 0, inner)
        moved = torch.where(part == 0, value * self.num_bins, torch.where(part == 1, inner + value, inner))
        last = part == 3
        behind = part + 1
        if self.names is None:
            behind = torch.where(last, 0, behind)
            moved = torch.where(last, 0, moved)
        else:
            name = torch.ones_like(inner) if isinstance(self.names, Tensor) else self.names.step(inner, tokens)
            moved = torch.where(last, 0, torch.where(part == self.NAME, name, moved))
            behind = torch.where(part == self.NAME, self.NAME, behind)
        state = ((count + last) * self.PARTS + behind) * self._inner + moved
        return torch.where((tokens == self.eos) | (part == self.END), self.END * self._inner, state)

    def followers(self, nodes: Tensor, level: int = 0, left: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """See `Grammar.followers`."""
        count, part, inner = (value.unsqueeze(1) for value in self._parts(nodes))  # [R, 1]
        left = torch.full_like(count, 2**31) if left is None else left.unsqueeze(1)
        tokens = self._tokens = self._tokens.to(nodes.device)
        values = tokens[:, :-1] - self.bin0  # [1, N]
        done = part == 0 if self.names is None else (part == 0) & (count == 0)
        if self.names is not None:
            needed = (self.least - count).clamp(min=0) * self._room  # tokens of the boxes that must still come
            ways, named = self._names(inner.squeeze(1), part == self.NAME, left - needed)
            done = done | named
        begins = done & (count < self.most) & (left >= self._room)
        first = begins | (part == 1)
        bins = torch.where(part == 2, values > inner // self.num_bins, values > inner % self.num_bins)
        bins = torch.where(first, values < self.num_bins - 1, bins & ((part == 2) | (part == 3)))
        ends = done & ((count >= self.least) | ~begins)
        if self.names is None:
            return tokens, torch.cat([bins, ends], 1)
        ways[:, self.bin0 : self.bin0 + self.num_bins] = bins
        ways[:, self.eos : self.eos + 1] = ends
        return None, ways

    def _parts(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes so far, the part that comes next, and what it must know."""
        place = nodes // self._inner
        return place // self.PARTS, place % self.PARTS, nodes % self._inner

    def _names(self, inner: Tensor, naming: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """bool[R, V], which ids go on with a name, and bool[R, 1], whether it may end here.

        Args:
            inner: int64[R], the places in the names.
            naming: bool[R, 1], whether a name is being written.
            left: int64[R, 1], tokens that there is room for.
        """
        if isinstance(self.names, Tensor):
            words = self.names = self.names.to(inner.device)
            begun = (inner > 0).unsqueeze(1)
            return words & naming & (~begun | (left > 0)), naming & begun
        tokens, there = self.names.followers(torch.where(naming.squeeze(1), inner, 0))
        ways = there.new_zeros(len(inner), self.vocabulary)
        ways.scatter_(1, tokens, there & naming)
        return ways, ways[:, self.eos : self.eos + 1].clone()
