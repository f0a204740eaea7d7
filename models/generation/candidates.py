"""The exact probability of every answer of a closed set, by one pass of the decoder over their prefix tree.

Answers that begin alike share what they share: a row of the pass is a node of the tree, not an answer, and sees the
nodes above it. A node from which only one token can follow costs nothing, since a forced token has probability one, so
only nodes at or above a branching need the decoder: 511 of the 3,422 of a list of 3,129 answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from .constraints import NonFiniteLogits
from .trie import TOKEN_BITS, Trie

ROWS = 1024  # positions of a sentence that the decoder sees at once, and
TOGETHER = 4096  # those of all sentences: what bounds the memory


@dataclass(frozen=True)
class Chunk:
    """Some nodes that are decoded together, and the edges that leave those among them that branch.

    Attributes:
        nodes: int64[N], in an order in which every node stands behind the one above it.
        above: int64[N], where in `nodes` that one stands; -1 for the root.
        edges: int64[E].
        rows: int64[E], where in `nodes` each edge begins.
    """

    nodes: Tensor
    above: Tensor
    edges: Tensor
    rows: Tensor


class AllCandidateScorer:
    """Scores the answers of a trie, `float[B, A]`.

    Args:
        trie: the closed set.
        rows: the most positions of a sentence that the decoder sees at once.
    """

    def __init__(self, trie: Trie, rows: int = ROWS):
        self.trie = trie
        self.tokens = trie.keys[:-1] & (1 << TOKEN_BITS) - 1  # [E], of every edge, without that of `lost`
        self.parents = trie.keys[:-1] >> TOKEN_BITS  # [E]
        self.levels = trie.levels()
        self.chunks = list(self._chunks(rows))

    def _decoded(self) -> Tensor:
        """bool[E + 1]: the nodes at or above a branching one."""
        counts = self.trie.first.diff()[: len(self.tokens) + 1]
        needed = counts > 1
        for start, end in reversed(list(zip(self.levels, [*self.levels[1:], len(needed)], strict=True))):
            nodes = torch.arange(max(start, 1), end)
            needed[self.parents[nodes - 1][needed[nodes]]] = True
        return needed

    def _chunks(self, rows: int) -> Any:
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
            nodes = [*ancestors, *own]
            place = {node: number for number, node in enumerate(nodes)}
            above = torch.tensor([place.get(parents[node], -1) for node in nodes])
            nodes = torch.tensor(nodes)
            counts = first[nodes + 1] - first[nodes]
            counts = torch.where((counts > 1) & (torch.arange(len(nodes)) >= len(ancestors)), counts, 0)
            numbers = torch.arange(len(nodes)).repeat_interleave(counts)
            within = torch.arange(len(numbers)) - (counts.cumsum(0) - counts)[numbers]
            yield Chunk(nodes, above, first[nodes][numbers] + within, numbers)

    @torch.no_grad()
    def scores(
        self,
        models: Sequence[nn.Module],
        encoder_outs: Sequence[dict[str, list[Tensor]]],
        prompts: Tensor,
        temperature: float = 1.0,
    ) -> Tensor:
        """The log-probability of every answer, its end included, for sentences whose prompts are as long.

        Args:
            models: OFA models; probabilities are averaged at every token, as stock's ensemble does.
            encoder_outs: what the encoder of each returned for B sentences.
            prompts: int64[B, P], begins with bos.
            temperature: logits are divided by it.

        Returns:
            float32[B, A], in the order in which the trie was given its answers.
        """
        return self.paths(self.edges(models, encoder_outs, prompts, temperature))[:, self.trie.ends.to(prompts.device)]

    def edges(
        self,
        models: Sequence[nn.Module],
        encoder_outs: Sequence[dict[str, list[Tensor]]],
        prompts: Tensor,
        temperature: float = 1.0,
    ) -> Tensor:
        """float32[B, E]: the log-probability of every edge where its node has been reached; 0 where it is forced."""
        found = torch.zeros(len(prompts), len(self.tokens), device=prompts.device)
        for chunk in self.chunks:
            each = [
                self._edges_of(chunk, model.decoder, out, prompts, temperature)
                for model, out in zip(models, encoder_outs, strict=True)
            ]
            mean = each[0] if len(each) == 1 else torch.stack(each).logsumexp(0) - torch.tensor(len(each)).log()
            found[:, chunk.edges.to(found.device)] = mean
        return found

    def _edges_of(
        self, chunk: Chunk, decoder: Any, encoder_out: dict[str, list[Tensor]], prompts: Tensor, temperature: float
    ) -> Tensor:
        """float32[B, edges of the chunk]."""
        device, count = prompts.device, len(chunk.nodes)
        length = prompts.shape[1] - 1  # the last token of the prompt is the root
        entering = torch.cat([torch.zeros(1, dtype=torch.int64), self.tokens])[chunk.nodes].to(device)  # [N]
        tokens = torch.cat([prompts[:, :-1], entering.expand(len(prompts), -1)], 1)  # [B, P - 1 + N]
        roots = (chunk.nodes == 0).nonzero().flatten().to(device)
        tokens[:, length + roots] = prompts[:, -1:]
        depth = torch.bucketize(chunk.nodes, torch.tensor(self.levels), right=True) - 1
        places = torch.cat([torch.arange(length), length + depth]).to(device)
        sees = torch.ones(length + count, length + count, dtype=torch.bool).tril()
        tree = torch.eye(count, dtype=torch.bool)
        for row, above in enumerate(chunk.above.tolist()):
            if above >= 0:
                tree[row] |= tree[above]
        sees[length:, length:] = tree
        features = decoder.tree(tokens, places, sees.to(device), encoder_out)[:, length:]  # [B, N, D]
        logits = self._logits(chunk, features, decoder.output_projection.weight) / temperature
        return _log_softmax_by(logits, chunk.rows.to(device), count)

    def _logits(self, chunk: Chunk, features: Tensor, matrix: Tensor) -> Tensor:
        """float32[B, edges]: the logits of the edges' tokens, no others."""
        device = features.device
        logits = torch.empty(len(features), len(chunk.edges), device=device)
        counts = chunk.rows.bincount(minlength=len(chunk.nodes))
        tokens, rows = self.tokens[chunk.edges].to(device), chunk.rows.to(device)
        wide = (counts > 64).nonzero().flatten().tolist()
        for row in wide:  # one product for the many tokens that may follow a node
            at = (chunk.rows == row).nonzero().flatten().to(device)
            logits[:, at] = (features[:, row] @ matrix[tokens[at]].t()).float()
        few = (counts <= 64)[chunk.rows].nonzero().flatten().to(device)
        for part in few.split(4096):
            logits[:, part] = (features[:, rows[part]] * matrix[tokens[part]]).sum(-1).float()
        return logits

    def paths(self, edges: Tensor) -> Tensor:
        """float32[B, E + 1]: the sums of the edges' float32[B, E] from the root down to every node."""
        sums = torch.zeros(len(edges), edges.shape[1] + 1, device=edges.device)
        parents = self.parents.to(edges.device)
        for start, end in zip(self.levels[1:], [*self.levels[2:], sums.shape[1]], strict=True):
            sums[:, start:end] = sums[:, parents[start - 1 : end - 1]] + edges[:, start - 1 : end - 1]
        return sums


