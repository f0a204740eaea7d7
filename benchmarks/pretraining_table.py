"""What a pretrained checkpoint has learned of a world made by `ofa make-shapes`: a table, beside guessing.

    python benchmarks/pretraining_table.py WORLD CHECKPOINT [--splits test,unseen_pairs,unseen_backgrounds] [--rows N]
        [--kinds vqa,caption] [--detail]

Answers held-out rows through stock `fairseq-generate`: the kinds of example that the checkpoint knows, and questions
about a marked region, which no pretraining task asks, with the region, without it, and with that of another row.
Baselines are computed from the same files: the most frequent answer to the same question, the best constant box, the
most frequent caption and expression. `--detail` adds what the questions, captions and expressions are about.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fairseq  # noqa: F401  before ofa_plugin, which then registers at once

import ofa_plugin
from ofa_plugin.data.boxes import as_array, parse_box
from ofa_plugin.data.world.scene import TEXTURES
from ofa_plugin.tasks.baselines import constant_box, frequent_caption, majority_answer, majority_by_question
from ofa_plugin.tasks.caption import references_of

METRICS = {  # of each kind, its name in the scores file and in the table
    "caption": ("cider", "caption, CIDEr-D", 1),
    "vqa": ("vqa_score", "question, %", 100),
    "region_caption": ("region_caption_exact", "grounded caption, exact, %", 100),
    "grounding": ("grounding_acc", "grounding, Acc@0.5, %", 100),
    "matching": ("matching_acc", "matching, %", 100),
    "detection": ("detection_ap50", "detection, AP@0.5, %", 100),
    "text_infilling": ("infilled_acc", "removed words, %", 100),
    "image_infilling": ("code_acc", "image codes, %", 100),
}
ASKED = {
    "region": "region question, %",
    "no region": "the same without the region, %",
    "other region": "the same with another region, %",
}
QUESTIONS = {  # how the questions of each type begin
    "is A left of B?": "is the ",
    "what is left of A?": "what is ",
    "is there an A?": "is there ",
    "how many A are there?": "how many ",
    "what color?": "what color ",
    "what shape?": "what shape ",
    "what size?": "what size ",
    "what texture?": "what texture ",
}
TEXTURED = tuple(texture for texture in TEXTURES if texture != "plain")  # captions leave "plain" out


def rows_of(path: Path, count: int | None = None) -> list[list[str]]:
    """The cells of a TSV's first rows."""
    with path.open(encoding="utf-8") as lines:
        return [line.rstrip("\n").split("\t") for _, line in zip(range(count or 10**9), lines, strict=False)]


