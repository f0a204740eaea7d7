"""A closed set of answers as a prefix tree in arrays: which tokens may follow what was generated so far."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ...whole_file import replacing
from .grammar import Grammar

TOKEN_BITS = 31  # of a key; node numbers stand above them


def tokens_of(keys: Tensor) -> Tensor:
    """The tokens of edges, from their keys; int64 of any shape."""
    return keys & (1 << TOKEN_BITS) - 1


class Trie(Grammar):
    """Answers between bos and eos, each token a step down the tree.

    Nodes are numbered level by level from the root, 0. The edges out of a node stand together, by token, in the order
    of the nodes, so edge e leads to node e + 1, and one search in the sorted `keys` finds a step from any node. One
    node more, `lost`, is where a path lands that no answer takes: only eos follows it, as in official utils/trie.py.

    Args:
        keys: int64[E], node << 31 | token of every edge, ascending.
        ends: int64[A], the node in which each answer ends, in the order in which they were given.
        bos, eos: ids every path starts and ends with.

    Attributes:
        first: int64[E + 3], the number of edges that stand before those of each node.
        levels: the first node of each level, the root's first.
        widest: for each level, the most edges of a node there or below.
        shortest, longest: tokens of the shortest and the longest answer, without its end.
        count: number of different answers.
    """

    def __init__(self, keys: Tensor, ends: Tensor, bos: int = 0, eos: int = 2):
        self.bos, self.eos = bos, eos
        self.lost = len(keys) + 1
        self.keys = torch.cat([keys, torch.tensor([self.lost << TOKEN_BITS | eos])])
        self.ends = ends
        nodes = torch.arange(self.lost + 2, dtype=torch.int64)
        nodes <<= TOKEN_BITS  # in place, as these are the largest arrays of all
        self.first = torch.searchsorted(self.keys, nodes)
        del nodes
        counts = self.first.diff()
        self.levels = [0, 1]
        while self.levels[-1] < self.lost:  # to the nodes of a level lead the edges of the level above
            self.levels.append(int(self.first[self.levels[-1]]) + 1)
        self.levels.pop()
        self.widest = [int(counts[start:].max()) for start in self.levels]
        del counts
        shallowest, deepest = self.depth(torch.stack(ends.aminmax())).tolist()  # nodes are numbered level by level
        self.shortest, self.longest = shallowest - 1, deepest - 1
        ended = torch.zeros(self.lost + 1, dtype=torch.bool)
        ended[ends] = True
        self.count = int(ended.sum())
        self._elsewhere: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_answers(cls, answers: Iterable[Sequence[int]], bos: int = 0, eos: int = 2) -> Trie:
        """A trie of answers given as token ids without bos and eos; one that is given again is the same path.

        Level by level, so that a million answers need a few arrays of their number and no more.

        Raises:
            ValueError: there is no answer, or one of them is empty.
        """
        answers = answers if isinstance(answers, Sequence) else list(answers)
        lengths = np.fromiter(map(len, answers), np.int32, len(answers))
        if not len(lengths):
            raise ValueError("the answer set is empty")
        if not lengths.min():
            raise ValueError(f"answer {int(lengths.argmin()) + 1} of {len(lengths)} has no tokens")
        tokens = np.fromiter(chain.from_iterable(answers), np.int32, int(lengths.sum(dtype=np.int64)))
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        open_answers, node = np.arange(len(lengths)), np.zeros(len(lengths), np.int64)
        ends, edges, nodes = np.empty(len(lengths), np.int64), [], 1
        for level in range(int(lengths.max()) + 1):
            over = lengths[open_answers] == level
            node <<= TOKEN_BITS
            node[over] |= eos
            node[~over] |= tokens[starts[open_answers[~over]] + level]
            found, node = np.unique(node, return_inverse=True)
            edges.append(found)
            node += nodes
            nodes += len(found)
            ends[open_answers[over]] = node[over]
            open_answers, node = open_answers[~over], node[~over]
        del lengths, tokens, starts, open_answers, node, over
        keys = np.concatenate(edges)
        del edges, found
        return cls(torch.from_numpy(keys), torch.from_numpy(ends), bos, eos)

    @classmethod
    def read(cls, path: str | os.PathLike[str], bos: int = 0, eos: int = 2) -> Trie:
        """A trie that `write` has written.

        Raises:
            OSError: there is no such file, or it cannot be read.
            ValueError: it is not one of these.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                keys, ends = torch.from_numpy(arrays["keys"]), torch.from_numpy(arrays["ends"])
        except (zipfile.BadZipFile, EOFError, KeyError) as error:
            raise ValueError(f"{path}: {error}") from None
        return cls(keys, ends, bos, eos)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the trie as arrays; no file is there in part."""
        with replacing(path) as file:
            np.savez(file, keys=self.keys[:-1].numpy(), ends=self.ends.numpy())

    def __len__(self) -> int:
        """Number of different answers."""
        return self.count

    def next_tokens(self, prefix: Sequence[int]) -> list[int]:
        """Ids that may follow `prefix` (which starts with bos), ascending.

        Nothing follows a finished answer; an unknown prefix can only end, as in the official utils/trie.py.
        """
        if not len(prefix):
            return [self.bos]
        if prefix[0] != self.bos:
            return [self.eos]
        return self._followers(self._walk(prefix[1:])[-1])

    def allowed(self, target: Sequence[int]) -> list[list[int]]:
        """Ids admissible at each position of a target (an answer with its eos): what the loss normalises over.

        Raises:
            ValueError: the target is not an answer of this set.
        """
        nodes = self._walk(target)
        if self.lost in nodes:
            position = nodes.index(self.lost) - 1
            raise ValueError(f"token {target[position]} at position {position} continues no answer of the set")
        allowed = [self._followers(node) for node in nodes]
        if allowed.pop() or not allowed:
            raise ValueError("the target ends in the middle of an answer of the set")
        return allowed

    def step(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The nodes that one token more leads to.

        Args:
            nodes, tokens: int64[R] on any device.

        Returns:
            int64[R]; `lost` where no answer goes that way.
        """
        keys, _ = self._on(nodes.device)
        wanted = nodes << TOKEN_BITS | tokens
        edges = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
        return torch.where(keys[edges] == wanted, edges + 1, self.lost)

    def followers(self, nodes: Tensor, level: int = 0, left: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What may come next, in as many columns as the widest of the nodes needs.

        On a GPU, where to ask for that number would be to wait, they are as many as any node has from `level` on.

        Args:
            nodes: int64[R].
            level: the least that any of them stands on.
            left: not read; see `Grammar.followers`.

        Returns:
            int64[R, W] tokens, ascending, and bool[R, W], whether there is one; 0 where there is none.
        """
        keys, first = self._on(nodes.device)
        starts = first[nodes]
        counts = first[nodes + 1] - starts
        bound = self.widest[min(level, len(self.widest) - 1)]
        width = max(int(counts.max()), 1) if nodes.device.type == "cpu" else bound
        columns = torch.arange(width, device=nodes.device)
        there = columns < counts.unsqueeze(1)
        edges = torch.where(there, starts.unsqueeze(1) + columns, 0)
        return torch.where(there, tokens_of(keys[edges]), 0), there

    def depth(self, nodes: Tensor) -> Tensor:
        """int64[N]: the level of each node, int64[N], which is the number of tokens that lead to it."""
        return torch.bucketize(nodes, torch.tensor(self.levels), right=True) - 1

    def _walk(self, tokens: Sequence[int]) -> list[int]:
        """The nodes along a path from the root, the root included."""
        nodes = [0]
        for token in tokens:
            nodes.append(int(self.step(torch.tensor(nodes[-1:]), torch.tensor([int(token)]))))
        return nodes

    def _followers(self, node: int) -> list[int]:
        return tokens_of(self.keys[int(self.first[node]) : int(self.first[node + 1])]).tolist()

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`keys` and `first` there; they are sent once."""
        if device not in self._elsewhere:
            self._elsewhere[device] = self.keys.to(device), self.first.to(device)
        return self._elsewhere[device]