class AllCandidateGenerator:
    """Stands in for stock's generator where every answer of a set is scored: the hypotheses are the likeliest answers.

    Args:
        models: OFA models, searched as one.
        tgt_dict: the target dictionary.
        trie: the closed set.
        beam_size: hypotheses of a sentence.
        temperature: logits are divided by it.
        options: stock's other arguments, which mean nothing here: a score is the sum over the answer and its end.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        tgt_dict: Any,
        trie: Trie,
        beam_size: int = 1,
        temperature: float = 1.0,
        **options: Any,
    ):
        self.models = nn.ModuleList(models).eval()
        self.pad, self.trie, self.temperature = tgt_dict.pad(), trie, temperature
        self.symbols_to_strip_from_output = {trie.bos, trie.eos}  # which stock asks for
        self.scorer = AllCandidateScorer(trie)
        self.answers = trie.ends.unique()  # nodes: an answer that was given twice is one
        self.beam_size = min(beam_size, len(self.answers))

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
        for length in lengths.unique().tolist():  # sentences whose prompts are as long go through the decoder together
            same = (lengths == length).nonzero().flatten()
            widest = max((len(chunk.nodes) for chunk in self.scorer.chunks), default=1) + length
            for rows in same.split(max(1, TOGETHER // widest)):
                of_rows = [
                    model.encoder.reorder_encoder_out(out, rows.to(device))
                    for model, out in zip(self.models, outs, strict=True)
                ]
                edges = self.scorer.edges(self.models, of_rows, starts[rows, :length], self.temperature)
                bad = ~edges.isfinite().all(1)
                if bool(bad.any()):
                    raise NonFiniteLogits(length - 1, rows[bad.cpu()].tolist())
                for row, beam in zip(rows.tolist(), self._best(edges), strict=True):
                    beams[row] = beam
        return beams

    def _best(self, edges: Tensor) -> list[list[dict[str, Tensor]]]:
        """The hypotheses of B sentences from their edges' float[B, E]."""
        answers = self.answers.to(edges.device)
        scores, which = self.scorer.paths(edges)[:, answers].topk(self.beam_size)
        beams = []
        for row, (values, nodes) in enumerate(zip(scores, self.answers[which.cpu()].tolist(), strict=True)):
            beams.append([self._hypothesis(value, edges[row], node) for value, node in zip(values, nodes, strict=True)])
        return beams

    def _hypothesis(self, score: Tensor, edges: Tensor, node: int) -> dict[str, Tensor]:
        path: list[int] = []  # the edges that lead to the node
        while node:
            path.insert(0, node - 1)
            node = int(self.scorer.parents[node - 1])
        empty = torch.empty(0)
        return {
            "tokens": self.scorer.tokens[path].to(edges.device),
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
