"""Tasks by name: importing this registers them, their configurations and their scorers with fairseq."""

from ..data.builder import Builder
from . import caption, evaluation, gigaword, glue, pretrain, refcoco, snli_ve, vqa

__all__ = ["caption", "evaluation", "gigaword", "glue", "instructions", "pretrain", "refcoco", "snli_ve", "vqa"]


def instructions() -> list[str]:
    """The fixed texts that the examples of all tasks begin with, for a vocabulary that should know them."""
    found, builders = {}, [Builder]
    for builder in builders:
        builders += builder.__subclasses__()
        if builder.__module__.startswith(__name__):
            found |= dict.fromkeys(text.replace("{}", " ").rstrip() for text in builder.instructions)
    return [" " + " ".join(text.split()) for text in found]
