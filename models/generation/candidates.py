"""The exact probability of every answer of a closed set, by one pass of the decoder over their prefix tree.

Answers that begin alike share what they share: a row of the pass is a node of the tree, not an answer, and sees the
nodes above it. A node from which only one token can follow costs nothing, since a forced token has probability one, so
only nodes at or above a branching need the decoder: 511 of the 3,422 of a list of 3,129 answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from .constraints import NonFiniteLogits
from .trie import TOKEN_BITS, Trie, tokens_of

ROWS = 1024  # positions of a sentence that the decoder sees at once, and
TOGETHER = 4096  # those of all sentences: what bounds the memory
WIDE = 64  # edges of a node above which one product with their rows of the output matrix is faster


@dataclass(frozen=True)
class Chunk:
    """Some nodes that are decoded together, and the edges that leave those among them that branch.

    Every node stands behind the one above it, so the root is the first.

    Attributes:
        entering: int64[N - 1], the token that leads to each node; to the root lead the prompts.
        depth: int64[N], how far below the root each stands.
        sees: bool[N, N], which nodes (columns) lie on the path to each of them; itself always.
        edges: int64[E].
        rows: int64[E], where among the nodes each edge begins.
        tokens: int64[E], where it leads.
        wide: nodes with so many edges that one product gives their logits, each with the places of its edges, int64.
        few: the places of all other edges, int64.
    """

    entering: Tensor
    depth: Tensor
    sees: Tensor
    edges: Tensor
    rows: Tensor
    tokens: Tensor
    wide: tuple[tuple[int, Tensor], ...]
    few: Tensor


class AllCandidateScorer:
    """Scores the answers of a trie, `float[B, A]`.

    Args:
        trie: the closed set.
        rows: the most positions of a sentence that the decoder sees at once.
    """

    def __init__(self, trie: Trie, rows: int = ROWS):
        self.trie = trie
        keys = trie.keys[:-1]  # without that of `lost`
        self.tokens, self.parents = tokens_of(keys), keys >> TOKEN_BITS  # int64[E] each
        self.chunks = list(self._chunks(rows))

    def _decoded(self) -> Tensor:
        """bool[E + 1]: the nodes at or above a branching one."""
        counts = self.trie.first.diff()[: len(self.tokens) + 1]
        needed, levels = counts > 1, self.trie.levels
        for start, end in reversed(list(zip(levels, [*levels[1:], len(needed)], strict=True))):
            nodes = torch.arange(max(start, 1), end)
            needed[self.parents[nodes - 1][needed[nodes]]] = True
        return needed

    def _chunks(self, rows: int) -> Iterator[Chunk]:
        """Cuts the decoded nodes, in the order of a walk that goes down first, so that chunks share few nodes."""
        needed = self._decoded()
        first = self.trie.first
        order: list[int] = []
        waiting = [0] if bool(needed[0]) else []
        while waiting:
            node = waiting.pop()
            order.append(node)
            below = torch.arange(int(first[node]), int(first[node + 1])) + 1
            waiting += reversed(below[needed[below]].tolist())
        parents = [-1, *self.parents.tolist()]
        start = 0
        while start < len(order):
            ancestors, node = [], parents[order[start]]
            while node >= 0:
                ancestors.insert(0, node)
                node = parents[node]
            own = order[start : start + max(1, rows - len(ancestors))]
            start += len(own)
            yield self._chunk([*ancestors, *own], parents, len(ancestors))

    def _chunk(self, members: list[int], parents: list[int], shared: int) -> Chunk:
        """The chunk of these nodes, the first `shared` of which have their edges in an earlier one."""
        place = {node: number for number, node in enumerate(members)}
        sees = torch.eye(len(members), dtype=torch.bool)
        for row, node in enumerate(members[1:], 1):
            sees[row] |= sees[place[parents[node]]]
        nodes, first = torch.tensor(members), self.trie.first
        counts = first[nodes + 1] - first[nodes]
        counts[:shared] = 0
        counts[counts == 1] = 0  # forced
        rows = torch.arange(len(nodes)).repeat_interleave(counts)
        within = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        edges = first[nodes][rows] + within
        many = counts > WIDE
        return Chunk(
            entering=self.tokens[nodes[1:] - 1],
            depth=self.trie.depth(nodes),
            sees=sees,
            edges=edges,
            rows=rows,
            tokens=self.tokens[edges],
            wide=tuple((row, (rows == row).nonzero().flatten()) for row in many.nonzero().flatten().tolist()),
            few=(~many)[rows].nonzero().flatten(),
        )

    @torch.no_grad()
    def edges(
        self,
        models: Sequence[nn.Module],
        encoder_outs: Sequence[dict[str, list[Tensor]]],
        prompts: Tensor,
        temperature: float = 1.0,
    ) -> Tensor:
        """The log-probability of every edge where its node has been reached; 0 where it is forced.

        Args:
            models: OFA models; probabilities are averaged at every token, as stock's ensemble does.
            encoder_outs: what the encoder of each returned for B sentences.
            prompts: int64[B, P], all as long, begin with bos.
            temperature: logits are divided by it.

        Returns:
            float32[B, E].
        """
        found = torch.zeros(len(prompts), len(self.tokens), device=prompts.device)
        for chunk in self.chunks:
            each = [
                self._edges_of(chunk, model.decoder, out, prompts, temperature)
                for model, out in zip(models, encoder_outs, strict=True)
            ]
            mean = each[0] if len(each) == 1 else torch.stack(each).logsumexp(0) - math.log(len(each))
            found[:, chunk.edges.to(found.device)] = mean
        return found

    def _edges_of(
        self, chunk: Chunk, decoder: Any, encoder_out: dict[str, list[Tensor]], prompts: Tensor, temperature: float
    ) -> Tensor:
        """float32[B, edges of the chunk]."""
        device, count = prompts.device, len(chunk.depth)
        length = prompts.shape[1] - 1  # the last token of the prompt is the root
        tokens = torch.cat([prompts, chunk.entering.to(device).expand(len(prompts), -1)], 1)  # [B, P - 1 + N]
        places = torch.cat([torch.arange(length), length + chunk.depth]).to(device)
        sees = torch.ones(length + count, length + count, dtype=torch.bool).tril()
        sees[length:, length:] = chunk.sees
        features = decoder.tree(tokens, places, sees.to(device), encoder_out)[:, length:]  # [B, N, D]
        logits = self._logits(chunk, features, decoder.output_projection.weight) / temperature
        return _log_softmax_by(logits, chunk.rows.to(device), count)

    def _logits(self, chunk: Chunk, features: Tensor, matrix: Tensor) -> Tensor:
        """float32[B, edges]: the logits of the edges' tokens, no others."""
        device = features.device
        logits = torch.empty(len(features), len(chunk.edges), device=device)
        tokens, rows = chunk.tokens.to(device), chunk.rows.to(device)
        for row, places in chunk.wide:
            places = places.to(device)
            logits[:, places] = (features[:, row] @ matrix[tokens[places]].t()).float()
        for places in chunk.few.to(device).split(4096):
            logits[:, places] = (features[:, rows[places]] * matrix[tokens[places]]).sum(-1).float()
        return logits

    def paths(self, edges: Tensor) -> Tensor:
        """float32[B, E + 1]: the sums of the edges' float32[B, E] from the root down to every node."""
        sums = torch.zeros(len(edges), edges.shape[1] + 1, device=edges.device)
        parents, levels = self.parents.to(edges.device), self.trie.levels
        for start, end in zip(levels[1:], [*levels[2:], sums.shape[1]], strict=True):
            sums[:, start:end] = sums[:, parents[start - 1 : end - 1]] + edges[:, start - 1 : end - 1]
        return sums

    def scores(self, edges: Tensor) -> Tensor:
        """float32[B, A]: the log-probability of every answer, its end included, in the order of the trie's answers."""
        return self.paths(edges)[:, self.trie.ends.to(edges.device)]


