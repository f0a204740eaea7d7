"""Noise on token ids: BART's for text infilling (Lewis et al. 2020, section 2.2), and that of a decoder's input.

In infilling spans of whole words become one mask, by the rules of official `add_whole_word_mask`
(data/pretrain_data/unify_dataset.py).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from fairseq.data import Dictionary
from torch import Tensor

from ..errors import UserError

FIRST, LAST = 512, 256  # tokens of a text: see `excerpt`
SMALLEST = 1e-7  # probability at which the table of span lengths ends
LENGTHS = ("subword", "word", "span-poisson")

_SPECIALS = Dictionary().nspecial  # bos, pad, eos and unk come before a text's own tokens
_ROUNDING = 1e-6  # words; 30 * 0.1 is more than 3


def excerpt(ids: Tensor) -> Tensor:
    """What pretraining reads of a long text: of its first 512 tokens the last 256.

    A text of up to 256 tokens stays whole; of a longer one it is tokens 257 to 512, as the released checkpoints saw
    them, and what lies beyond is never read.

    Args:
        ids: int64[N], without bos and eos.

    Returns:
        int64[min(N, 256)].
    """
    return ids[:FIRST][-LAST:]


def with_random_tokens(ids: Tensor, ratio: float, stop: int, draw: np.random.Generator) -> Tensor:
    """A copy of ids with random ones among them (official `add_noise_to_tgt` of data/nlg_data/summary_dataset.py).

    Args:
        ids: int64[N].
        ratio: probability, for each of them, of being replaced.
        stop: the id behind the last that may take its place; the first is that of the first text token.
        draw: where every random choice comes from.
    """
    chosen = draw.random(len(ids)) < ratio
    others = draw.integers(_SPECIALS, stop, size=len(ids))
    return torch.from_numpy(np.where(chosen, others, ids.numpy()))


class Noised(NamedTuple):
    """A text with holes.

    Attributes:
        ids: int64[M], bos and eos at its ends.
        removed: bool[N], the positions of the clean text that are no longer in it.
    """

    ids: Tensor
    removed: Tensor


@dataclass(frozen=True)
class Noise:
    """Masks a share of a text's words.

    Spans begin at words drawn without replacement; where two overlap, the later one's mask is lost in the earlier one.
    A span without length is a mask more, somewhere between the tokens.

    Attributes:
        mask: id of `<mask>`; the text's own tokens are those before it.
        mask_ratio: share of the words that spans are drawn for, rounded up.
        mask_length: "span-poisson", spans whose length is Poisson's; "word", single words; "subword", single tokens.
        poisson_lambda: mean length of a span, words.
        replace_length: what stands for a span: 1, one mask; 0, nothing; -1, a mask for each of its tokens.
        random_ratio: share of the masks that are a random token instead.

    Raises:
        UserError: naming the flag.
    """

    mask: int
    mask_ratio: float = 0.3
    mask_length: str = "span-poisson"
    poisson_lambda: float = 3.0
    replace_length: int = 1
    random_ratio: float = 0.0

    shortest_mean: ClassVar[float] = 0.1  # below, nearly every span is empty, and a text fills with insertions
    longest_mean: ClassVar[float] = 100.0

    def __post_init__(self):
        for flag, ratio in (("--mask-ratio", self.mask_ratio), ("--random-ratio", self.random_ratio)):
            if not 0 <= ratio <= 1:
                raise UserError(f"{flag} {ratio}: give a share from 0 to 1")
        if self.mask_length not in LENGTHS:
            raise UserError(f"--mask-length {self.mask_length}: choose one of {', '.join(LENGTHS)}")
        if self.replace_length not in (-1, 0, 1):
            raise UserError(
                f"--replace-length {self.replace_length}: choose 1 (a mask for a span), 0 (nothing) or -1 (a mask for "
                "each token)"
            )
        if not self.shortest_mean <= self.poisson_lambda <= self.longest_mean:
            raise UserError(
                f"--poisson-lambda {self.poisson_lambda}: give a mean span of {self.shortest_mean:g} to "
                f"{self.longest_mean:g} words"
            )

    def __call__(self, ids: Tensor, starts: Tensor, draw: np.random.Generator) -> Noised:
        """A noised copy of `ids`.

        Args:
            ids: int64[N], bos first and eos last.
            starts: bool[N], which tokens begin a word (`Codec.word_starts`). What comes before the first stays.
            draw: where every random choice comes from.
        """
        clean = ids.numpy()
        begins = np.ones(len(clean), dtype=bool) if self.mask_length == "subword" else starts.numpy().copy()
        begins[[0, -1]] = False
        firsts = np.append(np.flatnonzero(begins), len(clean) - 1)  # int64[W + 1]: where each word begins, and eos
        words = len(firsts) - 1
        budget = math.ceil(words * self.mask_ratio - _ROUNDING)
        lengths, insertions = self._spans(budget, draw)
        noised, kept, removed = clean.copy(), np.ones(len(clean), dtype=bool), np.zeros(len(clean), dtype=bool)
        for word, length in zip(draw.permutation(words)[: len(lengths)], lengths, strict=True):
            start, stop = firsts[word], firsts[min(word + length, words)]
            removed[start:stop] = True
            width = stop - start if self.replace_length < 0 else self.replace_length
            noised[start : start + width] = self._filling(width, draw.random() < self.random_ratio, draw)
            kept[start + width : stop] = False  # for good, so the mask of a span that begins here is lost
        return Noised(torch.from_numpy(self._inserted(noised[kept], insertions, draw)), torch.from_numpy(removed))

    @functools.cached_property
    def span_lengths(self) -> np.ndarray:
        """float64[K]: the probability of a span of 0, 1, ... words, not normalised: Poisson's, down to `SMALLEST`."""
        table = [math.exp(-self.poisson_lambda)]
        while table[-1] >= SMALLEST or len(table) <= self.poisson_lambda:
            table.append(table[-1] * self.poisson_lambda / len(table))
        return np.array(table)

    def _spans(self, budget: int, draw: np.random.Generator) -> tuple[list[int], int]:
        """Lengths that sum up to `budget` words, the last one trimmed, and the number of empty ones between them."""
        if self.mask_length != "span-poisson":
            return [1] * budget, 0
        cumulative = np.cumsum(self.span_lengths)
        lengths, insertions = [], 0
        while budget > 0:
            length = int(np.searchsorted(cumulative, draw.random() * cumulative[-1], side="right"))
            length = min(length, budget)
            budget -= length
            if length:
                lengths.append(length)
            else:
                insertions += 1
        return lengths, insertions

    def _inserted(self, ids: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
        """int64[M + count]: masks at random places between bos and eos."""
        if not count:
            return ids
        places = draw.permutation(len(ids) + count - 2)[:count] + 1
        result = np.empty(len(ids) + count, dtype=np.int64)
        result[places] = self.mask
        at_random = math.ceil(
            count * self.random_ratio
        )  # rounded up, where spans are random by chance: official's rule
        result[places[:at_random]] = self._filling(at_random, True, draw)
        between = np.ones(len(result), dtype=bool)
        between[places] = False
        result[between] = ids
        return result

    def _filling(self, count: int, at_random: bool, draw: np.random.Generator) -> np.ndarray:
        """int64[count] masks, or any tokens of the text vocabulary. Official's may also be `<mask>` itself."""
        return draw.integers(_SPECIALS, self.mask, size=count) if at_random else np.full(count, self.mask)
