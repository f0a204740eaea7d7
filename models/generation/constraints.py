"""Keeps stock beam search inside a closed answer set, and stops it when the model's numbers have gone bad.

The mask lies on each model's logits, before its softmax, so that probabilities are renormalised over what is allowed:
a forced token costs nothing, and the scores of all answers sum to one. Stock's own `PrefixConstrainedBeamSearch` masks
afterwards and ranks answers differently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from fairseq.models import FairseqIncrementalDecoder
from fairseq.search import BeamSearch, DiverseBeamSearch
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor, nn

from ...errors import UserError
from .trie import Trie


class NonFiniteLogits(UserError):
    """The decoder's logits hold NaN or infinity, so that no hypothesis could ever end.

    Args:
        step: position in the target that was being predicted, from 0.
        rows: sentences concerned, as indices into the batch.
        where: the same sentences in words the user knows (ids, file and line); default: the batch rows.
    """

    def __init__(self, step: int, rows: Sequence[int], where: str | None = None):
        super().__init__(step, rows, where)
        self.step, self.rows = step, list(rows)
        self.where = where or f"batch rows {', '.join(map(str, self.rows))}"

    def __str__(self) -> str:
        return (
            f"non-finite logits at step {self.step} for {self.where}: the weights hold NaN, or training diverged "
            "(small batches move the batch-norm statistics: --freeze-resnet; learning rate too high: lower --lr; "
            "fp16 overflow: train in fp32 or bf16); take an earlier checkpoint"
        )


class ConstrainedEnsemble(EnsembleModel):
    """Stock ensemble whose models see only what the trie allows.

    Beside the models' encoder outputs it carries, in the same list, the sentence and the prompt length of every row of
    the search. `prefix_tokens` int64[B, P] (right-padded) in `net_input` are the prompts: no constraint within them,
    and the trie is walked from the first token after them.

    Args:
        models: fairseq encoder-decoder models.
        trie: closed answer set; None leaves the search free.
        pad: padding id of the prompts.
        bos, eos: a bos inside a prompt stands for an eos, on which stock would end the sentence.
        span: ids start <= id < end, the only ones that may be generated, beside eos.
        codes: whether image codes are generated, which the decoder gives positions on a grid.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        trie: Trie | None = None,
        pad: int = 1,
        bos: int = 0,
        eos: int = 2,
        span: tuple[int, int] | None = None,
        codes: bool = False,
    ):
        super().__init__([MaskedModel(model, pad, eos, span, codes) for model in models])
        # Stock asks for the decoder's type, which a `CodeDecoder` hides: 256 codes would be computed anew at each step
        self.has_incremental = all(isinstance(getattr(m, "decoder", None), FairseqIncrementalDecoder) for m in models)
        self.trie, self.pad, self.bos, self.eos = trie, pad, bos, eos
        self.limits: tuple[int, int] | None = None  # least and most tokens of an answer behind a prompt, without eos
        self.longest_prompt = 0  # tokens of the batch's longest prompt

    def forward_encoder(self, net_input: dict[str, Any]) -> list[dict[str, list[Tensor]]]:
        """Stock encoding; the last element of the list is ours."""
        prompts = net_input.get("prefix_tokens")
        inputs = {key: value for key, value in net_input.items() if key != "prefix_tokens"}
        sentence = torch.arange(len(net_input["src_tokens"]), device=net_input["src_tokens"].device)
        length = torch.zeros_like(sentence) if prompts is None else prompts.ne(self.pad).sum(dim=1)
        self.longest_prompt = int(length.max())
        rows = {"sentence": [sentence], "prompt_length": [length], "node": [torch.zeros_like(sentence)]}
        return [*super().forward_encoder(inputs), rows]

    def reorder_encoder_out(
        self, encoder_outs: list[dict[str, list[Tensor]]], new_order: Tensor
    ) -> list[dict[str, list[Tensor]]]:
        """Stock reordering, and the rows' sentences and prompts with it."""
        rows = {key: [value.index_select(0, new_order) for value in values] for key, values in encoder_outs[-1].items()}
        return [*super().reorder_encoder_out(encoder_outs, new_order), rows]

    def forward_decoder(
        self,
        tokens: Tensor,
        encoder_outs: list[dict[str, list[Tensor]]],
        incremental_states: list[dict[str, Any]],
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities float[R, V] of the next token of each of R rows, and stock's averaged attention.

        Raises:
            NonFiniteLogits: a row's logits hold NaN or infinity.
        """
        rows = encoder_outs[-1]
        step = torch.arange(tokens.size(1), device=tokens.device)
        stand_in = tokens.eq(self.bos) & (step > 0) & (step <= rows["prompt_length"][0].unsqueeze(1))
        tokens = tokens.masked_fill(stand_in, self.eos)
        allowed = None if self.trie is None else self.allowed(tokens, rows)
        for model in self.models:
            model.allowed = allowed
        try:
            log_probs, attention = super().forward_decoder(tokens, encoder_outs, incremental_states, temperature)
            if self.limits is not None:
                answered = tokens.size(1) - 1 - rows["prompt_length"][0]  # [R]
                log_probs[answered < self.limits[0], self.eos] = -math.inf
                full = answered >= self.limits[1]
                log_probs[full, : self.eos] = log_probs[full, self.eos + 1 :] = -math.inf
            return log_probs, attention
        except BadRows as error:
            sentences = sorted(set(rows["sentence"][0][error.bad].tolist()))
            raise NonFiniteLogits(tokens.size(1) - 1, sentences) from None

    def allowed(self, tokens: Tensor, rows: dict[str, list[Tensor]]) -> Allowed:
        """What may come next; moves the rows' nodes on by the last token.

        Args:
            tokens: int64[R, 1 + step], generated so far, the first of them the start symbol whatever it is.
            rows: what the rows carry.
        """
        step, longest = tokens.size(1) - 1, self.longest_prompt
        if step == longest == 0:  # all beams of a sentence are still one, and all sentences stand at the root
            return Allowed(*self.trie.followers(rows["node"][0][:1]), None)
        answered = step - rows["prompt_length"][0]  # [R]
        moved = self.trie.step(rows["node"][0], tokens[:, -1])
        rows["node"] = [torch.where(answered > 0, moved, 0)]
        inside = answered < 0 if step < longest else None
        return Allowed(*self.trie.followers(rows["node"][0], max(0, step - longest)), inside)


class Allowed(NamedTuple):
    """What R rows may generate, in at most W ways.

    Attributes:
        tokens: int64[R, W], or int64[1, W] where it is the same for all.
        there: bool[R or 1, W], whether there is such a token.
        inside: bool[R], the rows still inside their prompt, which may generate anything; None: there are none.
    """

    tokens: Tensor
    there: Tensor
    inside: Tensor | None


class CodeDecoder:
    """A decoder all of whose rows write image codes; stock's search does not say so."""

    def __init__(self, decoder: nn.Module):
        self._decoder = decoder

    def forward(self, tokens: Tensor, **rest: Any) -> Any:
        """The decoder's own, with `code_masks` bool[R]."""
        return self._decoder.forward(tokens, code_masks=torch.ones_like(tokens[:, 0], dtype=torch.bool), **rest)

    def max_positions(self) -> int:
        """Cells of the grid and what follows it, whatever `--max-target-positions` says of text."""
        return len(self._decoder.image_position_idx)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


class MaskedModel(nn.Module):
    """One model of the ensemble, with the mask laid on its logits just before they are normalised."""

    def __init__(self, model: nn.Module, pad: int, eos: int, span: tuple[int, int] | None = None, codes: bool = False):
        super().__init__()
        self.model, self.pad, self.eos, self.span, self.codes = model, pad, eos, span, codes
        self.allowed: Allowed | None = None

    def __getattr__(self, name: str) -> Any:
        """Everything else (encoder, decoder, max_decoder_positions) is the wrapped model's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(super().__getattr__("model"), name)
            return CodeDecoder(value) if name == "decoder" and self.codes else value

    def max_decoder_positions(self) -> int:
        """Most tokens, eos included, that the model can write of this kind."""
        return self.decoder.max_positions() if self.codes else self.model.max_decoder_positions()

    def get_normalized_probs(self, net_output: tuple[Tensor, Any], log_probs: bool, sample: Any = None) -> Tensor:
        """float[R, 1, V] from net_output[0], the last position's float[R, 1, V] logits.

        Raises:
            BadRows: a row holds NaN or infinity.
        """
        logits, impossible = net_output[0], -math.inf if log_probs else 0.0
        finite = logits.amax(dim=(1, 2)) < math.inf  # NaN and +inf both survive a maximum, and neither is less
        if not bool(finite.all()):
            raise BadRows((~finite).nonzero().squeeze(1))
        if self.span is not None:
            start, end = self.span
            masked = torch.full_like(logits, -math.inf)
            masked[..., start:end], masked[..., self.eos] = logits[..., start:end], logits[..., self.eos]
            logits = masked
        if self.allowed is None:
            return self.model.get_normalized_probs((logits, *net_output[1:]), log_probs, sample)
        tokens, there, inside = self.allowed
        chosen = logits[:, 0].gather(1, tokens.expand(len(logits), -1)).masked_fill(~there, -math.inf)
        chosen = self.model.get_normalized_probs((chosen, *net_output[1:]), log_probs, sample)
        chosen = chosen.masked_fill(~there, impossible)  # NaN where a finished row has no way on
        probs = chosen.new_full((len(logits), logits.size(2)), impossible)
        probs.scatter_(1, tokens.masked_fill(~there, self.pad).expand(len(logits), -1), chosen)
        if inside is not None:
            free = self.model.get_normalized_probs((logits[:, 0], *net_output[1:]), log_probs, sample)
            probs = torch.where(inside.unsqueeze(1), free, probs)
        return probs.unsqueeze(1)


class BadRows(Exception):
    """Rows (int64[N]) of a step whose logits are not finite; `ConstrainedEnsemble` knows their sentences."""

    def __init__(self, bad: Tensor):
        super().__init__(bad)
        self.bad = bad


class ConstrainedGenerator(SequenceGenerator):
    """Stock generator fitted to a closed answer set, and to prompts.

    It tells its ensemble the prompts, narrows the beam to the number of answers (a wider one holds rows that can never
    end, on which stock stops with an AssertionError), and refuses what would cut every path through the trie.

    Args:
        models: a list of models, or a `ConstrainedEnsemble`.
        tgt_dict: the target dictionary.
        trie: closed answer set for a list of models.
        options: stock's own arguments.

    Raises:
        UserError: an option that does not go with a closed answer set; the flag is named.
    """

    def __init__(self, models: Any, tgt_dict: Any, trie: Trie | None = None, **options: Any):
        super().__init__(build_ensemble(models, trie, tgt_dict.pad()), tgt_dict, **options)
        self.trie: Trie | None = self.model.trie
        if self.trie is None:
            return
        if type(self.search) not in (BeamSearch, DiverseBeamSearch):
            raise UserError(
                "a closed answer set is searched with --beam, and --diverse-beam-groups if you like; leave out "
                "--sampling, --diversity-rate and the other search strategies"
            )
        if isinstance(self.search, DiverseBeamSearch) and self.beam_size > len(self.trie):
            raise UserError(
                f"--beam {self.beam_size} is wider than the closed set of {len(self.trie)} answers; lower it, since "
                "--diverse-beam-groups must divide it"
            )
        if self.repeat_ngram_blocker is not None:
            raise UserError("--no-repeat-ngram-size can cut answers of the closed set; leave it out or set it to 0")
        self.beam_size = min(self.beam_size, len(self.trie))

    def complete(
        self, models: Sequence[nn.Module], sample: dict[str, Any], prompts: Tensor, bos_token: int
    ) -> list[list[dict[str, Tensor]]]:
        """As stock's `generate`, but each hypothesis goes on from its row's prompt, and holds only what follows it.

        Tokens, scores, `--min-len` and `--max-len-b` count from the end of the row's prompt, whatever the others in the
        batch; officially they count the prompt as well.

        Args:
            models, sample, bos_token: as for stock.
            prompts: int64[B, P] without bos, right-padded; an eos in it ends nothing.
        """
        lengths = prompts.ne(self.pad).sum(dim=1).tolist()
        source_length = sample["net_input"]["src_tokens"].size(1)
        self.check_lengths(source_length, None)
        least, more = self.min_len, self.max_len_b
        self.model.limits = least, int(self.max_len_a * source_length + more)
        self.min_len, self.max_len_b = 0, more + max(lengths)  # of the search as a whole
        try:
            stand_in = prompts.masked_fill(prompts.eq(self.eos), bos_token)
            beams = self.generate(models, sample, prefix_tokens=stand_in, bos_token=bos_token)
        finally:
            self.min_len, self.max_len_b = least, more
            self.model.limits = None
        for beam, length in zip(beams, lengths, strict=True):
            for hypothesis in beam:
                hypothesis["tokens"] = hypothesis["tokens"][length:]
                hypothesis["positional_scores"] = hypothesis["positional_scores"][length:]
                size = len(hypothesis["tokens"]) ** self.len_penalty if self.normalize_scores else 1
                hypothesis["score"] = hypothesis["positional_scores"].sum() / size
                if hypothesis["attention"].numel():
                    hypothesis["attention"] = hypothesis["attention"][:, length:]
            beam.sort(key=lambda hypothesis: -float(hypothesis["score"]))
        return beams

    def _generate(
        self,
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        self.check_lengths(sample["net_input"]["src_tokens"].size(1), prefix_tokens)
        if prefix_tokens is not None:
            sample = {**sample, "net_input": {**sample["net_input"], "prefix_tokens": prefix_tokens}}
        return super()._generate(sample, prefix_tokens, constraints, bos_token)

    def check_lengths(self, source_length: int, prompts: Tensor | None) -> None:
        """Raises UserError where the shortest answer is too short for --min-len, or the longest too long to end."""
        if self.trie is None:
            return
        lengths = torch.zeros(1, dtype=torch.int64) if prompts is None else prompts.ne(self.pad).sum(dim=1)
        shortest = self.trie.min_length - 1 + int(lengths.min())
        longest = self.trie.max_length - 1 + int(lengths.max())
        room = min(int(self.max_len_a * source_length + self.max_len_b), self.max_len - 1)
        if self.min_len > max(shortest, 1):
            raise UserError(f"--min-len {self.min_len}: the closed set has an answer of {shortest} tokens; lower it")
        if room < longest:
            raise UserError(
                f"the longest answer of the closed set has {longest} tokens with its prompt, but the search stops "
                f"after {room}; raise --max-len-b or, if that is what binds, --max-target-positions"
            )


def build_ensemble(models: Any, trie: Trie | None = None, pad: int = 1, **options: Any) -> ConstrainedEnsemble:
    """The ensemble for a stock `SequenceGenerator`; an ensemble already built is returned as it is.

    A search with prompts needs `ConstrainedGenerator`, which hands them on.
    """
    return models if isinstance(models, ConstrainedEnsemble) else ConstrainedEnsemble(models, trie, pad, **options)
