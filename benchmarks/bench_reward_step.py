"""One step of captioning's second stage against one of its first, alternating in one process.

    python benchmarks/bench_reward_step.py CHECKPOINT.pt DATA.tsv [--batch 26] [--beam 5] [--rounds 5]

The same pictures and weights: forward, loss and backward of cross-entropy on one caption of each picture; and of the
reward, which also generates K captions and scores them. A third column repeats every picture for each of its captions,
as the official criterion does; the losses of both forms are printed, and differ only by the order of sums.

Cost grows with the captions of a picture in decoder and reward, not in the encoder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import ofa_plugin  # noqa: E402, F401
from ofa_plugin import criterions  # noqa: E402


class Repeated(nn.Module):
    """A model that is given each row of its inputs as often as there are captions of it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module  # under this name the task finds it

    def forward(self, prev_output_tokens: torch.Tensor, **inputs: Any) -> Any:
        """As the model's own, B rows for B * K targets."""
        times = len(prev_output_tokens) // len(inputs["src_tokens"])
        rows = {name: value.repeat_interleave(times, 0) for name, value in inputs.items()}
        return self.module(prev_output_tokens=prev_output_tokens, **rows)


def main() -> None:
    """Prints the command, the losses, medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data", help="a TSV with all captions of a picture in its row, joined by &&")
    parser.add_argument("--batch", type=int, default=26)
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"$ python {' '.join(sys.argv)}   ({torch.get_num_threads()} threads, torch {torch.__version__})")

    settings = {"data": args.data, "scst": True, "scst_args": f'{{"beam": {args.beam}}}', "train_subset": "train"}
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([args.checkpoint], arg_overrides=settings)
    task.load_dataset("train")
    dataset = task.dataset("train")
    sample = dataset.collater([dataset[row] for row in range(min(args.batch, len(dataset)))])
    made = {}
    for name in ("AdjustLabelSmoothedCrossEntropy", "ScstRewardCriterion"):
        cfg = getattr(criterions, f"{name}Config")()
        cfg.sentence_avg = False
        made[name] = getattr(criterions, name)(cfg, task)
    task.rewards(sample, [[torch.tensor([2])] * 2] * len(sample["id"]))  # counts the document frequencies once
    cross_entropy, reward = made.values()
    repeated = Repeated(model)

    def step(criterion: nn.Module, model: nn.Module) -> float:
        with task.autocast(model):
            loss = criterion(model.train(), sample)[0]
        loss.backward()
        return loss.item()

    steps: dict[str, Callable[[], float]] = {
        "cross-entropy": lambda: step(cross_entropy, model),
        "reward": lambda: step(reward, model),
        "reward, pictures repeated": lambda: step(reward, repeated),
    }
    statistics_before = {name: value.clone() for name, value in model.named_buffers()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds + 1):
        for name, one in steps.items():
            model.zero_grad(set_to_none=True)
            for buffer, value in statistics_before.items():  # so that all see the same captions
                model.get_buffer(buffer).copy_(value)
            start = time.process_time()
            loss = one()
            if turn:
                times[name].append(time.process_time() - start)
            else:
                print(f"{name}: loss {loss:.4f}")
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, median in medians.items():
        print(f"median CPU time of {name}: {median / medians['cross-entropy']:.2f} x cross-entropy")


if __name__ == "__main__":
    main()
