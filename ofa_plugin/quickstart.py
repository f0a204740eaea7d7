"""`make quickstart`: from nothing to one model that does all eight pretraining tasks.

Makes a picture world; teaches an image backbone the names of its shapes; pretrains `ofa_nano` from it on the eight
tasks in one run of the stock `fairseq-train`; answers on held-out pictures through the stock `fairseq-generate`;
compares with what guessing gives; draws a contact sheet. With QUICK=1 in the environment: the same path, few updates,
no verdict.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import UserError
from .machine import cores as _cores

if TYPE_CHECKING:  # what needs fairseq is imported where it is used: a mistake in the call should be told at once
    from .data.codec import Codec
    from .data.example import Example
    from .tasks.pretrain import PretrainTask

USER_DIR = Path(__file__).resolve().parent
SIDE = 64  # pixels of a picture, and twice those of the middle that is infilled
RANKS = 2  # batches of an update: of two processes where there are two cores, else one after the other
ROWS, HELD_OUT, BATCHES, UPDATES, SLOW_UPDATES = 12000, 600, 1000, 700, 450
QUICK_ROWS, QUICK_HELD_OUT, QUICK_BATCHES, QUICK_UPDATES = 240, 24, 4, 6
RECIPE = (
    *("--adam-betas", "(0.9,0.98)", "--weight-decay", "0.01", "--clip-norm", "1.0"),
    *("--lr", "1e-3", "--lr-scheduler", "ofa_polynomial_decay", "--warmup-ratio", "0.02", "--batch-size", "16"),
    *("--mixture", "8:1:1:4", "--no-rand-augment"),
    *("--kind-weights", "vqa=4,matching=4,grounding=4,region_caption=2,detection=4"),
)
"""Texts are the longest examples, and half the official share of them is enough; an answer of two tokens would weigh
little beside a caption of fifteen. Detection, four times the official share, teaches where to look. Turned, sheared
and recoloured shapes of ten pixels are other shapes: with RandAugment a caption needs about twice the examples."""
SHUFFLED = "shuffled"  # the test split, each picture another row's


class Judged(NamedTuple):
    """How a kind of example stands in the table.

    Attributes:
        title: what the task is called.
        metric: by what it is judged.
        guess: what it is compared with.
    """

    title: str
    metric: str
    guess: str


TABLE = {
    "caption": Judged("image captioning", "CIDEr-D", "most frequent caption"),
    "vqa": Judged("question answering", "accuracy", "most frequent answer to the same question"),
    "matching": Judged("image-text matching", "accuracy", "always the same answer"),
    "grounding": Judged("visual grounding", "Acc@0.5", "best constant box"),
    "region_caption": Judged("grounded captioning", "exact match", "most frequent description"),
    "detection": Judged("object detection", "AP@0.5", "best constant object"),
    "image_infilling": Judged("image infilling", "codes right", "commonest code around the hole"),
    "text_infilling": Judged("text infilling", "tokens right", "another picture's text"),
}


def main(folder: str = "quickstart") -> int:
    """Runs the quickstart in `folder`; 0 when the model beats its baselines (or QUICK=1), else 1."""
    quick = os.environ.get("QUICK", "") not in ("", "0")
    out = Path(folder).resolve()
    _empty(out)
    started = time.monotonic()
    say(f"Works in {out} on {_device()}; needs about 90 MB there.")

    say("1. A picture world of our own: shapes with captions, questions, boxes, codes and texts; a vocabulary for them")
    _make_data(out, quick)

    batches, updates = (QUICK_BATCHES, QUICK_UPDATES) if quick else (BATCHES, _updates())
    say(f"2. Pretraining on all eight tasks with fairseq-train, {updates} updates, from a backbone that knows shapes")
    _train(out, batches, updates)

    say("3. Answering on held-out pictures with fairseq-generate; beside it with the pictures shuffled")
    commands = {subset: _generate_command(out, subset) for subset in ("test", SHUFFLED)}
    _run_all(out, {f"generate-{subset}": command for subset, command in commands.items()})

    say("4. Results on held-out pictures")
    task, examples = _held_out(commands["test"])
    passed = _report(out, examples)
    sheet = _contact_sheet(out, task.codec, examples)
    used = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    say(f"One picture for each task, and what the model says: {sheet}")
    say(f"Took {time.monotonic() - started:.0f} s on {_device()}, {used:.0f} MB in {out}.")
    print(_next_steps(out))
    if quick:
        print("QUICK=1: too few updates to learn, so the numbers above are not judged.")
        return 0
    if not passed:
        print("The model did not beat its baselines as it should: please report the numbers above.", file=sys.stderr)
    return 0 if passed else 1


def _empty(out: Path) -> None:
    """Makes way for a new run: removes an earlier one, and nothing else."""
    mark = out / ".made-by-quickstart"
    if out.exists() and any(out.iterdir()) and not mark.exists():
        raise UserError(f"{out} holds something else than an earlier quickstart: name another folder, or empty it")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mark.touch()


def say(text: str) -> None:
    """A line that stands out from the commands and their output."""
    print(f"\n== {text}", flush=True)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if _has_gpu() else f"the CPU ({_cores()} cores)"


# ------------------------------------------------------------------------------------------------------------ data


def _make_data(out: Path, quick: bool) -> None:
    rows, held_out = (QUICK_ROWS, QUICK_HELD_OUT) if quick else (ROWS, HELD_OUT)
    data, train = out / "data", out / "data" / "train"
    world = ("--rows", rows, "--held-out", held_out, "--seed", 1, "--shapes", "1-2")
    sizes = ("--side", SIDE, "--code-image-size", SIDE // 2)
    _run_all(out, {"make-shapes": [_script("ofa"), "make-shapes", data, *world, *sizes]})
    texts = (f"{train / 'vision_language_examples.tsv'}:2,3,4,5", f"{train / 'text_examples.tsv'}:1")
    _run_all(out, {"train-bpe": [_script("ofa"), "train-bpe", out / "bpe", *texts, "--vocab-size", 480]})
    _shuffle_pictures(data / "test", data / SHUFFLED)
    print(f"{rows} pictures of {SIDE} pixels with captions, questions or boxes to learn from, {held_out} held out")


def _shuffle_pictures(split: Path, target: Path) -> None:
    """Writes the files of a split that have pictures once more, each row with the next one's picture."""
    from .tasks.pretrain import SOURCES

    target.mkdir()
    for source in SOURCES.values():
        if "image" not in source.builder.columns:
            continue
        rows = _cells(split / source.file)
        for row, picture in zip(rows, [row[1] for row in rows[1:] + rows[:1]], strict=True):
            row[1] = picture
        (target / source.file).write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def _cells(file: Path) -> list[list[str]]:
    return [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]