class AllCandidateGenerator:
    """Stands in for stock's generator where every answer of a set is scored: the hypotheses are the likeliest answers.

    Args:
        models: OFA models, searched as one.
        tgt_dict: the target dictionary.
        trie: the closed set; None where each sentence has its own, `sample["choices"]`. Sentences with the same one
            are scored together.
        beam_size: hypotheses of a sentence, fewer where it has fewer answers.
        temperature: logits are divided by it.
        options: stock's other arguments, which mean nothing here: a score is the sum over the answer and its end.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        tgt_dict: Any,
        trie: Trie | None,
        beam_size: int = 1,
        temperature: float = 1.0,
        **options: Any,
    ):
        self.models = nn.ModuleList(models).eval()
        self.pad, self.bos, self.eos = tgt_dict.pad(), tgt_dict.bos(), tgt_dict.eos()
        self.symbols_to_strip_from_output = {self.bos, self.eos}  # which stock asks for
        self.scorer = None if trie is None else AllCandidateScorer(trie)
        self.beam_size, self.temperature = beam_size, temperature

    def generate(
        self,
        models: Sequence[nn.Module],
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int = 0,
    ) -> list[list[dict[str, Tensor]]]:
        """As stock's; without prompts."""
        if prefix_tokens is not None:
            raise UserError("--prefix-size does not go with --val-inference-type allcand: take beamsearch")
        rows = len(sample["net_input"]["src_tokens"])
        return self.complete(models, sample, torch.empty(rows, 0, dtype=torch.int64), bos_token)

    @torch.no_grad()
    def complete(
        self, models: Sequence[nn.Module], sample: dict[str, Any], prompts: Tensor, bos_token: int
    ) -> list[list[dict[str, Tensor]]]:
        """The likeliest answers behind each row's prompt.

        Args:
            models: taken for stock's sake; not read.
            sample: a batch.
            prompts: int64[B, P] without bos, right-padded.
            bos_token: what stands in front of them.

        Returns:
            For each row `beam_size` hypotheses, the likeliest first, with what stock's have; only what follows the
            prompt.

        Raises:
            NonFiniteLogits: the decoder's numbers hold NaN or infinity.
        """
        outs = [model.encoder.forward_torchscript(sample["net_input"]) for model in self.models]
        device = sample["net_input"]["src_tokens"].device
        starts = torch.cat([prompts.new_full((len(prompts), 1), bos_token), prompts], 1).to(device)
        lengths = 1 + prompts.ne(self.pad).sum(1)
        beams: list[Any] = [None] * len(prompts)
        # sentences whose prompts are as long, and whose answers the same, go through the decoder together
        together: dict[tuple[int, Any], list[int]] = {}
        for row, length in enumerate(lengths.tolist()):
            together.setdefault((length, None if self.scorer else sample["choices"][row]), []).append(row)
        for (length, choices), same in together.items():
            scorer = self.scorer or AllCandidateScorer(Trie.from_answers(choices, self.bos, self.eos))
            widest = max((len(chunk.depth) for chunk in scorer.chunks), default=1) + length
            for rows in torch.tensor(same).split(max(1, TOGETHER // widest)):
                of_rows = [
                    model.encoder.reorder_encoder_out(out, rows.to(device))
                    for model, out in zip(self.models, outs, strict=True)
                ]
                edges = scorer.edges(self.models, of_rows, starts[rows, :length], self.temperature)
                bad = ~edges.isfinite().all(1)
                if bool(bad.any()):
                    raise NonFiniteLogits(length - 1, rows[bad.cpu()].tolist())
                for row, beam in zip(rows.tolist(), _best(scorer, edges, self.beam_size), strict=True):
                    beams[row] = beam
        return beams


def _best(scorer: AllCandidateScorer, edges: Tensor, count: int) -> list[list[dict[str, Tensor]]]:
    """The hypotheses of B sentences, `count` of each or all, from their edges' float[B, E]."""
    nodes = scorer.trie.ends.unique()  # an answer that was given twice is one
    scores, which = scorer.paths(edges)[:, nodes.to(edges.device)].topk(min(count, len(nodes)))
    return [
        [_hypothesis(scorer, value, of_edges, node) for value, node in zip(values, chosen, strict=True)]
        for values, chosen, of_edges in zip(scores, nodes[which.cpu()].tolist(), edges, strict=True)
    ]


def _hypothesis(scorer: AllCandidateScorer, score: Tensor, edges: Tensor, node: int) -> dict[str, Tensor]:
    path: list[int] = []  # the edges that lead to the node
    while node:
        path.insert(0, node - 1)
        node = int(scorer.parents[node - 1])
    empty = torch.empty(0)
    return {
        "tokens": scorer.tokens[path].to(edges.device),
        "score": score,
        "positional_scores": edges[path],
        "attention": empty,
        "alignment": empty,
    }


def _log_softmax_by(logits: Tensor, rows: Tensor, count: int) -> Tensor:
    """float[B, E] normalised over the edges of the same row (int64[E], 0 <= row < count)."""
    index = rows.expand_as(logits)
    most = logits.new_full((len(logits), count), -torch.inf).scatter_reduce_(1, index, logits, "amax")
    shifted = logits - most.gather(1, index)
    total = torch.zeros_like(most).scatter_add_(1, index, shifted.exp())
    return shifted - total.log().gather(1, index)
