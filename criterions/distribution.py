"""Log-probabilities of target positions over what is admissible: all tokens, a range of them, or a list for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

NUM_SPECIALS = 4  # bos, pad, eos, unk: a constraint range always admits them, as in the official criterion
SLACK = 1e-6  # the official criterion adds it to K - 1 wherever the admissible set is restricted


@dataclass
class Distribution:
    """Log-probabilities of N positions over their admissible tokens: as rows of K, or as M values in segments.

    Attributes:
        log_probs: float[N, K] or float[M].
        target: float[N], that of each position's target.
        spread: float[N], number of admissible tokens less one: what smoothing divides by.
        rows: int64[M], ascending, the position that a value belongs to; None where `log_probs` has rows.
    """

    log_probs: Tensor
    target: Tensor
    spread: Tensor
    rows: Tensor | None = None

    def sum(self, values: Tensor) -> Tensor:
        """Adds values of the shape of `log_probs` up over the admissible tokens: float[N]."""
        if self.rows is None:
            return values.sum(dim=1)
        return values.new_zeros(len(self.target)).index_add(0, self.rows, values)

    def best(self) -> Tensor:
        """float[N]: the largest log-probability of an admissible token."""
        log_probs = self.log_probs.detach()
        if self.rows is None:
            return log_probs.amax(dim=1)
        lowest = log_probs.new_full((len(self.target),), -math.inf)
        return lowest.scatter_reduce(0, self.rows, log_probs, "amax")

    def weighted(self, weight: Tensor) -> Tensor:
        """`log_probs` times the weight float[N] of their position."""
        return self.log_probs * (weight.unsqueeze(1) if self.rows is None else weight[self.rows])

    def disagreement(self) -> Tensor:
        """R-Drop's (KL(p|q) + KL(q|p)) / 2 of position i, p, and position i + N / 2, q: float[N], zeros from N / 2 on.

        Both halves must admit the same tokens.
        """
        p, q = self.log_probs.chunk(2)
        both = 0.5 * (p.exp() - q.exp()) * (p - q)
        return self.sum(torch.cat([both, torch.zeros_like(both)]))


def logits_of(model: Any, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
    """The logits float[N, V] of a batch at positions int64[N] among its B * T, by a model that may leave others out.

    Args:
        model: called with `inputs`, and with `logits_at` if it says `takes_logits_at`; the first of its outputs is
            float[B, T, V] otherwise.
    """
    if getattr(model, "takes_logits_at", False):
        return model(**inputs, logits_at=positions)[0]
    return model(**inputs)[0].flatten(0, 1)[positions]


def range_scores(rows: Tensor, targets: Tensor, start: int, end: int) -> Distribution:
    """Scores of float[N, V] logits over the specials and the ids start <= id < end; `targets` are int64[N].

    Raises:
        UserError: a target lies outside.
    """
    outside = targets[(targets >= NUM_SPECIALS) & ((targets < start) | (targets >= end))]
    if outside.numel():
        raise UserError(
            f"target token {int(outside[0])} is outside --constraint-range {start},{end}; "
            "widen the range, or check that the data belong to this vocabulary"
        )
    rows = torch.cat([rows[:, :NUM_SPECIALS], rows[:, start:end]], dim=1)
    columns = torch.where(targets < NUM_SPECIALS, targets, targets - start + NUM_SPECIALS)
    return dense_scores(rows, columns, slack=SLACK)


def dense_scores(rows: Tensor, targets: Tensor, slack: float = 0.0) -> Distribution:
    """Scores of float[N, K] logits of which every column is admissible; `targets` int64[N] are columns."""
    log_probs = torch.log_softmax(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))
    return Distribution(
        log_probs,
        target=log_probs.gather(1, targets.unsqueeze(1)).squeeze(1),
        spread=log_probs.new_full((len(rows),), rows.size(1) - 1 + slack),
    )


def allowed_scores(
    logits: Tensor, targets: Tensor, positions: Tensor, length: int, owners: Tensor, tokens: Tensor
) -> Distribution:
    """Scores over an own set of tokens at each position, by a softmax over segments of one flat list.

    Args:
        logits: float[N, V].
        targets: int64[N], the target at each scored position.
        positions: int64[N], ascending, indices of these positions among the batch's B * T.
        length: T.
        owners: int64[M], for each admissible token the position (0 .. B * T - 1) that it belongs to.
        tokens: int64[M], the admissible tokens, distinct within a position.

    Raises:
        UserError: a target is not among its position's tokens.
    """
    rows = torch.searchsorted(positions, owners).clamp(max=max(len(positions) - 1, 0))
    kept = positions[rows] == owners if len(positions) else torch.zeros_like(owners, dtype=torch.bool)
    rows, tokens = rows[kept], tokens[kept]

    hit = tokens == targets[rows]
    found = torch.zeros(len(targets), dtype=torch.bool, device=logits.device)
    found[rows[hit]] = True
    if not bool(found.all()):
        missed = int((~found).nonzero()[0])
        sentence, step = divmod(int(positions[missed]), length)
        raise UserError(
            f"target token {int(targets[missed])} at position {step} of batch row {sentence} continues no answer of "
            "the closed set; add the answer to --ans2label-file, or leave the row out"
        )

    values = logits.flatten().gather(0, rows * logits.size(1) + tokens)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    peak = values.new_full((len(targets),), -math.inf).scatter_reduce(0, rows, values.detach(), "amax")
    mass = values.new_zeros(len(targets)).index_add(0, rows, (values - peak[rows]).exp())
    log_probs = values - (peak + mass.log())[rows]  # one admissible token: exactly 0
    target = log_probs.new_zeros(len(targets)).index_add(0, rows[hit], log_probs[hit])
    count = torch.bincount(rows, minlength=len(targets))
    return Distribution(log_probs, target, spread=(count - 1 + SLACK).to(log_probs), rows=rows)


def parse_range(text: str, vocabulary: int) -> tuple[int, int]:
    """`"369,469"` to (369, 469).

    Raises:
        UserError: not two integers in order between the specials and the end of the vocabulary.
    """
    try:
        start, end = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--constraint-range {text!r}: expected START,END, two token ids") from None
    if not NUM_SPECIALS <= start < end <= vocabulary:
        raise UserError(
            f"--constraint-range {text}: expected {NUM_SPECIALS} <= START < END <= {vocabulary}, the vocabulary's size"
        )
    return start, end