# -------------------------------------------------------------------------------------------------------- commands


def _script(name: str) -> str:
    """The console script of this Python's environment."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _updates() -> int:
    """As many as two cores do in less than eight minutes together with the rest.

    Without AVX-512 `UPDATES` took more than ten. What the processor is decides, not how long something took, so that
    the same machine always makes the same model.
    """
    import torch

    fast = _has_gpu() or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return UPDATES if fast else SLOW_UPDATES


def _train(out: Path, batches: int, updates: int) -> None:
    """The backbone, then one run: of a process for each core, up to `RANKS`, or of one process on the GPU."""
    named = ("--image-size", SIDE, "--batches", batches)
    detections = out / "data" / "train" / "detection_examples.tsv"
    _run_all(out, {"train-backbone": [_script("ofa"), "train-backbone", detections, out / "resnet.pt", *named]})
    processes = 1 if _has_gpu() else min(RANKS, _cores())
    command = _train_command(out, updates, RANKS // processes)
    if processes == 1:
        _run_all(out, {"train": [*command, "--distributed-world-size", 1]})
        return
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    command += ["--cpu", "--distributed-world-size", processes, "--distributed-no-spawn"]
    command += ["--distributed-init-method", f"tcp://localhost:{port}"]
    command += ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
    _run_all(out, {f"train-{rank}": [*command, "--distributed-rank", rank] for rank in range(processes)})


def _train_command(out: Path, updates: int, update_freq: int) -> list[Any]:
    return [
        *(_script("fairseq-train"), out / "data", "--user-dir", USER_DIR, "--task", "unify_task", "--arch", "ofa_nano"),
        *("--patch-image-size", SIDE, "--max-image-size", SIDE, "--code-image-size", SIDE // 2),
        *("--bpe", "sentencepiece", "--bpe-dir", out / "bpe", "--num-bins", 100, "--code-dict-size", 256),
        *("--resnet-model-path", out / "resnet.pt"),
        *("--criterion", "adjust_label_smoothed_cross_entropy", *RECIPE, *_optimizer(), "--update-freq", update_freq),
        *("--max-update", updates, "--num-workers", 1, "--disable-validation", "--no-epoch-checkpoints"),
        *("--save-dir", out / "checkpoint", "--report-accuracy", "--log-format", "json", "--log-interval", 10),
    ]


def _optimizer() -> tuple[str, ...]:
    """Muon, or where torch is older than 2.9 Adam, which learns less in as many updates."""
    import torch

    return ("--optimizer", "muon", "--muon-lr-scale", "3") if hasattr(torch.optim, "Muon") else ("--optimizer", "adam")


def _generate_command(out: Path, subset: str) -> list[Any]:
    return [
        *(_script("fairseq-generate"), out / "data", "--user-dir", USER_DIR, "--task", "unify_task"),
        *("--path", out / "checkpoint" / "checkpoint_last.pt", "--gen-subset", subset),
        *("--batch-size", 100, "--results-path", out / "results"),
    ]


def _run_all(out: Path, commands: Mapping[str, list[Any]]) -> None:
    """Runs the commands, each with a log of its name, at the same time, and shows how far they are.

    One thread each: the matrices of `ofa_nano` are too small to share, and a second thread costs what it gives.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    running = {}
    for name, words in commands.items():
        command = [str(word) for word in words]
        print(f"$ {shlex.join(command)}")
        log = out / "logs" / f"{name}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        running[name] = (process, log)
    sys.stdout.flush()
    shown = time.monotonic()
    try:
        while any(process.poll() is None for process, _ in running.values()):
            time.sleep(0.2)
            if any(process.poll() not in (None, 0) for process, _ in running.values()):
                break
            if time.monotonic() - shown > 15:
                shown = time.monotonic()
                lines = [_progress(log) for _, log in running.values()]
                print("   ".join(filter(None, lines)), flush=True)
    finally:
        ended = {name: process.poll() for name, (process, _) in running.items()}
        for process, _ in running.values():
            if process.poll() is None:
                process.kill()
            process.wait()
    for name, (_, log) in running.items():
        if ended[name]:
            print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
            raise SystemExit(f"{name} ended with exit code {ended[name]}; its whole output: {log}")


