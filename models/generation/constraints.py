"""Keeps stock beam search inside what may be written, and stops it when the model's numbers have gone bad.

The mask lies on each model's logits, before its softmax, so that probabilities are renormalised over what is allowed:
a forced token costs nothing, and the scores of all answers sum to one. Stock's own `PrefixConstrainedBeamSearch` masks
afterwards and ranks answers differently.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from fairseq.models import FairseqIncrementalDecoder
from fairseq.search import BeamSearch, DiverseBeamSearch
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor, nn

from ...errors import UserError
from .grammar import Grammar

NARROW = 4
"""A row of the token matrix that is fetched for one hypothesis costs about so many that are read in their order."""


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
    """Stock ensemble whose models see only what the rules allow.

    Beside the models' encoder outputs it carries, in the same list, the sentence and the prompt length of every row of
    the search. `prefix_tokens` int64[B, P] (right-padded) in `net_input` are the prompts: no constraint within them,
    and the rules begin with the first token after them.

    Args:
        models: fairseq encoder-decoder models.
        rules: what may be generated, such as a closed answer set; None leaves the search free.
        pad: padding id of the prompts.
        bos, eos: a bos inside a prompt stands for an eos, on which stock would end the sentence.
        codes: whether image codes are generated, which the decoder gives positions on a grid.
        renormalise: whether probabilities are shared out among what may be generated, as officially in all but
            zero-shot tasks; else the rest is masked afterwards, as in stock's own constrained search.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        rules: Grammar | None = None,
        pad: int = 1,
        bos: int = 0,
        eos: int = 2,
        codes: bool = False,
        renormalise: bool = True,
    ):
        super().__init__([MaskedModel(model, pad, codes, renormalise) for model in models])
        # Stock asks for the decoder's type, which `SearchDecoder` hides: 256 codes would be computed anew at each step
        self.has_incremental = all(isinstance(getattr(m, "decoder", None), FairseqIncrementalDecoder) for m in models)
        # Then the beams of a sentence are so many queries of what the encoder returned for it, once
        self.shares = all(getattr(getattr(model, "decoder", None), "shares_sources", False) for model in models)
        self.rules, self.pad, self.bos, self.eos = rules, pad, bos, eos
        self.room = 2**31  # most tokens of the longest prompt and an answer, without eos
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
        """Stock reordering, and the rows' sentences and prompts with it.

        What the encoders returned stays one for all beams of a sentence, and moves only when a sentence has finished.
        """
        *encoded, rows = encoder_outs
        before = len(rows["sentence"][0])
        rows = {key: [value.index_select(0, new_order) for value in values] for key, values in rows.items()}
        if not self.shares:
            encoded = super().reorder_encoder_out(encoded, new_order)
        elif len(new_order) < before:
            beams = before // len(encoded[0]["encoder_padding_mask"][0])
            encoded = super().reorder_encoder_out(encoded, new_order[::beams] // beams)
        return [*encoded, rows]

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
        allowed = None if self.rules is None else self.allowed(tokens, rows)
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
        answered = step - rows["prompt_length"][0]  # [R]
        left = self.room - longest - answered.clamp(min=0)
        if step == longest == 0:  # all beams of a sentence are still one, and all sentences stand at the root
            return Allowed(*self.rules.followers(rows["node"][0][:1], 0, left[:1]), None)
        moved = self.rules.step(rows["node"][0], tokens[:, -1])
        rows["node"] = [torch.where(answered > 0, moved, 0)]
        inside = answered < 0 if step < longest else None
        return Allowed(*self.rules.followers(rows["node"][0], max(0, step - longest), left), inside)


class Allowed(NamedTuple):
    """What R rows may generate, in at most W ways.

    Attributes:
        tokens: int64[R, W], int64[1, W] where they are the same for all, or None: all ids in their order.
        there: bool[R or 1, W], whether there is such a token.
        inside: bool[R], the rows still inside their prompt, which may generate anything; None: there are none.
    """

    tokens: Tensor | None
    there: Tensor
    inside: Tensor | None


class SearchDecoder:
    """A decoder told what stock's search does not say: that its rows write image codes, or what they may write at all.

    Where a closed set leaves few ways on, logits are computed for these alone, and no row of the vocabulary besides.
    """

    def __init__(self, model: MaskedModel, decoder: nn.Module):
        self._model, self._decoder = model, decoder

    def forward(self, tokens: Tensor, **rest: Any) -> tuple[Tensor, Any]:
        """The decoder's own: float[R, t, V], or float[R, 1, W] of the W ways that `Allowed` has."""
        if self._model.codes:
            rest["code_masks"] = torch.ones_like(tokens[:, 0], dtype=torch.bool)
        if not self._model.narrow:
            return self._decoder.forward(tokens, **rest)
        features, extra = self._decoder.forward(tokens, features_only=True, **rest)
        last, allowed = features[:, -1:], self._model.allowed.tokens
        rows = self._decoder.output_projection.weight[allowed]  # [R or 1, W, D]
        return (last @ rows.transpose(1, 2)), extra

    def max_positions(self) -> int:
        """Of codes as many as the grid has cells, and what follows them, whatever `--max-target-positions` says."""
        return len(self._decoder.image_position_idx) if self._model.codes else self._decoder.max_positions()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


class MaskedModel(nn.Module):
    """One model of the ensemble, with the mask laid on its logits just before they are normalised."""

    def __init__(self, model: nn.Module, pad: int, codes: bool = False, renormalise: bool = True):
        super().__init__()
        self.model, self.pad, self.codes, self.renormalise = model, pad, codes, renormalise
        self.allowed: Allowed | None = None

    def __getattr__(self, name: str) -> Any:
        """Everything else (encoder, decoder, max_decoder_positions) is the wrapped model's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(super().__getattr__("model"), name)
            return SearchDecoder(self, value) if name == "decoder" else value

    def max_decoder_positions(self) -> int:
        """Most tokens, eos included, that the model can write of this kind."""
        return self.decoder.max_positions() if self.codes else self.model.max_decoder_positions()

    @property
    def narrow(self) -> bool:
        """Whether there are so few ways on that their logits alone cost less than the whole vocabulary's."""
        if self.allowed is None or self.allowed.tokens is None or self.allowed.inside is not None:
            return False
        if not self.renormalise:  # then the others count
            return False
        if not getattr(self.decoder, "shares_sources", False):  # another's decoder
            return False
        return NARROW * self.allowed.tokens.numel() <= self.decoder.output_projection.out_features

    def get_normalized_probs(self, net_output: tuple[Tensor, Any], log_probs: bool, sample: Any = None) -> Tensor:
        """float[R, 1, V] from net_output[0], the last position's logits float[R, 1, V], or float[R, 1, W] where narrow.

        Raises:
            BadRows: a row holds NaN or infinity.
        """
        logits, impossible = net_output[0], -math.inf if log_probs else 0.0
        finite = logits.amax(dim=(1, 2)) < math.inf  # NaN and +inf both survive a maximum, and neither is less
        if not bool(finite.all()):
            raise BadRows((~finite).nonzero().squeeze(1))
        normalised = functools.partial(self.model.get_normalized_probs, log_probs=log_probs, sample=sample)
        if self.allowed is None:
            return normalised(net_output)
        tokens, there, inside = self.allowed
        last, rest = logits[:, 0], net_output[1:]
        if tokens is None:
            probs = self._among(last, there, rest, normalised, impossible)
        else:
            narrow = self.narrow
            vocabulary = self.decoder.output_projection.out_features if narrow else last.size(1)
            chosen = last if narrow else last.gather(1, tokens.expand(len(last), -1))
            chosen = self._among(chosen, there, rest, normalised, impossible)
            probs = chosen.new_full((len(last), vocabulary), impossible)
            probs.scatter_(1, tokens.masked_fill(~there, self.pad).expand(len(last), -1), chosen)
        if not self.renormalise:
            probs = normalised((last, *rest)).masked_fill(probs == impossible, impossible)
        if inside is not None:
            probs = torch.where(inside.unsqueeze(1), normalised((last, *rest)), probs)
        return probs.unsqueeze(1)

    @staticmethod
    def _among(
        logits: Tensor, there: Tensor, rest: tuple, normalised: Callable[..., Tensor], impossible: float
    ) -> Tensor:
        """float[R, W] normalised over what is there."""
        probs = normalised((logits.masked_fill(~there, -math.inf), *rest))
        return probs.masked_fill(~there, impossible)  # NaN where a finished row has no way on


class BadRows(Exception):
    """Rows (int64[N]) of a step whose logits are not finite; `ConstrainedEnsemble` knows their sentences."""

    def __init__(self, bad: Tensor):
        super().__init__(bad)
        self.bad = bad


class ConstrainedGenerator(SequenceGenerator):
    """Stock generator fitted to rules of what may be written, such as a closed answer set, and to prompts.

    It tells its ensemble the prompts, narrows the beam to the number of answers (a wider one holds rows that can never
    end, on which stock stops with an AssertionError), and refuses what would cut every path through the trie.

    Args:
        models: a list of models, or a `ConstrainedEnsemble`.
        tgt_dict: the target dictionary.
        rules: for a list of models.
        options: stock's own arguments.

    Raises:
        UserError: an option that does not go with a closed answer set; the flag is named.
    """

    def __init__(self, models: Any, tgt_dict: Any, rules: Grammar | None = None, **options: Any):
        super().__init__(build_ensemble(models, rules, tgt_dict.pad()), tgt_dict, **options)
        self.rules: Grammar | None = self.model.rules
        if self.rules is None or self.rules.count == math.inf:
            return
        if type(self.search) not in (BeamSearch, DiverseBeamSearch):
            raise UserError(
                "a closed answer set is searched with --beam, and --diverse-beam-groups if you like; leave out "
                "--sampling, --diversity-rate and the other search strategies"
            )
        if isinstance(self.search, DiverseBeamSearch) and self.beam_size > self.rules.count:
            raise UserError(
                f"--beam {self.beam_size} is wider than the closed set of {self.rules.count} answers; lower it, since "
                "--diverse-beam-groups must divide it"
            )
        if self.repeat_ngram_blocker is not None:
            raise UserError("--no-repeat-ngram-size can cut answers of the closed set; leave it out or set it to 0")
        self.beam_size = min(self.beam_size, self.rules.count)

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
        source_length = sample["net_input"]["src_tokens"].size(1)
        self.check_lengths(source_length, prefix_tokens)
        self.model.room = self.room(source_length)
        if prefix_tokens is not None:
            sample = {**sample, "net_input": {**sample["net_input"], "prefix_tokens": prefix_tokens}}
        return super()._generate(sample, prefix_tokens, constraints, bos_token)

    def room(self, source_length: int) -> int:
        """Most tokens of a prompt and its answer, without eos."""
        return min(int(self.max_len_a * source_length + self.max_len_b), self.max_len - 1)

    def check_lengths(self, source_length: int, prompts: Tensor | None) -> None:
        """Raises UserError where the shortest answer is too short for --min-len, or the longest too long to end."""
        if self.rules is None:
            return
        lengths = torch.zeros(1, dtype=torch.int64) if prompts is None else prompts.ne(self.pad).sum(dim=1)
        shortest = self.rules.shortest + int(lengths.min())
        longest = self.rules.longest + int(lengths.max())
        room = self.room(source_length)
        if longest == math.inf:
            return
        if self.min_len > max(shortest, 1):
            raise UserError(f"--min-len {self.min_len}: the closed set has an answer of {shortest} tokens; lower it")
        if room < longest:
            raise UserError(
                f"the longest answer of the closed set has {longest} tokens with its prompt, but the search stops "
                f"after {room}; raise --max-len-b or, if that is what binds, --max-target-positions"
            )


def build_ensemble(models: Any, rules: Grammar | None = None, pad: int = 1, **options: Any) -> ConstrainedEnsemble:
    """The ensemble for a stock `SequenceGenerator`; an ensemble already built is returned as it is.

    A search with prompts needs `ConstrainedGenerator`, which hands them on.
    """
    return models if isinstance(models, ConstrainedEnsemble) else ConstrainedEnsemble(models, rules, pad, **options)
