"""Self-critical sequence training (Rennie et al. 2017): the model's own captions, weighted by how good they are."""

# ruff: noqa: UP045  fairseq reads the field types at run time: no postponed annotations, Optional spelt out

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor, cat, float32
from torch.nn.utils.rnn import pad_sequence

from ..errors import UserError
from .distribution import dense_scores, logits_of, parse_range, range_scores


@dataclass
class ScstRewardCriterionConfig(FairseqDataclass):
    """Options of `scst_reward_criterion`, under their official names."""

    scst_cider_cached_tokens: Optional[str] = field(
        default=None,
        metadata={"help": "document frequencies for the reward, of `ofa cider-df` (default: of the training file)"},
    )
    ignore_prefix_size: int = field(default=0, metadata={"help": "no loss on this many first target positions"})
    constraint_range: Optional[str] = field(
        default=None, metadata={"help": "START,END: only ids START <= id < END and the four specials are admissible"}
    )
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("scst_reward_criterion", dataclass=ScstRewardCriterionConfig)
class ScstRewardCriterion(FairseqCriterion):
    """Policy gradient with a leave-one-out baseline (official criterion of the same name).

    Of each picture the model in eval mode writes K captions (`task.sampled`). The reward of one is its score less the
    mean score of the other K - 1 (`task.rewards`), and its loss the negative log-probability of its tokens, eos
    included, times the reward. The forward pass in train mode encodes a picture once for all its captions.

    In validation the loss is the cross-entropy of the first reference, in eval mode. Officially a second set of
    captions is generated, and a forward pass in train mode moves the BatchNorm statistics.

    Raises:
        UserError: the task cannot reward captions, or an option makes no sense; the flag is named.
    """

    def __init__(self, cfg: ScstRewardCriterionConfig, task: Any):
        super().__init__(task)
        if not hasattr(task, "prepare_rewards"):
            raise UserError("--criterion scst_reward_criterion scores captions: it goes with --task caption only")
        self.cfg = cfg
        self.range = parse_range(cfg.constraint_range, len(task.target_dictionary)) if cfg.constraint_range else None
        task.prepare_rewards(cfg.scst_cider_cached_tokens)

    def forward(
        self, model: Any, sample: dict[str, Any], update_num: int = 0, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The loss of one batch.

        Args:
            model: called with `**sample["net_input"]`, whose `prev_output_tokens` are int64[B * K, T] here, the
                captions of a picture behind one another; the first of its outputs is float[B * K, T, V] logits.
            sample: a batch of B rows as the task has made it.
            update_num: not read.
            reduce: False gives the losses of the tokens, row after row, instead of their sum.

        Returns:
            loss (summed), sample size (tokens, or captions under `--sentence-avg`), and what to log: the same keys in
            the same order for every batch. `nsentences` and `ntokens` are of what was generated, and `score` is the
            sum of its scores.

        Raises:
            UserError: a picture has one caption only.
        """
        if not model.training:
            return self.cross_entropy(model, sample, reduce)
        captions = self.task.sampled(model, sample)
        scores = self.task.rewards(sample, captions)  # [B, K]
        every = [caption for group in captions for caption in group]
        target = pad_sequence(every, batch_first=True, padding_value=self.padding_idx).to(sample["target"].device)
        dictionary = self.task.target_dictionary
        shown = target[:, :-1].masked_fill(target[:, :-1].eq(dictionary.eos()), self.padding_idx)
        previous = cat([target.new_full((len(target), 1), dictionary.bos()), shown], 1)
        positions = self.counted(target)
        logits = logits_of(model, {**sample["net_input"], "prev_output_tokens": previous}, positions)
        losses = self.policy_losses(logits, target, positions, leave_one_out(scores).flatten())
        return self.logged(losses, target, reduce, score=scores.sum().to(target.device, float32))

    def policy_losses(self, logits: Tensor, target: Tensor, positions: Tensor, rewards: Tensor) -> Tensor:
        """float[N]: of each token that counts -log p times the reward of its caption.

        Args:
            logits: float[N, V].
            target: int64[R, T], padded on the right.
            positions: int64[N], from `counted`.
            rewards: float[R].
        """
        log_probs = self.log_probs(logits, target, positions)
        return -log_probs * rewards.to(log_probs)[positions.div(target.size(1), rounding_mode="floor")]

    def counted(self, target: Tensor) -> Tensor:
        """int64[N]: the positions, among the R * T of int64[R, T], that count."""
        counted = target.ne(self.padding_idx)
        counted[:, : self.cfg.ignore_prefix_size] = False
        return counted.flatten().nonzero().squeeze(1)

    def log_probs(self, logits: Tensor, target: Tensor, positions: Tensor) -> Tensor:
        """Log-probabilities float[N] of the targets int64[R, T] at N positions, from their logits float[N, V]."""
        of_target = target.flatten()[positions]
        scores = range_scores(logits, of_target, *self.range) if self.range else dense_scores(logits, of_target)
        return scores.target

    def cross_entropy(self, model: Any, sample: dict[str, Any], reduce: bool) -> tuple[Tensor, int, dict[str, Any]]:
        """What validation logs as its loss: that of each row's first reference."""
        positions = self.counted(sample["target"])
        logits = logits_of(model, sample["net_input"], positions)
        return self.logged(-self.log_probs(logits, sample["target"], positions), sample["target"], reduce)

    def logged(
        self, losses: Tensor, target: Tensor, reduce: bool, **more: Tensor
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """What `forward` returns, from the losses float[N] of the tokens of int64[R, T]."""
        size = len(target) if self.cfg.sentence_avg else losses.numel()
        log = {
            "loss": losses.detach().sum(),
            **more,
            "ntokens": int(target.ne(self.padding_idx).sum()),
            "nsentences": len(target),
            "sample_size": size,
        }
        return losses.sum() if reduce else losses, size, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Logs `loss` for each token (or caption) and, in training, `score`: the mean CIDEr-D of what was generated."""
        keys = ("loss", "score", "ntokens", "nsentences", "sample_size")
        totals = {key: sum(log.get(key, 0) for log in logging_outputs) for key in keys}
        size, captions = max(totals["sample_size"], 1), max(totals["nsentences"], 1)
        metrics.log_scalar("loss", totals["loss"] / size, size, round=3)
        if any("score" in log for log in logging_outputs):
            metrics.log_scalar("score", totals["score"] / captions, captions, round=3)
        for key in ("ntokens", "nsentences", "sample_size"):
            metrics.log_scalar(key, totals[key], 1, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: the logs of all workers may be added before `reduce_metrics`."""
        return True


def leave_one_out(scores: Tensor) -> Tensor:
    """Each score less the mean of the others of its row, float[B, K].

    Raises:
        UserError: K is 1, and there are no others (officially 0 / 0, and every weight becomes NaN).
    """
    count = scores.size(1)
    if count < 2:
        raise UserError(
            "one caption of each picture has no others to be compared with: give --scst-args a beam of 2 or more"
        )
    return scores - (scores.sum(1, keepdim=True) - scores) / (count - 1)