def _progress(log: Path) -> str:
    """How far a training run is, and the share of target tokens that it gets right, from its log's last JSON line."""
    found = re.findall(r"train_inner \| (\{.*\})", log.read_text(errors="replace"))
    if not found:
        return ""
    state = json.loads(found[-1])
    shares = {kind: state.get(f"accuracy_{kind}") for kind in TABLE}
    right = ", ".join(f"{kind} {float(share):.0f} %" for kind, share in shares.items() if share is not None)
    return f"update {state['num_updates']}, {state['eta_min']} minutes left; tokens right: {right}"


# ---------------------------------------------------------------------------------------------------------- result


def _held_out(command: list[Any]) -> tuple[PretrainTask, dict[str, list[tuple[int, Example]]]]:
    """The task as `fairseq-generate` had it, and its examples by kind, each with its number in the result file."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    arguments = options.parse_args_and_arch(options.get_generation_parser(), [str(word) for word in command[1:]])
    cfg = convert_namespace_to_omegaconf(arguments)
    task = tasks.setup_task(cfg.task)
    task.load_dataset(cfg.dataset.gen_subset)
    dataset = task.dataset(cfg.dataset.gen_subset)
    examples: dict[str, list[tuple[int, Example]]] = {}
    for number in range(len(dataset)):
        kind, item = dataset[number]
        examples.setdefault(kind, []).append((number, item.examples[0]))
    return task, examples


def _report(out: Path, examples: Mapping[str, list[tuple[int, Example]]]) -> bool:
    """Prints every task's metric beside its baselines; whether the gate is passed."""
    from .tasks.pretrain import KINDS

    def score(subset: str, kind: str) -> float | None:
        scores = json.loads((out / "results" / f"{subset}_scores.json").read_text(encoding="utf-8"))
        return scores.get(KINDS[kind].metrics[0].name)

    guessed = _guesses(out / "data", examples)
    numbers = {kind: (score("test", kind), score(SHUFFLED, kind), guessed[kind]) for kind in TABLE}
    print(f"{'':35}{'the model':>10}{'shuffled':>10}{'a guess':>10}")
    for kind, row in TABLE.items():
        shown = "".join(f"{_number(kind, value):>10}" for value in numbers[kind])
        print(f"{row.title:21}{row.metric:14}{shown}  {row.guess}")
    print("shuffled: each picture is another row's, which tells looking from guessing well")
    (cider, *caption_guesses), (accuracy, *answer_guesses) = numbers["caption"], numbers["vqa"]
    return cider >= 2 * max(caption_guesses) and accuracy >= max(answer_guesses) + 0.15


