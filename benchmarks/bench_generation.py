"""Generation: beams that share their sentence against a row for each, a closed set, all candidates in one pass.

    python benchmarks/bench_generation.py [--arch ofa_tiny] [--batch 8] [--beam 5] [--rounds 5] [--only captions,...]

Random weights, pictures of 384 pixels, 16 tokens forced. Both sides of a row alternate in this process and run the same
model; the baseline is what stock's loop does by itself: a copy of the encoder's output for every beam, moved at every
step, BatchNorm after every convolution, and the whole vocabulary. Prints medians, ratios and whether results are equal.
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
from ofa_plugin.models.ofa.config import resolve
from ofa_plugin.models.ofa.model import OFAModel

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


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="ofa_tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="captions,loop,closed,candidates", help="which of the rows")
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

    threads = f"{torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "one thread"
    print(f"{args.arch}, batch {args.batch}, beam {args.beam}, {threads}, medians of {args.rounds}\n")
    print("| | a row for each beam | ours | ratio | equal |\n|---|---|---|---|---|")
    wanted = args.only.split(",")
    answers = answers_of(ANSWERS)
    trie = Trie.from_answers(answers)
    with torch.no_grad():
        if "captions" in wanted:
            compare("captions, whole", args.rounds, lambda: whole(False), lambda: whole(True), same_hypotheses)
        if "loop" in wanted:
            encoded = model.encoder(**inputs)
            forward, model.encoder.forward = model.encoder.forward, lambda *_, **__: encoded
            model.encoder.forward_torchscript = lambda *_, **__: encoded
            compare(
                "captions, without the encoder", args.rounds, lambda: whole(False), lambda: whole(True), same_hypotheses
            )
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


if __name__ == "__main__":
    main()
