"""Cross-entropy as OFA trains with it: label smoothing, confidences, closed answer sets, drop-worst, R-Drop, mixtures.

A position may be restricted to the tokens that continue an answer of the closed set. Those ids travel as a flat list
(`allowed_tokens`, `allowed_counts`), and the softmax is taken over them alone: no B x T x V mask is ever built, and a
token outside the set is absent rather than -inf, so that a confidence of 0 cannot turn it into NaN.
"""

# no `from __future__ import annotations`: fairseq's parser needs the configuration's types as types, not as text
import math
from collections.abc import Mapping, Sequence
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
from .distribution import Distribution, allowed_scores, dense_scores, logits_of, parse_range, range_scores


@dataclass
class AdjustLabelSmoothedCrossEntropyConfig(FairseqDataclass):
    """Options of `adjust_label_smoothed_cross_entropy`, under their official names."""

    label_smoothing: float = field(default=0.0, metadata={"help": "share of the target spread over admissible tokens"})
    report_accuracy: bool = field(default=False, metadata={"help": "log the share of target tokens ranked first"})
    ignore_prefix_size: int = field(default=0, metadata={"help": "no loss on this many first target positions"})
    ignore_eos: bool = field(default=False, metadata={"help": "no loss on the end of the sentence"})
    drop_worst_ratio: float = field(default=0.0, metadata={"help": "share of the tokens, largest loss first, to drop"})
    drop_worst_after: int = field(default=0, metadata={"help": "drop the worst tokens only after this many updates"})
    use_rdrop: bool = field(default=False, metadata={"help": "R-Drop: each row twice, both passes to agree"})
    reg_alpha: float = field(default=1.0, metadata={"help": "weight of the R-Drop term"})
    sample_patch_num: int = field(
        default=196, metadata={"help": "patches sampled of each picture in the first part of a mixed batch; 0: all"}
    )
    constraint_range: Optional[str] = field(  # noqa: UP045  fairseq's parser does not read `str | None`
        default=None, metadata={"help": "START,END: only ids START <= id < END and the four specials are admissible"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")


class TokenScores(NamedTuple):
    """What the loss needs to know of N target positions, each float[N].

    Attributes:
        target: log-probability of the target.
        total: log-probabilities summed over the admissible tokens.
        best: largest log-probability of an admissible token.
        spread: number of admissible tokens less one.
        extra: what is added to the loss beside the cross-entropy: R-Drop's term, a subclass' `extra`.
    """

    target: Tensor
    total: Tensor
    best: Tensor
    spread: Tensor
    extra: Tensor


@register_criterion("adjust_label_smoothed_cross_entropy", dataclass=AdjustLabelSmoothedCrossEntropyConfig)
class AdjustLabelSmoothedCrossEntropy(FairseqCriterion):
    """Label-smoothed cross-entropy over real targets (official criterion of the same name).

    With K admissible tokens, `e_i = epsilon / (K - 1)` and the loss of a token is
    `(1 - epsilon - e_i) * nll + e_i * sum over admissible of -log p`; it is multiplied by the row's confidence.

    Raises:
        UserError: an option whose value makes no sense; the flag is named.
    """

    def __init__(self, cfg: AdjustLabelSmoothedCrossEntropyConfig, task: Any):
        super().__init__(task)
        for flag, value in (("--drop-worst-ratio", cfg.drop_worst_ratio), ("--label-smoothing", cfg.label_smoothing)):
            check_share(flag, value)
        if cfg.sample_patch_num < 0:
            raise UserError(f"--sample-patch-num {cfg.sample_patch_num}: a number of patches, or 0 for all of them")
        self.cfg = cfg
        self.eos = task.target_dictionary.eos()
        self.range = parse_range(cfg.constraint_range, len(task.target_dictionary)) if cfg.constraint_range else None

    def forward(
        self, model: Any, sample: Any, update_num: int = 0, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The loss of one batch, or of a mixture of several.

        Args:
            model: called with `**sample["net_input"]`; the first of its outputs is float[B, T, V] logits. A mixture
                goes through it at once, as `parts={name: net_input}`, and comes back as {name: outputs}.
            sample: `net_input`, `target` int64[B, T], `ntokens`, and optionally `conf` float[B], and either
                `allowed_tokens` int64[N] with `allowed_counts` int64[B, T] (ids admissible at each position, row-major;
                a count of 0 leaves the position free) or the official `constraint_masks` bool[B, T, V].
                A mixture is {"parts": {name: such a sample}}, with `shares` {name: weight in the sum, 1 unless given},
                or the official list or tuple of two. With `kinds` int64[B] and `kind_names`, in every part, what is
                logged of each part is logged of each kind of example instead.
            update_num: updates done so far; `--drop-worst-after` counts them.
            reduce: False gives the losses of the N scored tokens instead of their sum (not of a mixture).

        Returns:
            loss (nats, summed), sample size (tokens scored, or sentences under `--sentence-avg`), and what to log: the
            same keys in the same order and of the same kind for every batch. A mixture's loss is the weighted sum of
            its parts' means, and its sample size 1.

        Raises:
            UserError: a target is outside its admissible set.
        """
        if isinstance(sample, (list, tuple)):  # the official form
            sample = {"parts": {f"v{number}": part for number, part in enumerate(sample, 1)}}
        if "parts" in sample:
            return self.mixture(model, sample["parts"], update_num, sample.get("shares", {}))
        if self.cfg.use_rdrop:
            sample = doubled(sample)
        positions = self.scored_positions(sample["target"])
        logits = logits_of(model, sample["net_input"], positions)
        losses, log = self.token_losses(logits, sample, update_num, positions)
        return losses.sum() if reduce else losses, log["sample_size"], log

    def mixture(
        self, model: Any, parts: dict[str, dict[str, Any]], update_num: int, shares: Mapping[str, float]
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The sum of share * mean loss over the parts; logs these means, and each part's, or kind's, sum and size."""
        if self.cfg.use_rdrop:
            parts = {name: doubled(part) for name, part in parts.items()}
        inputs = {name: part["net_input"] for name, part in parts.items()}
        first = next(iter(inputs))
        if self.cfg.sample_patch_num and inputs[first].get("patch_images") is not None:
            inputs[first] = {**inputs[first], "sample_patch_num": self.cfg.sample_patch_num}
        positions = {name: self.scored_positions(part["target"]) for name, part in parts.items()}
        if getattr(model, "takes_logits_at", False):
            inputs = {name: {**batch, "logits_at": positions[name]} for name, batch in inputs.items()}
        outputs = model(parts=inputs)
        logs, loss = {}, torch.zeros(())
        for name, part in parts.items():
            losses, logs[name] = self.token_losses(outputs[name][0], part, update_num, positions[name])
            loss = shares.get(name, 1.0) * losses.sum() / max(logs[name]["sample_size"], 1) + loss.to(losses)

        def added(key: str) -> Any:
            return sum(log[key] for log in logs.values())

        log = {
            "loss": loss.detach(),
            "nll_loss": sum(
                shares.get(name, 1.0) * log["nll_loss"] / max(log["sample_size"], 1) for name, log in logs.items()
            ),
            "ntokens": added("ntokens"),
            "nsentences": added("nsentences"),
            "sample_size": 1,
            "nscored": 1,  # nll_loss is a mean already
        }
        if self.cfg.report_accuracy:
            log |= {key: added(key) for key in ("n_correct", "n_ranked")}
        kinds = [key for key in logs[first] if key not in log]
        if kinds:
            return loss, 1, log | {key: added(key) for key in kinds}
        log |= {f"loss_{name}": log["loss"] for name, log in logs.items()}
        return loss, 1, log | {f"sample_size_{name}": log["sample_size"] for name, log in logs.items()}

    def token_losses(
        self, logits: Tensor, sample: dict[str, Any], update_num: int, positions: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The losses float[N] of the tokens that count, and what `forward` logs of one batch.

        Args:
            logits: float[N, V], those of the positions that count, or float[B, T, V], all of them; under R-Drop
                batch rows i and i + B / 2 are two passes of one row.
            sample, update_num: as in `forward`.
            positions: int64[N], from `scored_positions`, where the caller has them: looking waits for a GPU.
        """
        target = sample["target"]
        if positions is None:
            positions = self.scored_positions(target)
        rows = positions.div(target.size(1), rounding_mode="floor")
        confidence = sample.get("conf")
        if confidence is None:
            weight = torch.ones_like(positions)
        else:
            weight = confidence[rows]
        weight = weight.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.dim() == 3:
            logits = logits.flatten(0, 1)[positions]
        scores = self.score_tokens(logits, target, positions, weight, sample)

        spread_share = self.cfg.label_smoothing / scores.spread.clamp(min=1)
        nll = -scores.target * weight
        losses = (1 - self.cfg.label_smoothing - spread_share) * nll - spread_share * scores.total * weight
        kept = self.kept(losses.detach(), update_num)
        if kept is not None:
            losses, nll, rows, weight = losses[kept], nll[kept], rows[kept], weight[kept]
            scores = TokenScores(*(column[kept] for column in scores))
        losses = losses + scores.extra

        scored = losses.numel()
        log = {
            "loss": losses.detach().sum(),
            "nll_loss": nll.detach().sum(),
            "ntokens": int(sample["ntokens"]),
            "nsentences": target.size(0),
            "sample_size": target.size(0) if self.cfg.sentence_avg else scored,
            "nscored": scored,
        }
        if self.cfg.report_accuracy:
            log |= {"n_correct": (scores.target >= scores.best).sum(), "n_ranked": scored}
        if "kind_names" in sample:
            plain = torch.where(weight > 0, losses.detach() / weight, 0)  # what weighs more is not harder
            log |= by_kind(sample["kinds"], sample["kind_names"], rows, plain, scores)
        return losses, log

    def scored_positions(self, target: Tensor) -> Tensor:
        """int64[N]: indices into the flattened int64[B, T] target of the positions that have a loss."""
        scored = target.ne(self.padding_idx)
        if self.cfg.ignore_eos:
            scored &= target.ne(self.eos)
        scored[:, : self.cfg.ignore_prefix_size] = False
        return scored.flatten().nonzero().squeeze(1)

    def kept(self, losses: Tensor, update_num: int) -> Tensor | None:
        """int64[K]: which of N tokens are left by drop-worst, those of small loss first; None: all of them.

        Under R-Drop the first pass decides for both.
        """
        return smallest(losses, self.cfg.drop_worst_ratio, update_num, self.cfg.drop_worst_after, self.cfg.use_rdrop)

    def score_tokens(
        self, logits: Tensor, target: Tensor, positions: Tensor, weight: Tensor, sample: dict[str, Any]
    ) -> TokenScores:
        """Scores the targets at `positions` (int64[N]) under whatever constraint the batch or the options hold.

        Args:
            logits: float[N, V].
            target: int64[B, T].
            positions: int64[N].
            weight: float[N].
            sample: as in `forward`.
        """
        targets = target.flatten()[positions]
        columns, order = [], []
        for chosen, distribution in self.distributions(logits, targets, positions, sample):
            extra = self.extra(distribution, weight[chosen], logits.size(1))
            if self.cfg.use_rdrop:
                extra = extra + self.cfg.reg_alpha * weight[chosen] * distribution.disagreement()
            total = torch.zeros_like(distribution.target)  # not asked for, it is not added up
            if self.cfg.label_smoothing:
                total = distribution.sum(distribution.log_probs)
            columns.append((distribution.target, total, distribution.best(), distribution.spread, extra))
            order.append(chosen)
        if len(columns) == 1:
            return TokenScores(*columns[0])
        order = torch.cat(order).argsort()
        return TokenScores(*(torch.cat(column)[order] for column in zip(*columns, strict=True)))

    def extra(self, distribution: Distribution, weight: Tensor, vocabulary: int) -> Tensor:
        """What a subclass adds to the loss of each token, float[N]; `weight` float[N] are confidences."""
        return torch.zeros_like(distribution.target)

    def distributions(
        self, logits: Tensor, targets: Tensor, positions: Tensor, sample: dict[str, Any]
    ) -> list[tuple[Tensor, Distribution]]:
        """The positions in groups that are constrained alike, each with its indices among the N."""
        every, length = torch.arange(len(positions), device=positions.device), sample["target"].size(1)
        if sample.get("allowed_tokens") is not None:
            counts = sample["allowed_counts"].flatten()
            tokens = sample["allowed_tokens"]
            owners = torch.arange(counts.numel(), device=counts.device)
            owners = owners.repeat_interleave(counts, output_size=tokens.numel())
            free = counts[positions] == 0
            groups = []
            if bool(free.any()) or not len(free):
                groups.append((every[free], dense_scores(logits[free], targets[free])))
            if not bool(free.all()):
                chosen = every[~free]
                of_set = targets[chosen], positions[chosen], length, owners, tokens
                groups.append((chosen, allowed_scores(logits if len(groups) == 0 else logits[chosen], *of_set)))
            return groups
        if sample.get("constraint_masks") is not None:
            rows, tokens = sample["constraint_masks"].flatten(0, 1)[positions].nonzero(as_tuple=True)
            return [(every, allowed_scores(logits, targets, positions, length, positions[rows], tokens))]
        if self.range:
            return [(every, range_scores(logits, targets, *self.range))]
        return [(every, dense_scores(logits, targets))]

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Logs the means over workers: `loss` and `nll_loss` in nats, as official, and `ppl` = exp(nll_loss).

        Keys that it does not know are left to the task.
        """
        names = ["loss", "nll_loss", "ntokens", "nsentences", "sample_size", "nscored", "n_correct", "n_ranked"]
        logged = next(iter(logging_outputs), {})
        parts = [key.removeprefix("loss_") for key in logged if key.startswith("loss_")]  # or kinds
        names += [f"{what}_{part}" for part in parts for what in ("loss", "sample_size", "n_correct", "nsentences")]
        totals = {key: sum(log.get(key, 0) for log in logging_outputs) for key in names}
        size, scored = max(totals["sample_size"], 1), max(totals["nscored"], 1)
        metrics.log_scalar("loss", totals["loss"] / size, size, round=3)
        for part in parts:
            size_of_part = totals[f"sample_size_{part}"]

            def mean(key: str, part: str = part, size: Any = size_of_part) -> Any:
                return totals[f"{key}_{part}"] / max(size, 1)

            sentences = totals[f"nsentences_{part}"]
            if f"nsentences_{part}" in logged:
                share = sentences / max(totals["nsentences"], 1)
                metrics.log_scalar(f"share_{part}", share, totals["nsentences"], round=3)
                if not sentences:
                    continue  # a kind of which there was no example, on any rank, has no loss
            metrics.log_scalar(f"loss_{part}", mean("loss"), size_of_part, round=3)
            if sentences:
                metrics.log_scalar(f"accuracy_{part}", 100.0 * mean("n_correct"), size_of_part, round=2)
            else:
                metrics.log_scalar(f"sample_size_{part}", size_of_part, 1, round=3)
        metrics.log_scalar("nll_loss", totals["nll_loss"] / scored, scored, round=3)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg, base=math.e))
        for key in ("ntokens", "nsentences", "sample_size"):
            metrics.log_scalar(key, totals[key], 1, round=3)
        if any("n_correct" in log for log in logging_outputs):
            ranked = max(totals["n_ranked"], 1)
            metrics.log_scalar("accuracy", totals["n_correct"] * 100.0 / ranked, ranked, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: the logs of all workers may be added before `reduce_metrics`."""
        return True


def by_kind(
    kinds: Tensor, names: Sequence[str], rows: Tensor, losses: Tensor, scores: TokenScores
) -> dict[str, Tensor]:
    """What is logged of each kind of example: loss, tokens, tokens ranked first, examples; float[] each.

    Args:
        kinds: int64[B], each row's kind as an index into `names`.
        names: K of them, the same in every batch of a run.
        rows: int64[N], the row of each token.
        losses, scores: float[N] of these tokens; the losses before confidences and weights.
    """

    def summed(values: Tensor, of: Tensor) -> Tensor:
        return values.new_zeros(len(names)).index_add_(0, of, values)

    kinds, losses = kinds.to(losses.device), losses.float()
    of_tokens, ones = kinds[rows], torch.ones_like(losses)
    columns = {
        "loss": summed(losses, of_tokens),
        "sample_size": summed(ones, of_tokens),
        "n_correct": summed((scores.target >= scores.best).to(losses), of_tokens),
        "nsentences": summed(torch.ones_like(kinds, dtype=losses.dtype), kinds),
    }
    return {
        f"{key}_{name}": value
        for key, column in columns.items()
        for name, value in zip(names, column.unbind(), strict=True)
    }


def smallest(losses: Tensor, drop: float, update_num: int, after: int, paired: bool) -> Tensor | None:
    """int64[K]: the share 1 - `drop` of N tokens with the smallest loss, in its order; None: all, or not yet.

    Args:
        losses: float[N].
        update_num, after: tokens are dropped from update `after` + 1 on.
        paired: token i + N / 2 shares the fate of token i (R-Drop).
    """
    if drop <= 0 or update_num <= after:
        return None
    if not paired:
        return losses.topk(int(len(losses) * (1 - drop)), largest=False).indices
    half = len(losses) // 2
    first = losses[:half].topk(int(half * (1 - drop)), largest=False).indices
    return torch.cat([first, first + half])


def doubled(sample: dict[str, Any]) -> dict[str, Any]:
    """The batch with every row a second time behind all others; a number such as sample_patch_num stays as it is."""

    def twice(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() else value

    net_input = {name: twice(value) for name, value in sample["net_input"].items()}
    if "image_rows" in net_input:
        net_input["patch_images"] = sample["net_input"]["patch_images"]  # to which the doubled rows point
    kept = ("target", "conf", "allowed_tokens", "allowed_counts", "constraint_masks", "kinds")
    rest = {name: twice(sample[name]) for name in kept if name in sample}
    names = {"kind_names": sample["kind_names"]} if "kind_names" in sample else {}
    return {"net_input": net_input, "ntokens": 2 * sample["ntokens"], **rest, **names}


def check_share(flag: str, value: float) -> None:
    """Raises UserError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise UserError(f"{flag} {value}: must be at least 0 and less than 1")
