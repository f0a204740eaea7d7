"""The pretraining task in this process, and small files for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import open_dict

from ofa_plugin.data.builder import Builder
from ofa_plugin.data.codec import Codec
from ofa_plugin.data.image import PictureLoader
from ofa_plugin.data.tsv import TSVStore
from ofa_plugin.tasks.pretrain import PRETRAIN_DEFAULTS
from tests.helpers.golden import golden, settings, synthetic_image

SIDE = 32  # pixels of the pictures that the model sees
HALF = 16  # --code-image-size: 4 codes
CODES, BINS = 8, 100
NEGATIVES = golden("pretrain_examples.json")["negatives"]


def write_rows(path: Path, *rows: tuple[str, ...] | list[str]) -> Path:
    """A TSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_negatives(folder: Path) -> Path:
    """The folder `negative_sample` with the content that the official rows were made with."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in (("all_captions.txt", "all_caption_list"), ("object.txt", "all_object_list")):
        (folder / name).write_text("".join(f"{text}\n" for text in NEGATIVES[texts]), encoding="utf-8")
    (folder / "type2ans.json").write_text(json.dumps(NEGATIVES["type2ans_dict"]), encoding="utf-8")
    return folder


def caption_row(name: str = "c", caption: str = "a dog", dataset: str = "coco", objects: str = "") -> list[str]:
    """A vision-language row."""
    return [name, synthetic_image(40, 30), caption, "", "", objects, dataset, "caption"]


def question_row(name: str = "q", question: str = "what is it?", answers: str = "1.0|!+red") -> list[str]:
    """A vision-language row."""
    return [name, synthetic_image(40, 30), "", question, answers, "", "vqa", "qa"]


def region_row(name: str = "r", text: str = "the dog", box: str = "4,3,24,27") -> list[str]:
    """A vision-language row."""
    return [name, synthetic_image(40, 30), text, "", box, "", "refcoco", "visual_grounding"]


def image_row(name: str = "i", codes: str = "0 1 2 7", size: tuple[int, int] = (2 * HALF, 2 * HALF)) -> list[str]:
    """A row of image infilling."""
    return [name, synthetic_image(*size), codes]


def detection_row(name: str = "d", objects: str = "4,3,24,27,1,dog") -> list[str]:
    """A row of detection."""
    return [name, synthetic_image(40, 30), objects]


def write_data(folder: Path, *subsets: str, each: int = 8) -> Path:
    """A data folder with all four files, `each` rows of every vision-language type, and the negatives."""
    for subset in subsets or ("train",):
        rows = [make(f"{letter}{n}") for n in range(each) for letter, make in _MAKERS.items()]
        write_rows(folder / subset / "vision_language_examples.tsv", *rows)
        write_rows(folder / subset / "text_examples.tsv", *([f"t{n}", f"a dog and {n} cats"] for n in range(5)))
        write_rows(folder / subset / "image_examples.tsv", *(image_row(f"i{n}") for n in range(3)))
        write_rows(folder / subset / "detection_examples.tsv", *(detection_row(f"d{n}") for n in range(3)))
    write_negatives(folder / "negative_sample")
    return folder


_MAKERS = {"c": caption_row, "q": question_row, "r": region_row}


def configuration(**given: Any) -> Any:
    """A resolved configuration of pretraining as far as builders read it, with small pictures."""
    small = {"patch_image_size": SIDE, "code_image_size": HALF, "no_rand_augment": False}
    return settings(**{**PRETRAIN_DEFAULTS, **small, **given})


def builder_of(
    kind: type[Builder], codec: Codec, path: Path, *rest: Any, training: bool = True, **given: Any
) -> Builder:
    """The builder of a file; `given` are options that differ."""
    columns = tuple(range(len(kind.columns))) if kind.columns else None
    pictures = PictureLoader(path.parent, SIDE)
    return kind(TSVStore(path, kind.columns, columns), codec, configuration(**given), training, pictures, *rest)


def task_of(world: Any, data: Path | str, *flags: object, path: str | None = None) -> Any:
    """The task as stock's training command sets it up; with `path`, as generation does."""
    given = (
        *(str(data), "--task", "unify_task", "--arch", "ofa_nano", "--bpe", "sentencepiece"),
        *("--bpe-dir", str(world.root / "bpe"), "--num-bins", str(BINS), "--code-dict-size", str(CODES)),
        *("--patch-image-size", str(SIDE), "--code-image-size", str(HALF), "--max-image-size", "64"),
    )
    parser = options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, [*given, *map(str, flags)]))
    with open_dict(cfg):
        cfg.task.path = path
    return tasks.setup_task(cfg.task)
