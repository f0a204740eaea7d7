"""CIDEr-D (Vedantam et al. 2015, section 5.2): consensus of a caption with its references, in tf-idf of n-grams."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .base import Metric
from .tokens import tokenize

logger = logging.getLogger(__name__)

MAX_ORDER = 4
SIGMA = 6.0  # width of the length penalty, in bigrams
SCALE = 10.0
END = "<eos>"  # stands behind every caption where the reward counts how captions end

Ngram = tuple[str, ...]


class CIDErD(Metric):
    """CIDEr-D of each row against its references (list[str]); the mean over rows is the corpus number.

    Args:
        frequencies: number of images in whose references each n-gram occurs; without them `prepare` computes them.
        images: number of images that the frequencies were counted on.
        end: whether a caption's end is a word of it, as in the reward of self-critical training: a caption that breaks
            off in the middle ends on the wrong n-grams.
    """

    name = "cider"
    digits = 3

    def __init__(self, frequencies: Mapping[Ngram, float] | None = None, images: float = 0, end: bool = False):
        self.frequencies: Mapping[Ngram, float] = {} if frequencies is None else frequencies
        self.images, self.end = images, end
        self._given = frequencies is not None

    def prepare(self, references: Iterable[Sequence[str]]) -> None:
        """Counts document frequencies on all references of a split, one list of captions for each image.

        Those that were given to the metric stay.
        """
        if self._given:
            return
        self.frequencies, self.images = document_frequencies(references, self.end)
        if self.images == 1:
            logger.warning("one image: every document frequency is 1, CIDEr is 0 by definition; give more images")

    def score(self, hypothesis: str, reference: Sequence[str]) -> float:
        """Ten times the mean over references and n = 1..4 of the clipped, length-penalised cosine.

        Raises:
            ValueError: `prepare` was not called, or there is no reference.
        """
        return self.scores([hypothesis], reference)[0]

    def scores(self, hypotheses: Sequence[str], reference: Sequence[str]) -> list[float]:
        """The score of each of several captions of one image; see `score`."""
        if not self.images:
            raise ValueError("CIDEr needs document frequencies: call prepare() with the references of the whole split")
        if not reference:
            raise ValueError("CIDEr needs at least one reference")
        theirs = [self.weigh(caption) for caption in reference]
        ours = {caption: self.weigh(caption) for caption in hypotheses}  # a beam often holds one caption twice
        scored = {
            caption: SCALE / len(theirs) * sum(similarity(vectors, other) for other in theirs)
            for caption, vectors in ours.items()
        }
        return [scored[caption] for caption in hypotheses]

    def weigh(self, caption: str) -> tuple[list[dict[Ngram, float]], list[float], int]:
        """tf-idf by order n, the norm of each, and the number of bigrams, which stands for the length."""
        known, log_images = self.frequencies, math.log(self.images)
        vectors: list[dict[Ngram, float]] = [{} for _ in range(MAX_ORDER)]
        counts = ngrams(caption, self.end)
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1.0, known.get(ngram, 0.0))))
        norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]
        return vectors, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)


def similarity(
    hypothesis: tuple[list[dict[Ngram, float]], list[float], int],
    reference: tuple[list[dict[Ngram, float]], list[float], int],
) -> float:
    """Mean over n of the clipped cosine, times the Gaussian penalty on the difference of lengths; 0..1."""
    penalty = math.exp(-((hypothesis[2] - reference[2]) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for ours, our_norm, theirs, their_norm in zip(*hypothesis[:2], *reference[:2], strict=True):
        overlap = sum(min(value, theirs[ngram]) * theirs[ngram] for ngram, value in ours.items() if ngram in theirs)
        if our_norm and their_norm:
            total += overlap / (our_norm * their_norm)
    return penalty * total / MAX_ORDER


def document_frequencies(references: Iterable[Sequence[str]], end: bool = False) -> tuple[Counter[Ngram], int]:
    """For each n-gram the number of images in whose captions it occurs, and the number of images; `end` as above."""
    frequencies: Counter[Ngram] = Counter()
    images = 0
    for captions in references:
        frequencies.update(set().union(*(ngrams(caption, end) for caption in captions)))
        images += 1
    return frequencies, images


def ngrams(caption: str, end: bool = False) -> Counter[Ngram]:
    """Counts of the caption's n-grams, n = 1..4; `end`: its end is a word."""
    words = tokenize(caption)
    if end:
        words.append(END)
    last = len(words) + 1
    return Counter(
        tuple(words[start : start + order]) for order in range(1, MAX_ORDER + 1) for start in range(last - order)
    )