def answered(
    world: Path, checkpoint: str, split: str, *flags: str, log: str
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The numbers that `fairseq-generate` writes for a split, and its answers."""
    with tempfile.TemporaryDirectory() as results:
        command = [
            sys.executable,
            "-m",
            "fairseq_cli.generate",
            str(world),
            "--gen-subset",
            split,
            "--task",
            "unify_task",
        ]
        command += ["--user-dir", str(Path(ofa_plugin.__file__).parent), "--path", checkpoint, "--batch-size", "50"]
        command += ["--results-path", results, "--num-workers", "1", "--cpu", *flags]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        finished = subprocess.run(command, capture_output=True, text=True, env=environment)
        if finished.returncode:
            raise SystemExit(f"{log}: {finished.stderr[-2000:]}")
        print(f"{log}: done", file=sys.stderr)
        found = [json.loads((Path(results) / f"{split}_{name}.json").read_text()) for name in ("scores", "predict")]
        return found[0], found[1]


def detail(world: Path, split: str, entries: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """How many answers of each sort are right, and how many there are of it: of a split's vision-language rows."""
    rows = {row[0]: row[2:] for row in rows_of(world / split / "vision_language_examples.tsv")}
    counts: dict[str, tuple[int, int]] = {}

    def count(title: str, right: bool) -> None:
        hits, total = counts.get(title, (0, 0))
        counts[title] = hits + right, total + 1

    for entry in entries:
        caption, question, refs, *_ = rows.get(str(entry["uniq_id"]), ("", "", ""))
        if entry["kind"] == "vqa":
            title = next(title for title, begins in QUESTIONS.items() if question.startswith(begins))
            count(f"question, {title}", entry["answer"] == refs.partition("|!+")[2])
        elif entry["kind"] == "caption":
            references = references_of(caption)
            count("caption, every word", entry["answer"] in references)
            count("caption, but for its textures", _untextured(entry["answer"]) in map(_untextured, references))
        elif entry["kind"] == "region_caption":
            form = "with a texture" if any(word in TEXTURED for word in caption.split()) else "without a texture"
            count(f"grounded caption {form}", entry["answer"] == caption)
    return counts


def _untextured(caption: str) -> str:
    return " ".join(word for word in caption.split() if word not in TEXTURED)


def baselines(world: Path, split: str, count: int) -> dict[str, float]:
    """What guessing gives on a split, by the titles of the table."""
    train, held = (
        [row[2:] for row in rows_of(world / part / "vision_language_examples.tsv", number)]
        for part, number in (("train", None), (split, count))
    )  # caption, question, refs, objects, dataset, type

    def of(rows: list[list[str]], kind: str) -> list[list[str]]:
        return [row for row in rows if row[5] == kind]

    asked, tested = ([(row[1], row[2].partition("|!+")[2]) for row in of(rows, "qa")] for rows in (train, held))
    boxes = [as_array(parse_box(row[2]) for row in of(rows, "visual_grounding")) for rows in (train, held)]
    said = [[row[0] for row in of(rows, "visual_grounding")] for rows in (train, held)]
    region = [(row[2], row[4].partition("|!+")[2]) for row in rows_of(world / "region_vqa" / f"{split}.tsv", count)]
    known = [(row[2], row[4].partition("|!+")[2]) for row in rows_of(world / "region_vqa" / "valid.tsv")]
    captions = [[row[0]] for row in of(held, "caption")]
    return {
        METRICS["caption"][1]: frequent_caption([row[0] for row in of(train, "caption")], captions),
        METRICS["vqa"][1]: 100 * majority_by_question(asked, tested),
        METRICS["grounding"][1]: 100 * constant_box(*boxes),
        METRICS["region_caption"][1]: 100 * majority_answer(*said),
        METRICS["matching"][1]: 50.0,
        ASKED["region"]: 100 * majority_by_question(known, region),
    }


def first_rows(world: Path, folder: Path, splits: list[str], count: int) -> Path:
    """A world of the first rows of each split, with the region questions once more, their regions moved on by a row."""
    for split in splits:
        (folder / split).mkdir(parents=True)
        for file in (world / split).glob("*_examples.tsv"):
            lines = file.read_text(encoding="utf-8").split("\n")[:-1][:count]
            (folder / split / file.name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        region = rows_of(world / "region_vqa" / f"{split}.tsv", count)
        moved = [[*row[:3], other[3], row[4]] for row, other in zip(region, region[1:] + region[:1], strict=True)]
        (folder / "region_vqa").mkdir(exist_ok=True)
        for name, rows in ((split, region), (f"{split}_moved", moved)):
            text = "".join("\t".join(row) + "\n" for row in rows)
            (folder / "region_vqa" / f"{name}.tsv").write_text(text, encoding="utf-8")
    (folder / "negative_sample").symlink_to((world / "negative_sample").resolve())
    return folder


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("world", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--splits", default="test,unseen_pairs,unseen_backgrounds")
    parser.add_argument("--rows", type=int, default=600, help="vision-language rows of each split (600)")
    parser.add_argument("--kinds", help="only these kinds of example")
    parser.add_argument(
        "--detail", action="store_true", help="a second table: questions by type, captions by their words"
    )
    args = parser.parse_args()
    splits = args.splits.split(",")
    kinds = args.kinds.split(",") if args.kinds else list(METRICS)
    guessed = {split: baselines(args.world, split, args.rows) for split in splits}
    found: dict[str, dict[str, float]] = {}
    details: dict[str, dict[str, tuple[int, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = first_rows(args.world, Path(folder), splits, args.rows)
        for split in splits:
            flags = ("--kinds", args.kinds) if args.kinds else ()
            values, entries = answered(world, args.checkpoint, split, *flags, log=split)
            if args.detail:
                details[split] = detail(world, split, entries)
            found[split] = {METRICS[kind][1]: METRICS[kind][2] * values[METRICS[kind][0]] for kind in kinds}
            if args.kinds:
                continue
            form = ("--columns", "id,image,question,box,answers", "--instruction")
            for name, subset, instruction in (
                ("region", split, " {question} region: {box}"),
                ("no region", split, " {question}"),
                ("other region", f"{split}_moved", " {question} region: {box}"),
            ):
                values, _ = answered(
                    world / "region_vqa", args.checkpoint, subset, *form, instruction, log=f"{split}, {name}"
                )
                found[split][ASKED[name]] = 100 * values["asked_score"]
    titles = list(next(iter(found.values())))
    print("| | " + " | ".join(f"{split} | guessed" for split in splits) + " |")
    print("|---|" + "---|---|" * len(splits))
    for title in titles:
        cells = [f"{found[split][title]:.2f} | {guessed[split].get(title, float('nan')):.2f}" for split in splits]
        print(f"| {title} | {' | '.join(cells).replace('nan', '')} |")
    if any(details.values()):
        print("\n| right, % | " + " | ".join(f"{split} | rows" for split in splits) + " |")
        print("|---|" + "---|---|" * len(splits))
        for title in sorted({title for counts in details.values() for title in counts}):
            pairs = [details[split].get(title, (0, 0)) for split in splits]
            cells = [f"{100 * right / total:.1f} | {total}" if total else "| 0" for right, total in pairs]
            print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
