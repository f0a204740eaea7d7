"""Generation: beams that share their sentence against a row for each, closed sets, all candidates in one pass.

    python benchmarks/bench_generation.py [--arch ofa_tiny] [--batch 8] [--beam 5] [--rounds 5] [--only captions,...]

Random weights, pictures of 384 pixels, 16 tokens forced. Both sides of a row alternate in this process and run the same
model; the baseline is what stock's loop does by itself: a copy of the encoder's output for every beam, moved at every
step, BatchNorm after every convolution, and the whole vocabulary; for a step along a trie, official OFA's: nested
dictionaries walked for each hypothesis, and a mask of the whole vocabulary. "packed" is `--packed-linears on`. Prints
medians, ratios and whether results are equal.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import fairseq  # noqa: F401  before ofa_plugin, which then registers at once
import torch
from fairseq.data import Dictionary

from ofa_plugin.models.generation import ConstrainedGenerator, Trie, build_ensemble, constraints
from ofa_plugin.models.generation.candidates import AllCandidateScorer
from ofa_plugin.models.generation.constraints import MaskedModel
from ofa_plugin.models.ofa.config import resolve
from ofa_plugin.models.ofa.model import OFAModel
from ofa_plugin.models.ofa.packed import pack_linears

VOCABULARY, TEXT = 59457, 50000  # symbols of the released checkpoints, and those of them that answers are made of
STEPS = 16
ANSWERS = 3129  # as many as VQA has
NARROW = constraints.NARROW


def model_of(arch: str) -> OFAModel:
    """A model with random weights."""
    torch.manual_seed(1)
    dictionary = Dictionary()
    for number in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(str(number))
    model = OFAModel(resolve(Namespace(_name=arch)), dictionary).eval()
    torch.nn.init.normal_(model.decoder.output_projection.weight, std=0.05)  # else every answer is as likely
    return model


def batch_of(size: int) -> dict[str, Any]:
    """Pictures with questions of eight tokens."""
    generator = torch.Generator().manual_seed(2)
    return {
        "src_tokens": torch.randint(4, TEXT, (size, 8), generator=generator),
        "patch_images": torch.randn(size, 3, 384, 384, generator=generator),
        "patch_masks": torch.ones(size, dtype=torch.bool),
    }


def answers_of(count: int) -> list[list[int]]:
    """Answers of one to three tokens, many of which begin alike."""
    draw = random.Random(3)
    first = [draw.randrange(4, TEXT) for _ in range(count // 2)]
    found = set()
    while len(found) < count:
        found.add((draw.choice(first), *(draw.randrange(4, TEXT) for _ in range(draw.choice((0, 0, 1, 1, 2))))))
    return [list(answer) for answer in sorted(found)]


def compare(title: str, rounds: int, slow: Callable[[], Any], fast: Callable[[], Any], equal: Callable) -> None:
    """Alternates two ways to do the same, and prints a row."""
    times: dict[str, list[float]] = {"slow": [], "fast": []}
    for number in range(rounds + 1):
        results = {}
        for name, work in (("slow", slow), ("fast", fast)):
            start = time.perf_counter()
            results[name] = work()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    before, after = (statistics.median(times[name]) for name in ("slow", "fast"))
    print(
        f"| {title} | {before * 1e3:.0f} ms | {after * 1e3:.0f} ms | {before / after:.2f}x | {equal(**results)} |",
        flush=True,
    )


def same_hypotheses(slow: list, fast: list) -> str:
    """How many of the best answers are equal token for token, and the largest difference of their scores."""
    pairs = [(a[0], b[0]) for a, b in zip(slow, fast, strict=True)]
    equal = sum(a["tokens"].tolist() == b["tokens"].tolist() for a, b in pairs)
    apart = max(abs(float(a["score"]) - float(b["score"])) for a, b in pairs)
    return f"{equal} of {len(pairs)}, scores within {apart:.0e}"


class Walk:
    """Official OFA's trie: dictionaries in dictionaries, and for each hypothesis a walk and a mask."""

    def __init__(self, answers: list[list[int]], eos: int):
        self.root: dict = {}
        for answer in answers:
            node = self.root
            for token in (*answer, eos):
                node = node.setdefault(token, {})

    def probabilities(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities float[R, V] behind prefixes int64[R, T]."""
        mask = torch.ones_like(logits, dtype=torch.bool)
        for row, prefix in enumerate(tokens.tolist()):
            node = self.root
            for token in prefix[1:]:
                node = node.get(token, {})
            mask[row, list(node)] = False
        return logits.masked_fill(mask, -torch.inf).log_softmax(-1)


def trie_step(model: OFAModel, rows: int, rounds: int, count: int) -> None:
    """Prints what a step along a trie costs, from the decoder's features to log-probabilities, and what one takes."""
    features = torch.randn(rows, 1, model.cfg.decoder_embed_dim, generator=torch.Generator().manual_seed(4))
    project = model.decoder.output_projection
    answers = answers_of(count)
    start = time.perf_counter()
    trie = Trie.from_answers(answers)
    built = time.perf_counter() - start
    walk = Walk(answers, trie.eos)
    chosen = random.Random(5).sample([answer for answer in answers if len(answer) > 1], rows)
    tokens = torch.tensor([[0, answer[0]] for answer in chosen])
    ensemble, masked = build_ensemble([model], trie), MaskedModel(model, pad=1)
    carried = {"prompt_length": [torch.zeros(rows, dtype=torch.int64)]}

    def ours() -> torch.Tensor:
        carried["node"] = [torch.zeros(rows, dtype=torch.int64)]
        masked.allowed = ensemble.allowed(tokens, carried)
        if masked.narrow:
            given = features @ project.weight[masked.allowed.tokens].transpose(1, 2)
        else:
            given = project(features)
        return masked.get_normalized_probs((given, None), True)[:, 0]

    ways = {
        "walk": lambda: walk.probabilities(project(features)[:, 0], tokens),
        "ours": ours,
        "free": lambda: project(features)[:, 0].log_softmax(-1),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for number in range(4 * rounds + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            results[name] = work()
            if number:
                times[name].append(time.perf_counter() - start)
    known = results["walk"].isfinite()
    equal = bool((known == results["ours"].isfinite()).all())
    apart = float((results["walk"][known] - results["ours"][known]).abs().max()) if equal else float("nan")
    size = sum(part.nbytes for part in (trie.keys, trie.ends, trie.first)) / 2**20
    steps = " | ".join(f"{statistics.median(times[name]) * 1e3:.1f} ms" for name in ways)
    print(f"| {count:,} | {built:.2f} s | {size:.0f} MiB | {steps} | within {apart:.0e} |", flush=True)


def main() -> None:
    """Prints the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="ofa_tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="captions,loop,closed,packed,candidates,trie", help="which of the rows")
    args = parser.parse_args()
    model, inputs = model_of(args.arch), batch_of(args.batch)
    resnet, dictionary = model.encoder.embed_images, model.encoder.dictionary
    resnet.make_generation_fast_()
    folded = resnet._folded

    def search(trie: Trie | None, shares: bool, narrow: int, **options: Any) -> list:
        ensemble = build_ensemble([model], trie)
        ensemble.shares = shares
        constraints.NARROW = narrow
        resnet._folded = folded if shares else ()
        generator = ConstrainedGenerator(ensemble, dictionary, beam_size=args.beam, **options)
        return generator.generate([model], {"net_input": inputs}, bos_token=dictionary.bos())

    def whole(shares: bool) -> list:
        return search(None, shares, NARROW, min_len=STEPS, max_len_b=STEPS)

    def packed(work: Callable[[], list]) -> Callable[[], list]:
        """The same with packed linear layers, laid out once."""
        layers = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
        pack_linears([model], "on")
        kept = [vars(layer).pop("forward") for layer in layers]

        def run() -> list:
            for layer, forward in zip(layers, kept, strict=True):
                layer.forward = forward
            try:
                return work()
            finally:
                for layer in layers:
                    del layer.forward

        return run

    threads = f"{torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "one thread"
    print(f"{args.arch}, batch {args.batch}, beam {args.beam}, {threads}, medians of {args.rounds}\n")
    print("| | a row for each beam | ours | ratio | equal |\n|---|---|---|---|---|")
    wanted = args.only.split(",")
    answers = answers_of(ANSWERS)
    trie = Trie.from_answers(answers)
    with torch.no_grad():
        if "captions" in wanted:
            compare("captions, whole", args.rounds, lambda: whole(False), lambda: whole(True), same_hypotheses)
            if "packed" in wanted:
                fast = packed(lambda: whole(True))
                compare("captions, whole, packed", args.rounds, lambda: whole(False), fast, same_hypotheses)
        if "loop" in wanted:
            encoded = model.encoder(**inputs)
            forward, model.encoder.forward = model.encoder.forward, lambda *_, **__: encoded
            model.encoder.forward_torchscript = lambda *_, **__: encoded
            compare(
                "captions, without the encoder", args.rounds, lambda: whole(False), lambda: whole(True), same_hypotheses
            )
            if "packed" in wanted:
                fast = packed(lambda: whole(True))
                title = "captions, without the encoder, packed"
                compare(title, args.rounds, lambda: whole(False), fast, same_hypotheses)
            if "closed" in wanted:
                compare(
                    f"closed set of {ANSWERS}, without the encoder",
                    args.rounds,
                    lambda: search(trie, False, 10**9),
                    lambda: search(trie, True, NARROW),
                    same_hypotheses,
                )
            model.encoder.forward = forward
            del model.encoder.forward_torchscript
        if "candidates" in wanted:
            encoded = model.encoder(**{name: value[:1] for name, value in inputs.items()})
            prompts = torch.full((1, 1), dictionary.bos())
            scorer = AllCandidateScorer(trie)

            def teacher_forced() -> torch.Tensor:
                # twenty candidates at a time, each with its own copy of the sentence, as officially
                chunks = []
                for start in range(0, 200, 20):
                    rows = [torch.tensor([0, *answer]) for answer in answers[start : start + 20]]
                    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=dictionary.pad())
                    each = model.encoder.reorder_encoder_out(encoded, torch.zeros(len(rows), dtype=torch.int64))
                    chunks.append(model.decoder(tokens, encoder_out=each)[0].log_softmax(-1)[:, 0, 0])
                return torch.cat(chunks)

            def tree() -> torch.Tensor:
                return scorer.scores(scorer.edges([model], [encoded], prompts, 1.0))

            compare(
                f"all of {ANSWERS} candidates, one sentence (left: 200 of them, 20 at a time)",
                args.rounds,
                teacher_forced,
                tree,
                lambda slow, fast: f"left times {ANSWERS / 200:.1f} for all",
            )
        if "trie" in wanted:
            print("\n| answers | to build | arrays | dictionaries' step | ours | without a trie | equal |")
            print("|---|---|---|---|---|---|---|")
            for count in (ANSWERS, 10**6):
                trie_step(model, args.batch * args.beam, args.rounds, count)


if __name__ == "__main__":
    main()
