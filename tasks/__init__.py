"""Tasks by name: importing this registers them, their configurations and their scorers with fairseq."""

from ..data.builder import Builder
from . import caption, detection, evaluation, gigaword, glue, image_classify, ocr, pretrain, refcoco, snli_ve, vqa

__all__ = [
    "caption",
    "detection",
    "evaluation",
    "gigaword",
    "glue",
    "image_classify",
    "instructions",
    "ocr",
    "pretrain",
    "refcoco",
    "snli_ve",
    "vqa",
]


TEXT_TASKS = (gigaword, glue)  # modules of tasks that read neither pictures nor what is pretrained with them


def instructions(text_tasks: bool = False) -> list[str]:
    """The fixed texts that the examples of tasks begin with, for a vocabulary that should know them.

    Args:
        text_tasks: those of summaries and GLUE. Otherwise those of all other tasks, whose small vocabularies need not
            spend pieces on words such as "grammatically".
    """
    found, builders = {}, [Builder]
    of_texts = [module.__name__ for module in TEXT_TASKS]
    for builder in builders:
        builders += builder.__subclasses__()
        if builder.__module__.startswith(__name__) and (builder.__module__ in of_texts) == text_tasks:
            found |= dict.fromkeys(text.replace("{}", " ").rstrip() for text in builder.instructions)
    return [" " + " ".join(text.split()) for text in found]