def _number(kind: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if TABLE[kind].metric.startswith("CIDEr") else f"{100 * value:.1f} %"


def _guesses(data: Path, examples: Mapping[str, list[tuple[int, Example]]]) -> dict[str, float]:
    """What each kind's examples give to who knows the training files and has no model."""
    import numpy as np
    from PIL import Image

    from .data.boxes import parse_box, parse_objects
    from .tasks import baselines

    def rows(split: str, type: str) -> list[list[str]]:
        return [row for row in _cells(data / split / "vision_language_examples.tsv") if row[7] == type]

    asked, sought = ([(row[3], row[4].partition("|!+")[2]) for row in rows(split, "qa")] for split in ("train", "test"))
    regions = rows("train", "visual_grounding")
    objects = [parse_objects(row[2]) for row in _cells(data / "train" / "detection_examples.tsv")]
    references = {kind: [one.reference for _, one in group] for kind, group in examples.items()}
    judged = [next(iter(answers)) for answers in references["matching"]]
    pictures = [Image.fromarray(one.image.permute(1, 2, 0).numpy()) for _, one in examples["image_infilling"]]
    return {
        "caption": baselines.frequent_caption([row[2] for row in rows("train", "caption")], references["caption"]),
        "vqa": baselines.majority_by_question(asked, sought),
        "matching": baselines.majority_answer(judged, judged),
        "grounding": baselines.constant_box(
            np.array([parse_box(row[4]) for row in regions]), np.array(references["grounding"])
        ),
        "region_caption": baselines.majority_answer([row[2] for row in regions], references["region_caption"]),
        "detection": baselines.constant_object(objects, references["detection"]),
        "image_infilling": baselines.surrounding_code(pictures, references["image_infilling"]),
        "text_infilling": baselines.another_text(references["text_infilling"]),
    }


def _contact_sheet(out: Path, codec: Codec, examples: Mapping[str, list[tuple[int, Example]]]) -> Path:
    """The k-th picture of the k-th task with what the model said, as one PNG."""
    from . import contact_sheet

    entries = json.loads((out / "results" / "test_predict.json").read_text(encoding="utf-8"))
    panels = []
    for place, (kind, row) in enumerate(TABLE.items()):
        number, example = examples[kind][place % len(examples[kind])]
        panels.append(contact_sheet.panel(kind, row.title, example, entries[number], codec))
    path = out / "contact_sheet.png"
    contact_sheet.draw(panels).save(path, optimize=True)
    return path


def _next_steps(out: Path) -> str:
    return f"""
How to go on:
  look at what fairseq-generate printed:  less {out / "results" / "generate-test.txt"}
  a world that is not easy, or your own:  ofa make-shapes, ofa prepare unify_task; see docs/data.md, docs/own-data.md
  the official sizes and recipes:         run_scripts/pretrain.sh, run_scripts/caption.sh, run_scripts/vqa.sh
"""


if __name__ == "__main__":
    from . import register

    logging.basicConfig(level=logging.WARNING, force=True)  # hydra, on import, lets every debugging line through
    try:
        register()
        sys.exit(main(*sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
