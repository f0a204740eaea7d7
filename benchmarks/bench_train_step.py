"""One training step against the official formulation of it, alternating in one process.

    python benchmarks/bench_train_step.py [--arch ofa_tiny] [--batch 4] [--size 384] [--rounds 3]

Forward, loss and backward of captioning with random weights. The baseline is the same model and weights, computed the
way the official code does: position projections and biases for every row of the batch instead of once, attention as an
explicit softmax over them in float32, logits and their log-softmax at every position, padding included. Both must give
the same loss.

Cost grows with the square of (patches + tokens) in attention, linearly in everything else and in the batch; the share
of attention, and with it the ratio, grows with the picture size.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import ofa_plugin  # noqa: E402, F401
from ofa_plugin.criterions import AdjustLabelSmoothedCrossEntropy, AdjustLabelSmoothedCrossEntropyConfig  # noqa: E402
from ofa_plugin.models.ofa.attention import Attention  # noqa: E402
from ofa_plugin.models.ofa.encoder import Encoder  # noqa: E402
from ofa_plugin.models.ofa.model import OFAModel  # noqa: E402

SMOOTHING = 0.1


def vocabulary(size: int) -> Dictionary:
    """A dictionary of `size` symbols."""
    dictionary = Dictionary()
    for number in range(size - len(dictionary)):
        dictionary.add_symbol(str(number))
    return dictionary


@contextlib.contextmanager
def official_formulation(batch: int) -> Iterator[None]:
    """Within it, attention and biases are computed as in the official code."""
    absolute, attend = Encoder._absolute_bias, Attention.forward

    def bias_of_every_row(self: Encoder, positions: Tensor) -> Tensor:
        return absolute(self, positions.expand(batch, -1, -1).contiguous())

    def explicit(self: Attention, *inputs: Any, need_weights: bool = True, **named: Any) -> Any:
        return attend(self, *inputs[:5], need_weights=True, **named)

    Encoder._absolute_bias, Attention.forward = bias_of_every_row, explicit
    try:
        yield
    finally:
        Encoder._absolute_bias, Attention.forward = absolute, attend


def official_loss(logits: Tensor, target: Tensor, pad: int) -> Tensor:
    """Summed label-smoothed loss over a log-softmax of every position, padding included."""
    lprobs = torch.log_softmax(logits, -1).view(-1, logits.size(-1))
    keep = target.view(-1).ne(pad)
    nll, smooth = -lprobs.gather(1, target.view(-1, 1)).squeeze(1)[keep], -lprobs.sum(-1)[keep]
    share = SMOOTHING / (logits.size(-1) - 1)
    return ((1 - SMOOTHING - share) * nll + share * smooth).sum()


def main() -> None:
    """Prints the command, the losses, medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="ofa_tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=384, help="pixels of a picture's side")
    parser.add_argument("--vocabulary", type=int, default=59457)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"$ python {' '.join(sys.argv)}   ({torch.get_num_threads()} threads, torch {torch.__version__})")

    torch.manual_seed(0)
    dictionary = vocabulary(args.vocabulary)
    model = OFAModel.build_model(
        {"_name": args.arch}, Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    ).train()
    target = torch.randint(4, args.vocabulary, (args.batch, 20))
    target[:, -1] = dictionary.eos()
    target[0, 14:] = dictionary.pad()
    previous = torch.cat([torch.zeros(args.batch, 1, dtype=torch.long), target[:, :-1]], 1)
    net_input = {
        "src_tokens": torch.randint(4, args.vocabulary, (args.batch, 8)),
        "prev_output_tokens": previous,
        "patch_images": torch.randn(args.batch, 3, args.size, args.size),
        "patch_masks": torch.ones(args.batch, dtype=torch.bool),
    }
    sample = {"net_input": net_input, "target": target, "ntokens": int(target.ne(dictionary.pad()).sum())}
    sample["nsentences"] = args.batch
    settings = AdjustLabelSmoothedCrossEntropyConfig(label_smoothing=SMOOTHING)
    settings.sentence_avg = False
    task = Namespace(target_dictionary=dictionary, source_dictionary=dictionary)
    criterion = AdjustLabelSmoothedCrossEntropy.build_criterion(settings, task)

    def official() -> float:
        with official_formulation(args.batch):
            loss = official_loss(model(**net_input)[0], target, dictionary.pad())
            loss.backward()
        return loss.item()

    def ours() -> float:
        loss = criterion(model, sample)[0]
        loss.backward()
        return loss.item()

    steps: dict[str, Callable[[], float]] = {"official formulation": official, "ours": ours}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(args.rounds + 1):
        for name, step in steps.items():
            model.zero_grad(set_to_none=True)
            wall, cpu = time.perf_counter(), time.process_time()
            loss = step()
            if turn:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            else:
                print(f"{name}: loss {loss:.4f}")
    for column, clock in enumerate(("wall", "CPU")):
        medians = {name: statistics.median(pair[column] for pair in pairs) for name, pairs in times.items()}
        ratio = medians["official formulation"] / medians["ours"]
        print(f"median {clock}: official formulation 1.00, ours {ratio:.2f}x faster")


if __name__ == "__main__":
    main()
