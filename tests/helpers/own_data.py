"""A user's own data for every task, as small as can be, and the flags by which `ofa prepare` reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ofa_plugin import cli
from tests.helpers.prepared import coco, jsonl, picture

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
PICTURES = 8


def photos(folder: Path, count: int = PICTURES) -> Path:
    """Pictures 0.png, 1.png, ... of three colours in turn, 40 x 30."""
    for number in range(count):
        picture(folder / "photos" / f"{number}.png", 40, 30, list(COLOURS.values())[number % 3])
    return folder / "photos"


def colour(number: int) -> str:
    """That of a picture."""
    return list(COLOURS)[number % 3]


def _caption(folder: Path) -> list[object]:
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(PICTURES)]
    said = [
        {"id": n, "image_id": n % PICTURES, "caption": f"a {colour(n % PICTURES)} wall"} for n in range(2 * PICTURES)
    ]
    return ["--images", photos(folder), "--captions", coco(folder / "captions.json", images=images, annotations=said)]


def _vqa_gen(folder: Path) -> list[object]:
    asked = [{"question_id": n, "image_id": n, "question": "what color is it?"} for n in range(PICTURES)]
    answers = [{"question_id": n, "answers": [{"answer": colour(n)}] * 10} for n in range(PICTURES)]
    files = ("--questions", coco(folder / "questions.json", questions=asked))
    return ["--images", photos(folder), *files, "--annotations", coco(folder / "a.json", annotations=answers)]


def _refcoco(folder: Path) -> list[object]:
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(PICTURES)]
    boxes = [{"id": 100 + n, "image_id": n, "category_id": 1, "bbox": [2, 3, 20, 10]} for n in range(PICTURES)]
    instances = coco(folder / "i.json", images=images, annotations=boxes, categories=[{"id": 1, "name": "wall"}])
    refs = [
        {
            **{"ref_id": n, "ann_id": 100 + n, "image_id": n, "file_name": f"COCO_train2014_{n:012d}_{n}.jpg"},
            **{"split": "train", "sentences": [{"sent": "the wall"}, {"sent": f"the {colour(n)} one"}]},
        }
        for n in range(PICTURES)
    ]
    (folder / "refs.json").write_text(json.dumps(refs))
    return ["--images", photos(folder), "--refs", folder / "refs.json", "--boxes", instances]


VOC = """<annotation><filename>{n}.png</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>{name}</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object>
</annotation>
"""


def _detection(folder: Path) -> list[object]:
    (folder / "voc").mkdir()
    for n in range(PICTURES):
        (folder / "voc" / f"{n}.xml").write_text(VOC.format(n=n, name=colour(n)))
    return ["--images", photos(folder), "--boxes", folder / "voc"]


def _snli_ve(folder: Path) -> list[object]:
    labels = ("entailment", "neutral", "contradiction")
    rows = [
        {"Flickr30K_ID": str(n), "sentence1": "a wall", "sentence2": f"it is {colour(n)}", "gold_label": labels[n % 3]}
        for n in range(PICTURES)
    ]
    return ["--images", photos(folder), "--rows", jsonl(folder / "rows.jsonl", rows)]


def _image_classify(folder: Path) -> list[object]:
    for number in range(PICTURES):
        picture(folder / "classes" / colour(number) / f"{number}.png", 40, 30, COLOURS[colour(number)])
    return ["--images", folder / "classes"]


def table(path: Path, *rows: tuple[str, ...], sign: str = ",") -> Path:
    """Writes a table, quotes as they come."""
    path.write_text("".join(sign.join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _ocr(folder: Path) -> list[object]:
    rows = [(f"{n}.png", f'"{colour(n)}, {n}"') for n in range(PICTURES)]
    return ["--images", photos(folder), "--rows", table(folder / "rows.csv", ("image", "text"), *rows)]


def _gigaword(folder: Path) -> list[object]:
    rows = [(f'the "{colour(n)} wall number {n} stands', f"{colour(n)} wall") for n in range(PICTURES)]
    return ["--rows", table(folder / "rows.tsv", ("article", "summary"), *rows, sign="\t")]


def _glue(names: tuple[str, ...], labels: tuple[str, ...], *flags: str) -> Callable[[Path], list[object]]:
    def make(folder: Path) -> list[object]:
        texts = [tuple(f"{name} {colour(n)} {n}" for name in names[:-1]) for n in range(PICTURES)]
        rows = [(*some, labels[n % len(labels)]) for n, some in enumerate(texts)]
        return ["--rows", table(folder / "rows.tsv", names, *rows, sign="\t"), *flags]

    return make


ZERO_ONE = ("0", "1")
SOURCES: dict[str, Callable[[Path], list[object]]] = {
    "caption": _caption,
    "vqa_gen": _vqa_gen,
    "refcoco": _refcoco,
    "detection": _detection,
    "snli_ve": _snli_ve,
    "image_classify": _image_classify,
    "ocr": _ocr,
    "gigaword": _gigaword,
    "cola": _glue(("sentence", "label"), ZERO_ONE),
    "mnli": _glue(
        ("sentence1", "sentence2", "label"), ("0", "1", "2"), "--label-order", "entailment,neutral,contradiction"
    ),
    "mrpc": _glue(("#1 String", "#2 String", "Quality"), ZERO_ONE),
    "qnli": _glue(("question", "sentence", "label"), ("entailment", "not_entailment")),
    "qqp": _glue(("question1", "question2", "is_duplicate"), ZERO_ONE),
    "rte": _glue(("sentence1", "sentence2", "label"), ("entailment", "not_entailment")),
    "sst2": _glue(("sentence", "label"), ZERO_ONE),
}
"""Makes the files in a folder and returns the flags that name them, by task."""


def prepare(task: str, out: Path, *flags: object) -> int:
    """The exit code of `ofa prepare TASK OUT flags`."""
    return cli.main(["prepare", task, str(out), *map(str, flags)])


def prepared(task: str, folder: Path, *flags: object) -> Path:
    """The folder that `ofa prepare` made of the task's files, a quarter of the pictures held out."""
    (folder / "own").mkdir()
    assert (
        prepare(task, folder / "data", *SOURCES[task](folder / "own"), "--split", "train=0.75,valid=0.25", *flags) == 0
    )
    return folder / "data"
