"""A closed set of answers as a prefix tree: which tokens may follow what was generated so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Node = dict[int, "Node"]


class Trie:
    """Answers between bos and eos, each token a step down the tree.

    `next_tokens` agrees with the official utils/trie.py on every prefix, including unknown ones.

    Args:
        bos: id every path starts with.
        eos: id every path ends with.
    """

    def __init__(self, bos: int = 0, eos: int = 2):
        self.bos, self.eos = bos, eos
        self.root: Node = {}
        self.size = 0
        self.min_length, self.max_length = 0, 0  # shortest and longest answer in tokens, eos included

    @classmethod
    def from_answers(cls, answers: Iterable[Sequence[int]], bos: int = 0, eos: int = 2) -> Trie:
        """A trie of answers given as token ids without bos and eos.

        Raises:
            ValueError: there is no answer, or one of them is empty.
        """
        trie = cls(bos, eos)
        for answer in answers:
            trie.insert(answer)
        if not trie.size:
            raise ValueError("the answer set is empty")
        return trie

    def insert(self, answer: Sequence[int]) -> None:
        """Adds one answer, given without bos and eos; adding it again changes nothing.

        Raises:
            ValueError: the answer has no tokens.
        """
        if not len(answer):
            raise ValueError("an answer has no tokens")
        node = self.root
        for token in [*(int(token) for token in answer), self.eos]:
            new = token not in node
            node = node.setdefault(token, {})
        if new:
            length = len(answer) + 1
            self.min_length = min(self.min_length, length) if self.size else length
            self.max_length = max(self.max_length, length)
            self.size += 1

    def __len__(self) -> int:
        """Number of different answers."""
        return self.size

    def next_tokens(self, prefix: Sequence[int]) -> list[int]:
        """Ids that may follow `prefix` (which starts with bos), ascending.

        Nothing follows a finished answer; an unknown prefix can only end, as in the official utils/trie.py.
        """
        if not len(prefix):
            return [self.bos]
        if prefix[0] != self.bos:
            return [self.eos]
        node = self.root
        for token in prefix[1:]:
            if token not in node:
                return [self.eos]
            node = node[token]
        return sorted(node)

    def allowed(self, target: Sequence[int]) -> list[list[int]]:
        """Ids admissible at each position of a target (an answer with its eos): what the loss normalises over.

        Raises:
            ValueError: the target is not an answer of this set.
        """
        node, allowed = self.root, []
        for token in target:
            if token not in node:
                raise ValueError(f"token {token} at position {len(allowed)} continues no answer of the set")
            allowed.append(sorted(node))
            node = node[token]
        if node or not allowed:
            raise ValueError("the target ends in the middle of an answer of the set")
        return allowed
