"""`make quickstart`: from nothing to a model that captions pictures and answers questions about them.

Makes a picture world; trains `ofa_nano` through the stock `fairseq-train`, first on captions, then from there on
questions with a closed answer set; answers on held-out pictures through the stock `fairseq-generate`; compares with
what guessing gives; draws a contact sheet. With QUICK=1 in the environment: the same path, few updates, no verdict.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from .errors import UserError

USER_DIR = Path(__file__).resolve().parent
SIDE = 64  # pixels of a picture
ROWS = {"train": 6000, "valid": 100, "test": 300}
UPDATES = {"caption": 500, "vqa": 1100}
RATE = {"caption": "1e-3", "vqa": "5e-4"}
QUICK_ROWS = {"train": 256, "valid": 16, "test": 24}
QUICK_UPDATES = {"caption": 12, "vqa": 12}
TASK = {"caption": "caption", "vqa": "vqa_gen"}
SHOWN = 12  # pictures on the contact sheet


def main(folder: str = "quickstart") -> int:
    """Runs the quickstart in `folder`; 0 when the model beats its baselines (or QUICK=1), else 1."""
    quick = os.environ.get("QUICK", "") not in ("", "0")
    out = Path(folder).resolve()
    _empty(out)
    started = time.monotonic()
    say(f"Works in {out} on {_device()}; needs about 70 MB there.")

    say("1. A picture world of our own: coloured shapes, captions, questions")
    _make_data(out, QUICK_ROWS if quick else ROWS)

    say("2. Training with fairseq-train: first captions, then questions from the captions' weights")
    for name in TASK:
        _run_all(out, {name: _train_command(out, name, quick)}, "train")

    say("3. Answering on held-out pictures with fairseq-generate; then once more with the pictures shuffled")
    for subset in ("test", "shuffled"):
        _run_all(out, {name: _generate_command(out, name, subset) for name in TASK}, f"generate-{subset}")

    passed = _report(out)
    sheet = _contact_sheet(out)
    used = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    say(f"Pictures with their captions and answers: {sheet}")
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


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"the CPU ({os.cpu_count()} cores)"


# ------------------------------------------------------------------------------------------------------------ data


def _make_data(out: Path, rows: dict[str, int]) -> None:
    from .data.sentencepiece_training import train_bpe
    from .data.shapes import write_world

    write_world(out / "data", rows, seed=1, side=SIDE)
    for name in TASK:
        lines = (out / "data" / name / "test.tsv").read_text(encoding="utf-8").splitlines()
        cells = [line.split("\t") for line in lines]
        moved = [row[:-1] + cells[(index + 1) % len(cells)][-1:] for index, row in enumerate(cells)]
        text = "".join("\t".join(row) + "\n" for row in moved)
        (out / "data" / name / "shuffled.tsv").write_text(text, encoding="utf-8")
    print(f"{rows['train']} training and {rows['test']} held-out pictures of {SIDE} pixels in {out / 'data'}")
    files = [out / "data" / name / "train.tsv" for name in TASK]
    summary = train_bpe(out / "bpe", [(file, [2, 3]) for file in files], vocab_size=400)
    print(f"a vocabulary of {summary['pieces']} pieces of their words in {out / 'bpe'}")


# -------------------------------------------------------------------------------------------------------- commands


def _script(name: str) -> str:
    """The stock console script of this Python's environment."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _train_command(out: Path, name: str, quick: bool) -> list[str]:
    updates = (QUICK_UPDATES if quick else UPDATES)[name]
    command = [
        *(_script("fairseq-train"), str(out / "data" / name), "--user-dir", str(USER_DIR)),
        *("--task", TASK[name], "--arch", "ofa_nano", "--patch-image-size", str(SIDE)),
        *("--bpe", "sentencepiece", "--bpe-dir", str(out / "bpe"), "--num-bins", "100", "--code-dict-size", "256"),
        *("--criterion", "adjust_label_smoothed_cross_entropy"),
        *("--optimizer", "adam", "--adam-betas", "(0.9,0.999)", "--weight-decay", "0.01", "--clip-norm", "1.0"),
        *("--lr", RATE[name], "--lr-scheduler", "ofa_polynomial_decay", "--warmup-ratio", "0.06"),
        *("--batch-size", "32", "--max-update", str(updates), "--num-workers", "1", "--disable-validation"),
        *("--no-epoch-checkpoints", "--save-dir", str(out / "checkpoints" / name)),
        *("--log-format", "json", "--log-interval", "10"),
    ]
    if name == "vqa":
        command += ["--ans2label-file", str(out / "data" / "vqa" / "answers.txt")]
        command += ["--finetune-from-model", str(out / "checkpoints" / "caption" / "checkpoint_last.pt")]
    return command


def _generate_command(out: Path, name: str, subset: str) -> list[str]:
    return [
        *(_script("fairseq-generate"), str(out / "data" / name), "--user-dir", str(USER_DIR), "--task", TASK[name]),
        *("--path", str(out / "checkpoints" / name / "checkpoint_last.pt"), "--gen-subset", subset),
        *("--batch-size", "50", "--results-path", str(out / "results" / name)),
    ]


