"""A captioning task over model S whose tokens are words of the reward's golden files."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ofa_plugin.criterions import ScstRewardCriterion, ScstRewardCriterionConfig
from ofa_plugin.tasks.caption import CaptionConfig, CaptionTask
from ofa_plugin.tasks.metrics import CIDErD
from tests.helpers.small_model import FIXTURES, small_dictionary

GOLDEN = json.loads((FIXTURES / "cider_scst.json").read_text())


def golden_frequencies() -> CIDErD:
    """The reward under the document frequencies that `cider_df_w.json` has as a rule."""
    frequencies = {(f"w{i}", f"w{j}"): i * j % 7 for i in range(11) for j in range(11)}
    frequencies |= {(f"w{i}",): 1 + i % 5 for i in range(11)}
    return CIDErD(frequencies, 50, end=True)


def decode(tokens: torch.Tensor) -> str:
    """Symbol `n` is word `w<n mod 11>`, a code is `x`, eos is silent."""
    symbols = [small_dictionary()[token] for token in tokens.tolist() if token > 3]
    return " ".join(f"w{int(symbol) % 11}" if symbol.isdigit() else "x" for symbol in symbols)


def rewarded_task(**scst_args: Any) -> CaptionTask:
    """The task as `--scst --scst-args` sets it up, without data and vocabulary files."""
    task = CaptionTask.__new__(CaptionTask)
    given = {
        "scst": True,
        "scst_args": json.dumps(scst_args),
        "autocast": "none",
        "write_ranking": 0,
        "constraint_range": None,
    }
    task.cfg = SimpleNamespace(**{**vars(CaptionConfig()), **given, "path": None})
    task.codec = SimpleNamespace(dictionary=small_dictionary(), bos=0, pad=1, decode=decode)
    task.trie, task.files = None, None
    task.has_sharded_data = lambda split: False
    task.setup()
    return task


def criterion_of(task: CaptionTask, **options: Any) -> ScstRewardCriterion:
    """The criterion on a task, rewarded by `golden_frequencies`."""
    cfg = ScstRewardCriterionConfig(sentence_avg=False)
    for name, value in options.items():
        assert hasattr(cfg, name), name
        setattr(cfg, name, value)
    criterion = ScstRewardCriterion(cfg, task)
    task.reward = golden_frequencies()
    return criterion


def golden_batch(references: list[list[str]]) -> dict[str, Any]:
    """Three rows, the inputs of `beam.json` case `caption_beam5`; the third has no picture."""
    case = json.loads((FIXTURES / "beam.json").read_text())["caption_beam5"]
    with np.load(FIXTURES / "beam_images.npz", allow_pickle=False) as images:
        pixels = torch.from_numpy(images[case["patch_images"]])
    tokens = torch.tensor(case["src_tokens"])
    target = torch.tensor([[5, 6, 2], [7, 2, 1], [8, 9, 2]])
    return {
        "net_input": {
            "src_tokens": tokens,
            "src_lengths": tokens.ne(1).sum(dim=1),
            "prev_output_tokens": torch.tensor([[0, 5, 6], [0, 7, 1], [0, 8, 9]]),
            "patch_images": (pixels.float() / 255 - 0.5) / 0.5,
            "patch_masks": torch.tensor(case["patch_masks"]),
        },
        "target": target,
        "references": references,
        "places": [f"rows.tsv:{line}" for line in (1, 2, 3)],
        "uniq_ids": ["a", "b", "c"],
        "id": torch.arange(3),
    }
