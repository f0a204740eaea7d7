"""What a search may write, as states and the tokens between them.

A grammar says of every hypothesis, from the state that it carries, which tokens may come next, and what state each of
them leads to: arithmetic on whole batches, on the device of the search. `Trie` and `Boxes` are others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Grammar:
    """Everything may follow everything; what a grammar is asked for.

    Attributes:
        shortest, longest: tokens of the shortest and the longest answer, without its end.
        count: number of different answers.
    """

    shortest: int = 0
    longest: float = math.inf
    count: float = math.inf

    def step(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The states that one token more leads to; a search begins in state 0.

        Args:
            nodes, tokens: int64[R] on any device.
        """
        raise NotImplementedError

    def followers(self, nodes: Tensor, level: int = 0, left: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """What may come next.

        Args:
            nodes: int64[R].
            level: the least number of tokens that any of them has behind it.
            left: int64[R], tokens that each may still write before its end must come; None: any number.

        Returns:
            int64[R, W] tokens, int64[1, W] where they are the same for all, or None: all ids in their order; and
            bool[R or 1, W], which of them may come.
        """
        raise NotImplementedError


class Range(Grammar):
    """Ids start <= id < end, in any number.

    Args:
        start, end: of the ids.
        others: ids that may come besides. The official `--constraint-range` lets all four special ones, which reach
            into every probability; an end alone is what is meant.
    """

    def __init__(self, start: int, end: int, others: Sequence[int] = (2,)):
        self._tokens = torch.tensor([[*others, *range(start, end)]])

    def step(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """There is one state."""
        return nodes

    def followers(self, nodes: Tensor, level: int = 0, left: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same for all."""
        tokens = self._tokens = self._tokens.to(nodes.device)
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
