"""A user's own captions, questions, boxes and texts become the files that a task reads: `ofa prepare TASK`.

* `readers`: records out of JSON (streamed), JSONL and text files.
* `sources`: what COCO, VQAv2 and plain JSONL records mean; each becomes an item of a picture.
* `spool`: the items on disk, put in the order of the pictures.
* `pictures`, `clean`, `negatives`: finding and storing pictures, mending texts, what negatives are drawn from.
* `rows`: what makers of rows share; `unify` has those of pretraining, `finetune` those of every other task.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from ...errors import UserError
from .outputs import clear_leftovers
from .report import Report
from .request import FILES, Request

FINETUNED = (
    *("caption", "vqa_gen", "refcoco", "detection", "snli_ve", "image_classify", "ocr", "gigaword"),
    *("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"),
)
PREPARERS = {"unify_task": "unify", **dict.fromkeys(FINETUNED, "finetune")}
"""What the user types as TASK, and the module in this folder that prepares it."""


def prepare(task: str, request: Request) -> Report:
    """Writes a task's files.

    Returns:
        What was written, changed and refused; `report.summary` is for the user to read.

    Raises:
        UserError: an unknown task, a flag that does not fit, a file that cannot be read at all or exists already.
            Bad rows do not raise: they are named, and counted in `report.bad_rows`.
    """
    if task not in PREPARERS:
        raise UserError(f"TASK {task}: unknown; choose one of {', '.join(PREPARERS)}")
    for flag in FILES:
        for path in getattr(request, flag):
            if not path.is_file() and not (flag == "boxes" and path.is_dir()):
                raise UserError(f"--{flag} {path}: no such file")
    if request.images is not None and not request.images.is_dir():
        raise UserError(f"--images {request.images}: no such folder")
    for flag, name in [("subset", request.subset), *(("split", name) for name, _ in request.split)]:
        if Path(name).name != name or name.startswith("."):
            raise UserError(f"--{flag} {name}: give a plain name, such as train, valid or test")
    try:
        clear_leftovers(request.out)
        return importlib.import_module(f".{PREPARERS[task]}", __package__).prepare(replace(request, task=task))
    except OSError as error:
        where = error.filename or request.out
        raise UserError(f"{where}: {error.strerror or error}: check the path, its permissions and the disk") from error
