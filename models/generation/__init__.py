"""How a decoder is driven: closed answer sets and the ensemble that keeps a search inside them."""

from __future__ import annotations

from .candidates import AllCandidateGenerator, AllCandidateScorer
from .constraints import ConstrainedEnsemble, ConstrainedGenerator, NonFiniteLogits, build_ensemble
from .trie import Trie

__all__ = [
    "AllCandidateGenerator",
    "AllCandidateScorer",
    "ConstrainedEnsemble",
    "ConstrainedGenerator",
    "NonFiniteLogits",
    "Trie",
    "build_ensemble",
]