def _run_all(out: Path, commands: dict[str, list[str]], stage: str) -> None:
    """Runs the commands, by task, at the same time and shows how far they are.

    One thread each: the matrices of `ofa_nano` are too small to share, and a second thread costs what it gives.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    running = {}
    for name, command in commands.items():
        print(f"$ {shlex.join(command)}")
        log = out / "logs" / f"{stage}-{name}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        running[name] = (process, log)
    sys.stdout.flush()
    shown = time.monotonic()
    try:
        while any(process.poll() is None for process, _ in running.values()):
            time.sleep(0.5)
            failed = [name for name, (process, _) in running.items() if process.poll() not in (None, 0)]
            if failed:
                break
            if time.monotonic() - shown > 15:
                shown = time.monotonic()
                lines = [_progress(name, log) for name, (process, log) in running.items() if process.poll() is None]
                print("   ".join(filter(None, lines)), flush=True)
    finally:
        for process, _ in running.values():
            if process.poll() is None:
                process.kill()
            process.wait()
    for name, (process, log) in running.items():
        if process.returncode:
            print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
            raise SystemExit(f"{stage} of {name} ended with exit code {process.returncode}; its whole output: {log}")


def _progress(name: str, log: Path) -> str:
    """`caption: update 300, loss 1.23` from the last JSON line of a training log."""
    found = re.findall(r"train_inner \| (\{.*\})", log.read_text(errors="replace"))
    if not found:
        return ""
    state = json.loads(found[-1])
    return f"{name}: update {state['num_updates']}, loss {state['loss']}"


# ---------------------------------------------------------------------------------------------------------- result


def _cells(out: Path, name: str, split: str) -> list[list[str]]:
    lines = (out / "data" / name / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def _answers(out: Path, name: str, subset: str, key: str) -> list[str]:
    entries = json.loads((out / "results" / name / f"{subset}_predict.json").read_text(encoding="utf-8"))
    return [entry[key] for entry in entries]


def _report(out: Path) -> bool:
    """Prints both metrics beside their baselines; whether the gate is passed."""
    from .tasks.metrics.cider import CIDErD

    references = [row[2].split("&&") for row in _cells(out, "caption", "test")]
    metric = CIDErD()
    metric.prepare(references)

    def cider(captions: list[str]) -> float:
        return sum(map(metric.score, captions, references)) / len(references)

    commonest = Counter(row[2] for row in _cells(out, "caption", "train")).most_common(1)[0][0]
    captions = {
        "the model": cider(_answers(out, "caption", "test", "caption")),
        "most frequent caption": cider([commonest] * len(references)),
        "the model, pictures shuffled": cider(_answers(out, "caption", "shuffled", "caption")),
    }

    rows = _cells(out, "vqa", "test")
    truth = [row[3].split("|!+")[1] for row in rows]
    by_question: dict[str, Counter] = defaultdict(Counter)
    for row in _cells(out, "vqa", "train"):
        by_question[row[2]][row[3].split("|!+")[1]] += 1
    overall = sum(by_question.values(), Counter())
    guesses = [(by_question.get(row[2]) or overall).most_common(1)[0][0] for row in rows]

    def accuracy(answers: list[str]) -> float:
        return 100 * sum(map(str.__eq__, answers, truth)) / len(truth)

    answers = {
        "the model": accuracy(_answers(out, "vqa", "test", "answer")),
        "most frequent answer to the same question": accuracy(guesses),
        "the model, pictures shuffled": accuracy(_answers(out, "vqa", "shuffled", "answer")),
    }
    say("4. Results on held-out pictures")
    for title, unit, numbers in (("captions, CIDEr-D", "", captions), ("questions, accuracy", " %", answers)):
        print(title)
        for label, value in numbers.items():
            print(f"  {label:<44}{value:8.2f}{unit}")
    best_guess = max(list(answers.values())[1:])
    return captions["the model"] >= 2 * max(list(captions.values())[1:]) and answers["the model"] >= best_guess + 15


def _contact_sheet(out: Path) -> Path:
    """Pictures with what the model said of them, as one PNG."""
    import base64
    import io

    from PIL import Image, ImageDraw, ImageFont

    captions = _answers(out, "caption", "test", "caption")[:SHOWN]
    answers = _answers(out, "vqa", "test", "answer")[:SHOWN]
    columns, width, height = 4, 250, 232
    sheet = Image.new("RGB", (columns * width, -(-len(captions) // columns) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (caption, answer, row) in enumerate(
        zip(captions, answers, _cells(out, "vqa", "test"), strict=False)  # a sheet shows the first few only
    ):
        left, top = index % columns * width, index // columns * height
        picture = Image.open(io.BytesIO(base64.b64decode(row[-1]))).resize((160, 160), Image.Resampling.NEAREST)
        sheet.paste(picture, (left + (width - 160) // 2, top + 8))
        for line, text in enumerate((caption, row[2], f"-> {answer}")):
            pen.text((left + width / 2, top + 180 + 16 * line), text, fill="black", font=font, anchor="mm")
    path = out / "contact_sheet.png"
    sheet.save(path)
    return path


def _next_steps(out: Path) -> str:
    return f"""
How to go on:
  look at what fairseq-generate printed:  less {out / "results" / "caption" / "generate-test.txt"}
  caption your own pictures:              write a TSV (id, image-id, caption, objects, picture as base64 or path),
                                          see docs/data.md, and repeat the commands above
  the official sizes and recipes:         run_scripts/caption.sh, run_scripts/vqa.sh
"""


if __name__ == "__main__":
    from . import register

    logging.basicConfig(level=logging.WARNING, force=True)  # hydra, on import, lets every debugging line through
    try:
        register()
        sys.exit(main(*sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
