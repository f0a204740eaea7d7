"""Generation: the search loop, closed sets, all candidates in one pass, and how their costs grow.

    python benchmarks/bench_generation.py [--arch ofa_base] [--batch 8] [--rounds 3] [--only loop,...]

Random weights, pictures of `--side` pixels, 16 tokens forced. The sides of a row alternate in this process, run the
same model, and their results are compared. Baselines:

- loop: stock's generator driving the same model, whose position biases are cached; the encoder's output is copied for
  each beam once and not moved; keys and values are those of a row for each beam, BatchNorm follows every convolution,
  the linear layers are torch's. And official OFA's step, spelled out in `official_loop.py`.
- closed: the same stock loop, official OFA's trie of dictionaries walked for each hypothesis, and its mask of the whole
  vocabulary.
- candidates: a decoder pass for 20 candidates at a time, each with its copy of the sentence and of the question that
  stands in front of the answer; timed on 128 of them drawn at random and multiplied.

"packed" is `--packed-linears on`. Times are wall clock, with processor time beside them; prints medians and ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import statistics
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import fairseq  # noqa: F401  before ofa_plugin, which then registers at once
import torch
from fairseq.data import Dictionary
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from official_loop import OfficialModel

from ofa_plugin.models.generation import ConstrainedGenerator, Trie, build_ensemble
from ofa_plugin.models.generation.candidates import AllCandidateScorer
from ofa_plugin.models.generation.constraints import MaskedModel
from ofa_plugin.models.ofa.config import resolve
from ofa_plugin.models.ofa.model import OFAModel
from ofa_plugin.models.ofa.packed import pack_linears

VOCABULARY, TEXT = 59457, 50000  # symbols of the released checkpoints, and those of them that answers are made of
STEPS = 16
ANSWERS = 3129  # as many as VQA has
TIMED, AT_ONCE, QUESTION = 128, 20, 10  # candidates of the baseline, in chunks of so many, behind so many tokens
PARTS = ("loop", "closed", "candidates", "trie", "memory", "growth")
LIVE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # what is freed goes back at once


def model_of(arch: str) -> OFAModel:
    """A model with random weights."""
    torch.manual_seed(1)
    dictionary = Dictionary()
    for number in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(str(number))
    model = OFAModel(resolve(Namespace(_name=arch)), dictionary).eval()
    torch.nn.init.normal_(model.decoder.output_projection.weight, std=0.05)  # else every answer is as likely
    return model


def batch_of(size: int, side: int) -> dict[str, Any]:
    """Pictures with questions of eight tokens."""
    generator = torch.Generator().manual_seed(2)
    return {
        "src_tokens": torch.randint(4, TEXT, (size, 8), generator=generator),
        "patch_images": torch.randn(size, 3, side, side, generator=generator),
        "patch_masks": torch.ones(size, dtype=torch.bool),
    }


def answers_of(count: int) -> list[list[int]]:
    """Answers of one to three tokens, the first of which follow Zipf's law.

    3,129 of them make a tree of 3,398 nodes (without ends), 508 of which branch or stand above one that does; the
    answers of VQA make about as many.
    """
    draw = random.Random(3)
    words = list(dict.fromkeys(draw.randrange(4, TEXT) for _ in range(2 * count // 3)))
    share = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    found: set[tuple[int, ...]] = set()
    alone = iter(words)
    while len(found) < count:
        more = draw.choice((0, 0, 0, 0, 0, 0, 1, 1, 1, 2))
        word = None if more else next(alone, None)
        found.add(tuple(draw.choices(words, cum_weights=share, k=more + 1)) if word is None else (word,))
    return [list(answer) for answer in sorted(found)]


class Took(NamedTuple):
    """Seconds of a call."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        """In milliseconds."""
        return f"{self.wall * 1e3:,.1f} / {self.cpu * 1e3:,.1f} ms"


def alternate(rounds: int, **ways: Callable[[], Any]) -> tuple[dict[str, Took], dict[str, Any]]:
    """Runs ways to do the same by turns, once to warm up and `rounds` times; their medians, and their last results."""
    times: dict[str, list[Took]] = {name: [] for name in ways}
    results = {}
    for number in range(rounds + 1):
        for name, work in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            results[name] = work()
            if number:
                times[name].append(Took(time.perf_counter() - wall, time.process_time() - cpu))
    medians = {name: Took(*map(statistics.median, zip(*each, strict=True))) for name, each in times.items()}
    return medians, results


def compare(title: str, rounds: int, slow: Callable[[], Any], fast: Callable[[], Any]) -> None:
    """Prints a row: two searches that should find the same."""
    took, found = alternate(rounds, slow=slow, fast=fast)
    ratio = took["slow"].wall / took["fast"].wall
    print(f"| {title} | {took['slow']} | {took['fast']} | {ratio:.2f}x | {same(**found)} |", flush=True)


def same(slow: list, fast: list) -> str:
    """How many of the best answers are equal token for token, and the largest difference of their scores."""
    pairs = [(a[0], b[0]) for a, b in zip(slow, fast, strict=True)]
    equal = sum(a["tokens"].tolist() == b["tokens"].tolist() for a, b in pairs)
    apart = max(abs(float(a["score"]) - float(b["score"])) for a, b in pairs)
    return f"{equal} of {len(pairs)}, scores within {apart:.0e}"


@contextlib.contextmanager
def peak() -> Iterator[list[float]]:
    """Fills the list with the MiB of memory that the process took at most, above what it had."""
    size, statm = os.sysconf("SC_PAGE_SIZE"), Path("/proc/self/statm")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * size

    start, most, over, found = resident(), 0, threading.Event(), []

    def watch() -> None:
        nonlocal most
        while not over.wait(0.001):
            most = max(most, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        most = max(most, resident())
        over.set()
        thread.join()
        found.append((most - start) / 2**20)


class Walk:
    """Official OFA's trie: dictionaries in dictionaries, and for each hypothesis a walk and a mask."""

    def __init__(self, answers: list[list[int]], eos: int):
        self.root: dict = {}
        for answer in answers:
            node = self.root
            for token in (*answer, eos):
                node = node.setdefault(token, {})
        self.eos = eos

    def probabilities(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities float[R, V] behind prefixes int64[R, T]."""
        mask = torch.ones_like(logits, dtype=torch.bool)
        for row, prefix in enumerate(tokens.tolist()):
            node = self.root
            for token in prefix[1:]:
                node = node.get(token, {})
            mask[row, list(node) or [self.eos]] = False
        return logits.masked_fill(mask, -torch.inf).log_softmax(-1)


class StockEnsemble(EnsembleModel):
    """A row for each beam, with a copy of what the encoder returned, made once.

    Args:
        model: of ours, or anything that stock takes.
        walk: official OFA's trie, or None.
        moves: copies that are moved with the beams at every step, as stock does.
    """

    def __init__(self, model: torch.nn.Module, walk: Walk | None = None, moves: bool = False):
        super().__init__([model])
        self.walk, self.moves = walk, moves
        self.has_incremental = True

    def reorder_encoder_out(self, encoder_outs: list, new_order: torch.Tensor) -> list:
        """Beams of one sentence hold the same."""
        if not self.moves and len(new_order) == len(encoder_outs[0]["encoder_padding_mask"][0]):
            return encoder_outs
        return super().reorder_encoder_out(encoder_outs, new_order)

    def forward_decoder(self, tokens: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, Any]:
        """Stock's, and the trie."""
        if self.walk is None:
            return super().forward_decoder(tokens, *rest)
        [model], (outs, states, _) = self.models, rest
        logits, _ = model.decoder.forward(tokens, encoder_out=outs[0], incremental_state=states[0])
        return self.walk.probabilities(logits[:, -1], tokens), None


class Bench:
    """One model and one batch.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.model = model_of(args.arch)
        self.dictionary = self.model.encoder.dictionary
        self.inputs = batch_of(args.batch, args.side)
        self.resnet = self.model.encoder.embed_images
        self.resnet.make_generation_fast_()
        self.folded = self.resnet._folded
        self.forced = {"min_len": STEPS, "max_len_b": STEPS}

    def ours(self, trie: Trie | None = None, beam: int = 0, **options: Any) -> list:
        """Our search."""
        generator = ConstrainedGenerator(
            build_ensemble([self.model], trie), self.dictionary, beam_size=beam or self.args.beam, **options
        )
        return generator.generate([self.model], {"net_input": self.inputs}, bos_token=self.dictionary.bos())

    def stock(self, ensemble: EnsembleModel, **options: Any) -> list:
        """Stock's search, its convolutions and normalisations apart."""
        self.resnet._folded = ()
        generator = SequenceGenerator(ensemble, self.dictionary, beam_size=self.args.beam, **options)
        try:
            return generator.generate([self.model], {"net_input": self.inputs}, bos_token=self.dictionary.bos())
        finally:
            self.resnet._folded = self.folded

    @contextlib.contextmanager
    def encoded(self, model: OfficialModel | None = None) -> Iterator[None]:
        """The encoder has run already: that of our model, or of another one."""
        model = model or self.model
        out = model.encoder.forward_torchscript(self.inputs)
        model.encoder.forward_torchscript = lambda *_, **__: out
        try:
            yield
        finally:
            del model.encoder.forward_torchscript

    def packed(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """The same work with packed linear layers, laid out once."""
        layers = [layer for layer in self.model.modules() if type(layer) is torch.nn.Linear]
        pack_linears([self.model], "on")
        kept = [vars(layer).pop("forward") for layer in layers]

        def run() -> Any:
            for layer, forward in zip(layers, kept, strict=True):
                layer.forward = forward
            try:
                return work()
            finally:
                for layer in layers:
                    del layer.forward

        return run

    def loop(self) -> None:
        """Captions: whole, and without the encoder, against both baselines."""
        official = OfficialModel(self.model)
        ours = lambda: self.ours(**self.forced)  # noqa: E731
        packed = self.packed(ours)
        stock = lambda: self.stock(StockEnsemble(self.model), **self.forced)  # noqa: E731
        as_official = lambda: self.stock(StockEnsemble(official, moves=True), **self.forced)  # noqa: E731
        print("\n| captions | baseline, wall / CPU | ours | ratio | equal |\n|---|---|---|---|---|")
        rounds = self.args.rounds
        compare("whole, stock's loop", rounds, stock, ours)
        compare("whole, official structure", rounds, as_official, ours)
        compare("whole, stock's loop; ours packed", rounds, stock, packed)
        with self.encoded(), self.encoded(official):
            compare("without the encoder, stock's loop", rounds, stock, ours)
            compare("without the encoder, official structure", rounds, as_official, ours)
            compare("without the encoder, stock's loop; ours packed", rounds, stock, packed)

    def closed(self) -> None:
        """A search along a trie."""
        answers = answers_of(ANSWERS)
        trie, walk = Trie.from_answers(answers), Walk(answers, self.dictionary.eos())
        print(f"\n| {ANSWERS:,} answers, without the encoder | baseline, wall / CPU | ours | ratio | equal |")
        print("|---|---|---|---|---|")
        with self.encoded():
            stock = lambda: self.stock(StockEnsemble(self.model, walk))  # noqa: E731
            compare("beam search along dictionaries", self.args.rounds, stock, lambda: self.ours(trie))

    def candidates(self) -> None:
        """Every answer of a closed set, one question."""
        answers = answers_of(ANSWERS)
        chosen = random.Random(4).sample(range(ANSWERS), TIMED)
        allowed = Walk(answers, self.dictionary.eos())
        model, pad, bos, eos = self.model, *(getattr(self.dictionary, name)() for name in ("pad", "bos", "eos"))
        encoded = model.encoder(**{name: value[:1] for name, value in self.inputs.items()})
        question = torch.randint(4, TEXT, (QUESTION,), generator=torch.Generator().manual_seed(6)).tolist()
        print("\n| candidates of one question | prompt | 20 at a time, wall / CPU | one pass | ratio | apart |")
        print("|---|---|---|---|---|---|")
        for name, prompt in (("the question", [bos, *question]), ("bos", [bos])):
            scorer = AllCandidateScorer(Trie.from_answers(answers))
            prompts = torch.tensor([prompt])

            def at_a_time(prompt: list[int] = prompt) -> torch.Tensor:
                found = []
                for start in range(0, TIMED, AT_ONCE):
                    part = [answers[number] for number in chosen[start : start + AT_ONCE]]
                    rows = [torch.tensor([*prompt, *answer]) for answer in part]
                    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
                    each = model.encoder.reorder_encoder_out(encoded, torch.zeros(len(rows), dtype=torch.int64))
                    logits = model.decoder(tokens, encoder_out=each)[0]
                    mask = torch.ones_like(logits, dtype=torch.bool)
                    target = torch.full_like(tokens, eos)
                    for row, answer in enumerate(part):
                        node = allowed.root
                        for place, token in enumerate((*answer, eos), len(prompt) - 1):
                            mask[row, place, list(node)] = False
                            target[row, place], node = token, node[token]
                    log_probs = logits.masked_fill(mask, -torch.inf).log_softmax(-1)
                    of_target = log_probs.gather(2, target.unsqueeze(2)).squeeze(2)
                    places = torch.arange(tokens.shape[1])
                    ends = torch.tensor([len(prompt) - 1 + len(answer) for answer in part])
                    counts = (places >= len(prompt) - 1) & (places <= ends.unsqueeze(1))
                    found.append(of_target.masked_fill(~counts, 0).sum(1))
                return torch.cat(found)

            def tree(scorer: AllCandidateScorer = scorer, prompts: torch.Tensor = prompts) -> torch.Tensor:
                return scorer.scores(scorer.edges([model], [encoded], prompts, 1.0))[0]

            ways = {"slow": at_a_time, "fast": tree, "packed": self.packed(tree)}
            took, found = alternate(self.args.rounds, **ways)
            times = ANSWERS / TIMED
            slow = Took(took["slow"].wall * times, took["slow"].cpu * times)
            for way, title in (("fast", f"{ANSWERS:,}"), ("packed", f"{ANSWERS:,}, packed")):
                apart = float((found["slow"] - found[way][chosen]).abs().max())
                ratio = slow.wall / took[way].wall
                print(f"| {title} | {name} | {slow} | {took[way]} | {ratio:.0f}x | {apart:.0e} |")
        decoded = int(scorer._decoded().sum())
        print(f"\n{TIMED} candidates were timed at a time, and multiplied; {decoded} nodes of the tree are decoded")

    def trie(self) -> None:
        """A step along a trie, from the decoder's features to log-probabilities."""
        whole = self._step_time()
        print("\n| answers | built in | arrays, MiB | level | children | dictionaries | ours | no trie |", end="")
        print(" children alone | share of a step | apart |\n" + "|---" * 11 + "|", flush=True)
        for count in (ANSWERS, 10**6):
            answers = answers_of(count)
            start = time.perf_counter()
            trie = Trie.from_answers(answers)
            built = time.perf_counter() - start
            size = sum(part.nbytes for part in (trie.keys, trie.ends, trie.first)) / 2**20
            head = f"| {count:,} | {built:.2f} s | {size:.1f}"
            for level in (0, 1):
                self._trie_step(head, trie, answers, level, whole)
        print(f"\na whole step of this search, encoder aside, takes {whole * 1e3:.1f} ms; the share is of that")

    def _step_time(self) -> float:
        """Seconds of a step of a free search."""
        with self.encoded():
            took, _ = alternate(
                self.args.rounds,
                short=lambda: self.ours(min_len=1, max_len_b=1),
                long=lambda: self.ours(**self.forced),
            )
        return (took["long"].wall - took["short"].wall) / (STEPS - 1)

    def _trie_step(self, head: str, trie: Trie, answers: list[list[int]], level: int, whole: float) -> None:
        """Prints a row."""
        model, rows = self.model, self.args.batch * self.args.beam
        features = torch.randn(rows, 1, model.cfg.decoder_embed_dim, generator=torch.Generator().manual_seed(4))
        project = model.decoder.output_projection
        walk = Walk(answers, trie.eos)
        chosen = random.Random(5).sample([answer for answer in answers if len(answer) > 1], rows)
        tokens = torch.tensor([[0, *answer[:level]] for answer in chosen])
        ensemble, masked = build_ensemble([model], trie), MaskedModel(model, pad=1)
        carried = {"prompt_length": [torch.zeros(rows, dtype=torch.int64)]}

        def allowed() -> Any:
            carried["node"] = [torch.zeros(rows, dtype=torch.int64)]
            return ensemble.allowed(tokens, carried)

        def ours() -> torch.Tensor:
            masked.allowed = allowed()
            if masked.narrow:
                given = features @ project.weight[masked.allowed.tokens].transpose(1, 2)
            else:
                given = project(features)
            return masked.get_normalized_probs((given, None), True)[:, 0]

        took, found = alternate(
            4 * self.args.rounds,
            walk=lambda: walk.probabilities(project(features)[:, 0], tokens),
            ours=ours,
            free=lambda: project(features)[:, 0].log_softmax(-1),
            mask=allowed,
        )
        known = found["walk"].isfinite()
        equal = bool((known == found["ours"].isfinite()).all())
        apart = float((found["walk"][known] - found["ours"][known]).abs().max()) if equal else float("nan")
        steps = " | ".join(f"{took[name].wall * 1e3:.2f} ms" for name in ("walk", "ours", "free", "mask"))
        share = 100 * took["mask"].wall / whole
        children = int(known.sum(1).float().mean())
        print(f"{head} | {level} | {children:,} | {steps} | {share:.1f} % | {apart:.0e} |", flush=True)

    def memory(self) -> None:
        """The most memory above what was there before, in a process whose allocator keeps nothing."""
        if any(os.environ.get(name) != value for name, value in LIVE.items()):
            command = [sys.executable, __file__, "--arch", self.args.arch, "--batch", "1", "--only", "memory"]
            subprocess.run([*command, "--side", str(self.args.side)], env={**os.environ, **LIVE}, check=True)
            return
        print("\n| peak memory | MiB |\n|---|---|", flush=True)
        encoded = self.model.encoder(**self.inputs)
        prompts = torch.tensor([[self.dictionary.bos(), *range(4, 4 + QUESTION)]])
        for count in (ANSWERS, 10**6):
            answers = answers_of(count)
            with peak() as most:
                trie = Trie.from_answers(answers)
            print(f"| building the tree of {count:,} answers | {most[0]:.0f} |", flush=True)
            del answers
            if count == ANSWERS:
                with peak() as most:
                    AllCandidateScorer(trie).edges([self.model], [encoded], prompts, 1.0)
                print(f"| all {count:,} candidates of one question | {most[0]:.0f} |", flush=True)

    def growth(self) -> None:
        """How costs grow: each against the first of its row."""
        beam, batch = self.args.beam, self.args.batch
        print("\n| what grows | search, without the encoder: time (ratio) |\n|---|---|")
        rounds, own = self.args.rounds, self.args.side

        def row(title: str, found: list[tuple[str, float]]) -> None:
            cells = ", ".join(f"{name}: {1e3 * took:,.0f} ms ({took / found[0][1]:.2f})" for name, took in found)
            print(f"| {title} | {cells} |", flush=True)

        def timed(work: Callable[[], Any]) -> float:
            return alternate(rounds, it=work)[0]["it"].wall

        with self.encoded():
            row("beam", [(str(k), timed(lambda k=k: self.ours(beam=k, **self.forced))) for k in (1, 2, beam, 2 * beam)])
        found = []
        for size in (1, 2, 4, 2 * batch):
            self.inputs = batch_of(size, self.args.side)
            with self.encoded():
                found.append((str(size), timed(lambda: self.ours(**self.forced))))
        row("batch", found)
        found, encoders = [], []
        for side in (own // 2, own, own * 5 // 4):
            self.inputs = batch_of(batch, side)
            encoders.append((str(side), timed(lambda: self.model.encoder(**self.inputs))))
            with self.encoded():
                found.append((str(side), timed(lambda: self.ours(**self.forced))))
        row("pixels of a side", found)
        row("the same, the encoder alone", encoders)
        self.inputs = batch_of(batch, self.args.side)
        encoded = self.model.encoder(**batch_of(1, self.args.side))
        prompts, found, searched = torch.tensor([[self.dictionary.bos()]]), [], []
        for count in (100, 1000, ANSWERS, 10000, 50000):
            trie = Trie.from_answers(answers_of(count))
            scorer = AllCandidateScorer(trie)
            nodes = int(scorer._decoded().sum())
            work = lambda scorer=scorer: scorer.edges([self.model], [encoded], prompts, 1.0)  # noqa: E731
            found.append((f"{count:,} ({nodes:,} decoded)", timed(work)))
            with self.encoded():
                searched.append((f"{count:,}", timed(lambda trie=trie: self.ours(trie))))
        row("answers, all scored", found)
        row("answers, searched along the trie", searched)


def allocator() -> str:
    """What serves memory, and the settings that matter."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    tuned = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")]
    return " ".join([Path(preloaded).name or " ".join(platform.libc_ver()), *tuned])


def main() -> None:
    """Prints the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="ofa_base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--side", type=int, default=384, help="pixels of the pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    args = parser.parse_args()
    bench = Bench(args)
    threads = f"{torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "one thread"
    backends = torch.backends
    print(f"{args.arch}, batch {args.batch}, beam {args.beam}, {threads}, medians of {args.rounds}")
    print(
        f"torch {torch.__version__}, {backends.cpu.get_cpu_capability()}, MKL {backends.mkl.is_available()}, ", end=""
    )
    print(f"oneDNN {backends.mkldnn.is_available()}, allocator {allocator()}")
    with torch.no_grad():
        for part in args.only.split(","):
            if part not in PARTS:
                parser.error(f"--only {part}: of {', '.join(PARTS)}")
            getattr(bench, part)()


if __name__ == "__main__":
    main()
