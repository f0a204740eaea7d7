"""`fairseq-generate --distributed-world-size N`: N processes answer, each its share of the batches; one result.

Stock gives every process its batches and lets them all write the same files. Here the command that the user typed
starts N of itself, waits for them, and puts what they wrote together in the order of the input.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .machine import cores

RANK = "OFA_SHARD"  # in the environment of a process that answers a share: its number


def is_shard() -> bool:
    """Whether this process answers a share of another one's rows."""
    return RANK in os.environ


def generate(cfg: Any, alone: Callable[[Any], Any]) -> Any:
    """Runs `alone` where one process is wanted, else N of it; what a user reads is the same.

    Args:
        cfg: the run's configuration.
        alone: stock's main.

    Raises:
        UserError: there is no folder for results, or a process has failed; its own error is in the text.
    """
    world, results = cfg.distributed_training.distributed_world_size, cfg.common_eval.results_path
    if is_shard():
        with contextlib.suppress(ZeroDivisionError):  # stock's sentences a second, where this one had no batch
            alone(cfg)
        return None
    if world == 1:
        return alone(cfg)
    if results is None:
        raise UserError(f"--distributed-world-size {world}: several processes write files: add --results-path FOLDER")
    subset, folder = cfg.dataset.gen_subset, Path(results)
    parts = [folder / f".part-{subset}-{rank}" for rank in range(world)]
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    try:
        _run(parts, cpu=cfg.common.cpu or not torch.cuda.is_available())
        print(merge(parts, folder, subset, cfg.task._name))
    finally:
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)


def _run(parts: Sequence[Path], cpu: bool) -> None:
    """This command once for each part, the first of them with its log on this terminal."""
    environment = dict(os.environ)
    if cpu:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // len(parts))))
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = devices.split(",") if devices else [str(number) for number in range(torch.cuda.device_count())]
    running = []
    for rank, part in enumerate(parts):
        own = {**environment, RANK: str(rank)}
        if not cpu and devices:
            own["CUDA_VISIBLE_DEVICES"] = devices[rank % len(devices)]
        command = [sys.executable, "-m", "fairseq_cli.generate", *sys.argv[1:]]
        command += ["--distributed-rank", str(rank), "--results-path", str(part)]
        with open(part / "log", "w") as log:
            said = {"stdout": log, "stderr": log} if rank else {}
            running.append(subprocess.Popen(command, env=own, **said))
    try:
        while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
            time.sleep(0.1)
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        codes = [process.wait() for process in running]
    failed = [rank for rank, code in enumerate(codes) if code > 0] or [rank for rank, code in enumerate(codes) if code]
    if failed:
        last = (parts[failed[0]] / "log").read_text(errors="replace").strip().splitlines()[-1:]
        said = last[0].partition("error: ")[2] or last[0] if last else "see above"
        raise UserError(f"process {failed[0]} of {len(parts)} failed: {said}")


def merge(parts: Sequence[Path], folder: Path, subset: str, task: str) -> str:
    """Puts together what the processes wrote, and returns the line with the metrics.

    Args:
        parts: folders of the processes; one that had no batch has written nothing.
        folder: where the files of the whole go.
        subset, task: names of what was answered, and by which task.
    """
    from fairseq.tasks import TASK_REGISTRY

    from .tasks.evaluation import finish
    from .tasks.metrics.base import Tally

    entries: dict[int, dict[str, Any]] = {}
    records: dict[int, Any] = {}
    lines: dict[int, list[str]] = {}
    totals: dict[str, list[float]] = {}
    scored, names = 0, []
    for part in parts:
        share = part / f"{subset}_share.json"
        if not share.exists():
            continue
        content = json.loads(share.read_text(encoding="utf-8"))
        entries |= {int(row): entry for row, entry in content["entries"].items()}
        records |= {int(row): record for row, record in content["records"].items()}
        scored, names = scored + content["scored"], list(content["totals"])
        for name, sums in content["totals"].items():
            totals[name] = [a + b for a, b in zip(totals.get(name, [0.0] * len(sums)), sums, strict=True)]
        for line in (part / f"generate-{subset}.txt").read_text(encoding="utf-8").splitlines():
            if found := re.match(r"[A-Z]-(\d+)\t", line):
                lines.setdefault(int(found[1]), []).append(line)
    known = {metric.name: metric for metric in TASK_REGISTRY[task].all_metrics()}
    tally = Tally([known[name]() for name in names])
    tally.rows = scored
    for metric, sums in tally.totals[""]:
        sums[:] = totals[metric.name]
    more = TASK_REGISTRY[task].conclude(entries, records, subset, folder)
    said = finish(entries, tally, more, subset, folder)
    printed = "".join(f"{line}\n" for row in sorted(lines) for line in lines[row])
    (folder / f"generate-{subset}.txt").write_text(f"{printed}Generate {subset}: {said}\n", encoding="utf-8")
    return said
