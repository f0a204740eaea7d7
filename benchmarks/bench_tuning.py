"""Ways of tuning compared on one task of the picture world: what docs/tuning.md shows.

    python benchmarks/bench_tuning.py WORK [--base-updates 600] [--updates 300] [--only full,lora,...]

Draws a small world into WORK, trains a nano captioner on it, and tunes that to answering questions about the same
pictures by each method. Prints, for each, the score on held-out questions, the share of parameters trained, the peak
memory of the process and the time of an update, both as ratios to training everything. What stands in WORK is reused.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
USER_DIR = Path(__file__).resolve().parents[1] / "ofa_plugin"
PROMPT = ("--encoder-prompt", "--decoder-prompt", "--encoder-prompt-length", 32, "--decoder-prompt-length", 32)
METHODS: dict[str, tuple[float, tuple[object, ...]]] = {  # name: learning rate, flags
    "full": (1e-3, ()),
    "backbone frozen": (1e-3, ("--freeze-resnet-weights",)),
    "decoder only": (1e-3, ("--freeze-encoder",)),
    "lora": (1e-2, ("--lora", 8)),
    "adapter": (1e-2, ("--adapter", "--adapter-dim", 32)),
    "prompt": (3e-2, PROMPT),
    "bitfit": (1e-2, ("--bitfit",)),
}


def run(log: Path, *command: object) -> tuple[str, int]:
    """Runs a command to its end; what it printed, and its peak memory in KiB."""
    with log.open("w") as file:
        child = subprocess.Popen([str(part) for part in command], stdout=file, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{log.read_text()[-3000:]}\n{command[0]} failed: see {log}")
    return log.read_text(), usage.ru_maxrss


def train(work: Path, task: str, name: str, updates: int, lr: float, *flags: object) -> tuple[str, int]:
    """One run of `fairseq-train` on the world's `task`."""
    own = ("--ans2label-file", work / "world/vqa_gen/answers.txt", "--eval-args", '{"beam":5}')
    vocabulary = ("--bpe", "sentencepiece", "--bpe-dir", work / "bpe", "--num-bins", 100, "--code-dict-size", 256)
    return run(
        work / f"{name}.log",
        *(BIN / "fairseq-train", work / "world" / task, "--user-dir", USER_DIR, "--task", task, "--arch", "ofa_nano"),
        *("--cpu", *vocabulary, *(own if task == "vqa_gen" else ()), "--patch-image-size", 64, "--batch-size", 32),
        *("--criterion", "adjust_label_smoothed_cross_entropy", "--label-smoothing", 0.1, "--optimizer", "adam"),
        *("--lr", lr, "--lr-scheduler", "ofa_polynomial_decay", "--warmup-ratio", 0.1, "--clip-norm", 1.0),
        *("--max-update", updates, "--num-workers", 0, "--log-format", "json", "--log-interval", 20, "--seed", 1),
        *("--no-epoch-checkpoints", "--validate-interval", 1000, "--save-dir", work / name, *flags),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--base-updates", type=int, default=600)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--only", default=",".join(METHODS))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    world = args.work / "world"
    if not world.exists():
        sizes = ("--side", 64, "--code-image-size", 64, "--held-out", 200, "--workers", 1)
        run(
            args.work / "world.log",
            BIN / "ofa",
            "make-shapes",
            world,
            "--rows",
            6000,
            "--seed",
            1,
            "--shapes",
            "1-2",
            *sizes,
        )
        texts = [f"{world / task / 'train.tsv'}:2,3" for task in ("caption", "vqa_gen")]
        run(args.work / "bpe.log", BIN / "ofa", "train-bpe", args.work / "bpe", *texts, "--vocab-size", 400)
    base = args.work / "base" / "checkpoint_last.pt"
    if not base.exists():
        train(args.work, "caption", "base", args.base_updates, 1e-3, "--disable-validation")
    print("| method | --lr | vqa_score | trained | peak memory | time an update |\n|---|---|---|---|---|---|")
    first: tuple[float, float] | None = None
    for name in args.only.split(","):
        lr, flags = METHODS[name]
        folder = name.replace(" ", "-")
        (args.work / folder / "checkpoint_last.pt").unlink(missing_ok=True)
        flags = ("--finetune-from-model", base, *flags, "--disable-validation")
        log, memory = train(args.work, "vqa_gen", folder, args.updates, lr, *flags)
        seconds = 1 / statistics.median(float(value) for value in re.findall(r'"ups": "([\d.]+)"', log)[1:])
        validated, _ = run(
            args.work / f"{folder}-valid.log",
            *(BIN / "fairseq-validate", world / "vqa_gen", "--user-dir", USER_DIR, "--task", "vqa_gen", "--cpu"),
            *("--path", args.work / folder / "checkpoint_last.pt", "--batch-size", 50, "--num-workers", 0),
            *("--log-format", "json"),
        )
        score = re.findall(r'"valid_vqa_score": "([\d.]+)"', validated)[-1]
        first = first or (memory, seconds)
        share = re.search(r"trains (.+?): ", log)
        trained = share[1].replace(" parameters", "") if share else "all"
        print(
            f"| {name} | {lr:g} | {score} | {trained} | {memory / first[0]:.2f} | {seconds / first[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
