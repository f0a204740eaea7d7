"""Cross-entropy as OFA trains with it: label smoothing, confidences, closed answer sets, drop-worst.

A position may be restricted to the tokens that continue an answer of the closed set. Those ids travel as a flat list
(`allowed_tokens`, `allowed_counts`), and the softmax is taken over them alone: no B x T x V mask is ever built, and a
token outside the set is absent rather than -inf, so that a confidence of 0 cannot turn it into NaN.
"""

# no `from __future__ import annotations`: fairseq's parser needs the configuration's types as types, not as text
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from ..errors import UserError

NUM_SPECIALS = 4  # bos, pad, eos, unk: a constraint range always admits them, as in the official criterion
SLACK = 1e-6  # the official criterion adds it to K - 1 wherever the admissible set is restricted


@dataclass
class AdjustLabelSmoothedCrossEntropyConfig(FairseqDataclass):
    """Options of `adjust_label_smoothed_cross_entropy`, under their official names."""

    label_smoothing: float = field(default=0.0, metadata={"help": "share of the target spread over admissible tokens"})
    report_accuracy: bool = field(default=False, metadata={"help": "log the share of target tokens ranked first"})
    ignore_prefix_size: int = field(default=0, metadata={"help": "no loss on this many first target positions"})
    ignore_eos: bool = field(default=False, metadata={"help": "no loss on the end of the sentence"})
    drop_worst_ratio: float = field(default=0.0, metadata={"help": "share of the tokens, largest loss first, to drop"})
    drop_worst_after: int = field(default=0, metadata={"help": "drop the worst tokens only after this many updates"})
    use_rdrop: bool = field(default=False, metadata={"help": "R-Drop; not supported yet"})
    reg_alpha: float = field(default=1.0, metadata={"help": "weight of the R-Drop term"})
    sample_patch_num: int = field(default=0, metadata={"help": "patches sampled per picture; not supported yet"})
    constraint_range: Optional[str] = field(  # noqa: UP045  fairseq's parser does not read `str | None`
        default=None, metadata={"help": "START,END: only ids START <= id < END and the four specials are admissible"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")


class TokenScores(NamedTuple):
    """What the loss needs to know of N target positions.

    Attributes:
        target: float[N], log-probability of the target.
        total: float[N], log-probabilities summed over the admissible tokens.
        best: float[N], largest log-probability of an admissible token.
        spread: float[N], number of admissible tokens less one: what smoothing divides by.
    """

    target: Tensor
    total: Tensor
    best: Tensor
    spread: Tensor


@register_criterion("adjust_label_smoothed_cross_entropy", dataclass=AdjustLabelSmoothedCrossEntropyConfig)
class AdjustLabelSmoothedCrossEntropy(FairseqCriterion):
    """Label-smoothed cross-entropy over real targets (official criterion of the same name).

    With K admissible tokens, `e_i = epsilon / (K - 1)` and the loss of a token is
    `(1 - epsilon - e_i) * nll + e_i * sum over admissible of -log p`; it is multiplied by the row's confidence.

    Raises:
        UserError: an option that is not supported, or one whose value makes no sense; the flag is named.
    """

    def __init__(self, cfg: AdjustLabelSmoothedCrossEntropyConfig, task: Any):
        super().__init__(task)
        if cfg.use_rdrop:
            raise UserError("--use-rdrop is not supported yet; leave it out")
        if cfg.sample_patch_num:
            raise UserError("--sample-patch-num belongs to pretraining, which is not supported yet; leave it out")
        if not 0 <= cfg.drop_worst_ratio < 1:
            raise UserError(f"--drop-worst-ratio {cfg.drop_worst_ratio}: must be at least 0 and less than 1")
        if not 0 <= cfg.label_smoothing < 1:
            raise UserError(f"--label-smoothing {cfg.label_smoothing}: must be at least 0 and less than 1")
        self.cfg = cfg
        self.eos = task.target_dictionary.eos()
        self.range = parse_range(cfg.constraint_range, len(task.target_dictionary)) if cfg.constraint_range else None

    def forward(
        self, model: Any, sample: dict[str, Any], update_num: int = 0, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The loss of one batch.

        Args:
            model: called with `**sample["net_input"]`; the first of its outputs is float[B, T, V] logits.
            sample: `target` int64[B, T], `ntokens`, and optionally `conf` float[B], and either `allowed_tokens`
                int64[N] with `allowed_counts` int64[B, T] (ids admissible at each position, row-major; a count of 0
                leaves the position free) or the official `constraint_masks` bool[B, T, V].
            update_num: updates done so far; `--drop-worst-after` counts them.
            reduce: False gives the losses of the N scored tokens instead of their sum.

        Returns:
            loss (nats, summed), sample size (tokens scored, or sentences under `--sentence-avg`), and what to log: the
            same keys in the same order and of the same kind for every batch.

        Raises:
            UserError: a target is outside its admissible set.
        """
        logits = model(**sample["net_input"])[0]
        target = sample["target"]
        positions = self.scored_positions(target)
        scores = self.score_tokens(logits, target, positions, sample)
        confidence = sample.get("conf")
        if confidence is None:
            weight = torch.ones_like(scores.target)
        else:
            weight = confidence.to(scores.target)[positions.div(target.size(1), rounding_mode="floor")]

        spread_share = self.cfg.label_smoothing / scores.spread.clamp(min=1)
        nll = -scores.target * weight
        loss = (1 - self.cfg.label_smoothing - spread_share) * nll - spread_share * scores.total * weight
        if self.cfg.drop_worst_ratio > 0 and update_num > self.cfg.drop_worst_after:
            keep = int(loss.numel() * (1 - self.cfg.drop_worst_ratio))
            loss, kept = loss.topk(keep, largest=False)
            nll, scores = nll[kept], TokenScores(*(column[kept] for column in scores))

        scored = loss.numel()
        sample_size = target.size(0) if self.cfg.sentence_avg else scored
        logging_output = {
            "loss": loss.detach().sum(),
            "nll_loss": nll.detach().sum(),
            "ntokens": int(sample["ntokens"]),
            "nsentences": target.size(0),
            "sample_size": sample_size,
            "nscored": scored,
        }
        if self.cfg.report_accuracy:
            logging_output["n_correct"] = (scores.target >= scores.best).sum()
        return loss.sum() if reduce else loss, sample_size, logging_output

    def scored_positions(self, target: Tensor) -> Tensor:
        """int64[N]: indices into the flattened int64[B, T] target of the positions that have a loss."""
        scored = target.ne(self.padding_idx)
        if self.cfg.ignore_eos:
            scored &= target.ne(self.eos)
        scored[:, : self.cfg.ignore_prefix_size] = False
        return scored.flatten().nonzero().squeeze(1)

    def score_tokens(self, logits: Tensor, target: Tensor, positions: Tensor, sample: dict[str, Any]) -> TokenScores:
        """Scores the targets at `positions` (int64[N]) under whatever constraint the batch or the options hold."""
        targets = target.flatten()[positions]
        if sample.get("allowed_tokens") is not None:
            counts = sample["allowed_counts"].flatten()
            tokens = sample["allowed_tokens"]
            owners = torch.arange(counts.numel(), device=counts.device)
            owners = owners.repeat_interleave(counts, output_size=tokens.numel())
            free = counts[positions] == 0
            if bool(free.all()):
                return free_scores(logits, targets, positions)
            if bool(free.any()):
                parts = (
                    free_scores(logits, targets[free], positions[free]),
                    allowed_scores(logits, targets[~free], positions[~free], owners, tokens),
                )
                order = torch.cat([free.nonzero(), (~free).nonzero()]).squeeze(1).argsort()
                return TokenScores(*(torch.cat(columns)[order] for columns in zip(*parts, strict=True)))
            return allowed_scores(logits, targets, positions, owners, tokens)
        if sample.get("constraint_masks") is not None:
            rows, tokens = sample["constraint_masks"].flatten(0, 1)[positions].nonzero(as_tuple=True)
            return allowed_scores(logits, targets, positions, positions[rows], tokens)
        if self.range:
            return range_scores(logits, targets, positions, *self.range)
        return free_scores(logits, targets, positions)

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Logs the means over workers: `loss` and `nll_loss` in nats, as official, and `ppl` = exp(nll_loss).

        Keys that it does not know are left to the task.
        """
        totals = {
            key: sum(log.get(key, 0) for log in logging_outputs)
            for key in ("loss", "nll_loss", "ntokens", "nsentences", "sample_size", "nscored", "n_correct")
        }
        size, scored = max(totals["sample_size"], 1), max(totals["nscored"], 1)
        metrics.log_scalar("loss", totals["loss"] / size, size, round=3)
        metrics.log_scalar("nll_loss", totals["nll_loss"] / scored, scored, round=3)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg, base=math.e))
        for key in ("ntokens", "nsentences", "sample_size"):
            metrics.log_scalar(key, totals[key], 1, round=3)
        if any("n_correct" in log for log in logging_outputs):
            metrics.log_scalar("accuracy", totals["n_correct"] * 100.0 / scored, scored, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: the logs of all workers may be added before `reduce_metrics`."""
        return True


def free_scores(logits: Tensor, targets: Tensor, positions: Tensor) -> TokenScores:
    """Scores over the whole vocabulary; only the N rows at `positions` are normalised."""
    return dense_scores(logits.flatten(0, 1)[positions], targets, slack=0.0)


def range_scores(logits: Tensor, targets: Tensor, positions: Tensor, start: int, end: int) -> TokenScores:
    """Scores over the specials and the ids start <= id < end.

    Raises:
        UserError: a target lies outside.
    """
    outside = targets[(targets >= NUM_SPECIALS) & ((targets < start) | (targets >= end))]
    if outside.numel():
        raise UserError(
            f"target token {int(outside[0])} is outside --constraint-range {start},{end}; "
            "widen the range, or check that the data belong to this vocabulary"
        )
    rows = logits.flatten(0, 1)[positions]
    rows = torch.cat([rows[:, :NUM_SPECIALS], rows[:, start:end]], dim=1)
    columns = torch.where(targets < NUM_SPECIALS, targets, targets - start + NUM_SPECIALS)
    return dense_scores(rows, columns, slack=SLACK)


def dense_scores(rows: Tensor, targets: Tensor, slack: float) -> TokenScores:
    """Scores of float[N, K] logits of which every column is admissible; `targets` int64[N] are columns."""
    log_probs = torch.log_softmax(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))
    return TokenScores(
        target=log_probs.gather(1, targets.unsqueeze(1)).squeeze(1),
        total=log_probs.sum(dim=1),
        best=log_probs.detach().amax(dim=1),
        spread=log_probs.new_full((len(rows),), rows.size(1) - 1 + slack),
    )


def allowed_scores(logits: Tensor, targets: Tensor, positions: Tensor, owners: Tensor, tokens: Tensor) -> TokenScores:
    """Scores over an own set of tokens at each position, by a softmax over segments of one flat list.

    Args:
        logits: float[B, T, V].
        targets: int64[N], the target at each scored position.
        positions: int64[N], ascending, indices of these positions among the B*T.
        owners: int64[M], for each admissible token the position (0 .. B*T - 1) that it belongs to.
        tokens: int64[M], the admissible tokens, distinct within a position.

    Raises:
        UserError: a target is not among its position's tokens.
    """
    row_of = torch.full((logits.size(0) * logits.size(1),), -1, device=logits.device)
    row_of[positions] = torch.arange(len(positions), device=logits.device)
    kept = row_of[owners] >= 0
    rows, owners, tokens = row_of[owners][kept], owners[kept], tokens[kept]

    hit = tokens == targets[rows]
    found = torch.zeros(len(targets), dtype=torch.bool, device=logits.device)
    found[rows[hit]] = True
    if not bool(found.all()):
        missed = int((~found).nonzero()[0])
        sentence, step = divmod(int(positions[missed]), logits.size(1))
        raise UserError(
            f"target token {int(targets[missed])} at position {step} of batch row {sentence} continues no answer of "
            "the closed set; add the answer to --ans2label-file, or leave the row out"
        )

    values = logits.flatten().gather(0, owners * logits.size(2) + tokens)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    peak = values.new_full((len(targets),), -math.inf).scatter_reduce(0, rows, values.detach(), "amax")
    mass = values.new_zeros(len(targets)).index_add(0, rows, (values - peak[rows]).exp())
    log_probs = values - (peak + mass.log())[rows]  # one admissible token: exactly 0
    target = log_probs.new_zeros(len(targets)).index_add(0, rows[hit], log_probs[hit])
    count = torch.bincount(rows, minlength=len(targets))
    return TokenScores(
        target=target,
        total=log_probs.new_zeros(len(targets)).index_add(0, rows, log_probs),
        best=-mass.detach().log(),
        spread=(count - 1 + SLACK).to(log_probs),
    )


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
